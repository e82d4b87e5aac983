#!/usr/bin/python3
"""The door to Ollama, which has no login: it lets in root, and the members of a group.

    door.py PORT GROUP

systemd gives it the listening socket of the host, and it runs in the private network, where Ollama listens on PORT. Who has opened a
connection is looked up in the host's table of connections, at the moment when the connection comes. So no rule of a firewall is
needed that could be flushed, and a change of the group holds at once.

A browser of a member asks with the member's rights, also for a page whose name leads here (DNS rebinding). So a request must name
this host by its address or as localhost. The standard library of Python 3.10 only.
"""

from __future__ import annotations

import asyncio
import grp
import json
import os
import pwd
import re
import socket
import sys
from contextlib import suppress
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path

CONNECTIONS = Path("/proc/1/net")
"""Process 1 is in the host's network, whose connections are listed here."""
ESTABLISHED = "01"
HOSTS = {"127.0.0.1", "localhost", "[::1]"}
NOT_FOR_OLLAMA = {"authorization", "proxy-authorization", "cookie", "connection", "keep-alive"}
"""Headers that are not passed on: secrets that Ollama does not need, and whether the connection stays."""
HEAD_LIMIT_S = 30
LINGER_S = 2
HEARTBEAT = b"HEAD / "
"""With this the program `ollama` begins. Where it is refused, the program says that something went wrong, and not what."""
ALIVE = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
NOT_RUNNING = (
    "Ollama does not run on this server. Where llama-server serves the model, that is meant to be: `r1prov engine ollama` switches, "
    "on the machine where r1prov is installed. Otherwise see: systemctl status r1prov-ollama"
)
BLOCK_BYTES = 1 << 16


class RefusalError(Exception):
    """A request that goes no further; the message says why and what to do next."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


def caller(client: tuple[str, int], server: tuple[str, int], tables: Path = CONNECTIONS) -> int | None:
    """The user on this host who holds the client's end of a connection; None where that cannot be told.

    Only an end that is still open counts: the kernel lists the end that somebody has closed as root's.
    """
    for table in ("tcp", "tcp6"):
        for line in (tables / table).read_text().splitlines()[1:]:
            local, remote, state, *_, uid, _timeout, inode = line.split()[1:10]
            if state == ESTABLISHED and inode != "0" and (_end(local), _end(remote)) == (client, server):
                return int(uid)
    return None


def _end(text: str) -> tuple[str, int]:
    """An address and a port as the kernel writes them: words in the order of this processor."""
    address, _, port = text.partition(":")
    words = [int(address[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(address), 8)]
    found = ip_address(b"".join(words))
    return str(getattr(found, "ipv4_mapped", None) or found), int(port, 16)


def may_enter(uid: int, group: str) -> bool:
    """Whether a user is root, or a member of the group, by its entry or as the user's own group."""
    if uid == 0:
        return True
    with suppress(KeyError):
        user = pwd.getpwuid(uid)
        return grp.getgrnam(group).gr_gid in os.getgrouplist(user.pw_name, user.pw_gid)
    return False


def passed_on(head: bytes) -> bytes:
    """The head of a request as Ollama gets it: one request for each connection, so that each head is judged.

    Raises:
        RefusalError: it is no plain HTTP/1 request, or it names another host.
    """
    first, *lines = head.removesuffix(b"\r\n\r\n").decode("latin-1").split("\r\n")
    if not re.fullmatch(r"[A-Z]+ [/*][!-~]* HTTP/1\.[01]", first):
        raise RefusalError(HTTPStatus.BAD_REQUEST, "this is no request that Ollama could answer")
    fields = [re.fullmatch(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00\r\n]*?)[ \t]*", line) for line in lines]
    if not all(fields):
        raise RefusalError(HTTPStatus.BAD_REQUEST, "one of the header lines is malformed")
    pairs = [(field[1], field[2]) for field in fields if field]
    named = [value for name, value in pairs if name.lower() == "host"]
    if len(named) != 1 or re.sub(r":\d+$", "", named[0].lower()) not in HOSTS:
        raise RefusalError(
            HTTPStatus.MISDIRECTED_REQUEST,
            f"the request is for {' and '.join(named) or 'no host'}. Ask http://127.0.0.1 or http://localhost",
        )
    kept = [f"{name}: {value}" for name, value in pairs if name.lower() not in NOT_FOR_OLLAMA]
    return "\r\n".join([first, *kept, "Connection: close", "", ""]).encode("latin-1")


class Door:
    """Passes requests on to Ollama."""

    def __init__(self, port: int, group: str, tables: Path = CONNECTIONS) -> None:
        self.port, self.group, self.tables = port, group, tables

    async def meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.TimeoutError):
                try:
                    await self._serve(reader, writer)
                except RefusalError as refusal:
                    writer.write(_answer(refusal))
                    writer.write_eof()
                    # What comes is read for a moment: the kernel resets a connection that is closed with something unread.
                    await asyncio.wait_for(_discard(reader), LINGER_S)
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stranger = await self._stranger(writer)
        head = b""
        with suppress(asyncio.IncompleteReadError, asyncio.TimeoutError):
            head = await _head(reader, LINGER_S if stranger else HEAD_LIMIT_S)
        if not head.startswith(HEARTBEAT) and stranger:
            raise stranger
        if not head:
            return
        request = passed_on(head)
        try:
            if stranger:
                raise stranger
            await self._pass_on(request, reader, writer)
        except RefusalError:
            if not head.startswith(HEARTBEAT):
                raise
            writer.write(ALIVE)  # The next request is told what is wrong.

    async def _stranger(self, writer: asyncio.StreamWriter) -> RefusalError | None:
        """Why who has opened the connection may not enter; None for who may."""
        client, server = writer.get_extra_info("peername"), writer.get_extra_info("sockname")
        try:
            uid = caller(client[:2], server[:2], self.tables)
        except OSError as error:
            what = f"the door cannot tell who asks, so it lets nobody in ({error}). Is /proc mounted with hidepid?"
            return RefusalError(HTTPStatus.INTERNAL_SERVER_ERROR, what)
        if uid is not None and await asyncio.to_thread(may_enter, uid, self.group):
            return None
        remedy = f"Ollama obeys members of the group {self.group}: sudo gpasswd --add NAME {self.group}"
        return RefusalError(HTTPStatus.FORBIDDEN, remedy)

    async def _pass_on(self, request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            ollama, onward = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            raise RefusalError(HTTPStatus.BAD_GATEWAY, NOT_RUNNING) from None
        try:
            onward.write(request)
            asking = asyncio.create_task(_copy(reader, onward))
            await _copy(ollama, writer)
            asking.cancel()
        finally:
            onward.close()


async def _head(reader: asyncio.StreamReader, limit_s: float) -> bytes:
    try:
        return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), limit_s)
    except asyncio.LimitOverrunError:
        raise RefusalError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the headers are too long") from None


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Passes bytes on as they come, and the end of them too."""
    with suppress(OSError):
        while block := await source.read(BLOCK_BYTES):
            sink.write(block)
            await sink.drain()
        sink.write_eof()


async def _discard(source: asyncio.StreamReader) -> None:
    while await source.read(BLOCK_BYTES):
        pass


def _answer(refusal: RefusalError) -> bytes:
    body = json.dumps({"error": str(refusal)}).encode()
    status = f"HTTP/1.1 {refusal.status.value} {refusal.status.phrase}"
    head = f"{status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


async def main() -> None:
    """Serves until systemd ends it."""
    port, group = sys.argv[1:]
    door = Door(int(port), group)
    descriptors = range(3, 3 + int(os.environ["LISTEN_FDS"]))  # as systemd passes them
    given = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    servers = [await asyncio.start_server(door.meet, sock=each, backlog=4096) for each in given]
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    asyncio.run(main())
