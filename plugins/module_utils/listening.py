"""Whether systemd itself listens on an address, as a socket unit lets it: what the kernel has, whatever the unit's file says by now."""

from __future__ import annotations

import ipaddress
import re
import sys
from contextlib import suppress
from pathlib import Path

_LISTENS = "0A"
_ADDRESS = re.compile(r"^ListenStream=(.+):(\d+)$", re.MULTILINE)


def closed(unit_file: str, proc: Path = Path("/proc")) -> list[str]:
    """The addresses in the text of a socket unit on which systemd does not listen."""
    held = _held(proc)
    return [f"{host}:{port}" for host, port in _ADDRESS.findall(unit_file) if not _inodes(host, int(port), proc) & held]


def _inodes(host: str, port: int, proc: Path) -> set[str]:
    """The sockets that listen on an address."""
    address = ipaddress.ip_address(host.strip("[]"))
    words = [address.packed[start : start + 4] for start in range(0, len(address.packed), 4)]
    wanted = "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words) + f":{port:04X}"
    with suppress(OSError):
        table = (proc / "net" / ("tcp6" if address.version == 6 else "tcp")).read_text(encoding="ascii")
        rows = [line.split() for line in table.splitlines()[1:]]
        return {row[9] for row in rows if row[1] == wanted and row[3] == _LISTENS}
    return set()


def _held(proc: Path) -> set[str]:
    """The sockets that systemd has open."""
    found = set()
    for path in (proc / "1" / "fd").iterdir():
        with suppress(OSError):
            found |= set(re.findall(r"^socket:\[(\d+)\]$", str(path.readlink())))
    return found
