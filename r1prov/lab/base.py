"""Makes base images, each a minimal Debian with systemd, sshd and python3. All hosts share one as their lower layer."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from r1prov.common.errors import LabError, Problem
from r1prov.common.locks import locked
from r1prov.common.paths import cache_dir
from r1prov.lab import images

if TYPE_CHECKING:
    from collections.abc import Callable

Release = Literal["bullseye", "bookworm", "trixie", "forky"]
RELEASES: tuple[Release, ...] = get_args(Release)

# A server that was just installed has these: a login over ssh, and the python3 that Ansible needs. It has no sudo and no certificates.
_PACKAGES = ("systemd", "systemd-sysv", "dbus", "openssh-server", "python3")

# A release that is still being made names a day after which its lists do not count. A mirror that somebody holds back, as companies do,
# serves them longer. Their signature is checked all the same. mmdebstrap keeps the option in the image, so it holds for the host, too.
_OPTIONS: dict[Release, tuple[str, ...]] = {"forky": ('--aptopt=Acquire::Check-Valid-Until "false"',)}

# The image gets these, but each host must have its own. They are removed here, and hosts.py writes new ones.
_IDENTITY = ("etc/machine-id", "etc/hostname", "etc/resolv.conf", "etc/ssh/ssh_host_*")


def base_image(release: Release, say: Callable[[str], None]) -> Path:
    """The root folder of a release. It is made now if the cache does not have it, which takes 20 to 60 s and 260 MB.

    Two processes that ask at once build it once. A build that is cut off leaves nothing that counts as an image.

    Raises:
        LabError: the packages cannot be fetched or installed.
    """
    image = base_folder(release)
    image.parent.mkdir(parents=True, exist_ok=True)
    with locked(image.with_name(f"{release}.lock")):
        if not image.is_dir():
            for stale in image.parent.glob(f"{release}-*"):
                shutil.rmtree(stale)
                images.remove_all(stale)
            say(f"making the {release} base image, which takes about half a minute and is done once")
            with tempfile.TemporaryDirectory(dir=image.parent, prefix=f"{release}-") as scratch:
                root = Path(scratch) / "root"
                _bootstrap(release, root, say)
                for pattern in _IDENTITY:
                    for path in root.glob(pattern):
                        path.unlink()
                root.rename(image)
    return image


def base_folder(release: Release) -> Path:
    """The folder of the base image of a release, whether it was made or not."""
    return cache_dir() / "lab" / "base" / f"{release}-{_recipe_digest(release)}"


def _recipe_digest(release: Release) -> str:
    """A digest of what goes into an image, so that an image made in another way is not used."""
    recipe = (*_PACKAGES, *_IDENTITY, *_OPTIONS.get(release, ()))
    return hashlib.sha256(" ".join(recipe).encode()).hexdigest()[:12]


def _bootstrap(release: Release, root: Path, say: Callable[[str], None]) -> None:
    options = ("--variant=minbase", f"--include={','.join(_PACKAGES)}", *_OPTIONS.get(release, ()))
    argv = ["mmdebstrap", *options, release, str(root)]
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
