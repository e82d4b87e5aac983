"""Ports of this machine that lead to ports of a host, as the host itself sees them: what `ssh -L` does, over a connection that is open."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from typing import TYPE_CHECKING, Self

import paramiko

from r1prov.common.errors import Problem, UnreachableError

if TYPE_CHECKING:
    from r1prov.hosts.connection import HostConnection

BLOCK_BYTES = 1 << 16
HERE = "127.0.0.1"


class Tunnel:
    """Listens on loopback here and passes every connection on, until it is closed.

    Args:
        connection: an open one.
        address: where to, as the host sees it.
        port: likewise.
        local_port: where it listens here; one that is taken gives way to any free one.
    """

    def __init__(self, connection: HostConnection, address: str, port: int, local_port: int) -> None:
        self._connection = connection
        self._target = (address, port)
        try:
            self._listener = socket.create_server((HERE, local_port))
        except OSError:
            self._listener = socket.create_server((HERE, 0))
        self.port: int = self._listener.getsockname()[1]
        """Where it listens."""
        threading.Thread(target=self._accept, name=f"tunnel to {port}", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            remote = self._connection.open_socket(*self._target)
            if remote is None:  # the host is this machine
                raise UnreachableError(
                    Problem(self._connection.host.name, "is this machine", "open the port itself, without a tunnel")
                )
            with contextlib.closing(remote):
                _pass_on(client, remote)


def _pass_on(client: socket.socket, remote: paramiko.Channel) -> None:
    """Both ways, until either side has ended."""
    ends: dict[socket.socket | paramiko.Channel, socket.socket | paramiko.Channel] = {client: remote, remote: client}
    while True:
        for readable in select.select(list(ends), [], [])[0]:
            block = readable.recv(BLOCK_BYTES)
            if not block:
                return
            ends[readable].sendall(block)
