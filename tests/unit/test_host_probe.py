"""Tests of the probe on this machine, run as first contact runs it. nvidia-smi is a script that answers as the real one does."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.r1.prov.plugins.module_utils import host_probe

SOURCE = Path(host_probe.__file__).read_text()
MIB = 1024**2


def probe(path: str | None = None, **arguments) -> dict:
    """Runs the text of the probe with `python3 -`, with another PATH if one is given, and returns its result."""
    done = subprocess.run(
        [sys.executable, "-", json.dumps(arguments)],
        input=SOURCE,
        env=os.environ | ({"PATH": path} if path else {}),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def smi(folder: Path, gpu: str, apps: str = "", code: int = 0, link: dict[str, str] | None = None) -> str:
    """A PATH with an nvidia-smi that prints `gpu` and exits with `code`. Asked for processes, it prints `apps`.

    Asked for `pcie.link.` fields, it prints those of `link` as often as there are cards, and refuses one that it does not know.
    """
    program = folder / "nvidia-smi"
    cases = "".join(f"pcie.link.{name}) printf '%s%s' \"$sign\" '{value}';;\n" for name, value in (link or {}).items())
    program.write_text(
        "#!/bin/sh\ncase $1 in --query-compute-apps=*) cat <<'END'\n" + apps + "\nEND\nexit 0;;\n"
        "--query-gpu=*pcie.link*) for card in " + "0 " * len(gpu.splitlines()) + "; do sign=\n"
        'for field in $(echo "${1#*=}" | tr , " "); do case $field in\n'
        + cases
        + '*) echo "Field \\"$field\\" is not a valid field to query."; exit 2;;\nesac; sign=", "; done; echo; done; exit 0;;\nesac\n'
        "cat <<'END'\n" + gpu + f"\nEND\nexit {code}\n"
    )
    program.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_this_machine_in_under_a_second_of_a_core():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    facts = probe()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
    assert facts["arch"] == platform.machine()
    assert facts["init"] == Path("/proc/1/comm").read_text().strip()
    assert facts["ram"]["total_bytes"] > 0
    assert facts["cpu"]["usable_threads"] >= 1
    assert facts["os"]["id"]


def test_nobody_looks_for_listeners_where_no_port_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(host_probe, "_listeners", None)
    assert probe()["listeners"] == []


def test_disk_of_paths_that_do_not_exist_yet(tmp_path: Path):
    new, other = probe(paths=[f"{tmp_path}/a/b", "/proc/none"])["disks"]
    free = shutil.disk_usage(tmp_path).free
    assert new["filesystem"] != other["filesystem"]
    assert other["mount"] == "/proc"
    assert abs(new["free_bytes"] - free) < 1e9  # other programs write to this disk too
    assert not new["read_only"]


def test_a_listener_and_its_owner():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        [owner] = probe(ports=[port])["listeners"]
    assert owner["port"] == port
    assert owner["pid"] == os.getpid()
    assert owner["process"]


@pytest.mark.parametrize(
    ("group", "unit"),
    [
        ("0::/system.slice/nginx.service", "nginx.service"),
        ("0::/user.slice/user-0.slice/session-3.scope", "session-3.scope"),
        ("0::/user.slice/user-7.slice/user@7.service/app.slice/r1prov-gateway.service", "user@7.service"),
        ("2:cpu:/\n1:name=systemd:/system.slice/nginx.service", "nginx.service"),
        ("0::/init.scope", "init.scope"),
    ],
)
def test_a_unit_below_a_users_own_systemd_is_not_taken_for_one_of_ours(
    monkeypatch: pytest.MonkeyPatch, group: str, unit: str
):
    monkeypatch.setattr(host_probe, "_read", {"/proc/7/cgroup": group}.get)
    assert host_probe._unit(7) == unit


def test_a_lock_that_another_process_has(tmp_path: Path):
    (tmp_path / "lock").touch()
    assert not host_probe._is_locked(f"{tmp_path}/lock")
    assert not host_probe._is_locked(f"{tmp_path}/none")
    holder = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", holder, f"{tmp_path}/lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        assert host_probe._is_locked(f"{tmp_path}/lock")
        process.stdin.close()


def test_four_cards_and_their_processes(tmp_path: Path):
    row = "{0}, GPU-{0}, NVIDIA GeForce RTX 4090, 24564, {1}, 550.54.15, 8.9"
    path = smi(
        tmp_path,
        "\n".join(row.format(index, 1) for index in range(3)) + "\n" + row.format(3, 9001),
        f"GPU-3, {os.getpid()}, /opt/a, b/python3, 8990\nGPU-3, 1, [Not Found], [N/A]",
    )
    gpu = probe(path)["gpu"]
    assert gpu["driver"] == "550.54.15"
    assert [card["memory_bytes"] for card in gpu["cards"]] == [24564 * MIB] * 4
    assert {card["compute_capability"] for card in gpu["cards"]} == {"8.9"}
    assert [len(card["processes"]) for card in gpu["cards"]] == [0, 0, 0, 2]
    known, unknown = gpu["cards"][3]["processes"]
    assert known["process"] == "/opt/a, b/python3"
    assert known["used_bytes"] == 8990 * MIB
    assert unknown["used_bytes"] is None


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a card here")
def test_device_files_that_are_missing(tmp_path: Path):
    gpu = probe(smi(tmp_path, "0, GPU-0, NVIDIA H800, 81559, 1, 580.65.06, 9.0"))["gpu"]
    assert gpu["missing_devices"] == ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidiaN (0 of 1)"]


def test_a_driver_that_does_not_know_the_compute_capability(tmp_path: Path):
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\ncase $1 in *compute_cap*) echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2;; esac\n"
        "echo '0, GPU-0, NVIDIA A100, 40536, 0, 470.82.01'\n"
    )
    program.chmod(0o755)
    [card] = probe(f"{tmp_path}:{os.environ['PATH']}")["gpu"]["cards"]
    assert card["compute_capability"] == ""
    assert card["memory_bytes"] == 40536 * MIB


def test_nvidia_smi_that_fails(tmp_path: Path):
    gpu = probe(smi(tmp_path, "Failed to initialize NVML: Driver/library version mismatch", code=18))["gpu"]
    assert gpu["cards"] == []
    assert gpu["error"] == "Failed to initialize NVML: Driver/library version mismatch"


NEW = ("gen.max", "gen.gpumax", "gen.hostmax", "gen.current", "width.max", "width.current")
OLD = ("gen.max", "gen.current", "width.max", "width.current")


@pytest.mark.parametrize(
    ("names", "said", "found"),
    [
        (NEW, "4 4 4 1 16 16", (4, 16)),  # idle: the generation is lowered
        (NEW, "4 4 5 4 16 16", (4, 16)),  # the slot could do more than the card
        (NEW, "3 4 3 1 16 8", (3, 8)),  # an older slot with half of the lanes
        (NEW, "1 5 5 1 16 16", (5, 16)),  # a driver whose gen.max follows the current one
        (OLD, "3 1 16 4", (3, 4)),  # a driver that does not know the ends
        (NEW, "4 [N/A] [N/A] 1 16 [N/A]", (4, 16)),
        (NEW, "1 4 1 1 16 16", None),  # a virtual machine that shows no real slot
        (NEW, "1 4 1 4 16 16", (4, 16)),  # the same, but the card is at work
        (NEW, "[N/A] [N/A] [N/A] [N/A] [N/A] [N/A]", None),
        (NEW, "[Unknown] 0 0 0 0 0", None),
        (NEW, "4 4 4 1 16 3", None),
        (NEW, "99 99 99 99 16 16", None),
        ((), "", None),
    ],
)
def test_the_link_of_the_first_card_as_it_is_when_the_card_works(
    tmp_path: Path, names: tuple[str, ...], said: str, found: tuple[int, int] | None
):
    values = dict(zip(names, said.split(), strict=True))
    path = smi(tmp_path, "0, GPU-0, NVIDIA GeForce RTX 4090, 24564, 1, 550.54.15, 8.9", link=values)
    gpu = probe(path)["gpu"]
    assert len(gpu["cards"]) == 1
    assert gpu["link"] == (found and {"generation": found[0], "width": found[1]})


def test_a_host_without_cards_has_no_link(tmp_path: Path):
    assert probe(smi(tmp_path, "No devices were found", code=6))["gpu"]["link"] is None
