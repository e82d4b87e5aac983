"""A rented container, as AutoDL rents it: a shell script is the first process, a data disk lies apart, and no systemd runs.

It has the rights of an unprivileged Docker container: nobody in there can mount, make a network, or make control groups. Its own layer
goes when the platform rebuilds it, and its data disk stays. All containers of a lab see the same shared disk.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from r1prov.lab import data_disk

DATA = "/root/autodl-tmp"
"""Where a container sees its data disk."""

SHARED = "/root/autodl-fs"
"""Where all containers of a lab see the disk that they share."""

_BOOT = "init/boot/boot.sh"
_POLICY = "usr/sbin/policy-rc.d"


def lay(upper: Path) -> None:
    """Write into a layer what the platform brings: its first process, and what tells a Docker container and its image."""
    for file in (_BOOT, _POLICY):
        (upper / file).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(__file__).with_name("boot.sh"), upper / _BOOT)
    (upper / ".dockerenv").touch()
    # Images of Debian and Ubuntu for Docker have this, so that a package which is installed starts nothing.
    (upper / _POLICY).write_text("#!/bin/sh\nexit 101\n")
    (upper / _POLICY).chmod(0o755)


def nspawn_options(directory: Path, shared: Path, *, rules: bool) -> list[str]:
    """What systemd-nspawn must be told beside what holds for all hosts; the command to run is not among it."""
    return [
        *(["--capability=CAP_NET_ADMIN"] if rules else []),
        # With these calls root could make namespaces of its own, as a user of which it would have all rights again.
        "--system-call-filter=~unshare setns",
        f"--bind={data_disk.mounted(directory)}:{DATA}",
        f"--bind={shared}:{SHARED}",
    ]


def first_command(*, rules: bool) -> list[str]:
    """What systemd-nspawn starts as the first process. It gives its rights away and becomes the platform's script.

    Args:
        rules: whether root may change the rules of the container's network, as `docker run --cap-add NET_ADMIN` allows.
    """
    more = ["+net_admin"] if rules else []
    return ["/bin/sh", "-c", Path(__file__).with_name("enter.sh").read_text(), "enter", *more]


ENVIRONMENT = {"SYSTEMD_NSPAWN_TMPFS_TMP": "0"}
"""What systemd-nspawn must find in its environment: Docker has no file system of its own at /tmp."""
