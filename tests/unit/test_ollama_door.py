"""Tests of the door to Ollama, roles/ollama/files/door.py, on real connections to a stand-in for Ollama that says what it got."""

from __future__ import annotations

import asyncio
import grp
import importlib.util
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[2] / "roles/ollama/files/door.py"
NOBODY = 65534
GOOD = b"GET /api/tags HTTP/1.1\r\nHost: 127.0.0.1:11434\r\n\r\n"


def loaded() -> Any:
    """The program, which has no package."""
    spec = importlib.util.spec_from_file_location("door", PROGRAM)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


door = loaded()


def table(state: str, uid: int, inode: int, client: str = "0100007F:9A0E") -> str:
    """A table of connections as the kernel writes it, with one connection to 127.0.0.1:18999."""
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    return f"{head}   0: {client} 0100007F:4A37 {state} 00000000:00000000 00:00000000 00000000 {uid} 0 {inode} 1 00 20 4 30 10 -1\n"


@pytest.mark.parametrize(
    ("state", "uid", "inode", "found"),
    [
        pytest.param("01", 1000, 77, 1000, id="an open end"),
        pytest.param("05", 0, 0, None, id="an end that was closed, which the kernel lists as root's"),
        pytest.param("05", 1000, 77, None, id="an end that sends no more"),
        pytest.param("01", 0, 0, None, id="an end without a socket"),
    ],
)
def test_whose_connection_it_is(tmp_path: Path, state: str, uid: int, inode: int, found: int | None) -> None:
    (tmp_path / "tcp").write_text(table(state, uid, inode))
    (tmp_path / "tcp6").write_text("")
    assert door.caller(("127.0.0.1", 0x9A0E), ("127.0.0.1", 0x4A37), tmp_path) == found
    assert door.caller(("127.0.0.1", 1), ("127.0.0.1", 0x4A37), tmp_path) is None


def test_an_end_of_ipv6_that_leads_to_ipv4(tmp_path: Path) -> None:
    mapped = "0000000000000000FFFF00000100007F"
    line = table("01", 1000, 77).replace("0100007F:", f"{mapped}:")
    (tmp_path / "tcp").write_text("")
    (tmp_path / "tcp6").write_text(line)
    assert door.caller(("127.0.0.1", 0x9A0E), ("127.0.0.1", 0x4A37), tmp_path) == 1000


def test_an_end_of_ipv6(tmp_path: Path) -> None:
    line = table("01", 1000, 77).replace("0100007F:", "00000000000000000000000001000000:")
    (tmp_path / "tcp").write_text("")
    (tmp_path / "tcp6").write_text(line)
    assert door.caller(("::1", 0x9A0E), ("::1", 0x4A37), tmp_path) == 1000


def test_who_may_enter() -> None:
    assert door.may_enter(0, "no-such-group")
    assert not door.may_enter(NOBODY, "no-such-group")
    assert not door.may_enter(NOBODY, "root")
    assert not door.may_enter(4_000_000, "root")
    assert door.may_enter(NOBODY, "nogroup")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (GOOD, None),
        (GOOD.replace(b"127.0.0.1", b"LocalHost"), None),
        (GOOD.replace(b"127.0.0.1:11434", b"[::1]:1"), None),
        (GOOD.replace(b"127.0.0.1", b"x.local"), 421),
        (GOOD.replace(b"127.0.0.1", b"x.internal"), 421),
        (GOOD.replace(b"127.0.0.1", b"x.localhost"), 421),
        (GOOD.replace(b"127.0.0.1", b"127.0.0.1.evil.example"), 421),
        (GOOD.replace(b"127.0.0.1:11434", b"127.0.0.1:11434, x.local"), 421),
        (GOOD.replace(b"127.0.0.1:11434", b""), 421),
        (GOOD.replace(b"Host", b"X-Host"), 421),
        (GOOD.replace(b"\r\n\r\n", b"\r\nHost: x.local\r\n\r\n"), 421),
        (GOOD.replace(b"/api", b"http://x.local/api"), 400),
        (GOOD.replace(b"\r\n\r\n", b"\nHost: x.local\r\n\r\n"), 400),
        (GOOD.replace(b"\r\n\r\n", b"\r\n Host: x.local\r\n\r\n"), 400),
        (GOOD.replace(b"Host:", b"Host :"), 400),
        (b"PRI * HTTP/2.0\r\n\r\n", 400),
        (b"\x16\x03\x01\r\n\r\n", 400),
    ],
)
def test_a_request_must_name_this_host_once(head: bytes, status: int | None) -> None:
    if status is None:
        assert door.passed_on(head).startswith(b"GET /api/tags HTTP/1.1\r\nHost: ")
        return
    with pytest.raises(door.RefusalError) as refused:
        door.passed_on(head)
    assert refused.value.status == status


def talk(
    request: bytes, *, group: str, told: bytes | None = b"", more: bytes = b"", tables: str = "/proc/self/net"
) -> tuple[bytes, bytes]:
    """What a client hears through a door, and what the stand-in for Ollama got, which does not run where it has nothing `told`.

    `more` is sent when the answer has come.
    """
    got = bytearray()

    async def ollama(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.extend(await reader.readuntil(b"\r\n\r\n"))
        writer.write(told or b"")
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.close()

    async def all_of_it() -> bytes:
        behind = await asyncio.start_server(ollama, "127.0.0.1", 0)
        port = behind.sockets[0].getsockname()[1]
        if told is None:
            behind.close()
        passing = door.Door(port, group, Path(tables))
        front = await asyncio.start_server(passing.meet, sock=socket.create_server(("127.0.0.1", 0)))
        async with behind, front:
            reader, writer = await asyncio.open_connection(*front.sockets[0].getsockname())
            writer.write(request)
            heard = await reader.read(1 << 16)
            writer.write(more)
            heard += await reader.read()
            writer.close()
        return heard

    return asyncio.run(all_of_it()), bytes(got)


def mine() -> str:
    return grp.getgrgid(os.getegid()).gr_name


def test_one_request_passes_without_what_ollama_does_not_need() -> None:
    secret = GOOD.replace(
        b"\r\n\r\n", b"\r\nauthorization: Bearer secret\r\nConnection: keep-alive\r\nX-Other: 1\r\n\r\n"
    )
    heard, got = talk(secret, group=mine(), told=b"an answer", more=GOOD.replace(b"127.0.0.1", b"x.local"))
    assert heard == b"an answer"
    assert got == GOOD.replace(b"\r\n\r\n", b"\r\nX-Other: 1\r\nConnection: close\r\n\r\n")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may always enter; roles/ollama/molecule has a stranger")
def test_a_stranger_is_told_how_to_get_in() -> None:
    heard, got = talk(GOOD, group="no-such-group")
    assert heard.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert "no-such-group" in error_of(heard)
    assert got == b""


def test_another_name_is_refused() -> None:
    heard, got = talk(GOOD.replace(b"127.0.0.1", b"x.local"), group=mine())
    assert heard.startswith(b"HTTP/1.1 421 Misdirected Request\r\n")
    assert "x.local" in error_of(heard)
    assert got == b""


def test_where_nobody_can_tell_who_asks_nobody_gets_in() -> None:
    heard, got = talk(GOOD, group=mine(), tables="/nowhere")
    assert heard.startswith(b"HTTP/1.1 500 ")
    assert "lets nobody in" in error_of(heard)
    assert got == b""


@pytest.mark.parametrize("tables", ["/proc/self/net", "/nowhere"])
def test_the_heartbeat_of_the_program_is_answered_so_that_its_next_request_hears_what_is_wrong(tables: str) -> None:
    """`ollama list` begins with it, and says only that something went wrong where it is refused."""
    beat = GOOD.replace(b"GET /api/tags", b"HEAD /")
    behind = None if tables == "/proc/self/net" else b""
    heard, got = talk(beat, group=mine(), told=behind, tables=tables)
    assert heard.startswith(b"HTTP/1.1 200 OK\r\n")
    assert got == b""
    heard, _ = talk(beat.replace(b"127.0.0.1", b"x.local"), group=mine(), tables=tables)
    assert heard.startswith(b"HTTP/1.1 421 ")


def test_who_asks_while_ollama_does_not_run_is_told_what_switches_to_it() -> None:
    heard, got = talk(GOOD, group=mine(), told=None)
    assert heard.startswith(b"HTTP/1.1 502 ")
    assert "r1prov engine ollama" in error_of(heard)
    assert got == b""


def error_of(heard: bytes) -> Any:
    return json.loads(heard.partition(b"\r\n\r\n")[2])["error"]
