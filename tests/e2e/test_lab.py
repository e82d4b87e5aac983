"""Throwaway hosts are real, and leave nothing behind, whatever happens to the command that makes them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from r1prov import lab
from r1prov.common import paths
from r1prov.common.errors import LabError
from r1prov.lab.base import base_image

from .conftest import fresh
from .people import told

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("bootable")]


@pytest.fixture(scope="module", params=lab.RELEASES)
def host(bootable: None, request: pytest.FixtureRequest) -> Iterator[lab.LabHost]:
    """A fresh host of each release."""
    with fresh({f"lab-test-{request.param}": request.param}) as (host,):
        yield host


def test_is_a_fresh_server_with_a_real_systemd(host: lab.LabHost) -> None:
    assert told(host, "systemctl is-system-running") == "running"
    assert told(host, "cat /proc/1/comm") == "systemd"
    assert told(host, "hostname") == host.name
    assert (
        told(host, "for program in sudo ip curl gcc python3; do command -v $program || true; done")
        == "/usr/bin/python3"
    )
    assert f"VERSION_CODENAME={host.release}" in told(host, "cat /etc/os-release")


def test_each_host_has_its_own_identity(host: lab.LabHost) -> None:
    lab.down("lab-test-twin")
    twin = lab.up("lab-test-twin", host.release)
    try:
        assert twin.host_key != host.host_key
        assert twin.address != host.address
        assert told(twin, "cat /etc/machine-id") != told(host, "cat /etc/machine-id")
        # No control group is shared: a process of another host would show up in one as number 0.
        assert (
            told(twin, "find /sys/fs/cgroup -name cgroup.procs -exec cat {} + 2>/dev/null | grep -cx 0 || true") == "0"
        )
    finally:
        lab.down(twin.name)
    assert told(host, "systemctl is-system-running") == "running"


def test_reboots(host: lab.LabHost) -> None:
    before = told(host, "touch /etc/kept /run/lost; systemctl show -p UserspaceTimestamp")
    lab.ssh(host, ["systemctl", "reboot"])  # the connection may end before the answer
    deadline = time.monotonic() + 300
    while (done := lab.ssh(host, ["systemctl", "show", "-p", "UserspaceTimestamp"])).returncode or (
        done.stdout.strip() == before
    ):
        assert time.monotonic() < deadline, "it did not come back"
        time.sleep(0.2)
    assert told(host, "systemctl is-system-running --wait") == "running"
    assert told(host, "ls /etc/kept; ls /run/lost 2>/dev/null || echo lost") == "/etc/kept\nlost"


def test_comes_back_from_a_power_cut_in_which_nothing_could_tidy_up(host: lab.LabHost) -> None:
    unit = "systemd-run --quiet --unit=worker -p ExecStop='touch /etc/tidied' sleep infinity"
    told(host, f"touch /etc/kept /run/lost; {unit}; systemctl is-active worker")
    lab.halt(host)
    assert not host.running
    lab.boot(host)
    assert told(host, "systemctl is-system-running") == "running"
    assert told(host, "ls /etc/kept; ls /run/lost /etc/tidied 2>/dev/null || echo lost") == "/etc/kept\nlost"


def test_a_rebuilt_host_is_itself_and_has_lost_its_disk(host: lab.LabHost) -> None:
    before = told(host, "touch /etc/lost; cat /etc/machine-id")
    lab.restart(host)
    told(host, "test -e /etc/lost")
    lab.rebuild(host)
    assert told(host, "ls /etc/lost 2>/dev/null || systemctl is-system-running") == "running"
    assert told(host, "cat /etc/machine-id") != before
    assert lab.get(host.name) == host


def test_the_outside_can_be_cut_and_restored(host: lab.LabHost) -> None:
    probe = "python3 -c 'import socket; socket.create_connection((\"{}\", {}), 5)'"
    with socket.create_server((lab.GATEWAY, 0)) as listener:
        here = probe.format(lab.GATEWAY, listener.getsockname()[1])
        outside = "apt-get -o Acquire::Retries=0 -o Acquire::http::Timeout=20 update --error-on=any"
        told(host, here)
        lab.cut(host)
        told(host, here)
        assert lab.ssh(host, ["sh", "-c", outside]).returncode != 0
        lab.restore(host)
        told(host, here)
        told(host, outside)


def test_packages_are_downloaded_once(host: lab.LabHost) -> None:
    for earlier in (paths.cache_dir() / "apt" / host.release).glob("hello_*.deb"):
        earlier.unlink()
    told(host, "rm -f /var/cache/apt/archives/hello_*; apt-get update && apt-get install --yes --download-only hello")
    lab.down(host.name)
    again = lab.up(host.name, host.release)
    assert "hello_" in told(again, "ls /var/cache/apt/archives")


def test_up_again_returns_the_same_host() -> None:
    lab.down("lab-test-again")
    first = lab.up("lab-test-again")
    try:
        assert lab.up("lab-test-again") == first
    finally:
        lab.down("lab-test-again")
    with pytest.raises(LabError, match="no such host"):
        lab.get("lab-test-again")


def test_several_at_once() -> None:
    names = [f"lab-test-{number}" for number in range(3)]
    with ThreadPoolExecutor() as pool:
        try:
            hosts = list(pool.map(lab.up, names))
            assert len({host.address for host in hosts}) == 3
        finally:
            list(pool.map(lab.down, names))


def test_a_host_that_cannot_boot_says_why_and_is_gone() -> None:
    with pytest.raises(LabError, match=r"(?s)ended at once.*does-not-exist"):
        lab.up("lab-test-broken", binds=["/does-not-exist:/mnt"])
    assert "lab-test-broken" not in {host.name for host in lab.hosts()}


Sandbox = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """Runs `r1prov lab ...` with an empty cache, in namespaces of its own: an empty machine, whatever else runs here."""
    with tempfile.TemporaryDirectory(dir=paths.cache_dir(), prefix="lab-test-") as cache:
        for container in (False, True):
            base_image("bookworm", lambda _: None, container=container)
        (Path(cache) / "r1prov/lab").mkdir(parents=True)
        (Path(cache) / "r1prov/lab/base").symlink_to(paths.cache_dir() / "lab/base")
        unshare = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
        # The folders that mount and ip make at their first use are no traces of ours.
        setup = "mount -t tmpfs tmpfs /run; mkdir /run/mount; ip link set lo up; ip netns add x; ip netns delete x; echo ready"
        with subprocess.Popen(
            [*unshare, "sh", "-ec", f"{setup}; exec sleep infinity"], stdout=subprocess.PIPE, text=True
        ) as holder:
            assert holder.stdout
            assert holder.stdout.readline() == "ready\n"
            inside = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()[0]
            enter = ["nsenter", "--mount", "--net", "--pid", f"--target={inside}"]

            def run(*argv: str) -> subprocess.CompletedProcess[str]:
                environment = {**os.environ, "XDG_CACHE_HOME": cache}
                return subprocess.run([*enter, *argv], env=environment, capture_output=True, text=True, check=False)

            yield run
            holder.send_signal(signal.SIGKILL)


LAB = (sys.executable, "-m", "r1prov.cli", "lab")

# Everything on a machine that a host could leave behind.
TRACES = """
ip -brief link; ip -brief address; ip netns list; nft list ruleset; cat /proc/sys/net/ipv4/ip_forward
cut -d' ' -f1-3 /proc/mounts | grep -v /run/netns; ps -eo args= | grep -v -e 'ps -eo' -e 'sh -c' -e grep -e defunct
find /sys/fs/cgroup -maxdepth 2 -name 'r1prov-lab-crash*'
find /run -mindepth 1 -not -path '/run/r1prov-lab*' -o -name '*.json' -o -name 'ip_*'
find $XDG_CACHE_HOME/r1prov/lab/shared 2>/dev/null; losetup --list --output BACK-FILE | grep $XDG_CACHE_HOME
find $XDG_CACHE_HOME/r1prov/lab/hosts 2>/dev/null | tail -n +2
"""


def traces(run: Sandbox) -> str:
    return run("sh", "-c", TRACES).stdout


KINDS = pytest.mark.parametrize("kind", [(), ("--container",)], ids=["server", "container"])


@KINDS
def test_down_leaves_nothing_behind(sandbox: Sandbox, kind: tuple[str, ...]) -> None:
    before = traces(sandbox)
    booted = sandbox(*LAB, "up", "lab-crash-0", *kind)
    assert booted.returncode == 0, booted.stderr
    assert traces(sandbox) != before
    assert sandbox(*LAB, "down", "lab-crash-0").returncode == 0
    assert traces(sandbox) == before
    assert sandbox(*LAB, "down", "lab-crash-0").returncode == 0  # once more changes nothing
    assert traces(sandbox) == before


@KINDS
def test_a_killed_up_leaves_nothing_that_down_does_not_find(sandbox: Sandbox, kind: tuple[str, ...]) -> None:
    before = traces(sandbox)
    started = time.monotonic()
    assert sandbox(*LAB, "up", "lab-crash-0", *kind).returncode == 0
    whole_s = time.monotonic() - started
    sandbox(*LAB, "down", "lab-crash-0")
    cut_off = 0
    for number in range(1, 17):  # from before the first step to just before the end
        name = f"lab-crash-{number}"
        limit = f"{whole_s * (0.2 + 0.05 * number):.2f}"
        started = time.monotonic()
        killed = sandbox("timeout", "--foreground", "--signal=KILL", limit, *LAB, "up", name, *kind)
        if killed.returncode:
            cut_off += 1
        else:  # the machine has less to do than it had
            whole_s = min(whole_s, time.monotonic() - started)
        match number % 4:
            case 0:
                assert sandbox(*LAB, "down", name).returncode == 0
            case 1:
                assert sandbox(*LAB, "down", "--all").returncode == 0
            case 2:
                sandbox("rm", "-rf", "/run/r1prov-lab/records")
                assert sandbox(*LAB, "down", "--all").returncode == 0
            case 3:
                again = sandbox(*LAB, "up", name, *kind)
                assert again.returncode == 0, again.stderr
                assert sandbox(*LAB, "down", name).returncode == 0
        assert traces(sandbox) == before, f"after a kill at {limit} s"
    assert cut_off >= 8
