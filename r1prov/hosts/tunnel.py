"""Ports of this machine that lead to ports of a host, as `ssh -L` makes them, over a connection that is open already."""

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
    """A port on this machine's loopback that leads to a port of a host, until it is closed.

    Args:
        connection: an open connection to the host.
        address: the address that it leads to, as the host sees it.
        port: the port that it leads to.
        local_port: the port to listen on here. Where that is taken, any free port is used.
    """

    def __init__(self, connection: HostConnection, address: str, port: int, local_port: int) -> None:
        self._connection = connection
        self._target = (address, port)
        try:
            self._listener = socket.create_server((HERE, local_port))
        except OSError:
            self._listener = socket.create_server((HERE, 0))
        self.port: int = self._listener.getsockname()[1]
        """The local port on which it listens."""
        threading.Thread(target=self._accept, name=f"tunnel to {port}", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            remote = self._connection.open_socket(*self._target)
            if remote is None:  # the host is this machine
                raise UnreachableError(
                    Problem(self._connection.host.name, "is this machine", "open the port without a tunnel")
                )
            with contextlib.closing(remote):
                _pass_on(client, remote)


def _pass_on(client: socket.socket, remote: paramiko.Channel) -> None:
    """Pass bytes on in both directions until either side ends."""
    ends: dict[socket.socket | paramiko.Channel, socket.socket | paramiko.Channel] = {client: remote, remote: client}
    while True:
        for readable in select.select(list(ends), [], [])[0]:
            block = readable.recv(BLOCK_BYTES)
            if not block:
                return
            ends[readable].sendall(block)
