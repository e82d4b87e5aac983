"""What a power cut takes from the disk of a host: the content of files that nobody has brought there.

A lab host syncs nothing, and the kernel of this machine goes on. So a library on the host, which every program there loads, takes note
of each call of `fsync` and `sync`. After the cut, files of r1prov that were written shortly before it and not synced since are empty, as
ext4 and XFS leave a new file. Programs that run in a sandbox cannot take note, so only what root writes for r1prov is torn.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.people import told

if TYPE_CHECKING:
    from collections.abc import Iterator

    from r1prov.lab.hosts import LabHost

WRITTEN_BACK_S = 30
"""After so long the kernel brings what was written to the disk by itself."""
NOTES = "var/lib/cuts-synced"
TORN = ("etc", "usr/local", "opt/r1prov", "var/lib/r1prov")
OWNER = 0
"""Whose files are torn: root's."""
LIBRARY = "/usr/local/lib/cuts-synced.so"


def take_note(host: LabHost) -> None:
    """Lets each program that starts on a host from now on take note of what it syncs. The host has a compiler."""
    source = Path(__file__).with_name("synced.c").read_bytes()
    argv = [*host.ssh_argv(), f"gcc -shared -fPIC -O -x c - -o {LIBRARY} -ldl && echo {LIBRARY} > /etc/ld.so.preload"]
    subprocess.run(argv, input=source, check=True, capture_output=True)
    told(host, f"sync; grep sync /{NOTES}")


def tear(root: Path) -> list[Path]:
    """Empties the files of r1prov on the disk of a halted host that were not synced. Returns them; none where nobody took note."""
    if not (root / NOTES).exists():
        return []
    synced, last = _notes(root / NOTES)
    found = [path for path in _recent(root) if synced.get(path.stat().st_ino, last) < path.stat().st_mtime]
    for path in found:
        path.write_bytes(b"")
    return found


def _notes(file: Path) -> tuple[dict[int, float], float]:
    """When each file was synced, by its number, and when all were."""
    synced, last = dict[int, float](), 0.0
    for line in file.read_text().splitlines():
        what, at = line.split()
        if what == "sync":
            last = float(at)
        else:
            synced[int(what)] = float(at)
    return {number: max(at, last) for number, at in synced.items()}, last


def _recent(root: Path) -> Iterator[Path]:
    since = time.time() - WRITTEN_BACK_S
    for folder in TORN:
        for path in (root / folder).rglob("*"):
            if "r1prov" in str(path.relative_to(root)) and path.is_file() and not path.is_symlink():
                status = path.stat()
                if status.st_size and status.st_uid == OWNER and status.st_mtime > since:
                    yield path
