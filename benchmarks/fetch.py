"""Measures how fast the transfer brings verified files, beside the bare downloads of curl and aria2, from a server on this machine.

    python -m benchmarks.fetch [FOLDER] [GB]

A model in three files is served by a process of its own in three ways: each connection gets 10 MB/s; all connections together get 125 MB/s,
as over a link of 1 Gbit/s; and without a limit. The transfer brings it straight into the one file that serves, in MLA form, and its time
ends when that has its name. It is told, too, how long that took from the last byte, how much of the disk it took at most, and how much was
read from the disk. The others only download: aria2 with eight connections to each of the three files, curl one file after the other. Where
curl gets 10 MB/s it brings one twentieth, and its time is multiplied. Besides, it is measured how much of one core's `openssl speed` the
sha256 of the transfer has, in seconds of the processor. Rounds of all alternate, and the median of each counts. The result is printed as
one JSON document.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import re
import shutil
import socket
import socketserver
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fixtures import bigmodel
from tests.fixtures.programs import installed
from tests.fixtures.transferring import in_journal

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
PROGRAM = "r1prov-weights"
FILES = 3
ROUNDS = 3
LOOK_S = 0.1
CURL_PART = 20
SERVED = {"each connection 10 MB/s": (10e6, 0.0), "the link 125 MB/s": (0.0, 125e6), "no limit": (0.0, 0.0)}
"""The most bytes per second of one connection, and of all together. 0 is no limit."""
_BLOCK_BYTES = 256 << 10


class Bucket:
    """Lets so many bytes per second pass, however many ask."""

    def __init__(self, rate: float) -> None:
        self._rate, self._free_s, self._lock = rate, time.monotonic(), threading.Lock()

    def take(self, count: int) -> None:
        """Waits until that many bytes may pass."""
        if not self._rate:
            return
        with self._lock:
            self._free_s = max(self._free_s, time.monotonic() - 0.02) + count / self._rate
            wait_s = self._free_s - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)


class Handler(socketserver.BaseRequestHandler):
    """Answers requests for files and for parts of them."""

    server: Server

    def handle(self) -> None:
        """Serves a connection until the client has enough."""
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream, own = self.request.makefile("rb"), Bucket(self.server.each)
        try:
            while line := stream.readline():
                headers = {}
                while row := stream.readline().strip():
                    name, _, value = row.decode().partition(":")
                    headers[name.lower()] = value.strip()
                self._answer(line.split()[1].decode(), headers.get("range", ""), own)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def _answer(self, path: str, wanted: str, own: Bucket) -> None:
        with (self.server.folder / Path(path).name).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start, end, status, extra = 0, size, "200 OK", ""
            if found := re.fullmatch(r"bytes=(\d+)-(\d*)", wanted):
                start, end = int(found[1]), min(int(found[2] or size - 1) + 1, size)
                status, extra = "206 Partial Content", f"Content-Range: bytes {start}-{end - 1}/{size}\r\n"
            head = f'HTTP/1.1 {status}\r\nContent-Length: {end - start}\r\nAccept-Ranges: bytes\r\n{extra}ETag: "x"\r\n\r\n'
            self.request.sendall(head.encode())
            while start < end:
                count = min(_BLOCK_BYTES, end - start)
                own.take(count)
                self.server.all.take(count)
                start += os.sendfile(self.request.fileno(), file.fileno(), start, count)


class Server(socketserver.ThreadingTCPServer):
    """A web server that limits rates."""

    daemon_threads = allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, folder: Path, each: float, everything: float) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.each, self.all = folder, each, Bucket(everything)


def serve(folder: str, each: str, everything: str) -> None:
    """Serves a folder in this process, and says at which port."""
    with Server(Path(folder), float(each), float(everything)) as server:
        sys.stdout.write(f"{server.server_address[1]}\n")
        sys.stdout.flush()
        server.serve_forever()


def timed(command: list[str], watch: Callable[[int], None] | None = None, **more: Any) -> tuple[float, int]:
    """The seconds that a command takes, and the most memory that it has, in bytes. `watch` is called again and again meanwhile."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **more)
    assert process.stderr  # noqa: S101 - for the types
    is_over = threading.Event()
    if watch:
        threading.Thread(target=lambda: _look(watch, process.pid, is_over), daemon=True).start()
    said = process.stderr.read()
    is_over.set()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} has failed: {said.decode()[-2000:]}")
    return time.monotonic() - began, usage.ru_maxrss * 1024


def _look(watch: Callable[[int], None], pid: int, is_over: threading.Event) -> None:
    while not is_over.wait(LOOK_S):
        watch(pid)


class Watch:
    """What is seen of a transfer while it runs.

    Attributes:
        peak_bytes: The most that its folder takes of the disk.
        read_bytes: What it has read from the disk.
        whole_s: When its last byte had arrived.
    """

    def __init__(self, folder: Path, whole: int) -> None:
        self._folder, self._whole = folder, whole
        self.peak_bytes = self.read_bytes = 0
        self.whole_s: float | None = None

    def look(self, pid: int) -> None:
        """Looks at it once."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # Names change while it is looked at.
            taken = sum(path.stat().st_blocks * 512 for path in self._folder.rglob("*"))
            self.peak_bytes = max(self.peak_bytes, taken)
            found = re.search(r"read_bytes: (\d+)", Path(f"/proc/{pid}/io").read_text(encoding="ascii"))
            self.read_bytes = int(found[1]) if found else 0
            if self.whole_s is None and sum(map(in_journal, self._folder.rglob("*.journal"))) >= self._whole:
                self.whole_s = time.monotonic()


def transfer(url: str, rows: list[dict[str, Any]], place: Path) -> dict[str, float]:
    """Brings all files by the program of the role, and returns what it took."""
    for name in ("models", "state", "run"):
        (place / name).mkdir(parents=True)
    job = {
        "folder": str(place / "models"),
        "files": rows,
        "merged": "m.gguf",
        "attention": "mla",
        "token": "",
        "environment": {},
        "rate_limit": {},
    }
    job |= {"reserve_bytes": 0, "sources": [{"type": "http", "url": url}]}
    (place / "job.json").write_text(json.dumps(job))
    environment = {**os.environ, "STATE_DIRECTORY": str(place / "state"), "RUNTIME_DIRECTORY": str(place / "run")}
    whole = sum(row["bytes"] for row in rows)
    watch, command = (
        Watch(place / "models", whole),
        [sys.executable, str(installed(PROGRAM) / "fetch.py"), str(place / "job.json")],
    )
    took_s, memory = timed(command, watch.look, env=environment)
    ended_s = time.monotonic()
    return {
        "seconds": took_s,
        "memory": memory,
        "from the last byte": ended_s - (watch.whole_s or ended_s),
        "disk": watch.peak_bytes / whole,
        "read": watch.read_bytes / whole,
    }


def bare(url: str, names: list[str], place: Path, part: int) -> dict[str, float]:
    """The seconds of the bare downloads."""
    found = {}
    if shutil.which("aria2c"):
        (place / "aria2").mkdir()
        (place / "list").write_text("".join(f"{url}/{name}\n" for name in names))
        options = ["-x8", "-s8", f"-j{len(names)}", "--min-split-size=1M", "--file-allocation=none", "--quiet"]
        found["aria2"], _ = timed(["aria2c", *options, f"--dir={place / 'aria2'}", f"--input-file={place / 'list'}"])
        shutil.rmtree(place / "aria2")
    (place / "curl").mkdir()
    targets = [word for name in names for word in ("-o", str(place / "curl" / name), f"{url}/{name}")]
    if part > 1:
        size = int(
            subprocess.run(["curl", "-sI", f"{url}/{names[0]}"], check=True, capture_output=True, text=True)
            .stdout.split("Content-Length: ")[1]
            .split()[0]
        )
        targets = ["-r", f"0-{size * len(names) // part - 1}", *targets[:3]]
    found["curl"] = timed(["curl", "--silent", "--fail", *targets])[0] * part
    shutil.rmtree(place / "curl")
    return found


def hashing(path: Path) -> dict[str, float]:
    """How much of what `openssl speed` gives one core the sha256 of the transfer has."""
    sys.path[:0] = [str(installed(PROGRAM))]
    from transfer.frontier import Frontier, Hashed  # noqa: PLC0415 - the program of a host is no package of this repository
    from transfer.partial import Partial  # noqa: PLC0415
    from transfer.sources import File  # noqa: PLC0415

    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    partial = Partial(path, File(path.name, path.stat().st_size, sha256))
    partial.adopted = 0  # So it is read as what has just arrived.
    events: queue.SimpleQueue[object] = queue.SimpleQueue()
    began_s, began = time.process_time(), time.monotonic()
    Frontier(partial, events).start()
    assert isinstance(events.get(), Hashed)  # noqa: S101 - the measurement would mean nothing
    used_s, took_s = time.process_time() - began_s, time.monotonic() - began
    said = subprocess.run(
        ["openssl", "speed", "-seconds", "3", "-bytes", "1048576", "-mr", "sha256"],
        check=True,
        capture_output=True,
        text=True,
    )
    best = float(said.stdout.strip().splitlines()[-1].split(":")[-1])
    size = partial.file.bytes
    return {
        "of openssl speed": round(size / used_s / best, 2),
        "MB/s": round(size / took_s / 1e6),
        "openssl MB/s": round(best / 1e6),
    }


def main() -> None:
    """Measures, and prints the result."""
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
        return
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.gettempdir())
    size = int(float(sys.argv[2] if len(sys.argv) > 2 else 2) * 1e9)
    if not shutil.which("aria2c"):
        sys.stderr.write(
            "\n*** aria2c IS MISSING, so the figures lack the fastest bare download: apt-get install aria2 ***\n\n"
        )
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place, rows = Path(name), []
        (place / "served").mkdir()
        for path in bigmodel.write(place / "served", size, FILES):
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            rows.append({"name": path.name, "bytes": path.stat().st_size, "sha256": digest})
        whole = result["bytes"] = sum(row["bytes"] for row in rows)
        for words, (each, everything) in SERVED.items():
            command = [
                sys.executable,
                "-m",
                "benchmarks.fetch",
                "--serve",
                str(place / "served"),
                str(each),
                str(everything),
            ]
            with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
                assert server.stdout  # noqa: S101 - for the types
                url = f"http://127.0.0.1:{int(server.stdout.readline())}"
                seconds: dict[str, list[float]] = {}
                seen: list[dict[str, float]] = []
                try:
                    for _ in range(ROUNDS):
                        seen.append(transfer(url, rows, place / "ours"))
                        shutil.rmtree(place / "ours")
                        others = bare(url, [row["name"] for row in rows], place, CURL_PART if each else 1)
                        for what, took_s in {"verified": seen[-1]["seconds"], **others}.items():
                            seconds.setdefault(what, []).append(took_s)
                finally:
                    server.terminate()
            median = {what: statistics.median(took) for what, took in seconds.items()}
            result[words] = {
                "MB/s": round(whole / median["verified"] / 1e6),
                "most memory, MB": round(max(each["memory"] for each in seen) / 1e6),
                "from the last byte to the name, seconds": [round(each["from the last byte"], 2) for each in seen],
                "disk at the peak / model": round(max(each["disk"] for each in seen), 3),
                "read from the disk / model": round(max(each["read"] for each in seen), 3),
                **{f"{what}, seconds": [round(each_s, 2) for each_s in took] for what, took in seconds.items()},
                **{f"verified / {other}": round(median["verified"] / median[other], 3) for other in others},
            }
            sys.stderr.write(f"{words}: {json.dumps(result[words])}\n")
        result["sha256"] = hashing(place / "served" / rows[0]["name"])
    sys.stdout.write(f"{json.dumps(result, indent=1)}\n")


if __name__ == "__main__":
    main()
