"""Checks whether this machine can boot throwaway hosts, and reports everything that is missing at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from r1prov.common.errors import LabError, Problem
from r1prov.common.paths import cache_dir

# Program -> the package that brings it, which has the same name in Debian and Ubuntu.
_PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "ip": "iproute2",
    "nft": "nftables",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "unshare": "util-linux",
}
_CONTAINER_PROGRAMS = {"losetup": "mount", "mkfs.ext4": "e2fsprogs"}
_NOT_ROOT = Problem(
    where="this user",
    what="is not root, and throwaway hosts need namespaces, mounts and a bridge",
    remedy="run the same command as root, e.g. with sudo",
)
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# Each probe does the real thing once and undoes it: (what its failure means, what to do then, shell commands).
_PROBES = (
    (
        "this kernel or container refuses new mount, network and process namespaces",
        "run it on a real or virtual machine, or in a container started with --privileged",
        "unshare --mount --net --pid --fork true",
    ),
    (
        "an overlay cannot be mounted in the cache folder",
        "put the cache on ext4 or xfs: set XDG_CACHE_HOME to a folder there",
        """
        mkdir lower upper work root
        unshare --mount mount -t overlay probe -o lowerdir=lower,upperdir=upper,workdir=work,volatile root
        """,
    ),
    (
        "the kernel has no bridge, veth or nftables masquerading",
        "load them: modprobe -a bridge veth nft_masq nft_chain_nat",
        """
        echo 'table ip probe { chain c { type nat hook postrouting priority srcnat; masquerade; }; }' > rules
        unshare --net sh -ec '
            ip link add probe0 type bridge
            ip link add probe1 type veth peer name probe2
            nft --file rules
        '
        """,
    ),
    (
        "another network here uses 10.209.0.0/24, the lab's addresses",
        "run the lab on a machine without that network",
        """
        other=$(ip -oneline -4 address show to 10.209.0.0/24 | grep -v ' r1prov0 ' || true)
        [ -z "$other" ] || { echo "$other"; exit 1; }
        """,
    ),
    (
        "the kernel's settings are read-only here, and hosts need packets forwarded",
        "on the machine that holds this container: sysctl -w net.ipv4.ip_forward=1, in its network namespace",
        """
        now=$(cat /proc/sys/net/ipv4/ip_forward)
        [ "$now" = 1 ] || echo "$now" > /proc/sys/net/ipv4/ip_forward
        """,
    ),
    (
        "control groups are read-only here, and systemd cannot boot without them",
        "run it on a real or virtual machine, or in a container started with --privileged --cgroupns=host",
        """
        for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
            [ -e $hierarchy/cgroup.procs ] || continue
            mkdir $hierarchy/r1prov-probe-$$
            rmdir $hierarchy/r1prov-probe-$$
            found=yes
        done
        [ "$found" ]
        """,
    ),
)

_CONTAINER_PROBES = (
    (
        "no file can be mounted as a disk here, and containers have one apart",
        "load the module and see that /dev/loop-control is there: modprobe loop",
        """
        truncate --size=1M disk
        mkfs.ext4 -q disk
        mkdir root
        unshare --mount mount -o loop disk root
        """,
    ),
)


def requirements(*, container: bool = False) -> list[Problem]:
    """Everything that keeps this machine from booting throwaway hosts, each with its remedy; empty where it can boot them.

    Args:
        container: whether it shall be able to boot rented containers, too.
    """
    problems = []
    programs = _PROGRAMS | (_CONTAINER_PROGRAMS if container else {})
    missing = sorted({package for program, package in programs.items() if not shutil.which(program)})
    if not _KEYRING.exists():
        missing.append("debian-archive-keyring")
    if missing:
        problems.append(
            Problem(
                where="this machine",
                what=f"lacks packages: {', '.join(missing)}",
                remedy=f"as root: apt-get install --no-install-recommends {' '.join(missing)}",
            )
        )
    if os.geteuid() != 0:
        problems.append(_NOT_ROOT)
    if not problems:
        problems += [
            Problem(where="this machine", what=f"{meaning} ({error})", remedy=remedy)
            for meaning, remedy, command in (*_PROBES, *(_CONTAINER_PROBES if container else ()))
            if (error := _probe(command))
        ]
    return problems


def must_be_root() -> None:
    """Check that this user is root.

    Raises:
        LabError: this user is not root.
    """
    if os.geteuid() != 0:
        raise LabError(_NOT_ROOT)


def _probe(command: str) -> str:
    """The first line of what a failed probe printed; empty if the probe succeeded."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
        done = subprocess.run(["sh", "-ec", command], cwd=scratch, check=False, capture_output=True, text=True)
    lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
    return lines[0] if done.returncode else ""
