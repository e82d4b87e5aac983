"""Whether systemd itself listens on an address, as a socket unit lets it: what the kernel has, whatever the unit's file says by now."""

from __future__ import annotations

import ipaddress
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_LISTENS = "0A"
_TABLES = {4: "tcp", 6: "tcp6"}
"""The tables of sockets by the version of the protocol."""
_ADDRESS = re.compile(r"^ListenStream=(.+):(\d+)$", re.MULTILINE)

_ahead: dict[Path, tuple[set[str], dict[str, str]]] = {}


def look_ahead(proc: Path = Path("/proc")) -> None:
    """Asks the kernel once, for who only looks: until this process ends, `closed` answers with that. Each table takes it 3 ms."""
    _ahead[proc] = _held(proc), {name: _table(proc, name) for name in _TABLES.values()}


def closed(unit_file: str, proc: Path = Path("/proc")) -> list[str]:
    """The addresses in the text of a socket unit on which systemd does not listen."""
    held, tables = _ahead.get(proc) or (_held(proc), {})
    return [
        f"{host}:{port}"
        for host, port in _ADDRESS.findall(unit_file)
        if not _inodes(host, int(port), proc, tables) & held
    ]


def _inodes(host: str, port: int, proc: Path, tables: Mapping[str, str]) -> set[str]:
    """The sockets that listen on an address. A table of the kernel that is not among `tables` is read."""
    address = ipaddress.ip_address(host.strip("[]"))
    words = [address.packed[start : start + 4] for start in range(0, len(address.packed), 4)]
    wanted = "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words) + f":{port:04X}"
    name = _TABLES[address.version]
    table = tables[name] if name in tables else _table(proc, name)
    rows = [line.split() for line in table.splitlines()[1:]]
    return {row[9] for row in rows if row[1] == wanted and row[3] == _LISTENS}


def _table(proc: Path, name: str) -> str:
    """What the kernel tells of sockets; nothing where it has none of the kind."""
    try:
        return (proc / "net" / name).read_text(encoding="ascii")
    except OSError:
        return ""


def _held(proc: Path) -> set[str]:
    """The sockets that systemd has open."""
    found = set()
    for path in (proc / "1" / "fd").iterdir():
        with suppress(OSError):
            found |= set(re.findall(r"^socket:\[(\d+)\]$", str(path.readlink())))
    return found
