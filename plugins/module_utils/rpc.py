"""Whether a server of llama.cpp's RPC is behind a socket."""

from __future__ import annotations

import socket

GREETING = bytes([14]) + (24).to_bytes(8, "little") + bytes(24)
"""The command HELLO with its size, from somebody who can do nothing special. Nobody may send anything else first."""
PATIENCE_S = 8.0
"""After so long a tunnel has closed a connection that leads nowhere."""


def is_there(path: str, patience_s: float = PATIENCE_S) -> bool:
    """Whether a server is behind a socket that is a file: it answers, or keeps the connection because it serves another client."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.settimeout(patience_s)
        try:
            door.connect(path)
        except OSError:
            return False
        try:
            door.sendall(GREETING)
            return door.recv(1) != b""
        except TimeoutError:
            return True
        except OSError:
            return False
