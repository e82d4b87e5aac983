"""What the balancer of a host is doing: who waits, who is answered and by which engine, and who has asked how often."""

from __future__ import annotations

import csv
import re
import socket
from pathlib import Path
from typing import Any

SOCKET = Path("/run/r1prov/balancer/master.sock")
_PATIENCE_S = 5
_WORKER = re.compile(r"^(\d+)\s+worker\s", re.MULTILINE)
_KEY = re.compile(
    r"key=(?P<name>\S+) .*?conn_cur=(?P<open>\d+) http_req_cnt=(?P<requests>\d+) bytes_out_cnt=(?P<bytes>\d+)"
)


def figures(path: Path = SOCKET) -> dict[str, Any] | None:
    """The figures, or None where no balancer tells them. Answers that began before a reload are counted, too.

    Returns:
        `waiting` and `answering`, numbers of requests that generate, and `slots`, how many can be answered at once. `engines`, by name the
        word of HAProxy for its `state`, whether it is `drained`, how many requests it is `answering`, and how many are `waiting` for it
        alone. `keys`, by name of the key `requests` and `bytes` of answers since the balancer was started, and how many are `open`.
    """
    try:
        present, *replaced = workers(path)
        rows = _rows(ask(f"{present} show stat engines 6 -1", path))
        # A worker that was replaced ends with its last answer, maybe just now.
        older = [row for worker in replaced for row in _rows(ask(f"{worker} show stat engines 6 -1", path))]
        keys = ask(f"{present} show table keys", path)
    except (OSError, ValueError):
        return None
    everywhere = [*rows, *older]
    return {
        "waiting": sum(int(row["qcur"]) for row in everywhere),
        "answering": sum(int(row["scur"]) for row in everywhere if row["svname"] != _ALL),
        "slots": sum(int(row["slim"] or 0) for row in rows if row["svname"] != _ALL),
        "engines": {
            row["svname"]: {
                "state": row["status"],
                "drained": row["weight"] == "0",
                "answering": sum(int(each["scur"]) for each in everywhere if each["svname"] == row["svname"]),
                "waiting": sum(int(each["qcur"]) for each in everywhere if each["svname"] == row["svname"]),
            }
            for row in rows
            if row["svname"] != _ALL
        },
        "keys": {
            match["name"]: {each: int(match[each]) for each in ("requests", "open", "bytes")}
            for match in _KEY.finditer(keys)
        },
    }


_ALL = "BACKEND"
"""The row of HAProxy's figures that is about all engines together."""


def workers(path: Path = SOCKET) -> list[str]:
    """How commands for each worker of the balancer begin. The first one takes requests. The others were replaced, and answer to the end.

    Raises:
        OSError: no balancer runs.
    """
    return [f"@!{pid}" for pid in _WORKER.findall(ask("show proc", path))]


def ask(command: str, path: Path = SOCKET) -> str:
    """What the balancer says to a command.

    Raises:
        OSError: no balancer runs.
    """
    with socket.socket(socket.AF_UNIX) as door:
        door.settimeout(_PATIENCE_S)
        door.connect(str(path))
        door.sendall(f"{command}\n".encode())
        door.shutdown(socket.SHUT_WR)  # It closes when it knows that no other command comes.
        return b"".join(iter(lambda: door.recv(65536), b"")).decode()


def _rows(told: str) -> list[dict[str, str]]:
    header, *lines = told.strip().splitlines() or [""]
    return list(csv.DictReader([header[2:], *lines])) if header.startswith("# pxname") else []
