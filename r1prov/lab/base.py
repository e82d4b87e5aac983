"""Makes base images, each a minimal Debian with sshd and python3. All hosts of a release and kind share one as their lower layer."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from r1prov.common.errors import LabError, Problem
from r1prov.common.locks import locked
from r1prov.common.paths import cache_dir
from r1prov.lab import images, trees

if TYPE_CHECKING:
    from collections.abc import Callable

Release = Literal["bullseye", "bookworm", "trixie", "forky"]
RELEASES: tuple[Release, ...] = get_args(Release)

# A server that was just installed has these: a login over ssh, and the python3 that Ansible needs. It has no sudo and no certificates.
_PACKAGES = ("systemd", "systemd-sysv", "dbus", "openssh-server", "python3")

# A rented container has no systemd, and more of what people expect. `mount` is not for mounting, which it may not do.
_CONTAINER_PACKAGES = ("openssh-server", "python3", "ca-certificates", "iproute2", "mount", "procps")
# From Debian 13 on, sshd wants this program, and would bring all of systemd for it.
_INSTEAD_OF_SYSTEMD: dict[Release, tuple[str, ...]] = {
    "trixie": ("systemd-standalone-sysusers",),
    "forky": ("systemd-standalone-sysusers",),
}

# A release that is still being made names a day after which its lists do not count. A mirror that somebody holds back, as companies do,
# serves them longer. Their signature is checked all the same. mmdebstrap keeps the option in the image, so it holds for the host, too.
_OPTIONS: dict[Release, tuple[str, ...]] = {"forky": ('--aptopt=Acquire::Check-Valid-Until "false"',)}

# mmdebstrap mounts this machine's /dev, /sys and /proc below the folder that it fills. In a mount namespace of its own these mounts go
# with its last process. That process ends with this one, however this one ends: the kernel kills `unshare` then, and `unshare` kills the
# first process of the namespace of processes.
_ALONE = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--propagation=slave", "--pid", "--mount-proc", "--fork", "--kill-child"),
)

# The image gets these, but each host must have its own. They are removed here, and disk.py writes new ones.
_IDENTITY = ("etc/machine-id", "etc/hostname", "etc/resolv.conf", "etc/ssh/ssh_host_*")


def base_image(release: Release, say: Callable[[str], None], *, container: bool = False) -> Path:
    """The root folder of a release, for servers or for rented containers.

    It is made now if the cache does not have it, which takes 20 to 60 s and 260 MB. Two processes that ask at once build it once.
    A build that is cut off leaves nothing that counts as an image.

    Raises:
        LabError: the packages cannot be fetched or installed.
    """
    image, label = base_folder(release, container=container), _label(release, container=container)
    image.parent.mkdir(parents=True, exist_ok=True)
    with locked(image.with_name(f"{label}.lock")):
        if not image.is_dir():
            for stale in image.parent.glob(f"{label}-*"):
                trees.remove(stale)
                images.remove_all(stale)
            say(f"making the {label} base image, which takes about half a minute and is done once")
            scratch = Path(tempfile.mkdtemp(dir=image.parent, prefix=f"{label}-"))
            try:
                root = scratch / "root"
                _bootstrap(release, root, say, container=container)
                for pattern in _IDENTITY:
                    for path in root.glob(pattern):
                        path.unlink()
                root.rename(image)
            finally:
                trees.remove(scratch)
    return image


def base_folder(release: Release, *, container: bool = False) -> Path:
    """The folder of the base image of a release, whether it was made or not."""
    name = f"{_label(release, container=container)}-{_recipe_digest(release, container=container)}"
    return cache_dir() / "lab" / "base" / name


def _label(release: Release, *, container: bool) -> str:
    return f"container-{release}" if container else release


def _packages(release: Release, *, container: bool) -> tuple[str, ...]:
    return (*_CONTAINER_PACKAGES, *_INSTEAD_OF_SYSTEMD.get(release, ())) if container else _PACKAGES


def _recipe_digest(release: Release, *, container: bool) -> str:
    """A digest of what goes into an image, so that an image made in another way is not used."""
    recipe = (*_packages(release, container=container), *_IDENTITY, *_OPTIONS.get(release, ()))
    return hashlib.sha256(" ".join(recipe).encode()).hexdigest()[:12]


def _bootstrap(release: Release, root: Path, say: Callable[[str], None], *, container: bool) -> None:
    packages = ",".join(_packages(release, container=container))
    options = ("--variant=minbase", f"--include={packages}", *_OPTIONS.get(release, ()))
    argv = [*_ALONE, "mmdebstrap", *options, release, str(root)]
    output: list[str] = []
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"LC_ALL": "C"}
    ) as process:
        assert process.stdout  # noqa: S101 - tells the type checker that there is a pipe
        for line in process.stdout:
            output.append(line.rstrip())
            if line.startswith("I: "):
                say(f"{release}: {line[3:].strip()}")
    if process.returncode:
        raise LabError(
            Problem(
                where=f"base image {release}",
                what="mmdebstrap failed:\n" + "\n".join(output[-15:]),
                remedy="check that this machine reaches a Debian mirror (apt-get update) and has space in "
                f"{cache_dir()}, then run the same command again",
            )
        )
