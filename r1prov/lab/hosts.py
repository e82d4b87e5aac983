"""Boots, keeps, lists and removes throwaway hosts, and runs commands on them over ssh.

A host is an overlay over a base image or over the kept image of another host, a network namespace, and systemd-nspawn with a
real systemd as PID 1, or with a shell script where it is a rented container. Everything that belongs to a host can be found again
on the whole machine: kernel objects by their name, processes by their `--machine=` argument, and one small record in /run, which is
written before anything is made. So `down` can clean up after a run that was cut off at any point.
"""

from __future__ import annotations

import json
import re
import shlex
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
from r1prov.lab import caches, data_disk, disk, images, network, nspawn, trees
from r1prov.lab.base import RELEASES, Release, base_folder, base_image
from r1prov.lab.needs import must_be_root, requirements
from r1prov.lab.processes import first, kill, machines, processes, remove_groups

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_RUN = Path("/run/r1prov-lab")
_RECORDS = _RUN / "records"
_NAME = re.compile(r"[a-z][a-z0-9-]{0,40}")
_NAME_RULE = "use up to 41 lower-case letters, digits and hyphens, a letter first"
_BOOT_LIMIT_S = 120.0  # A boot takes 1 to 8 s on an idle machine; a busy one needs longer.


@dataclass(frozen=True)
class LabHost:
    """One throwaway host, reached as root over ssh with the lab's own key.

    Attributes:
        name: its name in the lab, which is its host name too.
        address: its IPv4 address, which no other host gets soon after this one is gone.
        release: one of RELEASES.
        host_key: its ssh host key, as a line of a .pub file.
        directory: the folder with its disk (`upper`), its console (`console.log`) and the data disk of a container (`data.img`).
        image: the name of the image that it booted from; empty for the bare release.
        container: whether it is a rented container without systemd, and no server.
        bpf: whether it may load programs of BPF.
        rules: whether root of a container may change the rules of its network. Root of a server may.
        binds: folders of this machine that it sees too, as `here:there`.
    """

    name: str
    address: str
    release: Release
    host_key: str
    directory: Path
    image: str = ""
    container: bool = False
    bpf: bool = False
    rules: bool = False
    binds: tuple[str, ...] = ()

    @property
    def key(self) -> Path:
        """The private key that logs in as root."""
        return _client_key()

    @property
    def known_hosts(self) -> Path:
        """A known_hosts file with this host, with which clients can check its key strictly."""
        return self.directory / "known_hosts"

    @property
    def machine(self) -> str:
        """The name of its systemd-nspawn machine, network namespace and control group."""
        return network.PREFIX + self.name

    @property
    def running(self) -> bool:
        """Whether any of its processes exists."""
        return bool(processes(self.machine))

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
    container: bool = False,
    bpf: bool = False,
    rules: bool = False,
    binds: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
) -> LabHost:
    """Boot a fresh host, and return when systemd has started and sshd answers. A host that is up already is returned as it is.

    A rented container has no systemd. There it returns when sshd answers.

    Args:
        name: the name, of lower-case letters, digits and hyphens.
        release: the Debian release.
        image: the name of an image of that release and kind, which `keep` made; empty for the bare release.
        container: whether it is a rented container, and no server.
        bpf: whether the host may load programs of BPF, which `IPAddressDeny` of systemd needs, as a server may and many containers may not.
        rules: whether root of a container may change the rules of its network, as few platforms allow.
        binds: folders of this machine that the host sees too, as `here:there`.
        say: is called with short lines that say what is going on.

    Raises:
        LabError: this machine cannot boot hosts, with every reason at once, or this host did not come up.
    """
    problems = requirements(container=container)
    if not _NAME.fullmatch(name):
        problems.append(Problem(where=name, what="is not a name for a host", remedy=_NAME_RULE))
    if release not in RELEASES:
        remedy = f"use one of: {', '.join(RELEASES)}"
        problems.append(Problem(where=name, what=f"unknown release {release}", remedy=remedy))
    if problems:
        raise LabError(*problems)

    with locked(_RUN / f"{name}.lock"):
        recorded = _recorded(name)
        wanted = (release, image, container)
        if recorded and recorded.running and (recorded.release, recorded.image, recorded.container) == wanted:
            _wait(recorded)
            say(f"{name} is up already")
            return recorded
        lower = _lower(name, base_image(release, say, container=container), image)
        _clear(name)
        try:
            host = _make(name, release, image, container=container, bpf=bpf, rules=rules, binds=binds)
            _start(host, lower)
        except BaseException:
            _clear(name)
            raise
    say(f"{name} is up")
    return host


def keep(name: str, image: str, *, say: Callable[[str], None] = lambda _: None) -> None:
    """Shut a host down and keep its disk as an image, which replaces one of the same name. The host is gone then.

    A host that boots from the image gets a name, an address and keys of its own, and a copy of the data disk where it is a container.

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
    forget(image, host.release, container=host.container)
    if image in kept(host.release, container=host.container):
        raise LabError(Problem(image, "is an image that hosts run on", "remove those hosts: r1prov lab down"))
    with locked(_RUN / f"{name}.lock"):
        caches.harvest(host.release, host.directory / "upper")
        _shut_down(host)
        base = base_folder(host.release, container=host.container)
        layer = images.layer(base, image)
        layer.parent.mkdir(parents=True, exist_ok=True)
        if host.container:
            data_disk.file(host.directory).rename(images.data_disk(base, image))
        (host.directory / "upper").rename(layer)
        _clear(name)
        (_RUN / f"{name}.lock").unlink()
    say(f"{name} is kept as {image}")


def kept(release: Release, *, container: bool = False) -> list[str]:
    """The names of the images of a release, of servers or of containers."""
    return images.images(base_folder(release, container=container))


def forget(image: str, release: Release, *, container: bool = False) -> None:
    """Remove an image, if there is one and no host runs on it."""
    kind = (image, release, container)
    if not any(host.running for host in hosts() if (host.image, host.release, host.container) == kind):
        images.remove(base_folder(release, container=container), image)


def down(name: str, *, say: Callable[[str], None] = lambda _: None) -> None:
    """Remove a host and everything that it left on this machine, if there is anything.

    The Debian packages that it downloaded stay in the cache for other hosts.

    Raises:
        LabError: this user is not root, or a process of the host does not end.
    """
    must_be_root()
    with locked(_RUN / f"{name}.lock"):
        recorded = _recorded(name)
        if not recorded and name not in network.namespaces() | machines() and not (_hosts_dir() / name).exists():
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
    orphans = {name for name in network.namespaces() | machines() if not _recorded(name)}
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


def as_platform(host: LabHost, argv: Sequence[str]) -> None:
    """Run a command among the files of a running host with all rights of this machine, as the platform around a container can.

    It can mount what nobody inside can, such as a read-only /etc, and that lasts until the host is started again.

    Raises:
        LabError: the host does not run, or the command failed.
    """
    must_be_root()
    enter = ["nsenter", f"--target={first(host.machine)}", "--mount", "--root", "--wd=/"]
    done = subprocess.run([*enter, *argv], check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        fault = f"`{shlex.join(argv)}` failed: {done.stderr.strip()}"
        raise LabError(Problem(host.name, fault, "see that the host runs: r1prov lab list"))


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
        _end(host.name, host.directory)


def boot(host: LabHost) -> None:
    """Boot a host that was halted.

    Raises:
        LabError: it did not come up.
    """
    must_be_root()
    with locked(_RUN / f"{host.name}.lock"):
        _boot(host)


def restart(host: LabHost) -> None:
    """End all processes of a host at once and boot it again from its disk, as a platform does with a container.

    Raises:
        LabError: a process does not end, or it did not come up.
    """
    must_be_root()
    with locked(_RUN / f"{host.name}.lock"):
        _end(host.name, host.directory)
        _boot(host)


def rebuild(host: LabHost) -> None:
    """End all processes of a host, throw away all that was changed on its disk, and boot it as it was at first.

    It keeps its address, its ssh host key, and the data disks where it is a container.

    Raises:
        LabError: a process does not end, or it did not come up.
    """
    must_be_root()
    with locked(_RUN / f"{host.name}.lock"):
        _end(host.name, host.directory)
        caches.harvest(host.release, host.directory / "upper")
        disk.remove_layer(host.directory)
        disk.lay(host.directory, host.name, host.release, _client_key(), is_container=host.container)
        _boot(host)


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
    """Shut a host down and wait until its last process has ended. A container has nobody whom one could ask, and is ended.

    Raises:
        LabError: it takes longer than a loaded machine would explain.
    """
    if host.container:
        _end(host.name, host.directory)
        return
    ssh(host, ["systemctl", "poweroff"])
    deadline = time.monotonic() + _BOOT_LIMIT_S
    while host.running:
        if time.monotonic() > deadline:
            fault = f"did not shut down within {_BOOT_LIMIT_S:.0f} s"
            raise LabError(
                Problem(host.name, fault, f"find the reason: r1prov lab ssh {host.name} systemctl list-jobs")
            )
        time.sleep(0.1)


def _make(
    name: str, release: Release, image: str, *, container: bool, bpf: bool, rules: bool, binds: Sequence[str]
) -> LabHost:
    """Make the record, folders, identity and network of a host. Nothing runs yet."""
    directory = _hosts_dir() / name
    host_key = disk.make_host_key(directory, name)
    disk.lay(directory, name, release, _client_key(), is_container=container)
    if container:
        base = base_folder(release, container=True)
        data_disk.make(directory, images.data_disk(base, image) if image else None)

    with locked(_RUN / "lock"):
        address = _free_address()
        host = LabHost(name, address, release, host_key, directory, image, container, bpf, rules, tuple(binds))
        _RECORDS.mkdir(parents=True, exist_ok=True)
        _write(_RECORDS / f"{name}.json", json.dumps(asdict(host), default=str))
        host.known_hosts.write_text(f"{address} {host_key}\n")
        if container:
            _shared_disk().mkdir(exist_ok=True)
        network.attach(name, host.address, _RUN)
    return host


def _boot(host: LabHost) -> None:
    base = base_image(host.release, lambda _: None, container=host.container)
    # The kernel marks an overlay that is mounted `volatile`, and mounts it no more after an end without a sync.
    trees.remove(host.directory / "work/work/incompat")
    _start(host, _lower(host.name, base, host.image))


def _start(host: LabHost, lower: str) -> None:
    _wait(host, nspawn.start(host, lower, _shared_disk()))


def _end(name: str, directory: Path) -> None:
    """End all processes of a host, and wait until the kernel has let go of what they held."""
    machine = network.PREFIX + name
    kill(machine)
    remove_groups(machine)
    data_disk.wait_until_free(directory)


def _wait(host: LabHost, supervisor: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until sshd answers and systemd, where there is one, has started every unit.

    Raises:
        LabError: the host ended, or took longer than a loaded machine would explain.
    """
    question = ["echo", "running"] if host.container else ["systemctl", "is-system-running", "--wait"]
    deadline = time.monotonic() + _BOOT_LIMIT_S
    while time.monotonic() < deadline and (supervisor is None or supervisor.poll() is None):
        if _listens(host.address):
            left_s = max(1.0, deadline - time.monotonic())
            try:
                state = ssh(host, question, timeout_s=left_s)
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
    recorded = _recorded(name)
    directory = recorded.directory if recorded else _hosts_dir() / name
    _end(name, directory)
    with locked(_RUN / "lock"):
        network.detach(name)
    # Removing a disk may take many seconds, so it holds no lock. The record goes last, for with it the rest is found again.
    trees.remove(directory)
    with locked(_RUN / "lock"):
        (_RECORDS / f"{name}.json").unlink(missing_ok=True)
        if not any(host.container for host in hosts()):
            trees.remove(_shared_disk())
        if not list(_RECORDS.glob("*.json")) and not network.namespaces():
            network.remove_bridge(_RUN)
            # supervise.sh made this folder where there was none. One that is in use is not empty.
            with suppress(OSError):
                Path("/run/systemd").rmdir()


def _recorded(name: str) -> LabHost | None:
    """The host that a record describes; None where there is no record."""
    try:
        record = json.loads((_RECORDS / f"{name}.json").read_text())
    except FileNotFoundError:
        return None
    return LabHost(**record | {"directory": Path(record["directory"]), "binds": tuple(record["binds"])})


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


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text, 0o644)


def _client_key() -> Path:
    key = _lab_dir() / "key"
    if not key.exists():
        with locked(_lab_dir() / "key.lock"):
            if not key.exists():
                disk.keygen(key, comment="r1prov lab")
    return key


def _lab_dir() -> Path:
    return cache_dir() / "lab"


def _hosts_dir() -> Path:
    return _lab_dir() / "hosts"


def _shared_disk() -> Path:
    """What all containers of this lab see at the same place. It goes with the last of them."""
    return _lab_dir() / "shared"
