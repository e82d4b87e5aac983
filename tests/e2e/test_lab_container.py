"""A rented container of the lab is as a platform rents it: no systemd, few rights, a layer that can go, and a data disk that stays."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from r1prov import lab
from r1prov.common.errors import LabError
from r1prov.lab import data_disk

from .people import told

pytestmark = pytest.mark.host
NAMES = ("lab-container-first", "lab-container-second")
IMAGE = "lab-container"
# The sum of what Docker leaves to a container that is not privileged.
DOCKERS_CAPABILITIES = "00000000a80425fb"
HOOK = "echo said; echo $PPID >> /root/autodl-tmp/hooked; setsid sleep 4321 &"


@pytest.fixture(scope="module")
def host() -> Iterator[lab.LabHost]:
    """A fresh container, which the tests change one after the other."""
    if missing := lab.requirements(container=True):
        pytest.skip("containers cannot be booted here: " + "; ".join(f"{p.where}: {p.what}" for p in missing))
    for name in NAMES:
        lab.down(name)
    lab.forget(IMAGE, "bookworm", container=True)
    yield lab.up(NAMES[0], container=True)
    for name in NAMES:
        lab.down(name)
    lab.forget(IMAGE, "bookworm", container=True)


def eventually(host: lab.LabHost, command: str) -> str:
    deadline = time.monotonic() + 60
    while (done := lab.ssh(host, ["sh", "-c", command])).returncode:
        assert time.monotonic() < deadline, done.stdout + done.stderr
        time.sleep(0.1)
    return done.stdout.strip()


def test_its_first_process_is_the_script_of_the_platform(host: lab.LabHost) -> None:
    assert told(host, "tr '\\0' ' ' < /proc/1/cmdline").strip() == "bash /init/boot/boot.sh"
    told(host, "test -e /.dockerenv && ! test -e /run/systemd && ! command -v systemctl")
    assert told(host, "stat --format=%a /root") == "700"
    told(host, "setsid sh -c 'sleep 0.1 & exec true' && sleep 0.5")
    assert told(host, "ps -A -o stat= | grep -c Z || true") == "0"


@pytest.mark.parametrize(
    "command",
    [
        "unshare --net true",
        "unshare --user --map-root-user true",
        "mount -t tmpfs none /mnt",
        "mount -o remount,rw /sys/fs/cgroup",
        "umount /dev/shm",
        "ip netns add one",
        "ip link add one type dummy",
        "mkdir /sys/fs/cgroup/one /sys/fs/cgroup/systemd/one /sys/fs/cgroup/unified/one",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
    ],
)
def test_it_may_not_do_what_only_the_machine_around_it_may(host: lab.LabHost, command: str) -> None:
    assert lab.ssh(host, ["sh", "-c", command]).returncode != 0


def test_it_may_do_what_a_container_may(host: lab.LabHost) -> None:
    assert told(host, "awk '/CapBnd|CapEff/ { print $2 }' /proc/1/status").split() == [DOCKERS_CAPABILITIES] * 2
    assert told(host, "setpriv --reuid=nobody --regid=nogroup --clear-groups id --user --name") == "nobody"
    fewer = "setpriv --no-new-privs --bounding-set=-all,+chown grep -E 'CapBnd|NoNewPrivs' /proc/self/status"
    assert told(host, fewer).split() == ["CapBnd:", "0000000000000001", "NoNewPrivs:", "1"]
    assert told(host, "awk '/MemTotal/ { print ($2 > 0) }' /proc/meminfo") == "1"


def test_a_process_outlives_the_login_that_started_it(host: lab.LabHost) -> None:
    told(host, "setsid sleep 1234 < /dev/null > /dev/null 2>&1 &")
    assert told(host, "pgrep --full --count '^sleep 1234$'") == "1"


def test_its_data_disk_and_the_shared_one_are_mounts_and_the_rest_is_its_own_layer(host: lab.LabHost) -> None:
    mounts = dict(
        line.split() for line in told(host, "findmnt --list --noheadings --output TARGET,FSTYPE").splitlines()
    )
    assert mounts["/"] == "overlay"
    assert mounts["/root/autodl-tmp"] == "ext4"
    assert "/root/autodl-fs" in mounts
    assert not {"/run", "/tmp"} & set(mounts)
    groups = "findmnt --list --noheadings --output TARGET,OPTIONS | grep ^/sys/fs/cgroup"
    assert [line for line in told(host, groups).splitlines() if "ro" not in line.split()[1].split(",")] == []
    assert told(host, "df --output=size --block-size=1M /dev/shm | tail -n 1").strip() == "64"
    told(host, "fallocate --length=45G /root/autodl-tmp/big && rm /root/autodl-tmp/big")
    assert "No space left" in lab.ssh(host, ["fallocate", "--length=60G", "/root/autodl-tmp/big"]).stderr
    told(host, "rm -f /root/autodl-tmp/big")


def test_packages_can_be_installed(host: lab.LabHost) -> None:
    told(
        host,
        "apt-get update && DEBIAN_FRONTEND=noninteractive apt-get --yes --no-install-recommends install supervisor nftables",
    )
    assert told(host, "supervisord --version")
    assert told(host, "pgrep supervisord || echo none") == "none"
    assert "Operation not permitted" in lab.ssh(host, ["nft", "list", "tables"]).stderr


def test_the_platform_may_take_away_what_a_container_takes_for_granted(host: lab.LabHost) -> None:
    lab.as_platform(host, ["mount", "-o", "bind,ro", "/etc", "/etc"])
    lab.as_platform(host, ["umount", "/root/autodl-tmp"])
    lab.as_platform(host, ["mount", "-t", "tmpfs", "-o", "size=1M", "none", "/root/autodl-fs"])
    assert "Read-only file system" in lab.ssh(host, ["touch", "/etc/new"]).stderr
    assert told(host, "stat --file-system --format=%T /root/autodl-tmp /root/autodl-fs").split() == [
        "overlayfs",
        "tmpfs",
    ]
    with pytest.raises(LabError, match="`umount /root/autodl-tmp` failed: umount: "):
        lab.as_platform(host, ["umount", "/root/autodl-tmp"])
    lab.restart(host)
    told(host, "touch /etc/new && findmnt /root/autodl-tmp")


def test_started_again_it_has_its_layer_and_no_process_but_what_its_hook_starts(host: lab.LabHost) -> None:
    told(host, f"cat > /etc/autodl.sh <<'END'\n{HOOK}\nEND\n")
    told(host, "touch /run/kept /tmp/kept /opt/kept; setsid sleep 1234 < /dev/null > /dev/null 2>&1 &")
    lab.restart(host)
    assert told(host, "ls /opt/kept /run/kept /tmp/kept").split() == ["/opt/kept", "/run/kept", "/tmp/kept"]
    assert told(host, "pgrep --full --count '^sleep 1234$' || true") == "0"
    eventually(host, "pgrep --full '^sleep 4321$'")
    assert told(host, "cat /tmp/autodl.sh.log") == "said"
    assert told(host, "cat /root/autodl-tmp/hooked") == "1"
    lab.restart(lab.get(host.name))
    assert eventually(host, "test $(wc --lines < /root/autodl-tmp/hooked) = 2") == ""


def test_rebuilt_it_has_nothing_but_its_data_disks(host: lab.LabHost) -> None:
    told(host, "useradd somebody && echo shared > /root/autodl-fs/word && echo own > /root/autodl-tmp/word")
    lab.rebuild(host)
    told(host, "! id somebody && ! test -e /etc/autodl.sh && ! test -e /opt/kept && ! command -v supervisord")
    assert told(host, "cat /root/autodl-tmp/word /root/autodl-fs/word").split() == ["own", "shared"]
    assert lab.get(host.name) == host
    assert told(host, "cat /proc/1/comm") == "bash"


def test_an_image_of_it_has_its_layer_and_its_data_disk(host: lab.LabHost, tmp_path: Path) -> None:
    second = lab.up(NAMES[1], container=True)
    told(second, "echo layer > /opt/word; echo data > /root/autodl-tmp/word")
    assert told(host, "cat /root/autodl-tmp/word") == "own"
    lab.keep(second.name, IMAGE)
    assert lab.kept("bookworm", container=True) == [IMAGE]
    assert IMAGE not in lab.kept("bookworm")
    again = lab.up(NAMES[1], container=True, image=IMAGE, binds=[f"{tmp_path}:/srv"])
    (tmp_path / "bound").touch()
    lab.restart(again)
    assert told(again, "ls /srv") == "bound"
    assert told(again, "cat /opt/word /root/autodl-tmp/word /root/autodl-fs/word").split() == [
        "layer",
        "data",
        "shared",
    ]
    assert again.host_key != second.host_key
    told(again, "echo other > /root/autodl-tmp/word")
    lab.down(again.name)
    assert told(lab.up(NAMES[1], container=True, image=IMAGE), "cat /root/autodl-tmp/word") == "data"


def test_down_frees_the_disks(host: lab.LabHost) -> None:
    shared = host.directory.parents[1] / "shared"
    assert shared.is_dir()
    for name in NAMES:
        lab.down(name)
    assert not host.directory.exists()
    assert not data_disk.file(host.directory).exists()
    if not any(other.container for other in lab.hosts()):
        assert not shared.exists()


@pytest.mark.parametrize("release", [release for release in lab.RELEASES if release != "bookworm"])
def test_each_release_makes_a_container(release: lab.Release) -> None:
    lab.down(NAMES[0])
    try:
        host = lab.up(NAMES[0], release, container=True)
        assert told(host, "cat /proc/1/comm") == "bash"
        assert told(host, "awk '/CapBnd|CapEff/ { print $2 }' /proc/1/status").split() == [DOCKERS_CAPABILITIES] * 2
        told(host, "! test -e /run/systemd && ! command -v systemctl")
        lab.restart(host)
        assert f"VERSION_CODENAME={release}" in told(host, "cat /etc/os-release")
    finally:
        lab.down(NAMES[0])
