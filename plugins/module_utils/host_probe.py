"""Reads what a Linux host has, in well under a second. It changes nothing.

Used in two ways: imported by r1.prov.preflight, and sent as it stands through `python3 -` by r1prov's first contact.
So it is one file that needs only the standard library.

    python3 - '{"paths": ["/srv/r1prov"], "ports": [8080]}' < host_probe.py    # or without arguments
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import glob
import json
import os
import platform
import pwd
import re
import shutil
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1024**2
DATA_DISKS = ("/root/autodl-tmp", "/workspace", "/data", "/mnt/data")
"""Where platforms mount the data disk of a container: AutoDL, then RunPod and Vast, then others."""
NETWORK_SHARES = ("nfs", "cifs", "smb", "9p", "ceph", "lustre", "beegfs", "fuse.")
"""How the types of file systems begin that another machine keeps. A disk with NTFS or exFAT is `fuseblk`."""
MEMORY = ("tmpfs", "ramfs", "devtmpfs", "hugetlbfs")
"""The types of file systems that lie in memory."""
PLATFORMS = {
    "/init/boot/boot.sh": "/etc/autodl.sh",
    "/etc/vast_boot.d": "/etc/vast_boot.d/90-r1prov.sh",
    "/start.sh": "/post_start.sh",
}
"""What tells a platform, and the script that it has bash read when it starts a container: AutoDL, Vast and RunPod."""
COMMAND_LIMIT_S = 15  # nvidia-smi takes seconds to wake many cards that no daemon keeps awake
KEPT = "/run/r1prov/units"
"""What each keeper tells of its unit, on a host without systemd."""
PACKAGE_LOCKS = (
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/lock",
    "/var/lib/apt/lists/lock",
    "/var/cache/apt/archives/lock",
)


def probe(paths: list[str] | None = None, ports: list[int] | None = None, network: str = "") -> dict[str, Any]:
    """Reads this host.

    Args:
        paths: places that will be written to. They need not exist yet.
        ports: TCP ports whose listeners are asked for. To find out whose they are takes most of the time.
        network: the file of the network namespace in which they listen; empty for the host's own.

    Returns:
        Values for JSON. Sizes end in `_bytes`, times in `_s`. What cannot be read is None or empty.
    """
    gpu = ThreadPoolExecutor().submit(_gpu)  # nvidia-smi takes time
    facts: dict[str, Any] = {
        "clock_s": time.time(),
        "system": platform.system(),
        "arch": platform.machine(),
        "os": _os(),
        "init": _read("/proc/1/comm").strip(),
        "container": _container(),
        "platform": next((path for path, hook in PLATFORMS.items() if is_platform(path, hook)), ""),
        "public_addresses": _public_addresses(),
        "ram": _ram(),
        "cpu": _cpu(),
        "disks": [_disk(path) for path in paths or []],
        "system_disk": _disk("/"),
        "etc_read_only": bool(os.statvfs("/etc").f_flag & os.ST_RDONLY),
        "data_disks": [path for path in DATA_DISKS if os.path.ismount(path) and _is_for_data(_disk(path))],
        "user": _user(),
        "sudo": _sudo(),
        "package_locks": [path for path in PACKAGE_LOCKS if _is_locked(path)],
    }
    # These two act as the owners of processes, which counts for all threads. So the other one has to be over.
    facts["gpu"] = gpu.result()
    facts["listeners"] = _listeners(ports, network) if ports else []
    if facts["gpu"]["cards"] and (facts["container"] or facts["init"] != "systemd"):
        _see_holders(facts["gpu"]["cards"])
    return facts


# --- system ---


def _os() -> dict[str, Any]:
    """`id` (debian), `version` (12) and `name` for people, from os-release."""
    values: dict[str, str] = {}
    with contextlib.suppress(OSError):
        values = platform.freedesktop_os_release()
    return {
        name: values.get(key, "") for name, key in (("id", "ID"), ("version", "VERSION_ID"), ("name", "PRETTY_NAME"))
    }


def is_platform(path: str, hook: str) -> bool:
    """Whether what tells a platform is there, and leads to the script that it has bash read.

    Vast's is the folder of that script. RunPod's script names the other one, and many other images have a script of that name.
    """
    if os.path.dirname(hook) == path:
        return os.path.isdir(path)
    return os.path.isfile(path) and (os.path.basename(path) != "start.sh" or os.path.basename(hook) in _read(path))


def _container() -> str:
    """The kind of container that this host calls itself: `docker`, `lxc`, `systemd-nspawn`; empty for a machine."""
    kind = _read("/run/systemd/container").strip()
    if kind:
        return kind
    for entry in _read("/proc/1/environ").split("\0"):
        if entry.startswith("container="):
            return entry.partition("=")[2]
    return "docker" if os.path.exists("/.dockerenv") else "podman" if os.path.exists("/run/.containerenv") else ""


def _public_addresses() -> list[str]:
    """The addresses of this host that the whole internet knows."""
    found = re.findall(r"\|-- (\S+)\n\s+/32 host LOCAL", _read("/proc/net/fib_trie"))
    found += [":".join(re.findall("....", line[:32])) for line in _read("/proc/net/if_inet6").splitlines()]
    return sorted({str(address) for address in map(ip_address, found) if address.is_global})


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _sudo() -> str:
    """How this user becomes root: `root` (it is root), `free`, `password` (or never, which sudo does not tell apart), `missing`."""
    if os.geteuid() == 0:
        return "root"
    if not shutil.which("sudo"):
        return "missing"
    return "free" if _run(["sudo", "-n", "true"])[0] == 0 else "password"


def _ram() -> dict[str, Any]:
    """The bytes of RAM that the machine has, or that the control groups of this container allow."""
    return {"total_bytes": memory_bytes()}


def _cpu() -> dict[str, Any]:
    """Model, physical `cores` and `usable_threads` (those that limits allow), and NUMA nodes."""
    model, cores, listed = "", dict[int, tuple[str, str]](), _read("/proc/cpuinfo")
    for block in listed.strip().split("\n\n"):
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}
        if "processor" not in fields:
            continue
        model = model or fields.get("model name", "")
        cores[int(fields["processor"])] = (fields.get("physical id", "0"), fields.get("core id", fields["processor"]))
    allowed, usable = os.sched_getaffinity(0), usable_threads()
    # Some containers number the processors that they show anew, so that their numbers are not those of the kernel.
    its = {core for number, core in cores.items() if number in allowed or not allowed <= cores.keys()}
    return {
        "model": model,
        "cores": min(len(its), usable),
        "usable_threads": usable,
        "numa_nodes": len(glob.glob("/sys/devices/system/node/node[0-9]*")) or 1,
    }


# --- limits of control groups ---


def memory_bytes(root: str = "/") -> int:
    """The bytes of RAM that programs of this host can have: those of the machine, or of the least limit that counts for them.

    Args:
        root: where the folders /proc and /sys lie.
    """
    match = re.search(r"^MemTotal: +(\d+)", _read(root + "/proc/meminfo"), re.MULTILINE)
    limits = [int(match.group(1)) * 1024] if match else []
    for kind, folder in _groups(root, "memory"):
        # Beyond memory.high a group is slowed down until it is of no use, so that counts like an end.
        names = ("memory.max", "memory.high") if kind == "cgroup2" else ("memory.limit_in_bytes",)
        limits += [int(limit) for limit in (_read(folder + "/" + name).strip() for name in names) if limit.isdigit()]
    return min(limits, default=0)


def usable_threads(root: str = "/") -> int:
    """The CPUs that programs of this host can use at once. Of a share that is no whole number of CPUs the part counts as one.

    Args:
        root: where the folders /proc and /sys lie.
    """
    limits = [len(os.sched_getaffinity(0))]
    for kind, folder in _groups(root, "cpu"):
        if kind == "cgroup2":
            quota, _, period = _read(folder + "/cpu.max").strip().partition(" ")
        else:
            quota, period = (_read(folder + "/cpu.cfs_%s_us" % name).strip() for name in ("quota", "period"))
        if quota.isdigit() and period.isdigit() and int(period):
            limits.append(max(1, -(-int(quota) // int(period))))
    return min(limits)


def _groups(root: str, controller: str) -> list[tuple[str, str]]:
    """The control groups whose limits count for this host: that of its programs, and all above it that can be seen.

    Returns:
        The type of the file system of each (`cgroup`, which is version 1, or `cgroup2`) and its folder.
    """
    # systemd has services in groups of their own, beside that of a login. Without systemd all comes from a login or from process 1.
    processes = ["1"] if _read(root + "/proc/1/comm").strip() == "systemd" else ["1", "self"]
    paths: dict[str, list[str]] = {"cgroup": [], "cgroup2": []}
    for process in processes:
        for line in _read("%s/proc/%s/cgroup" % (root, process)).splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0":
                paths["cgroup2"].append(path)
            elif controller in controllers.split(","):
                paths["cgroup"].append(path)
    found: dict[tuple[str, str], None] = {}
    for line in _read(root + "/proc/self/mountinfo").splitlines():
        mount, _, source = line.partition(" - ")
        top, folder = (_unescaped(field) for field in mount.split(" ")[3:5])
        kind, _, options = source.split(" ", 2)
        if kind not in paths or (kind == "cgroup" and controller not in options.split(" ")[-1].split(",")):
            continue
        for path in paths[kind] or ["/"]:
            # A path outside of what is mounted is one that this container does not see. Then the top of what it sees is its own group.
            below = os.path.relpath(path, top) if (path + "/").startswith(top.rstrip("/") + "/") else "."
            parts = [part for part in below.split("/") if part != "."]
            for depth in range(len(parts) + 1):
                found[(kind, "/".join([root.rstrip("/") + folder, *parts[:depth]]))] = None
    return list(found)


def _unescaped(path: str) -> str:
    """A path, in which mountinfo writes blanks in octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), path)


# --- GPUs ---


def _gpu() -> dict[str, Any]:
    """The NVIDIA cards, and why they cannot be used if so.

    `cards` are those the driver shows (`compute_capability` like `8.9`, `processes` with the unit each belongs to);
    `on_bus` counts those on the PCI bus, driver or not; `error` is nvidia-smi's own word; `missing_devices` are files
    that /dev lacks; `link` is how the first card is attached (`generation` and `width` of PCI Express), None where that
    is not known.
    """
    gpu: dict[str, Any] = {
        "on_bus": _cards_on_bus(),
        "driver": _loaded_driver(),
        "cards": [],
        "error": "",
        "missing_devices": [],
        "link": None,
    }
    gpu["nvidia_smi"] = shutil.which("nvidia-smi") or ""
    if not gpu["nvidia_smi"]:
        return gpu
    threads = ThreadPoolExecutor()  # each call of nvidia-smi can take a second
    processes, link = threads.submit(_gpu_processes), threads.submit(_link)
    fields = ["index", "uuid", "name", "memory.total", "memory.used", "driver_version"]
    code, out = _smi("gpu", [*fields, "compute_cap"])
    if code and "compute_cap" in out:  # drivers before 510 do not know this field
        code, out = _smi("gpu", fields)
    if code or not out.strip():
        gpu["error"] = " ".join(out.split()) or "nvidia-smi shows no card"
        return gpu
    for line in out.strip().splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) < len(fields):
            gpu["error"] = line.strip()  # a card that is lost has a sentence instead of values
            continue
        index, uuid, name, total, used, gpu["driver"], capability = [*values, ""][:7]
        gpu["cards"].append(
            {
                "index": int(index),
                "name": name,
                "memory_bytes": _mib(total) or 0,
                "used_bytes": _mib(used) or 0,
                "compute_capability": capability,
                "processes": [process for card, process in processes.result() if card == uuid],
            }
        )
    gpu["missing_devices"] = _missing_devices(len(gpu["cards"]))
    gpu["link"] = link.result() if gpu["cards"] else None
    return gpu


def _link() -> dict[str, int] | None:
    """The link of PCI Express of the first card as it is when the card works; None where the answer makes no sense.

    An idle card lowers the generation, so that is the lower one of what the card and its slot can do. The number of lanes
    stays while a card is idle, and its highest number is often that of the card alone, so that is the current one.
    A virtual machine may show a slot of the first generation, in which no card of today is: then nothing is known.
    """
    old = ["gen.max", "gen.current", "width.max", "width.current"]
    code, found = _link_figures([*old, "gen.gpumax", "gen.hostmax"])
    if code:  # older drivers do not know the last two
        code, found = _link_figures(old)
    ends = [found[name] for name in ("gen.gpumax", "gen.hostmax") if found.get(name)]
    generation = max(min(ends) if len(ends) == 2 else found.get("gen.max", 0), found.get("gen.current", 0))
    width = found.get("width.current") or found.get("width.max", 0)
    if code or not 2 <= generation <= 6 or width not in (1, 2, 4, 8, 16):
        return None
    return {"generation": generation, "width": width}


def _link_figures(names: list[str]) -> tuple[int, dict[str, int]]:
    """nvidia-smi's exit code, and what it says of the link of the first card. What is no number is left out."""
    code, out = _smi("gpu", ["pcie.link." + name for name in names])
    values = [value.strip() for value in (out.strip().splitlines() or [""])[0].split(",")]
    if len(values) != len(names):
        return code, {}
    return code, {name: int(value) for name, value in zip(names, values, strict=True) if value.isdigit()}


def _gpu_processes() -> list[tuple[str, dict[str, Any]]]:
    """(uuid of the card, process) for each process that computes and can be seen. `used_bytes` is None where it is not known."""
    code, out = _smi("compute-apps", ["gpu_uuid", "pid", "process_name", "used_memory"])
    found = re.findall(r"^(\S+), (\d+), (.*), (.*)$", out, re.MULTILINE) if code == 0 else []
    return [
        (uuid, {"pid": int(pid), "process": name, "unit": _unit(pid), "used_bytes": _mib(used)})
        for uuid, pid, name, used in found
    ]


def _see_holders(cards: list[dict[str, Any]]) -> None:
    """Gives each card without processes those that have any card open.

    A container sees no process of others, and often not even its own, because nvidia-smi knows them by the numbers of the machine.
    """
    holders = _with_cards_open()
    for card in cards:
        card["processes"] = card["processes"] or holders


def _with_cards_open() -> list[dict[str, Any]]:
    """The processes that have any card open. What each uses of it is not known."""
    found = dict.fromkeys(pid for pid, target in _opened() if re.fullmatch(r"/dev/nvidia\d+", target))
    return [{"pid": pid, "process": _process(pid), "unit": _unit(pid), "used_bytes": None} for pid in found]


def _smi(what: str, fields: list[str]) -> tuple[int, str]:
    return _run(["nvidia-smi", "--query-%s=%s" % (what, ",".join(fields)), "--format=csv,noheader,nounits"])


def _mib(text: str) -> int | None:
    """Bytes of a number of MiB; None for nvidia-smi's `[N/A]`."""
    return int(text) * MIB if text.isdigit() else None


def _cards_on_bus() -> int:
    """NVIDIA display and 3D controllers on the PCI bus, whether a driver runs them or not."""
    found = 0
    for device in glob.glob("/sys/bus/pci/devices/*"):
        found += _read(device + "/vendor").strip() == "0x10de" and _read(device + "/class").startswith("0x03")
    return found


def _loaded_driver() -> str:
    """The version of the loaded kernel driver. The kernel tells it, because nvidia-smi may be missing."""
    match = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", _read("/proc/driver/nvidia/version"))
    return match.group(1) if match else ""


def _missing_devices(n_cards: int) -> list[str]:
    """The device files that CUDA needs and /dev lacks. They are counted, because a container's /dev/nvidia3 may be its card 0."""
    missing = [path for path in ("/dev/nvidiactl", "/dev/nvidia-uvm") if not os.path.exists(path)]
    n_files = len(glob.glob("/dev/nvidia[0-9]*"))
    return missing + (["/dev/nvidiaN (%d of %d)" % (n_files, n_cards)] if n_files < n_cards else [])


# --- disk, ports, package lock ---


def _disk(path: str) -> dict[str, Any]:
    """The file system that will hold `path`, which is that of its nearest parent that exists.

    `in_the_way` is what lies where a folder has to be, as a file; empty for nothing. `kind` is its type, as `ext4` or `nfs4`. `filesystem`
    is equal for paths that share one; `free_bytes` is what a service user may take, not root's reserve.
    """
    there = os.path.abspath(path)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    holder = there
    while not os.path.exists(holder):  # A link that leads nowhere holds nothing.
        holder = os.path.dirname(holder)
    in_the_way = os.path.realpath(there) if holder == there else there
    holder = os.path.realpath(holder)
    device, stat = os.stat(holder).st_dev, os.statvfs(holder)
    mount = holder
    while not os.path.ismount(mount):
        mount = os.path.dirname(mount)
    return {
        "path": path,
        "in_the_way": "" if os.path.isdir(there) else in_the_way,
        "mount": mount,
        "kind": _file_system(mount),
        "filesystem": "%d:%d" % (os.major(device), os.minor(device)),
        "free_bytes": stat.f_bavail * stat.f_frsize,
        "read_only": bool(stat.f_flag & os.ST_RDONLY),
    }


def _is_for_data(disk: dict[str, Any]) -> bool:
    """Whether data can be written to a disk, and is there as long as this host."""
    return not disk["read_only"] and disk["kind"] not in MEMORY and not disk["kind"].startswith(NETWORK_SHARES)


def _file_system(mount: str) -> str:
    """The type of the file system that is mounted at a place. What was mounted there last is what is seen."""
    found = ""
    for line in _read("/proc/self/mountinfo").splitlines():
        fields, _, source = line.partition(" - ")
        if _unescaped(fields.split(" ")[4]) == mount:
            found = source.split(" ")[0]
    return found


def _listeners(ports: list[int], network: str) -> list[dict[str, Any]]:
    """Listening TCP sockets: port, and the owner (pid, process, unit) where this user may see it."""
    by_inode = {}
    tables = ("/proc/net/tcp", "/proc/net/tcp6")
    texts = [_run(["nsenter", f"--net={network}", "cat", *tables])[1]] if network else map(_read, tables)
    for line in "".join(texts).splitlines():
        fields = line.split()
        if fields[3] == "0A":
            port = int(fields[1].rpartition(":")[2], 16)
            if port in ports:
                by_inode[fields[9]] = port
    owners = _socket_owners(set(by_inode)) if by_inode else {}
    held = _held_by_systemd() if 1 in owners.values() else {}
    found = {}
    for inode, port in by_inode.items():
        pid = owners.get(inode)
        unit = held.get(port, "") if pid == 1 else _unit(pid)
        owner = {"port": port, "pid": pid, "process": _process(pid), "unit": unit}
        found[(port, owner["unit"] or pid)] = owner  # one line for a service that listens on IPv4 and IPv6
    return sorted(found.values(), key=lambda owner: owner["port"])


def _held_by_systemd() -> dict[int, str]:
    """TCP port -> the socket unit for which systemd itself listens there."""
    listed = _run(["systemctl", "list-sockets", "--all", "--plain", "--no-legend", "--full"])[1]
    return {int(port): unit for port, unit in re.findall(r"^\S+:(\d+)\s+(\S+)", listed, re.MULTILINE)}


def _socket_owners(inodes: set[str]) -> dict[str, int]:
    """Socket inode -> the process that has it open, for the processes this user may look into."""
    owners: dict[str, int] = {}
    for pid, target in _opened():
        if target.startswith("socket:[") and target[8:-1] in inodes:
            owners.setdefault(target[8:-1], pid)
    return owners


def _opened() -> Iterator[tuple[int, str]]:
    """What each process has open, for the processes this user may look into: its number and the name of the file."""
    for folder in glob.glob("/proc/[0-9]*"):
        pid = int(folder[len("/proc/") :])
        with contextlib.suppress(OSError), as_owner_of(pid):
            for name in os.listdir(folder + "/fd"):
                with contextlib.suppress(OSError):
                    yield pid, os.readlink("%s/fd/%s" % (folder, name))


@contextlib.contextmanager
def as_owner_of(pid: int | str) -> Iterator[None]:
    """Acts as the user of a process meanwhile, where root may not look into the processes of others, as in a container.

    Raises:
        OSError: the process is gone.
    """
    if os.geteuid() != 0 or _may_look_into_others():
        yield
        return
    with open("/proc/%s/status" % pid, encoding="utf-8", errors="replace") as file:
        uid, gid = (int(number) for number in re.findall(r"^[UG]id:\t\d+\t(\d+)", file.read(), re.MULTILINE))
    # With another effective user the capabilities would be gone. The kernel asks for all that the process has, as nginx has the one to
    # listen on port 443.
    libc = ctypes.CDLL(None)
    libc.setfsgid(gid)
    libc.setfsuid(uid)
    try:
        yield
    finally:
        libc.setfsuid(0)
        libc.setfsgid(0)


@functools.cache
def _may_look_into_others() -> bool:
    """Whether this process has the capability CAP_SYS_PTRACE."""
    rights = re.search(r"^CapEff:\t(\w+)", _read("/proc/self/status"), re.MULTILINE)
    return bool(rights and int(rights[1], 16) & 1 << 19)


def _is_locked(path: str) -> bool:
    """Whether a process has a record lock on a file. Only root may ask the kernel for those of dpkg and apt."""
    flock = struct.Struct("hhqqi4x")  # l_type, l_whence, l_start, l_len, l_pid on 64-bit Linux
    with contextlib.suppress(OSError), open(path, encoding="utf-8") as file:
        answer = fcntl.fcntl(file, fcntl.F_GETLK, flock.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        return bool(flock.unpack(answer)[0] != fcntl.F_UNLCK)
    return False


# --- small tools ---


def _process(pid: int | str | None) -> str:
    return _read("/proc/%s/comm" % pid).strip() if pid else ""


def _unit(pid: int | str | None) -> str:
    """The unit a process belongs to, e.g. `nginx.service`; empty if none, or not to be seen from here."""
    for line in _read("/proc/%s/cgroup" % pid).splitlines() if pid else []:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "name=systemd"):
            units = [part for part in path.split("/") if part.endswith((".service", ".scope"))]
            if units:
                # A user names the units below user@1000.service, perhaps like one of ours. So the first counts.
                return units[0]
    return _kept_unit(pid) if pid and not os.path.isdir("/run/systemd/system") else ""


def _kept_unit(pid: int | str) -> str:
    """The unit whose keeper has started a process, or what the process comes from; empty if none."""
    keepers = {}
    for path in glob.glob(KEPT + "/*.json"):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            told = json.loads(_read(path))
            # Another process may have the number of a keeper that is gone, and has begun at another time.
            keepers[str(told["KeeperPID"]), str(told["KeeperStart"])] = os.path.basename(path)[: -len(".json")]
    each = str(pid) if keepers else ""
    while each not in ("", "0"):
        # A program's name, which stands in front in parentheses, may hold anything.
        fields = _read("/proc/%s/stat" % each).rpartition(")")[2].split()
        if unit := keepers.get((each, "".join(fields[19:20]))):
            return unit
        each = "".join(fields[1:2])
    return ""


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _run(argv: list[str]) -> tuple[int, str]:
    """Exit code and output of a program; 124 when it took too long, as a driver in trouble makes nvidia-smi do."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=COMMAND_LIMIT_S,
            check=False,
            env=dict(os.environ, LC_ALL="C"),
        )
    except subprocess.TimeoutExpired:
        return 124, "%s did not end within %d s" % (argv[0], COMMAND_LIMIT_S)
    except OSError as error:
        return 127, "%s: %s" % (argv[0], error.strerror)
    return done.returncode, done.stdout.decode("utf-8", "replace")


if __name__ == "__main__":
    print(json.dumps(probe(**json.loads(sys.argv[1] if len(sys.argv) > 1 else "{}"))))  # noqa: T201 - stdout is the interface
