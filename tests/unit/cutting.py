"""A server whose answers end where a test says: whole, cut, reset, refused. For tests of those who read them."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Iterator

CHUNKED = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSED = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"


def chunks(*texts: str) -> str:
    return "".join(f"{len(text.encode()):x}\r\n{text}\r\n" for text in texts)


def events(*documents: dict) -> list[str]:
    return [f"data: {json.dumps(document)}\n\n" for document in documents]


def delta(text: str, finish: str | None = None) -> dict:
    return {"choices": [{"delta": {"content": text}, "finish_reason": finish}]}


SAYS = events(delta("The capital"), delta(" of France"))
CUT = {
    "the connection ends between two events": UNTIL_CLOSED + "".join(SAYS),
    "the connection ends in an event": UNTIL_CLOSED + "".join(SAYS) + 'data: {"choices": [{"del',
    "the connection ends between two chunks": CHUNKED + chunks(*SAYS),
    "the connection ends in a chunk": CHUNKED + chunks(*SAYS) + "ff\r\ndata: ",
    "a proxy ends the chunks properly": CHUNKED + chunks(*SAYS) + "0\r\n\r\n",
    "the stream is empty": CHUNKED + "0\r\n\r\n",
    "the answer is empty": "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "no byte comes": "",
    "a proxy finds nobody": "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nBad",
    "a proxy waits in vain": "HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 3\r\n\r\nBad",
}
"""What a client gets of a service that goes away, as a proxy, a door or the kernel passes it on."""


@contextlib.contextmanager
def answering(*answers: str, reset: bool = False, heard: list[str] | None = None) -> Iterator[int]:
    """A port on 127.0.0.1 that gives each connection the next of the answers, the last one from then on.

    With `reset`, the connection does not end but is reset. `heard` gets the login of each request.
    """
    left = list(answers)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += connection.recv(65536)
                length = next(
                    (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
                )
                if heard is not None:
                    heard.extend(line for line in head.decode().split("\r\n") if line.startswith("Authorization:"))
                body = head.partition(b"\r\n\r\n")[2]
                while len(body) < length:
                    body += connection.recv(65536)
                connection.sendall((left.pop(0) if len(left) > 1 else left[0]).encode())
                if reset:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
