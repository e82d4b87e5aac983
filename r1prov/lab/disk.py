"""What the lab writes to a host's own layer before its first boot: its identity, who may log in, and packages that are there already."""

from __future__ import annotations

import secrets
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from r1prov.lab import caches, container, trees

if TYPE_CHECKING:
    from r1prov.lab.base import Release

_HOST_KEY = "ssh_host_ed25519_key"


def make_host_key(directory: Path, name: str) -> str:
    """Make the ssh host key of the host with this folder, and return it as a line of a .pub file.

    It is made here, so that the lab knows it without asking the host, and no two hosts share one. It lies beside the host's layer, so
    that a host which is rebuilt has it again.
    """
    directory.mkdir(parents=True, exist_ok=True)
    keygen(directory / _HOST_KEY, comment=f"root@{name}")
    return (directory / f"{_HOST_KEY}.pub").read_text().strip()


def lay(directory: Path, name: str, release: Release, client_key: Path, *, is_container: bool) -> None:
    """Make the folders of a host's disk, and write what its own layer begins with."""
    upper = directory / "upper"
    ssh_dir = upper / "etc/ssh"
    for folder in (ssh_dir, directory / "work", directory / "root", upper / "root/.ssh"):
        folder.mkdir(parents=True, exist_ok=True)
    for private in (upper / "root", upper / "root/.ssh"):
        private.chmod(0o700)
    for file in (_HOST_KEY, f"{_HOST_KEY}.pub"):
        shutil.copy(directory / file, ssh_dir)
    shutil.copy(client_key.with_suffix(".pub"), upper / "root/.ssh/authorized_keys")
    (upper / "etc/hostname").write_text(f"{name}\n")
    (upper / "etc/hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost\n")
    (upper / "etc/resolv.conf").write_text(_resolvers())
    if is_container:
        container.lay(upper)
    else:
        # systemd would take an empty machine-id for a first boot, and preset all units anew.
        (upper / "etc/machine-id").write_text(f"{secrets.token_hex(16)}\n")
    caches.seed(release, upper)


def remove_layer(directory: Path) -> None:
    """Remove a host's own layer, and nothing else of it."""
    for folder in ("upper", "work"):
        trees.remove(directory / folder)


def keygen(path: Path, *, comment: str) -> None:
    """Make a pair of ssh keys."""
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
