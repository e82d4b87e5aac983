"""What the balancer of a host is doing: who waits, who is answered, and who has asked how often."""

from __future__ import annotations

import csv
import re
import socket
from pathlib import Path
from typing import Any

SOCKET = Path("/run/r1prov/balancer/figures.sock")
_PATIENCE_S = 5
_KEY = re.compile(
    r"key=(?P<name>\S+) .*?conn_cur=(?P<open>\d+) http_req_cnt=(?P<requests>\d+) bytes_out_cnt=(?P<bytes>\d+)"
)


def figures(path: Path = SOCKET) -> dict[str, Any] | None:
    """The figures, or None where no balancer tells them.

    Returns:
        `waiting` and `answering`, numbers of requests that generate; `slots`, how many can be answered at once; `engines`, by name the word
        of HAProxy for its state; and `keys`, by name of the key `requests` and `bytes` of answers since the balancer was started, and how
        many of its requests are `open`.
    """
    try:
        counted, keys = _ask(path, "show stat engines 6 -1"), _ask(path, "show table keys")
    except OSError:
        return None
    rows = list(csv.DictReader(counted.removeprefix("# ").strip().splitlines()))
    engines = [row for row in rows if row["svname"] != "BACKEND"]
    total = next((row for row in rows if row["svname"] == "BACKEND"), None)
    if total is None:
        return None
    return {
        "waiting": int(total["qcur"]) + sum(int(row["qcur"]) for row in engines),
        "answering": sum(int(row["scur"]) for row in engines),
        "slots": sum(int(row["slim"] or 0) for row in engines),
        "engines": {row["svname"]: row["status"] for row in engines},
        "keys": {
            match["name"]: {each: int(match[each]) for each in ("requests", "open", "bytes")}
            for match in _KEY.finditer(keys)
        },
    }


def _ask(path: Path, command: str) -> str:
    with socket.socket(socket.AF_UNIX) as door:
        door.settimeout(_PATIENCE_S)
        door.connect(str(path))
        door.sendall(f"{command}\n".encode())
        return b"".join(iter(lambda: door.recv(65536), b"")).decode()
