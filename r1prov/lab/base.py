"""Base images: a minimal Debian with systemd, sshd and python3, unpacked once and shared by all hosts as the lower layer."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from r1prov.common.errors import LabError, Problem
from r1prov.common.paths import cache_dir
from r1prov.lab import images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Release = Literal["bookworm", "trixie"]
RELEASES: tuple[Release, ...] = get_args(Release)

# What a server has that somebody just installed: a login over ssh, and the python3 that Ansible needs. No sudo, no certificates.
_PACKAGES = ("systemd", "systemd-sysv", "dbus", "openssh-server", "python3")

# Made in the image, but each host must have its own: removed here, written by hosts.py.
_IDENTITY = ("etc/machine-id", "etc/hostname", "etc/resolv.conf", "etc/ssh/ssh_host_*")


def base_image(release: Release, say: Callable[[str], None]) -> Path:
    """The root folder of a release, made now if this cache does not have it (20 to 60 s, 260 MB).

    Two processes that ask at once build it once; a build that is cut off leaves nothing that counts as an image.

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
            say(f"making the {release} base image, once: about half a minute")
            with tempfile.TemporaryDirectory(dir=image.parent, prefix=f"{release}-") as scratch:
                root = Path(scratch) / "root"
                _bootstrap(release, root, say)
                for pattern in _IDENTITY:
                    for path in root.glob(pattern):
                        path.unlink()
                root.rename(image)
    return image


def base_folder(release: Release) -> Path:
    """Where the base image of a release lies, whether it was made or not."""
    return cache_dir() / "lab" / "base" / f"{release}-{_recipe_digest()}"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on a file; the kernel frees it when this process ends, however it ends.

    Who holds it may delete the file as the last act: the next one then notices that it waited for a file that is gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            try:
                current = path.stat().st_ino == os.fstat(handle.fileno()).st_ino
            except FileNotFoundError:
                current = False
            if current:
                yield
                return


def _recipe_digest() -> str:
    return hashlib.sha256(" ".join((*_PACKAGES, *_IDENTITY)).encode()).hexdigest()[:12]


def _bootstrap(release: Release, root: Path, say: Callable[[str], None]) -> None:
    argv = ["mmdebstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", release, str(root)]
    talk: list[str] = []
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"LC_ALL": "C"}
    ) as process:
        assert process.stdout  # noqa: S101 - for the type checker: a pipe was asked for
        for line in process.stdout:
            talk.append(line.rstrip())
            if line.startswith("I: "):
                say(f"{release}: {line[3:].strip()}")
    if process.returncode:
        raise LabError(
            Problem(
                where=f"base image {release}",
                what="mmdebstrap failed:\n" + "\n".join(talk[-15:]),
                remedy="check that this machine reaches a Debian mirror (apt-get update) and has space in "
                f"{cache_dir()}, then run the same command again",
            )
        )
