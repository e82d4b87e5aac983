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
from ansible_collections.r1.prov.plugins.module_utils import build_llama_cpp, host_probe
from transfer import delivery, memory

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


def test_addresses_that_the_whole_internet_knows_are_told_from_others(monkeypatch):
    trie = "".join(
        f"        |-- {address}\n           {kind}\n"
        for address, kind in (
            ("172.17.0.2", "/32 host LOCAL"),
            ("100.64.0.3", "/32 host LOCAL"),
            ("8.8.8.8", "/32 host LOCAL"),
            ("8.8.8.0", "/24 link UNICAST"),
        )
    )
    inet6 = "fe800000000000000000000000000001 02 40 20 80 eth0\n2a0104f8000000000000000000000001 02 40 00 80 eth0\n"
    monkeypatch.setattr(host_probe, "_read", {"/proc/net/fib_trie": trie, "/proc/net/if_inet6": inet6}.get)
    assert host_probe._public_addresses() == ["2a01:4f8::1", "8.8.8.8"]


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
    assert not new["in_the_way"]
    (tmp_path / "a").touch()
    (below,) = probe(paths=[f"{tmp_path}/a/b"])["disks"]
    assert below["in_the_way"] == f"{tmp_path}/a"
    (tmp_path / "nowhere").symlink_to("/not/there")
    (tmp_path / "file").symlink_to("a")
    nowhere, file = probe(paths=[f"{tmp_path}/nowhere/b", f"{tmp_path}/file/b"])["disks"]
    assert (nowhere["in_the_way"], nowhere["filesystem"]) == (f"{tmp_path}/nowhere", new["filesystem"])
    assert file["in_the_way"] == f"{tmp_path}/a"
    assert (other["kind"], new["kind"] not in ("", "proc")) == ("proc", True)


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


def test_in_a_container_whoever_has_a_card_open_is_a_process_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(host_probe, "_container", lambda: "docker")
    monkeypatch.setattr(host_probe, "_opened", lambda: iter([(7, "/dev/nvidia2"), (8, "/dev/null")]))
    monkeypatch.setattr(host_probe, "_unit", lambda pid: f"r1prov-{pid}.service")
    monkeypatch.setenv("PATH", smi(tmp_path, "0, GPU-0, NVIDIA H800, 81559, 9001, 580.65.06, 9.0"))
    [card] = host_probe.probe()["gpu"]["cards"]
    assert [(each["pid"], each["unit"], each["used_bytes"]) for each in card["processes"]] == [
        (7, "r1prov-7.service", None)
    ]


# --- limits of control groups, on trees that look like /proc and /sys of containers ---

GIB = 1 << 30
UNLIMITED_V1 = "9223372036854771712"
V2_MOUNT = "30 23 0:26 {top} /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate"
V1_MOUNT = "3{n} 31 0:3{n} {top} /sys/fs/cgroup/{names} ro,nosuid master:1 - cgroup cgroup rw,{names}"


def host(
    root: Path, groups: str, mounts: list[str], limits: dict[str, str], *, init: str = "bash", first: str = ""
) -> str:
    """A root folder whose programs are in `groups`, with `limits` of control groups on a machine of 512 GiB.

    Args:
        root: the folder.
        groups: the text of /proc/self/cgroup.
        mounts: lines of mountinfo.
        limits: files below /sys/fs/cgroup and what they say.
        init: the name of process 1.
        first: the text of /proc/1/cgroup, where it is another one.
    """
    files = {
        "proc/meminfo": f"MemTotal:       {512 * GIB // 1024} kB\nMemFree: 1 kB\n",
        "proc/1/comm": f"{init}\n",
        "proc/1/cgroup": first or groups,
        "proc/self/cgroup": groups,
        "proc/self/mountinfo": "\n".join(["22 1 8:1 / / rw - overlay overlay rw", *mounts]) + "\n",
        **{f"sys/fs/cgroup/{name}": f"{value}\n" for name, value in limits.items()},
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return str(root)


V1 = [V1_MOUNT.format(n=1, top="/", names="cpu,cpuacct"), V1_MOUNT.format(n=2, top="/", names="memory")]
V1_OF_DOCKER = [each.replace("/ /sys", "/docker/ab /sys") for each in V1]
HYBRID = [*V1, "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"]
LIMITS = [
    pytest.param("0::/\n", [V2_MOUNT.format(top="/")], {}, (512, 64), id="none"),
    pytest.param(
        "0::/\n", [V2_MOUNT.format(top="/")], {"memory.max": "max", "cpu.max": "max 100000"}, (512, 64), id="unlimited"
    ),
    pytest.param(
        "0::/\n",
        [V2_MOUNT.format(top="/")],
        {"memory.max": f"{2 * GIB}", "cpu.max": "50000 100000"},
        (2, 1),
        id="half a CPU",
    ),
    pytest.param(
        "0::/\n", [V2_MOUNT.format(top="/")], {"memory.high": f"{90 * GIB}"}, (90, 64), id="slowed down from here on"
    ),
    pytest.param(
        "0::/box/work/shell\n",
        [V2_MOUNT.format(top="/")],
        {
            "box/memory.max": f"{120 * GIB}",
            "box/work/memory.max": "max",
            "box/work/shell/memory.max": f"{300 * GIB}",
            "box/cpu.max": "max 100000",
            "box/work/cpu.max": "1650000 100000",
            "other/memory.max": f"{GIB}",
        },
        (120, 17),
        id="an ancestor's limit",
    ),
    pytest.param(
        "0::/kube/pod/shell\n",
        [V2_MOUNT.format(top="/kube/pod")],
        {"shell/memory.max": f"{64 * GIB}", "memory.max": f"{80 * GIB}"},
        (64, 64),
        id="a part of the tree is mounted",
    ),
    pytest.param("0::/../../x\n", [V2_MOUNT.format(top="/")], {"memory.max": f"{64 * GIB}"}, (64, 64), id="outside"),
    pytest.param(
        "4:memory:/\n3:cpu,cpuacct:/\n",
        V1,
        {
            "memory/memory.limit_in_bytes": UNLIMITED_V1,
            "cpu,cpuacct/cpu.cfs_quota_us": "-1",
            "cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
        (512, 64),
        id="version 1, unlimited",
    ),
    pytest.param(
        "4:memory:/docker/ab/in\n3:cpu,cpuacct:/docker/ab\n1:name=systemd:/docker/ab\n",
        V1_OF_DOCKER,
        {
            "memory/memory.limit_in_bytes": f"{480 * GIB}",
            "memory/in/memory.limit_in_bytes": f"{470 * GIB}",
            "cpu,cpuacct/cpu.cfs_quota_us": "2500000",
            "cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
        (470, 25),
        id="version 1",
    ),
    pytest.param(
        "4:memory:/a/b\n3:cpu,cpuacct:/a\n0::/a\n",
        HYBRID,
        {"memory/a/memory.limit_in_bytes": f"{31 * GIB}", "memory/a/b/memory.limit_in_bytes": UNLIMITED_V1},
        (31, 64),
        id="both versions",
    ),
]


@pytest.mark.parametrize(("groups", "mounts", "limits", "found"), LIMITS)
def test_the_least_limit_of_a_group_and_its_ancestors_counts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    groups: str,
    mounts: list[str],
    limits: dict[str, str],
    found: tuple[int, int],
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    root = host(tmp_path, groups, mounts, limits)
    assert (host_probe.memory_bytes(root) / GIB, host_probe.usable_threads(root)) == found
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 512 << 18, "SC_PAGE_SIZE": 4096}.get)
    assert memory.memory_bytes(tmp_path) / GIB == found[0]  # The transfer reads the same by itself.


def test_the_limit_of_a_login_is_none_for_services_of_systemd(tmp_path: Path):
    of_login = {"user.slice/memory.max": f"{4 * GIB}"}
    mount = [V2_MOUNT.format(top="/")]
    groups = "0::/user.slice/user-0.slice/session-3.scope\n"
    root = host(tmp_path, groups, mount, of_login, init="systemd", first="0::/init.scope\n")
    assert host_probe.memory_bytes(root) == 512 * GIB


def test_processors_that_this_host_may_not_use_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 4, 5})
    assert host_probe.usable_threads(host(tmp_path, "0::/\n", [], {})) == 3


def test_cores_are_those_that_this_host_may_use(monkeypatch: pytest.MonkeyPatch):
    listed = "\n\n".join(f"processor : {n}\nmodel name : Xeon\nphysical id : 0\ncore id : {n % 8}" for n in range(16))
    monkeypatch.setattr(host_probe, "_read", lambda path: listed if path == "/proc/cpuinfo" else "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 8, 9})
    assert [host_probe._cpu()[name] for name in ("cores", "usable_threads")] == [2, 4]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(100, 116)))  # numbered anew in /proc/cpuinfo
    assert [host_probe._cpu()[name] for name in ("cores", "usable_threads")] == [8, 16]


def test_compilers_and_run_ahead_of_the_transfer_keep_to_what_a_container_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(build_llama_cpp, "memory_bytes", lambda: 9 * GIB)
    monkeypatch.setattr(build_llama_cpp, "usable_threads", lambda: 64)
    build = object.__new__(build_llama_cpp.LlamaCpp)
    build._wanted = {"jobs": 0}
    assert build._jobs() == 4
    monkeypatch.setattr(build_llama_cpp, "usable_threads", lambda: 3)
    assert build._jobs() == 3
    monkeypatch.setattr(delivery, "memory_bytes", lambda: 4 * GIB)
    assert delivery.look_ahead_bytes() == GIB // 2


@pytest.mark.parametrize(
    ("kind", "read_only", "fits"),
    [
        ("ext4", False, True),
        ("fuseblk", False, True),
        ("ext4", True, False),
        ("tmpfs", False, False),
        ("fuse.mfs", False, False),
    ],
)
def test_a_disk_is_for_data_if_it_lasts(kind, read_only, fits):
    assert host_probe._is_for_data({"kind": kind, "read_only": read_only}) is fits
