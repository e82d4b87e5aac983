"""A web server that gives out ranges of files that are nowhere."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from tests.fullsize.published import Published

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_AT_ONCE_BYTES = 1 << 20


class Server:
    """It serves while it is entered.

    Attributes:
        asked: What it was asked for: the number of a file, and from where to where.
    """

    def __init__(self, published: Published) -> None:
        self.published, self.asked = published, list[tuple[int, int, int]]()
        self._server = _Http(("127.0.0.1", 0), _Handler)
        self._server.owner = self

    @property
    def source(self) -> dict[str, str]:
        """It as a source of the transfer's job."""
        return {"type": "http", "url": f"http://127.0.0.1:{self._server.server_address[1]}"}

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    owner: Server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http

    def do_GET(self) -> None:
        owner = self.server.owner
        names = [file.name for file in owner.published.quant.files]
        name, wanted = self.path.rpartition("/")[2], _RANGE.fullmatch(self.headers["Range"] or "")
        if name not in names or not wanted:
            self.send_error(404)
            return
        number = names.index(name)
        size = owner.published.quant.files[number].bytes
        start, end = int(wanted[1]), min(int(wanted[2] or size - 1) + 1, size)
        owner.asked.append((number, start, end))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("Content-Length", str(end - start))
        self.send_header("ETag", '"one"')
        self.end_headers()
        try:
            for position in range(start, end, _AT_ONCE_BYTES):
                self.wfile.write(owner.published.read(number, position, min(position + _AT_ONCE_BYTES, end)))
        except OSError:
            self.close_connection = True  # The other side has had enough.

    def log_message(self, *_: object) -> None:
        """Says nothing."""
