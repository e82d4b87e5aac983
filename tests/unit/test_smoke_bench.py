"""Tests of the arithmetic in the modules that inspect a running server; roles/smoke_bench/molecule runs them on a real one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.r1.prov.plugins.module_utils import llama_props
from ansible_collections.r1.prov.plugins.modules import smoke_bench

COLLECTIONS = Path(__file__).parents[2] / ".collections"

PROPS = {
    "model_path": "/m.gguf",
    "total_slots": 2,
    "default_generation_settings": {"n_ctx": 2048},
    "build_info": "b1",
}
FACTS = {"model": "/m.gguf", "slots": 2, "context_per_slot": 2048, "build": "b1"}
WANTED = {
    "engine": "llama-server",
    "page_url": "",
    "question": "?",
    "expect": "!",
    "max_tokens": 9,
    "temperature": 0.6,
    "concurrency": [1],
    "sweep_tokens": 4,
    "subject": {"profile": "demo"},
}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--ctx-size", "4096", "--parallel", "2"], []),
        (["-c", "2048", "-np", "2", "--kv-unified"], []),
        (["--ctx-size", "4000", "--parallel", "2"], []),  # the engine rounds up to a multiple of 256
        (["--parallel", "2"], []),  # an argument that is not given is not compared
        (["--ctx-size", "8192", "--parallel", "2"], ["2048 tokens of context per slot, not 4096"]),
        (["--ctx-size", "8192", "--parallel", "4"], ["2 slots, not 4"]),
    ],
)
def test_props_are_held_against_the_arguments(arguments: list[str], says: list[str]) -> None:
    found = llama_props.differences(PROPS, "/m.gguf", arguments)
    assert len(found) == len(says)
    assert all(want in sentence for want, sentence in zip(says, found, strict=True))


def test_another_model_is_noticed() -> None:
    assert llama_props.differences(PROPS, "/other.gguf", []) == ["it serves /m.gguf, not /other.gguf"]


def test_a_gpu_is_used_when_a_card_is_open(tmp_path: Path) -> None:
    folder = tmp_path / "7" / "fd"
    folder.mkdir(parents=True)
    (folder / "0").symlink_to("/dev/nvidiactl")
    (folder / "1").symlink_to("socket:[1]")
    assert not llama_props.uses_gpu("7", tmp_path)
    (folder / "2").symlink_to("/dev/nvidia0")
    assert llama_props.uses_gpu("7", tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up a right of root's: run this as root")
@pytest.mark.parametrize(
    "starts_as",
    [
        pytest.param([], id="another user"),
        # As nginx is started, which listens on port 443.
        pytest.param(
            ["setpriv", "--inh-caps=+net_bind_service", "--ambient-caps=+net_bind_service"], id="a right of its own"
        ),
    ],
)
def test_root_of_a_container_looks_at_the_files_of_another_user(starts_as: list[str]) -> None:
    look = (
        "from ansible_collections.r1.prov.plugins.module_utils import llama_props; print(llama_props.uses_gpu({pid!r}))"
    )
    as_other = [*(starts_as or ["setpriv"]), "--reuid=65534", "--regid=65534", "--clear-groups"]
    with subprocess.Popen([*as_other, "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout
            other.stdout.readline()  # It is another user now.
            asks = [sys.executable, "-c", look.format(pid=str(other.pid))]
            looked = subprocess.run(
                ["setpriv", "--bounding-set=-sys_ptrace", *asks],
                env=os.environ | {"PYTHONPATH": str(COLLECTIONS)},
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
        finally:
            other.kill()
    assert looked.stdout == "False\n", looked.stderr


def test_command_line_is_read_from_a_unit() -> None:
    unit = "[Service]\nType=exec\nExecStart=/bin/server \\\n    --port 1 \\\n    --model m\nExecStartPost=/bin/wait\n"
    assert smoke_bench.command_line(unit) == "/bin/server --port 1 --model m"
    assert smoke_bench.command_line("[Service]\n") == ""


@pytest.mark.parametrize(
    "change",
    [
        {"release": "another"},
        {"command": "server --threads 2"},
        {"wanted": {"question": "What else?"}},
        {"wanted": {"concurrency": [1, 2]}},
        {"wanted": {"subject": {"profile": "cpu"}}},
        {"wanted": {"engine": "ollama"}},
        {"wanted": {"page_url": "http://127.0.0.1:8080"}},
        {"facts": {"build": "b2"}},
    ],
)
def test_what_changed_is_measured_again(change: dict) -> None:
    def digest(wanted: dict, facts: dict, command: str = "server", release: str = "r") -> str:
        both = WANTED | wanted
        return smoke_bench.digest(smoke_bench.describe(both, FACTS | facts, command, release), both)

    changed = digest(**{"wanted": {}, "facts": {}} | change)
    assert changed != digest({}, {})
    assert changed == digest(**{"wanted": {}, "facts": {}} | change)


def test_a_model_file_that_was_replaced_is_measured_again(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.write_text("one")
    first = smoke_bench.describe(WANTED, FACTS | {"model": str(model)}, "", "")
    model.write_text("other")
    assert smoke_bench.describe(WANTED, FACTS | {"model": str(model)}, "", "") != first
