"""Tests of unit files: their quoting, golden files of the roles' units, and systemd's own check where it is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import jinja2
import pytest
import yaml
from ansible_collections.r1.prov.plugins.filter.systemd import (
    FilterModule,
    systemd_environment,
    systemd_text,
    systemd_word,
)

from tests.golden import assert_golden, kept

ROOT = Path(__file__).parents[2]

PROGRAM = {
    "service_name": "r1prov-llama-server",
    "service_description": "DeepSeek-R1 on llama.cpp",
    "service_user": "r1prov-llama",
    "service_argv": [
        "/opt/r1prov/bin/llama-server",
        "--api-key-file",
        "${CREDENTIALS_DIRECTORY}/api-key",
        "--port",
        8000,
    ],
    "service_credentials": {"api-key": "secret text"},
    "service_port": 8000,
    "service_ready_url": "http://127.0.0.1:8000/health",
    "service_start_timeout_s": 821,
    "service_oom_score_adjust": -900,
}
DECLARED = {
    "private": PROGRAM,
    "gpu": PROGRAM
    | {
        "service_devices": ["char-nvidia*"],
        "service_kernel_modules": ["nvidia", "nvidia_uvm"],
        "service_start_pre": ["/usr/bin/nvidia-modprobe --unified-memory"],
        "service_memory_lock": True,
    },
    "ollama": {
        "service_name": "r1prov-ollama",
        "service_description": "DeepSeek-R1 on Ollama",
        "service_user": "r1prov-ollama",
        "service_argv": ["/opt/r1prov/ollama/current/bin/ollama", "serve"],
        "service_environment": {"OLLAMA_HOST": "127.0.0.1:11434", "OLLAMA_MODELS": "/srv/r1prov/ollama"},
        "service_port": 11434,
        "service_ready_url": "http://127.0.0.1:11434/api/version",
        "service_state_directory": "r1prov/ollama",
        "service_write_paths": ["/srv/r1prov/ollama"],
        "service_memory_lock": True,
        "service_system_information": True,
    },
    "ollama_door": {
        "service_name": "r1prov-ollama-door",
        "service_description": "The door to port 11434 of the private network",
        "service_user": "r1prov-door",
        "service_argv": ["/usr/local/lib/r1prov-ollama-door", 11434, "r1prov-operators"],
        "service_restart": "always",
        "__service_socket": "127.0.0.1:11434",
        "__service_sees_callers": True,
    },
    "door": {
        "service_name": "r1prov-gateway",
        "service_description": "The door to the chat page and the API",
        "service_user": "r1prov-gateway",
        "service_argv": ["/usr/sbin/nginx", "-c", "/etc/r1prov/gateway/nginx.conf", "-g", "daemon off;"],
        "service_credentials": {"tls-chain": "secret text", "tls-key": "secret text", "api-key": "secret text"},
        "service_ready_url": "https://127.0.0.1:443/health",
        "service_runtime_directory": "r1prov/gateway",
        "service_network": "any",
        "service_low_ports": True,
        "service_reload_signal": "HUP",
        "service_memory_max": 2147483648,
        "service_oom_score_adjust": 500,
    },
    "renewal": {
        "service_name": "r1prov-gateway-renew",
        "service_description": "Sees to the gateway's certificate",
        "service_user": "r1prov-gateway",
        "service_argv": ["/usr/bin/certbot", "certonly"],
        "service_type": "oneshot",
        "service_restart": "no",
        "service_state_directory": "r1prov/gateway-renew",
        "service_network": "any",
        "service_chown": True,
        "service_reloads": ["r1prov-gateway.service"],
    },
    "transfer": {
        "service_name": "r1prov-weights",
        "service_description": "Fetches 100 % of the weights",
        "service_user": "r1prov-weights",
        "service_argv": ["/usr/bin/python3", "/x/fetch.py", 'a "b" $HOME 5%'],
        "service_environment": {"HF_ENDPOINT": "https://mirror.example.com/a b"},
        "service_environment_file": "/etc/network turbo",
        "service_network": "any",
        "service_state_directory": "r1prov/weights",
        "service_runtime_directory": "r1prov/weights",
        "service_write_paths": ["/srv/r1prov/models/R1"],
        "service_remain_after_exit": True,
        "service_umask": "0022",
    },
    "reading": {
        "service_name": "r1prov-weights-read",
        "service_description": "Reads the weights",
        "service_user": "r1prov-weights",
        "service_argv": ["/usr/bin/python3", "-I", "-S", "/x/verify.py", "${CREDENTIALS_DIRECTORY}/job.json"],
        "service_credentials": {"job.json": "{}"},
        "service_restart": "no",
        "service_network": "own",
        "service_idle": True,
        "service_state_directory": "r1prov/weights",
        "service_runtime_directory": "r1prov/weights-read",
        "service_read_paths": ["/run/r1prov"],
        "service_write_paths": ["/srv/r1prov/models/R1"],
    },
    "measurement": {
        "service_name": "r1prov-measure",
        "service_description": "Measures while another pauses",
        "service_user": "r1prov-llama",
        "service_argv": ["/usr/bin/python3", "/usr/local/lib/r1prov-measure", "${CREDENTIALS_DIRECTORY}/job.json"],
        "service_credentials": {"job.json": "{}"},
        "service_type": "oneshot",
        "service_restart": "no",
        "service_conflicts": ["r1prov-llama-server.service", "r1prov-ollama.service"],
        "service_network": "own",
        "service_stop_timeout_s": 10,
        "service_stop_post": ["/usr/bin/systemctl --no-block start r1prov-llama-server.service"],
    },
    "worker": {
        "service_name": "r1prov-rpc-server",
        "service_description": "Lends the devices of this host",
        "service_user": "r1prov-rpc-server",
        "service_argv": ["/opt/r1prov/bin/ggml-rpc-server", "--host", "127.0.0.1", "--port", 50052],
        "service_port": 50052,
        "service_ready_url": "tcp://127.0.0.1:50052",
        "service_restart": "always",
        "service_persists": True,
    },
    "page": {
        "service_name": "r1prov-page",
        "service_description": "A page",
        "service_user": "r1prov-page",
        "service_argv": ["/opt/r1prov/bin/page", "serve"],
        "service_secret_environment": {"PASSWORD": "secret text"},
    },
}


def rendered(declaration: dict) -> str:
    values = yaml.safe_load((ROOT / "roles/service/defaults/main.yml").read_text())
    values |= {"__service_socket": "", "__service_sees_callers": False, "__service_namespace": "r1prov"}
    values |= {"__service_loads_rules": False}
    values |= {"__service_etc": f"/etc/r1prov/{declaration['service_name'].removeprefix('r1prov-')}"} | declaration
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters |= {f"r1.prov.{name}": filter_ for name, filter_ in FilterModule().filters().items()}
    return environment.from_string((ROOT / "roles/service/templates/unit.service.j2").read_text()).render(values)


def test_the_unit_of_a_service_in_the_private_network() -> None:
    assert_golden({"unit.service": rendered(DECLARED["private"])}, "units/private")


@pytest.mark.parametrize("name", sorted(DECLARED.keys() - {"private"}))
def test_what_is_other_in_other_units(name: str) -> None:
    units = [{"unit.service": rendered(DECLARED[each])} for each in (name, "private")]
    assert_golden(kept(*units), f"units/{name}")


@pytest.mark.parametrize("name", DECLARED)
def test_no_secret_is_in_a_unit(name: str) -> None:
    assert "secret text" not in rendered(DECLARED[name])


def test_a_secret_variable_is_quoted_as_systemd_reads_it() -> None:
    text = systemd_environment({"A": 'a "b" $HOME \\ `x` 5%', "B": "two\nlines"})
    assert text == 'A="a \\"b\\" \\$HOME \\\\ \\`x\\` 5%"\nB="two\nlines"\n'


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed here")
@pytest.mark.parametrize("name", DECLARED)
def test_systemd_gives_each_unit_two_or_better(name: str, tmp_path: Path) -> None:
    unit = tmp_path / f"{name}.service"
    unit.write_text(rendered(DECLARED[name]))
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("--ctx-size", "--ctx-size"),
        (8192, "8192"),
        ("a b", '"a b"'),
        ("", '""'),
        (";", '";"'),
        ('"', r'"\""'),
        ("back\\slash", r'"back\\slash"'),
        ("100%", '"100%%"'),
        ("$HOME", '"$$HOME"'),
        ("${CREDENTIALS_DIRECTORY}/key", '"${CREDENTIALS_DIRECTORY}/key"'),
        ("two\nlines", r'"two\nlines"'),
    ],
)
def test_a_word_reaches_the_program_as_it_is(value: object, word: str) -> None:
    assert systemd_word(value) == word


def test_a_text_cannot_begin_another_setting() -> None:
    assert systemd_text("one\nExecStart=two %h") == "one ExecStart=two %%h"


def test_no_handler_which_a_run_that_is_stopped_would_lose():
    notifying = [
        path for path in ROOT.glob("roles/*/tasks/*.yml") if re.search(r"^\s*notify:", path.read_text(), re.MULTILINE)
    ]
    assert notifying == []
    assert list(ROOT.glob("roles/*/handlers")) == []
