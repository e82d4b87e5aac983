"""The faults by name. Each ends with the right files, whatever happened, and never with a wrong one in its place."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gguf import GGMLQuantizationType

from r1prov.common import paths
from tests.fixtures import shards, tinymodel
from tests.fixtures.faulty import RIGHT, Faulty, Twist
from tests.fixtures.transferring import HOPELESS, Host, wait_for

if TYPE_CHECKING:
    from ansible_collections.r1.prov.plugins.module_utils.gguf_layout import Layout

OTHERS = GGMLQuantizationType.F32
TENSORS_IN_FIRST = 100
NAME = "m.gguf"
"""The one file that is made of the files that are served."""
PIECE_BYTES = 3 << 20  # of the journal, with the block that makes it full
IN_FLIGHT_BYTES = 8 << 20  # what connections may have sent into the line when a process is killed, all together
SLOW = 4e6
PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Hello</body></html>"


def say(status: str, *headers: str, body: bytes = b"") -> Twist:
    """An answer as it goes over the wire."""
    head = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "Connection: close", "", ""]
    return Twist(raw="\r\n".join(head).encode() + body)


@dataclass(frozen=True)
class Model:
    """A model in two files, as it is published, and what is made of it.

    Attributes:
        folder: What servers have.
        files: The files in it.
        layout: Where their bytes belong in the one file.
        made: That file.
    """

    folder: Path
    files: list[Path]
    layout: Layout
    made: Path


def publish(folder: Path) -> Model:
    """Writes the files that are served, 20 and 9 MB of a tiny deepseek2 model with legacy attention."""
    folder.mkdir(parents=True)
    whole = tinymodel.write(folder.with_name("whole.gguf"), legacy=GGMLQuantizationType.Q8_0, others=OTHERS)
    files = shards.split(whole, folder / "m", TENSORS_IN_FIRST)
    names = ("gguf_header", "gguf_layout", "gguf_stream", "mla", "mla_form")
    gguf_header, gguf_layout, gguf_stream, mla, mla_form = map(paths.module_util, names)
    heads = [gguf_header.read(path) for path in files]
    form = mla_form.wanted(heads, "mla")
    layout = gguf_layout.layout(form.keys, form.parts, heads, [path.stat().st_size for path in files])
    made = folder.with_name("made.gguf")
    gguf_stream.write(made, form.keys, mla.able(form), lambda *_: None)
    return Model(folder, files, layout, made)


@dataclass
class Case:
    """One transfer under one fault.

    Attributes:
        host: Where the files go.
        model: What servers have.
        is_straight: Whether the files come straight into the one that is made of them.
        chance: What chooses the points.
        most: How many bytes the servers may send, beside 1.1 times the files.
    """

    host: Host
    model: Model
    is_straight: bool
    chance: random.Random
    stack: ExitStack
    most: int = 0
    servers: list[Faulty] = field(default_factory=list)
    log: str = ""

    def server(
        self, twist: Callable[[int], Twist] = lambda _: RIGHT, rate: float = 40e6, most: int = 1000, total: float = 0
    ) -> Faulty:
        server = self.stack.enter_context(Faulty(self.model.folder, rate, twist, most, total))
        self.servers.append(server)
        return server

    def start(self, *servers: Faulty, **more: str) -> subprocess.Popen[str]:
        return self.host.start(*(server.source for server in servers), **more)

    def end(self, process: subprocess.Popen[str], code: int = 0) -> None:
        try:
            _, log = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        self.log += log
        assert process.returncode == code, self.log

    def run(self, *servers: Faulty) -> None:
        self.end(self.start(*(servers or self.servers)))

    def killed(self, process: subprocess.Popen[str], at: int) -> None:
        """Kills a transfer when so many bytes are there."""
        wait_for(lambda: process.poll() is not None or self.host.arrived >= at)
        process.send_signal(signal.SIGKILL)
        self.log += process.communicate()[1]
        self.most += IN_FLIGHT_BYTES

    def check(self) -> None:
        """Sees that all is as it must be."""
        if self.is_straight:
            assert self.host.has_made(self.model.made), self.log
        else:
            assert self.host.is_complete(), self.log
        assert "Traceback" not in self.log, self.log
        sent = sum(server.sent for server in self.servers)
        assert sent <= 1.1 * self.whole + self.most, (sent / self.whole, self.log)

    @property
    def whole(self) -> int:
        return sum(path.stat().st_size for path in self.model.files)

    @property
    def largest(self) -> int:
        return max(path.stat().st_size for path in self.model.files)

    def point(self, low: float = 0.05, high: float = 0.9) -> int:
        return round(self.chance.uniform(low, high) * self.whole)

    def journals(self) -> list[tuple[int, Path]]:
        """The journals of the files on their way, with the numbers of these files."""
        end = ".aside.journal" if self.is_straight else ".journal"
        rows = enumerate(self.host.job["files"])
        paths = [(number, self.host.folder / ".incoming" / (row["sha256"] + end)) for number, row in rows]
        return [(number, path) for number, path in paths if path.exists()]

    def lying(self, number: int, start: int, end: int) -> list[tuple[Path, int, int]]:
        """Where bytes of a file on its way lie: in which files, from where, and how many."""
        incoming, own = self.host.folder / ".incoming", self.host.job["files"][number]["sha256"]
        if not self.is_straight:
            return [(incoming / own, start, end - start)]
        return [
            (incoming / f"{own}.aside", run.start, run.end - run.start)
            if run.offset is None
            else (incoming / NAME, run.offset, run.end - run.start)
            for run in self.model.layout.within(number, start, end)
        ]

    def growing(self) -> Path:
        """A file on its way. It is there when that is."""
        return self.host.folder / ".incoming" / (NAME if self.is_straight else self.host.job["files"][0]["sha256"])


Kind = Callable[[Case], None]
KINDS: dict[str, Kind] = {}


def kind(name: str) -> Callable[[Kind], Kind]:
    def put(act: Kind) -> Kind:
        KINDS[name] = act
        return act

    return put


def sometimes(case: Case, twist: Twist) -> Callable[[int], Twist]:
    """The second answer, and some of the later ones, as the seed says. Never two in a row, because each makes the next pause longer."""
    chosen = {1, *(number for number in (3, 5, 8) if case.chance.random() < 0.5)}
    return lambda number: twist if number in chosen else RIGHT


def once(case: Case, twist: Twist, last: int = 4) -> Callable[[int], Twist]:
    chosen = case.chance.randrange(last)
    return lambda number: twist if number == chosen else RIGHT


ANSWERS = {
    "a login page in the place of a part": say("200 OK", "Content-Type: text/html", body=PAGE),
    "an empty answer": say("204 No Content"),
    "a refusal": say("403 Forbidden"),
    "a file that is not there for a moment": say("404 Not Found"),
    "a server in trouble": say("503 Service Unavailable"),
    "a server that wants a pause of seconds": say("429 Too Many Requests", "Retry-After: 2"),
    "a server that wants a pause until a time": say(
        "503 Service Unavailable", "Date: Thu, 01 Jan 2026 00:00:00 GMT", "Retry-After: Thu, 01 Jan 2026 00:00:02 GMT"
    ),
    "a redirect in a circle": say("302 Found", "Location: /m-00001-of-00002.gguf?again"),
    "a redirect to nowhere": say("302 Found", "Location: http://127.0.0.1:9/m"),
    "no answer at all": Twist(raw=b"\r\n"),
    "something that is no HTTP": Twist(raw=b"220 ready for mail\r\n"),
    "a head that breaks off": Twist(raw=b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-"),
    "a part of another place": Twist(shift=1),
    "a part of a file of another size": Twist(says_size=12345678),
    "more than was asked for": Twist(longer=1000),
    "something packed": Twist(encoding="gzip"),
    "whole files where parts are asked for": Twist(has_ranges=False),
}
for _name, _twist in ANSWERS.items():

    @kind(_name)
    def _answered(case: Case, twist: Twist = _twist) -> None:
        case.most = 2 << 20  # what the beginning of an answer costs that is not taken
        case.server(sometimes(case, twist))
        case.run()


@kind("a connection that breaks off")
def breaks(case: Case) -> None:
    points = [case.chance.randrange(1, 4 << 20) for _ in range(12)]
    case.server(lambda number: Twist(cut_after=points[number]) if number < len(points) else RIGHT)
    case.run()


@kind("less than was asked for")
def shorter(case: Case) -> None:
    case.server(sometimes(case, Twist(shorter=case.chance.randrange(1, 4 << 20))))
    case.run()


@kind("chunks without a length")
def chunked(case: Case) -> None:
    case.server(lambda _: Twist(is_chunked=True))
    case.run()


@kind("a server without ranges")
def no_ranges(case: Case) -> None:
    case.server(lambda _: Twist(has_ranges=False))
    case.run()


@kind("a server that loses its ranges, and a kill")
def loses_ranges(case: Case) -> None:
    lost = case.chance.randrange(1, 6)
    case.server(lambda number: Twist(has_ranges=number < lost), SLOW)
    case.most = case.whole  # All that is there has to come once more.
    case.killed(case.start(*case.servers), case.point(high=0.5))
    case.run()


@kind("a version that changes, with the same bytes")
def version(case: Case) -> None:
    changed = case.chance.randrange(1, 5)
    case.server(lambda number: Twist(etag='"one"' if number < changed else '"two"'))
    case.most = 2 << 20
    case.run()


@kind("another version at each answer")
def versions(case: Case) -> None:
    case.server(lambda number: Twist(etag=f'"{number}"'))
    case.most = 4 << 20
    case.run()


@kind("a server that wants few connections")
def few(case: Case) -> None:
    case.server(rate=SLOW, most=case.chance.randrange(1, 4))
    case.run()


@kind("a connection from which nothing comes any more")
def silent(case: Case) -> None:
    chosen = case.chance.randrange(1, 6)
    after = case.chance.randrange(0, 3 << 20)
    case.server(lambda number: Twist(silent_after=after) if number == chosen else RIGHT, SLOW)
    case.run()


@kind("a slow source before a fast one")
def slow_first(case: Case) -> None:
    slow, fast = case.server(total=1e6), case.server(rate=10e6)
    case.run()
    assert fast.sent > slow.sent, case.log


@kind("a source that dies beside another")
def dies(case: Case) -> None:
    dying = case.server(rate=SLOW)
    other = case.server(rate=SLOW)
    process = case.start(dying, other)
    wait_for(lambda: case.host.arrived > case.point(high=0.5))
    dying.__exit__()
    case.end(process)


@kind("a mirror with other bytes before the right one")
def liar(case: Case) -> None:
    case.server(lambda _: Twist(flips=True))
    case.server()
    case.most = case.whole  # Nothing tells that bytes are wrong before a file is whole.
    case.run()


@kind("a bit that flips on the way")
def flip_on_way(case: Case) -> None:
    case.server(once(case, Twist(flips=True)))
    case.most = case.largest
    case.run()


@kind("a kill")
def kill(case: Case) -> None:
    case.server(rate=SLOW)
    case.killed(case.start(*case.servers), case.point())
    case.run()


@kind("kill after kill")
def kills(case: Case) -> None:
    case.server(rate=SLOW)
    for share in (0.2, 0.4, 0.6, 0.8):
        case.killed(case.start(*case.servers), case.point(share - 0.1, share))
    case.run()


def cut_power(case: Case) -> None:
    """Takes from the disk what was not brought to it: bytes behind the last mark are zeros."""
    for number, journal in case.journals():
        safe, rows = marked(journal)
        for start, end in rows[safe:]:
            if case.chance.random() < 0.7:
                for path, position, count in case.lying(number, start, end):
                    with path.open("r+b") as stream:
                        stream.seek(position)
                        stream.write(bytes(count))


def marked(journal: Path) -> tuple[int, list[tuple[int, int]]]:
    """How many pieces a journal marks as safe, and where all of them lie. This knows its format by itself."""
    rows, places, safe, place = [], [], 0, 0
    for line in journal.read_text().split("\n"):
        words = line.partition(" ")[2].strip("[]").replace('"', "").split(", ")
        if words[0] == "piece":
            rows.append((int(words[1]), int(words[2])))
            places.append(place)
        elif words[0] == "safe":
            safe = int(words[1])
        place += len(line) + 1
    return sum(each < safe for each in places), rows


@kind("a power cut")
def power(case: Case) -> None:
    case.server(rate=SLOW)
    case.most = 3 * 8 * int(SLOW)  # A mark is made each second, and at least as long ago as the disk took for it.
    case.killed(case.start(*case.servers), case.point())
    cut_power(case)
    case.run()


@kind("a power cut with a torn journal")
def torn(case: Case) -> None:
    case.server(rate=SLOW)
    case.most = 3 * 8 * int(SLOW)
    case.killed(case.start(*case.servers), case.point())
    cut_power(case)
    for _, path in case.journals():
        content = path.read_bytes()
        path.write_bytes(content[:-50] + bytes(case.chance.randrange(50)))
    case.run()


@kind("a journal that is lost")
def journal_lost(case: Case) -> None:
    case.server(rate=SLOW)
    case.most = 2 * case.whole  # Nobody knows any more where the gaps are.
    case.killed(case.start(*case.servers), case.point())
    for _, path in case.journals():
        path.unlink()
    case.run()


@kind("a bit that flips on the disk")
def flip_on_disk(case: Case) -> None:
    case.server(rate=SLOW)
    case.killed(case.start(*case.servers), case.point(low=0.3))
    damaged = 0
    for number, journal in case.journals():
        _, rows = marked(journal)
        if rows:
            start, end = case.chance.choice(rows)
            place = case.chance.randrange(start, end)
            [(path, position, _)] = case.lying(number, place, place + 1)
            flip(path, position)
            damaged += 1
    case.most += damaged * PIECE_BYTES
    case.run()


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(position)
        byte = stream.read(1)[0]
        stream.seek(position)
        stream.write(bytes([byte ^ 1]))


@kind("a stranger who writes into a file on its way")
def stranger(case: Case) -> None:
    case.server(rate=SLOW)
    process = case.start(*case.servers)
    wait_for(lambda: case.host.arrived > case.point(high=0.6) and case.growing().exists())
    path = case.growing()
    flip(path, case.chance.randrange(path.stat().st_size))
    case.most = PIECE_BYTES + IN_FLIGHT_BYTES
    case.end(process)


@kind("a file on its way that is removed")
def removed(case: Case) -> None:
    case.server(rate=SLOW)
    process = case.start(*case.servers)
    wait_for(lambda: case.host.arrived > case.point(high=0.4) and case.growing().exists())
    case.growing().unlink()
    case.most = case.whole
    case.end(process)


@kind("two at once, of which one is killed")
def two(case: Case) -> None:
    case.server(rate=SLOW)
    first = case.start(*case.servers)
    time.sleep(case.chance.uniform(0, 0.5))
    (case.host.root / "other").mkdir()
    second = case.start(*case.servers, run="other", STATE_DIRECTORY=str(case.host.root / "other"))
    case.killed(first, case.point(high=0.6))
    case.end(second)


@kind("two at once where locks do not work")
def two_without_locks(case: Case) -> None:
    shim = case.host.root / "shim"
    shim.mkdir()
    lines = ["import errno, fcntl", "def lockf(*_):", "    raise OSError(errno.ENOLCK, 'none')", "fcntl.lockf = lockf"]
    (shim / "sitecustomize.py").write_text("\n".join(lines))
    case.server(rate=SLOW)
    (case.host.root / "other").mkdir()
    first = case.start(*case.servers, PYTHONPATH=str(shim))
    time.sleep(case.chance.uniform(0, 0.5))
    second = case.start(*case.servers, run="other", PYTHONPATH=str(shim), STATE_DIRECTORY=str(case.host.root / "other"))
    case.most = 4 * case.whole
    case.end(first)
    case.end(second)
    case.run()  # It removes what the one that was late has left.


@kind("a disk that is full for a while")
def full(case: Case) -> None:
    # A limit on the size of files stands for it: the kernel refuses to write, as on a full disk.
    case.server(rate=SLOW)
    limit = case.chance.randrange(2 << 20, 18 << 20)
    case.host.job["sources"] = []
    process = case.start(*case.servers, R1PROV_TEST_FSIZE=str(limit), PYTHONPATH=str(limited(case.host.root)))
    case.end(process, HOPELESS)
    case.most = IN_FLIGHT_BYTES
    assert not list(case.host.folder.glob("m-00001*"))
    case.run()


def limited(root: Path) -> Path:
    folder = root / "limited"
    folder.mkdir()
    lines = [
        "import os, resource, signal",
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)",
        "limit = int(os.environ['R1PROV_TEST_FSIZE'])",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))",
    ]
    (folder / "sitecustomize.py").write_text("\n".join(lines))
    return folder


@contextlib.contextmanager
def case_of(name: str, seed: int, root: Path, model: Model, *, is_straight: bool) -> Iterator[Case]:
    """A case of a kind, at points that the seed chooses."""
    host = Host(root, model.folder)
    host.job["patience_s"] = 60
    if is_straight:
        host.job |= {"merged": NAME, "attention": "mla"}
    with ExitStack() as stack:
        yield Case(host, model, is_straight, random.Random(f"{name} {seed}"), stack)


def run(name: str, seed: int, root: Path, model: Model, *, is_straight: bool = True) -> None:
    """Runs one case, and sees that all is as it must be."""
    with case_of(name, seed, root, model, is_straight=is_straight) as case:
        KINDS[name](case)
        case.check()
