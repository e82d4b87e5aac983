"""Tests of every check of preflight, from facts and an expectation to the message."""

from __future__ import annotations

import copy

import pytest
from ansible_collections.r1.prov.plugins.module_utils.host_judge import CHECKS, judge, remarks

MIB, GB = 1024**2, 10**9


def card(index: int = 0, **changes) -> dict:
    return {
        "index": index,
        "name": "NVIDIA GeForce RTX 4090",
        "memory_bytes": 24564 * MIB,
        "used_bytes": 15 * MIB,
        "compute_capability": "8.9",
        "processes": [],
    } | changes


def process(unit: str, used_bytes: int | None, name: str = "python") -> dict:
    return {"pid": 812, "process": name, "unit": unit, "used_bytes": used_bytes}


def disk(mount: str, filesystem: str, free_gb: int) -> dict:
    return {
        "mount": mount,
        "filesystem": filesystem,
        "free_bytes": free_gb * GB,
        "read_only": False,
        "in_the_way": "",
    }


FACTS = {
    "clock_s": 1000.0,
    "system": "Linux",
    "arch": "x86_64",
    "os": {"id": "ubuntu", "version": "22.04", "like": "debian", "name": "Ubuntu 22.04.4 LTS"},
    "init": "systemd",
    "public_addresses": [],
    "platform": "/init/boot/boot.sh",
    "container": "",
    "user": "root",
    "sudo": "root",
    "ram": {"total_bytes": 480 * GB, "available_bytes": 470 * GB},
    "cpu": {"usable_threads": 64, "cores": 32, "numa_nodes": 1},
    "gpu": {
        "on_bus": 4,
        "driver": "580.65.06",
        "nvidia_smi": "/usr/bin/nvidia-smi",
        "cards": [card(index) for index in range(4)],
        "error": "",
        "missing_devices": [],
    },
    "disks": [disk("/srv", "8:1", 150), disk("/srv", "8:1", 150), disk("/", "8:2", 5)],
    "system_disk": {"mount": "/", "filesystem": "8:2", "kind": "overlay"},
    "etc_read_only": False,
    "data_disks": ["/root/autodl-tmp"],
    "data_disk": {"mount": "/srv", "filesystem": "8:1", "kind": "ext4"},
    "data_disk_away": "",
    "present_bytes": {},
    "listeners": [],
    "private_network": "",
    "rules": False,
    "hook": {},
    "sources": [],
}
EXPECT = {
    "backend": "cuda",
    "gpu_count": 4,
    "gpu_memory_bytes": 24564 * MIB,
    "gpu_compute_capability": "8.9",
    "driver_minimum": "580",
    "ram_bytes": 382 * GB,
    "memory_floor_bytes": 200 * GB,
    "cores": 64,
    "disk": [
        {
            "path": "/srv/models",
            "bytes": 140 * GB,
            "what": "weights",
            "have": [{"path": "/srv/models/a", "bytes": 49 * GB}],
        },
        {"path": "/srv/ollama", "bytes": 9 * GB, "what": "ollama", "have": []},
        {"path": "/opt", "bytes": 2 * GB, "what": "engine", "have": []},
    ],
    "ports": [{"port": 8080, "unit": "r1prov-llama-server.service"}],
    "clock_s": 1000.0,
    "clock_skew_s": 120,
    "data_dir": "/srv/r1prov",
}
LISTENER = {"port": 8080, "pid": 812, "process": "nginx", "unit": "nginx.service"}
PLAIN = {"port": 6006, "unit": "r1prov-gateway.service", "plain_at": "0.0.0.0"}
TRIED = [
    {"source": "https://a", "problem": "no answer", "remedy": "wait"},
    {"source": "/b", "problem": "gone", "remedy": "wait"},
]
SMI_MISMATCH = "Failed to initialize NVML: Driver/library version mismatch"
SMI_NO_DRIVER = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
NO_CARDS = {"gpu.cards": [], "gpu.on_bus": 0, "gpu.driver": "", "gpu.nvidia_smi": ""}


def changed(document: dict, changes: dict) -> dict:
    """A copy of `document` with the values of `changes`, whose keys are dotted paths."""
    document = copy.deepcopy(document)
    for path, value in changes.items():
        *parents, last = path.split(".")
        inner = document
        for key in parents:
            inner = inner[int(key) if key.isdigit() else key]
        inner[int(last) if last.isdigit() else last] = value
    return document


def test_a_host_that_fits_has_no_problems():
    assert judge(FACTS, EXPECT) == []


def test_http_without_tls_is_allowed_behind_a_platform_and_on_loopback():
    rented = changed(FACTS, {"init": "bash"})
    assert [each for each in judge(rented, EXPECT | {"ports": [PLAIN]}) if each["check"] == "tls"] == []
    assert judge(FACTS, EXPECT | {"ports": [PLAIN | {"plain_at": "127.0.0.1"}]}) == []


WRONG = [
    ({"os.version": "11", "os.name": "Debian 11"}, {}, "os", "Debian 11", "Ubuntu|Debian|override"),
    ({"arch": "aarch64"}, {}, "arch", "aarch64", "x86-64"),
    (
        {"init": "bash"},
        {"ports": [{"port": 8000, "unit": "r1prov-llama-server.service", "address": "0.0.0.0"}]},
        "network",
        "r1prov-llama-server.service is to listen at 0.0.0.0, and without systemd it can listen at 127.0.0.1 alone",
        "gateway",
    ),
    (
        {},
        {"ports": [PLAIN]},
        "tls",
        "r1prov-gateway.service is to speak HTTP without TLS at 0.0.0.0, and this is no rented container",
        "address: 127.0.0.1",
    ),
    (
        {"init": "bash", "public_addresses": ["8.8.8.8"]},
        {"ports": [PLAIN]},
        "tls",
        "this container has an address of its own in the internet: 8.8.8.8",
        "another type of `gateway.tls`",
    ),
    ({"user": "ann", "sudo": "free"}, {}, "sudo", "run as ann", "become"),
    ({"clock_s": 1121.0}, {}, "clock", "121 s ahead of", "set-ntp"),
    ({"clock_s": 800.0}, {}, "clock", "200 s behind", "set-ntp"),
    ({"cpu.usable_threads": 32}, {}, "cpu", "32 CPUs to use, 64 are wanted", "profile"),
    ({"ram.total_bytes": 256 * GB}, {}, "ram", "256.0 GB of RAM, 382.0 GB are wanted", "RAM"),
    (
        {},
        {"memory_floor_bytes": 600 * GB},
        "floor",
        "583.0 GB (480.0 GB and 103.0 GB); this quant needs 600.0 GB",
        "smaller quant",
    ),
    (NO_CARDS, {}, "gpu_count", "no NVIDIA cards, 4 are wanted", "profile"),
    (
        {"gpu.cards": [card(0), card(1), card(2)]},
        {},
        "gpu_count",
        "3 NVIDIA cards, 4 are wanted; the PCI bus has 4",
        "dmesg",
    ),
    (
        {"gpu.cards": [], "gpu.driver": "", "gpu.nvidia_smi": ""},
        {},
        "driver",
        "4 NVIDIA cards are in it, but no driver",
        "nvidia-driver",
    ),
    (
        {"gpu.cards": [], "gpu.nvidia_smi": ""},
        {},
        "driver",
        "580.65.06 is loaded, but nvidia-smi is missing",
        "nvidia-utils",
    ),
    ({"gpu.cards": [], "gpu.error": SMI_MISMATCH}, {}, "driver", "version mismatch", "reboot"),
    ({"gpu.cards": [], "gpu.error": SMI_NO_DRIVER}, {}, "driver", "couldn't communicate", "modprobe"),
    ({"gpu.cards": [], "gpu.on_bus": 0, "gpu.error": "No devices were found"}, {}, "driver", "No devices", "dmesg"),
    ({"gpu.driver": "550.54.15"}, {}, "driver", "550.54.15; the CUDA toolkit chosen needs 580", "update"),
    (
        {"gpu.cards.2": card(2, memory_bytes=16376 * MIB)},
        {},
        "gpu_memory",
        "card 2 (NVIDIA GeForce RTX 4090) has 16,376 MiB; 24,564",
        "profile",
    ),
    (
        {"gpu.cards.2": card(2, compute_capability="8.6")},
        {},
        "gpu_compute",
        "8.6; the engine will be compiled for 8.9",
        "profile",
    ),
    (
        {"gpu.cards.1": card(1, used_bytes=9000 * MIB, processes=[process("train.service", 8900 * MIB)])},
        {},
        "gpu_busy",
        "9,000 of 24,564 MiB of card 1 are used by python (process 812, train.service)",
        "stop",
    ),
    ({"gpu.cards.1": card(1, used_bytes=9000 * MIB)}, {}, "gpu_busy", "cannot be seen", "stop"),
    ({"gpu.missing_devices": ["/dev/nvidia-uvm"]}, {}, "gpu_devices", "/dev lacks nvidia-uvm", "nvidia-modprobe"),
    (
        {"disks.0.free_bytes": 100 * GB},
        {},
        "disk",
        "100.0 GB free; 149.0 GB are still to be written there: weights (140.0 GB), ollama (9.0 GB)",
        "49.0 GB",
    ),
    ({"disks.2.read_only": True}, {}, "disk", "at / is read-only", "writable"),
    ({"disks.0.in_the_way": "/srv/x"}, {}, "disk", "/srv/x is no folder", "another `data_dir`"),
    (
        {"listeners": [LISTENER]},
        {},
        "ports",
        "port 8080, meant for r1prov-llama-server.service, is taken by nginx of nginx.service",
        "choose another port",
    ),
    (
        {"listeners": [LISTENER | {"unit": "", "process": "", "pid": None}]},
        {},
        "ports",
        "cannot be seen",
        "another port",
    ),
    (
        {"listeners": [LISTENER | {"unit": "user@1000.service"}]},
        {},
        "ports",
        "of user@1000.service",
        "another port",
    ),
    (
        {"hook": {"what": "/etc/autodl.sh is a folder, and should be a script", "remedy": "move the folder away"}},
        {},
        "hook",
        "/etc/autodl.sh is a folder",
        "move the folder away",
    ),
    (
        {"private_network": "a unit still reached the network of the host"},
        {},
        "network",
        "cannot be kept in a network of their own: a unit still reached",
        "allow network namespaces",
    ),
    (
        {"sources": [{"what": "the weights", "tried": TRIED}]},
        {},
        "sources",
        "no source answers for the weights: https://a: no answer; /b: gone",
        "wait",
    ),
]


@pytest.mark.parametrize(("facts", "expect", "check", "what", "remedy"), WRONG)
def test_one_problem(facts: dict, expect: dict, check: str, what: str, remedy: str):
    [problem] = judge(changed(FACTS, facts), changed(EXPECT, expect))
    assert problem["check"] == check
    assert what in problem["what"]
    assert any(word in problem["remedy"] for word in remedy.split("|"))


# Process 1 of a rented container is a script. The machine's files show its driver and its bus in there.
RENTED = {"container": "docker", "gpu.on_bus": 8}
NO_CARDS_TODAY = {"gpu.cards": [], "gpu.nvidia_smi": "", "ram.total_bytes": 2 << 30, "cpu.usable_threads": 1}


@pytest.mark.parametrize("error", ["", SMI_NO_DRIVER])
def test_a_container_without_its_cards_is_one_problem_with_one_remedy(error: str):
    [problem] = judge(changed(FACTS, RENTED | NO_CARDS_TODAY | {"gpu.error": error}), EXPECT)
    assert problem["check"] == "gpu_count"
    assert problem["what"].startswith("this container has no card today and 2.1 GB of RAM, 4 cards are wanted")
    assert error in problem["what"]
    assert problem["remedy"] == "stop the instance on the platform's page, and start it there with its cards"


def test_a_container_that_is_meant_to_have_no_card_has_its_limits():
    found = judge(changed(FACTS, RENTED | NO_CARDS_TODAY), EXPECT | {"backend": "cpu"})
    assert [problem["check"] for problem in found] == ["cpu", "ram", "floor"]


OWN_LAYER = {"mount": "/", "filesystem": "8:2", "kind": "overlay"}
SHARE = {"mount": "/root/autodl-fs", "filesystem": "0:61", "kind": "nfs4"}
IN_MEMORY = {"mount": "/dev/shm", "filesystem": "0:22", "kind": "tmpfs"}
DATA_DISKS_WRONG = [
    (
        {"data_disk": OWN_LAYER},
        "/srv/r1prov lies on the container's own disk (overlay), which is gone",
        "write `data_dir: /root/autodl-tmp/r1prov` into the site file",
    ),
    ({"data_disk": OWN_LAYER, "data_disks": []}, "/srv/r1prov lies on the container's own disk", "override: [disk]"),
    (
        {"data_disk": SHARE, "data_disks": ["/root/autodl-tmp", "/workspace"]},
        "/srv/r1prov lies on a network share (nfs4 at /root/autodl-fs)",
        "write `data_dir: /root/autodl-tmp/r1prov` into the site file; the share can be a source",
    ),
    (
        {"data_disk": SHARE | {"mount": "/workspace", "kind": "fuse.mfs"}, "data_disks": ["/workspace"]},
        "/srv/r1prov lies on a network share (fuse.mfs at /workspace)",
        "rent it with a data disk",
    ),
    (
        {"data_disk": IN_MEMORY},
        "/srv/r1prov lies in memory (tmpfs at /dev/shm), which the model needs, and is gone when the host stops",
        "write `data_dir: /root/autodl-tmp/r1prov` into the site file",
    ),
    ({"etc_read_only": True}, "/etc is read-only", "on the platform's page"),
]


@pytest.mark.parametrize(("facts", "what", "remedy"), DATA_DISKS_WRONG)
def test_a_disk_on_which_nothing_would_last(facts: dict, what: str, remedy: str):
    found = judge(changed(FACTS, RENTED | {"init": "bash"} | facts), EXPECT)
    [problem] = [each for each in found if each["check"] == "disk"]
    assert problem["what"].startswith(what)
    assert remedy in problem["remedy"]


def test_where_the_data_disk_is_away_nothing_else_is_said():
    sources = [{"what": "weights", "tried": [{"source": "x", "problem": "refused", "remedy": "wait"}]}]
    facts = RENTED | {"data_disk": OWN_LAYER, "data_disk_away": "the data disk is away", "sources": sources}
    [problem] = judge(changed(FACTS, facts), EXPECT)
    assert (problem["check"], problem["what"]) == ("disk", "the data disk is away")
    assert problem["remedy"].startswith("bring the disk back")


@pytest.mark.parametrize("kind", ["tmpfs", "ramfs"])
def test_memory_is_no_disk_for_data_on_a_server_either(kind: str):
    [problem] = judge(changed(FACTS, {"data_disk": IN_MEMORY | {"kind": kind}}), EXPECT)
    assert problem["check"] == "disk"
    assert problem["what"].startswith(f"/srv/r1prov lies in memory ({kind} at /dev/shm)")
    assert problem["remedy"] == "name a folder on a disk as `data_dir`"


def test_a_full_disk_of_a_container_is_for_its_platform():
    [problem] = judge(changed(FACTS, RENTED | {"init": "bash", "disks.0.free_bytes": 0}), EXPECT)
    assert problem["remedy"].endswith("or make this one larger on the platform's page")


@pytest.mark.parametrize("disk", [OWN_LAYER, SHARE, None])
def test_where_systemd_runs_the_host_any_disk_is_one_for_data(disk: dict | None):
    assert judge(changed(FACTS, {"container": "systemd-nspawn", "data_disk": disk}), EXPECT) == []


RENTED_WRONG = [
    ({"gpu.cards": [card(0), card(1)]}, "gpu_count", "2 NVIDIA cards, 4 are wanted", "choose a profile"),
    ({"gpu.missing_devices": ["/dev/nvidia-uvm"]}, "gpu_devices", "/dev lacks nvidia-uvm", "ask the platform"),
    ({"gpu.driver": "550.54.15"}, "driver", "550.54.15; the CUDA toolkit", "let the platform update"),
    (
        {"gpu.cards.1": card(1, used_bytes=9000 * MIB)},
        "gpu_busy",
        "9,000 of 24,564 MiB of card 1 are used by other containers of its machine",
        "rent an instance whose cards nobody else uses",
    ),
    (
        {"gpu.cards.1": card(1, used_bytes=9000 * MIB, processes=[process("", None, "python3")])},
        "gpu_busy",
        "used by python3 (process 812)",
        "stop them",
    ),
]


@pytest.mark.parametrize(("facts", "check", "what", "remedy"), RENTED_WRONG)
def test_one_problem_of_a_rented_container(facts: dict, check: str, what: str, remedy: str):
    [problem] = judge(changed(FACTS, RENTED | facts), EXPECT)
    assert problem["check"] == check
    assert what in problem["what"]
    assert remedy in problem["remedy"]
    assert "modprobe" not in problem["remedy"]
    assert "dmesg" not in problem["remedy"]


RIGHT = [
    pytest.param({"gpu.cards.1": card(1, memory_bytes=24217 * MIB)}, {}, id="a card that shows a little less memory"),
    pytest.param(
        {"gpu.cards": [card(i) for i in range(4)] + [card(4, memory_bytes=2048 * MIB)]}, {}, id="a small card more"
    ),
    pytest.param({"gpu.cards.1": card(1, used_bytes=900 * MIB)}, {}, id="a desktop on a card"),
    pytest.param(
        {
            "gpu.cards.1": card(
                1, used_bytes=23000 * MIB, processes=[process("r1prov-llama-server.service", 22900 * MIB)]
            )
        },
        {},
        id="our own service on a card",
    ),
    pytest.param(
        {"gpu.cards.1": card(1, used_bytes=23000 * MIB, processes=[process("r1prov-llama-server.service", None)])},
        {},
        id="our own service, its use not told",
    ),
    pytest.param({"gpu.cards.1": card(1, compute_capability="")}, {}, id="an old driver does not tell the capability"),
    pytest.param(
        {"listeners": [LISTENER | {"unit": "r1prov-llama-server.service"}]}, {}, id="our own service on the port"
    ),
    pytest.param({"listeners": [LISTENER | {"unit": "r1prov-llama-server-door.socket"}]}, {}, id="the door to it"),
    pytest.param({"listeners": [LISTENER | {"port": 8081}]}, {}, id="another port"),
    pytest.param(
        {"disks.0.free_bytes": 101 * GB, "present_bytes": {"/srv/models/a": 49 * GB}},
        {},
        id="a third of the weights is there",
    ),
    pytest.param(NO_CARDS, {"backend": "cpu"}, id="no card for the cpu backend"),
    pytest.param({"clock_s": 1119.0}, {}, id="a clock that is a little off"),
    pytest.param({"clock_s": 9.0}, {"clock_s": None}, id="no time to compare with"),
]


@pytest.mark.parametrize(("facts", "expect"), RIGHT)
def test_no_problem(facts: dict, expect: dict):
    assert judge(changed(FACTS, facts), changed(EXPECT, expect)) == []


def test_what_is_there_does_not_count_beyond_its_size():
    facts = changed(FACTS, {"disks.0.free_bytes": 99 * GB, "present_bytes": {"/srv/models/a": 500 * GB}})
    [problem] = judge(facts, EXPECT)
    assert "100.0 GB are still to be written" in problem["what"]


def test_processors_that_the_plan_is_not_made_for_are_remarked_on():
    assert remarks(FACTS, EXPECT | {"threads": 64, "numa_nodes": 1}) == []
    assert remarks(FACTS, EXPECT) == []
    threads, nodes = remarks(changed(FACTS, {"cpu.numa_nodes": 2}), {"threads": 72, "numa_nodes": 1})
    assert "64 CPUs to use (32 physical cores), and 72 threads" in threads
    assert "cpu_threads: 32" in threads
    assert "NUMA nodes of its RAM: 2; the plan is made for 1" in nodes
    assert "numa_nodes: 2" in nodes


def test_it_says_what_services_lack_without_systemd():
    (said,) = remarks(changed(FACTS, {"init": "bash"}), EXPECT)
    assert "supervisord runs the services" in said
    assert "neither a sandbox nor a private network" in said
    (ruled,) = remarks(changed(FACTS, {"init": "bash", "rules": True}), EXPECT)
    assert "Ollama's port from whoever else logs in" in ruled
    assert "private network" not in ruled


def test_where_no_platform_starts_the_services_the_line_that_does_is_said():
    _, said = remarks(changed(FACTS, {"init": "sh", "platform": ""}), EXPECT)
    assert "`/usr/local/bin/r1prov-units boot`" in said


def test_everything_wrong_is_said_at_once():
    wrong = {"ram.total_bytes": 25 * GB, "arch": "arm", "listeners": [LISTENER]}
    found = [problem["check"] for problem in judge(changed(FACTS, NO_CARDS | wrong), EXPECT)]
    assert found == ["arch", "ram", "floor", "gpu_count", "ports"]


def test_every_check_is_tested_above():
    assert {case[2] for case in WRONG} == set(CHECKS) - {"fit"}  # another module makes the check `fit`
