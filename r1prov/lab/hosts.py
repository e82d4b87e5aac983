"""Boots, keeps, lists and removes throwaway hosts, and runs commands on them over ssh.

A host is an overlay over a base image or over the kept image of another host, a network namespace, and systemd-nspawn with a
real systemd as PID 1. Everything that belongs to a host can be found again on the whole machine: kernel objects by their name,
processes by their `--machine=` argument, and one small record in /run, which is written before anything is made. So `down` can
clean up after a run that was cut off at any point.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from r1prov.common.errors import LabError, Problem
from r1prov.common.files import write_whole
from r1prov.common.locks import locked
from r1prov.common.paths import cache_dir
from r1prov.lab import caches, images, network
from r1prov.lab.base import RELEASES, Release, base_folder, base_image
from r1prov.lab.needs import must_be_root, requirements

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_RUN = Path("/run/r1prov-lab")
_RECORDS = _RUN / "hosts"
_NAME = re.compile(r"[a-z][a-z0-9-]{0,40}")
_NAME_RULE = "use up to 41 lower-case letters, digits and hyphens, a letter first"
# systemd 258 and newer refuse the control groups of old, and a container has those of its machine unless it is told otherwise.
_NEW_CONTROL_GROUPS: dict[Release, dict[str, str]] = {"forky": {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}}
_HIERARCHIES = ("", "unified", "systemd")  # as in supervise.sh
_BOOT_LIMIT_S = 120.0  # A boot takes 1 to 8 s on an idle machine; a busy one needs longer.


@dataclass(frozen=True)
class LabHost:
    """One throwaway host, reached as root over ssh with the lab's own key.

    Attributes:
        name: its name in the lab, which is its host name too.
        address: its IPv4 address, which no other host gets soon after this one is gone.
        release: one of RELEASES.
        host_key: its ssh host key, as a line of a .pub file.
        directory: the folder with its disk (`upper`) and its console (`console.log`).
        image: the name of the image that it booted from; empty for the bare release.
    """

    name: str
    address: str
    release: Release
    host_key: str
    directory: Path
    image: str = ""

    @property
    def key(self) -> Path:
        """The private key that logs in as root."""
        return _client_key()

    @property
    def known_hosts(self) -> Path:
        """A known_hosts file with all hosts of this lab, with which clients can check host keys strictly."""
        return _lab_dir() / "known_hosts"

    @property
    def machine(self) -> str:
        """The name of its systemd-nspawn machine, network namespace and control group."""
        return network.PREFIX + self.name

    @property
    def running(self) -> bool:
        """Whether any of its processes exists."""
        return bool(_processes(self.machine))

    def ssh_argv(self, *options: str) -> list[str]:
        """An ssh command line to this host, without the remote command. It ignores the user's own ssh configuration."""
        checks = ("BatchMode=yes", "IdentitiesOnly=yes", "StrictHostKeyChecking=yes", "ConnectTimeout=10")
        settings = (*checks, f"UserKnownHostsFile={self.known_hosts}")
        flags = [part for setting in settings for part in ("-o", setting)]
        return ["ssh", "-F", "/dev/null", "-i", str(self.key), *flags, *options, f"root@{self.address}"]


def up(
    name: str,
    release: Release = "bookworm",
    *,
    image: str = "",
    bpf: bool = False,
    binds: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
) -> LabHost:
    """Boot a fresh host, and return when systemd has started and sshd answers. A host that is up already is returned as it is.

    Args:
        name: the name, of lower-case letters, digits and hyphens.
        release: the Debian release.
        image: the name of an image of that release, which `keep` made; empty for the bare release.
        bpf: whether the host may load programs of BPF, which `IPAddressDeny` of systemd needs, as a server may and many containers may not.
        binds: folders of this machine that the host sees too, as `here:there`.
        say: is called with short lines that say what is going on.

    Raises:
        LabError: this machine cannot boot hosts, with every reason at once, or this host did not come up.
    """
    problems = requirements()
    if not _NAME.fullmatch(name):
        problems.append(Problem(where=name, what="is not a name for a host", remedy=_NAME_RULE))
    if release not in RELEASES:
        remedy = f"use one of: {', '.join(RELEASES)}"
        problems.append(Problem(where=name, what=f"unknown release {release}", remedy=remedy))
    if problems:
        raise LabError(*problems)

    with locked(_RUN / f"{name}.lock"):
        recorded = _recorded(name)
        if recorded and recorded.running and (recorded.release, recorded.image) == (release, image):
            _wait(recorded)
            say(f"{name} is up already")
            return recorded
        lower = _lower(name, base_image(release, say), image)
        _clear(name)
        try:
            host = _make(name, release, image)
            _wait(host, _boot(host, lower, binds, bpf=bpf))
        except BaseException:
            _clear(name)
            raise
    say(f"{name} is up")
    return host


def keep(name: str, image: str, *, say: Callable[[str], None] = lambda _: None) -> None:
    """Shut a host down and keep its disk as an image, which replaces one of the same name. The host is gone then.

    A host that boots from the image gets a name, an address and keys of its own.

    Args:
        name: the name of the host, which must have booted from the bare release.
        image: the name of the image, which has the form of a host's name.
        say: is called with short lines that say what is going on.

    Raises:
        LabError: there is no such host, it booted from an image, it does not shut down, or hosts run on an image of that name.
    """
    must_be_root()
    host = get(name)
    if host.image:
        remedy = "keep a host that booted from the bare release"
        raise LabError(Problem(name, f"booted from the image {host.image}", remedy))
    if not _NAME.fullmatch(image):
        raise LabError(Problem(image, "is not a name for an image", _NAME_RULE))
    forget(image, host.release)
    if image in kept(host.release):
        raise LabError(Problem(image, "is an image that hosts run on", "remove those hosts: r1prov lab down"))
    with locked(_RUN / f"{name}.lock"):
        caches.harvest(host.release, host.directory / "upper")
        _shut_down(host)
        layer = images.layer(base_folder(host.release), image)
        layer.parent.mkdir(parents=True, exist_ok=True)
        (host.directory / "upper").rename(layer)
        _clear(name)
        (_RUN / f"{name}.lock").unlink()
    say(f"{name} is kept as {image}")


def kept(release: Release) -> list[str]:
    """The names of the images of a release."""
    return images.images(base_folder(release))


def forget(image: str, release: Release) -> None:
    """Remove an image, if there is one and no host runs on it."""
    layer = images.layer(base_folder(release), image)
    if layer.exists() and not any(host.running for host in hosts() if (host.image, host.release) == (image, release)):
        shutil.rmtree(layer)


def down(name: str, *, say: Callable[[str], None] = lambda _: None) -> None:
    """Remove a host and everything that it left on this machine, if there is anything.

    The Debian packages that it downloaded stay in the cache for other hosts.

    Raises:
        LabError: this user is not root, or a process of the host does not end.
    """
    must_be_root()
    with locked(_RUN / f"{name}.lock"):
        recorded = _recorded(name)
        if not recorded and name not in network.namespaces() | _machines() and not (_hosts_dir() / name).exists():
            (_RUN / f"{name}.lock").unlink()
            say(f"there is no {name}")
            return
        if recorded:
            caches.harvest(recorded.release, recorded.directory / "upper")
        _clear(name)
        (_RUN / f"{name}.lock").unlink()
    say(f"{name} is down")


def down_all(*, say: Callable[[str], None] = lambda _: None) -> None:
    """Remove every host of this lab, and what is left of hosts whose record is lost."""
    must_be_root()
    folders = {path.name for path in _hosts_dir().iterdir()} if _hosts_dir().is_dir() else set()
    # A record is written before anything else is made. So what has no record belongs to nobody any more.
    orphans = {name for name in network.namespaces() | _machines() if not _recorded(name)}
    for name in sorted(folders | orphans | {host.name for host in hosts()}):
        down(name, say=say)


def hosts() -> list[LabHost]:
    """The hosts of this lab, which is that of this user's cache folder, sorted by name."""
    names, ours = sorted(path.stem for path in _RECORDS.glob("*.json")), _hosts_dir().resolve()
    return [host for name in names if (host := _recorded(name)) and host.directory.parent.resolve() == ours]


def get(name: str) -> LabHost:
    """A host by name.

    Raises:
        LabError: there is none of that name.
    """
    host = _recorded(name)
    if host is None:
        known = ", ".join(host.name for host in hosts()) or "none"
        raise LabError(
            Problem(where=name, what=f"no such host; there are: {known}", remedy=f"boot it: r1prov lab up {name}")
        )
    return host


def ssh(host: LabHost, argv: Sequence[str], *, timeout_s: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command on a host as root. The caller judges the return code, which is 255 where ssh itself failed."""
    command = [*host.ssh_argv(), shlex.join(argv)]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL
    )


def cut(host: LabHost) -> None:
    """Cut a host off from the outside, as a filtered network does. This machine and the other hosts stay reachable."""
    network.cut(host.name)


def restore(host: LabHost) -> None:
    """Undo `cut`."""
    network.restore(host.name)


def halt(host: LabHost) -> None:
    """End all processes of a host at once, as a power cut does. `boot` starts it again from its disk.

    Raises:
        LabError: a process does not end.
    """
    must_be_root()
    with locked(_RUN / f"{host.name}.lock"):
        _kill(host.machine)
        _remove_all_groups(host.machine)


def boot(host: LabHost) -> None:
    """Boot a host that was halted. It must have been made without `bpf` and `binds`, which no record keeps.

    Raises:
        LabError: it did not come up.
    """
    must_be_root()
    with locked(_RUN / f"{host.name}.lock"):
        lower = _lower(host.name, base_image(host.release, lambda _: None), host.image)
        # The kernel marks an overlay that is mounted `volatile`, and mounts it no more after an end without a sync.
        shutil.rmtree(host.directory / "work/work/incompat", ignore_errors=True)
        _wait(host, _boot(host, lower, (), bpf=False))


def _lower(name: str, base: Path, image: str) -> str:
    """The lower layers of a host's disk for the kernel's `lowerdir` option, the uppermost first.

    Raises:
        LabError: there is no such image.
    """
    if not image:
        return str(base)
    layer = images.layer(base, image)
    if not layer.is_dir():
        known = ", ".join(images.images(base)) or "none"
        raise LabError(
            Problem(
                name, f"there is no image {image}; there are: {known}", "make one of a host: r1prov lab keep HOST IMAGE"
            )
        )
    return f"{layer}:{base}"


def _shut_down(host: LabHost) -> None:
    """Shut a host down and wait until its last process has ended.

    Raises:
        LabError: it takes longer than a loaded machine would explain.
    """
    ssh(host, ["systemctl", "poweroff"])
    deadline = time.monotonic() + _BOOT_LIMIT_S
    while host.running:
        if time.monotonic() > deadline:
            fault = f"did not shut down within {_BOOT_LIMIT_S:.0f} s"
            raise LabError(
                Problem(host.name, fault, f"find the reason: r1prov lab ssh {host.name} systemctl list-jobs")
            )
        time.sleep(0.1)


def _make(name: str, release: Release, image: str) -> LabHost:
    """Make the record, folders, identity and network of a host. Nothing runs yet."""
    directory = _hosts_dir() / name
    upper = directory / "upper"
    ssh_dir = upper / "etc/ssh"
    for folder in (ssh_dir, directory / "work", directory / "root", upper / "root/.ssh"):
        folder.mkdir(parents=True, exist_ok=True)
    for private in (upper / "root", upper / "root/.ssh"):
        private.chmod(0o700)
    # The host key is made here, so that the lab knows it without asking the host, and no two hosts share one.
    _keygen(ssh_dir / "ssh_host_ed25519_key", comment=f"root@{name}")
    shutil.copy(_client_key().with_suffix(".pub"), upper / "root/.ssh/authorized_keys")
    (upper / "etc/hostname").write_text(f"{name}\n")
    (upper / "etc/hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost\n")
    # systemd would take an empty machine-id for a first boot, and preset all units anew.
    (upper / "etc/machine-id").write_text(f"{secrets.token_hex(16)}\n")
    (upper / "etc/resolv.conf").write_text(_resolvers())
    caches.seed(release, upper)

    with locked(_RUN / "lock"):
        host_key = (ssh_dir / "ssh_host_ed25519_key.pub").read_text().strip()
        host = LabHost(name, _free_address(), release, host_key, directory, image)
        _RECORDS.mkdir(parents=True, exist_ok=True)
        _write(_RECORDS / f"{name}.json", json.dumps(asdict(host), default=str))
        _write_known_hosts()
        network.attach(name, host.address, _RUN)
    return host


def _boot(host: LabHost, lower: str, binds: Sequence[str], *, bpf: bool) -> subprocess.Popen[bytes]:
    argv = [
        "systemd-nspawn",
        f"--machine={host.machine}",
        f"--hostname={host.name}",
        f"--directory={host.directory / 'root'}",
        f"--network-namespace-path=/run/netns/{host.machine}",
        "--boot",
        "--capability=CAP_NET_ADMIN",  # root of a server may change its network, and the namespace is the host's own
        # These two let it run where the outer machine has no systemd, or one that would not register it.
        "--register=no",
        "--keep-unit",
        "--link-journal=no",  # the journal of the host must not appear in that of this machine
        "--resolv-conf=off",  # _make wrote it, without resolvers that listen on this machine's loopback
        "--timezone=off",
        "--console=read-only",
        *(("--capability=CAP_BPF", "--system-call-filter=bpf") if bpf else ()),
        *(f"--bind={pair}" for pair in (*caches.binds(), *binds)),
    ]
    supervise = Path(__file__).with_name("supervise.sh")
    # `nice`: a host would inherit the priority of whoever boots it, and its services would not run as they are declared.
    # `slave`: mounts that go away on this machine go away in there too, and none of its own mounts appears here.
    around = ("nice", "-n", str(-os.nice(0)), "unshare", "--mount", "--propagation=slave")
    with (host.directory / "console.log").open("wb") as console:
        return subprocess.Popen(  # it outlives this process
            [*around, "sh", supervise, host.machine, lower, host.directory, *argv],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=os.environ | _NEW_CONTROL_GROUPS.get(host.release, {}),
            start_new_session=True,
        )


def _wait(host: LabHost, supervisor: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until sshd answers and systemd has started every unit.

    Raises:
        LabError: the host ended, or took longer than a loaded machine would explain.
    """
    deadline = time.monotonic() + _BOOT_LIMIT_S
    while time.monotonic() < deadline and (supervisor is None or supervisor.poll() is None):
        if _listens(host.address):
            left_s = max(1.0, deadline - time.monotonic())
            try:
                state = ssh(host, ["systemctl", "is-system-running", "--wait"], timeout_s=left_s)
            except subprocess.TimeoutExpired:
                break
            if state.stdout.strip() in ("running", "degraded"):
                return
        time.sleep(0.05)
    ended = supervisor and supervisor.poll()
    fault = (
        f"took more than {_BOOT_LIMIT_S:.0f} s to come up" if ended is None else f"ended at once with status {ended}"
    )
    console = (host.directory / "console.log").read_text(errors="replace")
    raise LabError(
        Problem(
            where=host.name,
            what=f"{fault}; the end of its console:\n{console[-3000:].strip()}",
            remedy="the last lines name what failed; `r1prov lab up --help` says what this machine needs",
        )
    )


def _listens(address: str) -> bool:
    try:
        with socket.create_connection((address, 22), timeout=0.5):
            return True
    except OSError:
        return False


def _clear(name: str) -> None:
    """Remove whatever exists of a host: processes, network, control groups, folder, record."""
    machine = network.PREFIX + name
    recorded = _recorded(name)
    directory = recorded.directory if recorded else _hosts_dir() / name
    _kill(machine)
    with locked(_RUN / "lock"):
        network.detach(name)
        _remove_all_groups(machine)
    # Removing a disk may take many seconds, so it holds no lock. The record goes last, for with it the rest is found again.
    if directory.exists():
        shutil.rmtree(directory)
    with locked(_RUN / "lock"):
        (_RECORDS / f"{name}.json").unlink(missing_ok=True)
        _write_known_hosts()
        if not list(_RECORDS.glob("*.json")) and not network.namespaces():
            network.remove_bridge(_RUN)
            # supervise.sh made this folder where there was none. One that is in use is not empty.
            with suppress(OSError):
                Path("/run/systemd").rmdir()


def _kill(machine: str) -> None:
    """Kill every process of a host. With systemd-nspawn, the kernel kills all processes inside.

    Raises:
        LabError: a process does not end within 30 s.
    """
    deadline = time.monotonic() + 30
    while pids := _processes(machine):
        if time.monotonic() > deadline:
            fault = f"its processes do not end: {sorted(pids)}"
            raise LabError(
                Problem(where=machine, what=fault, remedy="look at them with ps, then run the same command again")
            )
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _processes(machine: str) -> set[int]:
    """The processes that have the host's `--machine=` argument or live in its network namespace."""
    pids = set()
    mark = f"--machine={machine}".encode()
    try:
        namespace = os.stat(f"/run/netns/{machine}").st_ino  # noqa: PTH116
    except FileNotFoundError:
        namespace = None
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "cmdline").read_bytes().split(b"\0") or (
                namespace and (entry / "ns/net").stat().st_ino == namespace
            ):
                pids.add(int(entry.name))
        except OSError:
            continue  # The process has ended, or even root may not look at it, as at PID 1 of some containers. It is not ours.
    return pids


def _machines() -> set[str]:
    """The names of the hosts that have a supervisor or a systemd-nspawn, whether they are recorded or not."""
    mark = f"--machine={network.PREFIX}".encode()
    names = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
            names |= {argument.removeprefix(mark).decode() for argument in arguments if argument.startswith(mark)}
    return names


def _remove_all_groups(machine: str) -> None:
    """Removes the control groups of a machine that has no processes any more."""
    for hierarchy in _HIERARCHIES:
        _remove_groups(Path("/sys/fs/cgroup") / hierarchy / machine)


def _remove_groups(group: Path) -> None:
    """Remove a control group and those below it. The kernel may need a moment after the last process has ended."""
    if not group.is_dir():
        return
    for _ in range(100):
        try:
            for folder, _, _ in os.walk(group, topdown=False):
                Path(folder).rmdir()
        except OSError:
            time.sleep(0.02)
        else:
            return


def _recorded(name: str) -> LabHost | None:
    """The host that a record describes; None where there is no record."""
    try:
        record = json.loads((_RECORDS / f"{name}.json").read_text())
    except FileNotFoundError:
        return None
    return LabHost(**record | {"directory": Path(record["directory"])})


def _free_address() -> str:
    """The next address in turn, so that none is used again while a client remembers the host that had it.

    Raises:
        LabError: all addresses are taken.
    """
    counter = _RUN / "last_address"
    last = int(counter.read_text()) if counter.exists() else 1
    taken = {json.loads(path.read_text())["address"] for path in _RECORDS.glob("*.json")}
    for step in range(1, 254):
        number = (last - 2 + step) % 253 + 2
        address = f"10.209.0.{number}"
        if address not in taken:
            _write(counter, str(number))
            return address
    raise LabError(
        Problem(where="the lab", what="all 253 addresses are taken", remedy="remove hosts: r1prov lab down --all")
    )


def _write_known_hosts() -> None:
    lines = [f"{host.address} {' '.join(host.host_key.split()[:2])}\n" for host in hosts()]
    _write(_lab_dir() / "known_hosts", "".join(lines))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text, 0o644)


def _client_key() -> Path:
    key = _lab_dir() / "key"
    if not key.exists():
        with locked(_lab_dir() / "key.lock"):
            if not key.exists():
                _keygen(key, comment="r1prov lab")
    return key


def _keygen(path: Path, *, comment: str) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)],
        check=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )


def _resolvers() -> str:
    """The content of a resolv.conf with this machine's name servers.

    With systemd-resolved, these are the servers that it asks itself, since a host cannot reach its loopback address.
    """
    behind = Path("/run/systemd/resolve/resolv.conf")
    return (behind if behind.exists() else Path("/etc/resolv.conf")).read_text()


def _lab_dir() -> Path:
    return cache_dir() / "lab"


def _hosts_dir() -> Path:
    return _lab_dir() / "hosts"
