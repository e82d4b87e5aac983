"""A small local hub: the part of the Hugging Face hub's API, and of ModelScope's, that a download uses.

    python -m r1prov.lab.hub ROOT --address 10.209.0.1 --port 8090

It serves `ROOT/owner/name/PATH` as `/owner/name/resolve/REVISION/PATH` (any revision), with Range, and can be as bad as
the real network is: slow, breaking off, refusing, sending wrong bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Self
from urllib.parse import unquote, urlsplit

_RESOLVE = re.compile(r"/(?:models/)?(?P<repo>[^/]+/[^/]+)/resolve/[^/]+/(?P<path>.+)")
_TREE = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/[^/]+/?(?P<path>.*)")
_OBJECT = re.compile(r"/objects/(?P<repo>[^/]+/[^/]+)/(?P<path>.+)")
_BLOCK_BYTES = 64 << 10


@dataclass
class Faults:
    """What goes wrong.

    Attributes:
        rate_bytes_s: one connection gets no more than this; 0: as much as there is.
        drop_after_bytes: every connection breaks off after so many bytes; 0: never.
        errors: so many answers are 503 before the first good one.
        wrong_bytes: the first byte of every file is a wrong one.
    """

    rate_bytes_s: int = 0
    drop_after_bytes: int = 0
    errors: int = 0
    wrong_bytes: bool = False


@dataclass(frozen=True)
class Request:
    """A request as it came, for tests to look at."""

    path: str
    range: str
    token: str


@dataclass
class Hub:
    """A running hub; a context manager that stops it.

    Attributes:
        root: the folder it serves, `owner/name/...` below.
        address: where it listens.
        port: likewise; 0: any free one, and the attribute then says which.
        token: what a request must show; `` for an open hub.
        cdn: `http://host:port` of a second hub that files are fetched from after a redirect; `` to send them itself.
        faults: what goes wrong; may be changed while it runs.
        requests: what was asked of it.
    """

    root: Path
    address: str = "127.0.0.1"
    port: int = 0
    token: str = ""
    cdn: str = ""
    faults: Faults = field(default_factory=Faults)
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._server = _Server((self.address, self.port), _Handler)
        self._server.hub = self
        self.port = self._server.server_address[1]

    @property
    def url(self) -> str:
        """Its endpoint."""
        return f"http://{self.address}:{self.port}"

    def serve(self) -> None:
        """Serves until stopped."""
        self._server.serve_forever(poll_interval=0.1)

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: Hub


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        authorization = self.headers.get("Authorization", "")
        hub.requests.append(Request(path, self.headers.get("Range", ""), authorization.removeprefix("Bearer ")))
        if hub.faults.errors > 0:
            hub.faults.errors -= 1
            self._say(HTTPStatus.SERVICE_UNAVAILABLE)
        elif stored := _OBJECT.fullmatch(path):
            # An object store takes one proof of who asks, and the address already is one.
            self._say(HTTPStatus.BAD_REQUEST) if authorization else self._send_file(stored)
        elif hub.token and authorization != f"Bearer {hub.token}":
            self._say(HTTPStatus.UNAUTHORIZED)
        elif wanted := _RESOLVE.fullmatch(path):
            self._resolve(wanted)
        elif listed := _TREE.fullmatch(path):
            self._list(listed)
        else:
            self._say(HTTPStatus.NOT_FOUND)

    def _resolve(self, wanted: re.Match[str]) -> None:
        if self.server.hub.cdn and self._file(wanted):
            location = f"{self.server.hub.cdn}/objects/{wanted['repo']}/{wanted['path']}"
            self._say(HTTPStatus.FOUND, {"Location": location, **self._linked(wanted)})
        else:
            self._send_file(wanted)

    def _list(self, listed: re.Match[str]) -> None:
        base = self.server.hub.root / listed["repo"]
        rows = []
        for file in sorted(path for path in (base / listed["path"]).rglob("*") if path.is_file()):
            size, sha256 = file.stat().st_size, _sha256(file, file.stat().st_mtime_ns)
            lfs = {"oid": sha256, "size": size}
            rows.append({"type": "file", "path": str(file.relative_to(base)), "size": size, "lfs": lfs})
        self._say(HTTPStatus.OK, body=json.dumps(rows).encode())

    def _send_file(self, wanted: re.Match[str]) -> None:
        file = self._file(wanted)
        if not file:
            self._say(HTTPStatus.NOT_FOUND)
            return
        size, first, last, status, headers = file.stat().st_size, 0, file.stat().st_size - 1, HTTPStatus.OK, {}
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(part[1]), min(int(part[2] or last), last)
            if first > last:
                self._say(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {"Content-Range": f"bytes */{size}"})
                return
            status, headers = HTTPStatus.PARTIAL_CONTENT, {"Content-Range": f"bytes {first}-{last}/{size}"}
        length = last - first + 1
        self.send_response(status)
        for name, value in {**headers, **self._linked(wanted), "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            with file.open("rb") as stream:
                self._pour(stream, first, length)

    def _pour(self, stream: IO[bytes], first: int, length: int) -> None:
        faults, sent, started_s = self.server.hub.faults, 0, time.monotonic()
        stream.seek(first)
        while sent < length:
            block = stream.read(min(_BLOCK_BYTES, length - sent))
            if faults.wrong_bytes and first + sent == 0:
                block = bytes([block[0] ^ 0xFF]) + block[1:]
            if faults.drop_after_bytes and sent + len(block) > faults.drop_after_bytes:
                self.wfile.write(block[: faults.drop_after_bytes - sent])
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.wfile.write(block)
            sent += len(block)
            if faults.rate_bytes_s:
                time.sleep(max(0.0, started_s + sent / faults.rate_bytes_s - time.monotonic()))

    def _linked(self, wanted: re.Match[str]) -> dict[str, str]:
        """The headers by which the hub tells a file's size and sha256 before it is fetched."""
        file = self._file(wanted)
        if not file:
            return {}
        sha256 = _sha256(file, file.stat().st_mtime_ns)
        linked = {"ETag": f'"{sha256}"', "X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(file.stat().st_size)}
        return {"Accept-Ranges": "bytes", **linked}

    def _file(self, wanted: re.Match[str]) -> Path | None:
        root = self.server.hub.root.resolve()
        file = (root / wanted["repo"] / wanted["path"]).resolve()
        return file if file.is_relative_to(root) and file.is_file() else None

    def _say(self, status: HTTPStatus, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name http.server gives it
        """Says nothing: `Hub.requests` remembers."""


@lru_cache
def _sha256(file: Path, _mtime_ns: int) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m r1prov.lab.hub", description="A small local model hub.")
    parser.add_argument("root", type=Path, help="the folder to serve: OWNER/NAME/... below it")
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument("--rate-bytes-s", type=int, default=0, help="per connection")
    parser.add_argument("--drop-after-bytes", type=int, default=0, help="break off every connection after so many")
    parser.add_argument("--errors", type=int, default=0, help="answer 503 so many times first")
    parser.add_argument("--wrong-bytes", action="store_true", help="send the first byte of every file wrong")
    given = parser.parse_args()
    faults = Faults(given.rate_bytes_s, given.drop_after_bytes, given.errors, given.wrong_bytes)
    Hub(given.root, given.address, given.port, faults=faults).serve()


if __name__ == "__main__":
    main()
