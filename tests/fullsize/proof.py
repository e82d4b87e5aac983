"""What is asked of a transfer at full size, and what came of it. The `gguf` package alone says what is right, from the heads of files.

The data of a whole model would fill a real disk, so only the first and the last bytes of each published file come. The first run begins
with nothing, and is killed when the first bytes of the first file are there. Then the journals are made to say that an earlier run has
brought the middle of each file. So the second run brings the first bytes of the others, and the third one what is missing at the ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from r1prov.common import paths
from tests.faults import kinds
from tests.fixtures.transferring import HOPELESS, Host, while_running
from tests.fullsize.published import Published
from tests.fullsize.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

QUANT = "UD-IQ1_S"
DISK_BYTES = 200_000_000_000
EDGE_BYTES = 1_000_000_000  # of each file, at its beginning and at its end
RESERVE_BYTES = 2 << 30
SHORT_BYTES = 1_000_000_000  # that a disk has too little
SLACK_BYTES = 64 << 20  # for journals, and for what a file system writes down of files
CONVERTED = "blk.0.attn_kv_b.weight"
HEADS, KEY, RANK = 128, 128, 512
_BLOCK_BYTES = 16 << 20
_LOOK_S = 0.2
_LONGEST_S = 120
_NAME = "r1.mla.gguf"


@dataclass(frozen=True)
class Merged:
    """The file that the merge makes of the published files, as far as its head tells.

    Attributes:
        head: Its bytes up to the first tensor.
        bytes: Its size.
        tensors: Where each tensor lies in it: from where, and how many bytes. The `gguf` package says so.
    """

    head: bytes
    bytes: int
    tensors: dict[str, tuple[int, int]]


class _EnoughError(Exception):
    """The head is written."""


def merged(published: Published, folder: Path) -> Merged:
    """Has the merge begin, and stops it when it has written the head. That takes as much free disk as the whole merge."""
    names = ("gguf_header", "gguf_stream", "mla", "mla_form")
    gguf_header, gguf_stream, mla, mla_form = map(paths.module_util, names)
    form, found = mla_form.wanted([gguf_header.read(path) for path in published.files], "mla"), list[Merged]()
    path = folder / "merged.gguf"

    def look(_done: int, _total: int) -> None:
        tensors = tensors_of(path)
        with path.open("rb") as stream:
            head = stream.read(min(start for start, _ in tensors.values()))
        found.append(Merged(head, path.stat().st_size, tensors))
        raise _EnoughError

    with contextlib.suppress(_EnoughError):
        gguf_stream.write(path, form.keys, mla.able(form), look)
    return found[0]


def tensors_of(path: Path) -> dict[str, tuple[int, int]]:
    """Where the tensors of a file lie, as the `gguf` package reads its head."""
    return {each.name: (int(each.data_offset), int(each.n_bytes)) for each in gguf.GGUFReader(path).tensors}


@contextlib.contextmanager
def thin(place: Path) -> Iterator[Path]:
    """A disk that takes as much of the real one as is written to it."""
    image = place.with_suffix(".img")
    place.mkdir()
    image.touch()
    os.truncate(image, DISK_BYTES)
    # One inode for each 4 MiB, or the inodes alone would take 3 GB.
    subprocess.run(["mkfs.ext4", "-q", "-F", "-T", "largefile4", image], check=True)
    attach = ["losetup", "--find", "--show", str(image)]
    device = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
    try:
        # It would pass for a disk that turns where the real one says that of itself.
        (Path("/sys/block") / Path(device).name / "queue/rotational").write_text("0")
        subprocess.run(["mount", device, place], check=True)
        try:
            yield place
        finally:
            subprocess.run(["umount", place], check=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def used(disk: Path) -> int:
    """What is taken of a disk."""
    status = os.statvfs(disk)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def leave(disk: Path, free: int) -> None:
    """Takes so much of a disk that this is free for whoever is not root."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    status = os.statvfs(disk)
    with ballast.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, status.f_bavail * status.f_frsize - free)


class Proof:
    """One proof.

    Attributes:
        found: What was measured.
    """

    def __init__(self, published: Published, server: Server, disk: Path) -> None:
        self.published, self.server, self.disk = published, server, disk
        self.found: dict[str, Any] = {}
        self.sources = [tensors_of(path) for path in published.files]
        self.merged = merged(published, disk)
        (disk / "none").mkdir()
        self.host = Host(disk / "host", disk / "none")
        self.host.job |= {
            "files": [file.model_dump() for file in published.quant.files],
            "merged": _NAME,
            "attention": "mla",
            "reserve_bytes": RESERVE_BYTES,
            "patience_s": 60,
        }
        self._before = used(disk)
        self._peak_memory = self._peak_disk = 0

    @property
    def incoming(self) -> Path:
        """Where files grow."""
        return self.host.folder / ".incoming"

    @property
    def aside_bytes(self) -> int:
        """What of the published files is not in the final file as it is: heads, and what other tensors are made of."""
        kept = [n_bytes for each in self.sources for name, (_, n_bytes) in each.items() if name in self.merged.tensors]
        return self.published.quant.bytes - sum(kept)

    def run(self) -> dict[str, Any]:
        """Tries all.

        Raises:
            AssertionError: Something is not as it must be.
        """
        self._refused()
        self._first_run()
        self._later_runs()
        self._compared()
        self.found |= {
            "published_bytes": self.published.quant.bytes,
            "final_bytes": self.merged.bytes,
            "peak_memory_mb": round(self._peak_memory / 1e6),
            "peak_disk": round(self._peak_disk / self.published.quant.bytes, 4),
        }
        assert self._peak_memory < 250e6, self._peak_memory
        assert self.found["peak_disk"] <= 1.01, self.found
        return self.found

    def _refused(self) -> None:
        """On a disk that is a little too small nothing but the heads comes."""
        leave(self.disk, self.merged.bytes + self.aside_bytes + RESERVE_BYTES - SHORT_BYTES)
        before, began = used(self.disk), time.monotonic()
        code, log = self.host.run(self.server.source)
        taken = used(self.disk) - before
        assert code == HOPELESS, log
        assert "GiB are still to come and 2.0 GiB stay free: make room" in log, log
        assert not (self.incoming / _NAME).exists()
        assert taken < SLACK_BYTES, taken
        self.found["refused"] = {
            "short_bytes": SHORT_BYTES,
            "seconds": round(time.monotonic() - began, 1),
            "written_bytes": taken,
        }

    def _first_run(self) -> None:
        """From the empty disk on: all room is taken before the first tensor comes."""
        leave(self.disk, self.merged.bytes + self.aside_bytes + RESERVE_BYTES + SLACK_BYTES)
        self._before = used(self.disk)
        final, began = self.incoming / _NAME, time.monotonic()
        place, n_bytes = self.merged.tensors[CONVERTED.replace("kv_b", "v_b")]

        def is_enough() -> bool:
            if not final.exists() or final.stat().st_size != self.merged.bytes:
                return False
            if "reserved" not in self.found:
                taken = used(self.disk) - self._before
                self.found["reserved"] = {"seconds": round(time.monotonic() - began, 1), "bytes": taken}
                assert final.stat().st_blocks * 512 >= self.merged.bytes
            return any(read(final, place + n_bytes - 4096, 4096)) and not self._missing(0, 0, EDGE_BYTES)

        self._run_until(is_enough)
        assert self.found["reserved"]["bytes"] >= self.merged.bytes + self.aside_bytes

    def _later_runs(self) -> None:
        """Over files whose middle is there, as the journals say. Nothing is asked for that is there."""
        sizes = [file.bytes for file in self.published.quant.files]
        self._tell_middle()
        # Of a file that was begun before, a run brings all that is missing. Of others it brings what comes soon in their order.
        for ends in ([sizes[0], EDGE_BYTES, EDGE_BYTES], sizes):
            gaps = [self._missing(number, 0, size) for number, size in enumerate(sizes)]
            self.server.asked.clear()
            self._run_until(partial(self._has_first, ends))
            for number, start, end in self.server.asked:
                assert any(low <= start and end <= high for low, high in gaps[number]), (number, start, end)

    def _has_first(self, ends: list[int]) -> bool:
        """Whether so many of the first bytes of each published file have arrived."""
        return not any(self._missing(number, 0, end) for number, end in enumerate(ends))

    def _tell_middle(self) -> None:
        """Lets the journals say that an earlier run has brought all but the edges of each file."""
        for number, file in enumerate(self.published.quant.files):
            rows: list[list[Any]] = [["piece", EDGE_BYTES, file.bytes - EDGE_BYTES, None, "an earlier run", '"one"']]
            path = self._journal(number)
            if not path.exists():
                rows.insert(0, ["file", 1, file.sha256, file.bytes])
            with path.open("ab") as stream:
                for row in rows:
                    text = json.dumps(row).encode()
                    stream.write(b"\n%08x %b\n" % (zlib.crc32(text), text))

    def _run_until(self, is_enough: Callable[[], bool]) -> None:
        """Lets the transfer run until something is so, and kills it."""
        process, began = self.host.start(self.server.source), time.monotonic()
        try:
            for _ in while_running(process, _LOOK_S):
                self._look(process)
                if is_enough():
                    return
                assert time.monotonic() - began < _LONGEST_S, self.host.progress
        finally:
            process.kill()
            log = process.communicate()[1]
        raise AssertionError(log)

    def _look(self, process: subprocess.Popen[str]) -> None:
        """Takes note of what it takes."""
        with contextlib.suppress(OSError, ValueError):  # It may have ended.
            lines = Path(f"/proc/{process.pid}/status").read_text("ascii").splitlines()
            row = next(line for line in lines if line.startswith("VmHWM:"))
            self._peak_memory = max(self._peak_memory, int(row.split()[1]) << 10)
        self._peak_disk = max(self._peak_disk, used(self.disk) - self._before)

    def _journal(self, number: int) -> Path:
        return self.incoming / f"{self.published.quant.files[number].sha256}.aside.journal"

    def _missing(self, number: int, start: int, end: int) -> list[tuple[int, int]]:
        """What of these bytes of a published file has not arrived, by its journal."""
        path, found, position = self._journal(number), list[tuple[int, int]](), start
        rows = sorted(kinds.marked(path)[1]) if path.exists() else []
        for first, last in [*rows, (end, end)]:
            if position < min(first, end):
                found.append((position, min(first, end)))
            position = max(position, last)
        return found

    def _compared(self) -> None:
        """Each byte that has come is where it belongs."""
        final = self.incoming / _NAME
        assert read(final, 0, len(self.merged.head)) == self.merged.head
        assert tensors_of(final) == self.merged.tensors
        count = 0
        for number, file in enumerate(self.published.quant.files):
            for start, end in ((0, EDGE_BYTES), (file.bytes - EDGE_BYTES, file.bytes)):
                count += sum(self._compare(number, *row) for row in self._split(number, start, end))
        assert count == 2 * EDGE_BYTES * len(self.published.files), count
        self.found["compared_bytes"] = count
        self._converted(final)

    def _split(self, number: int, start: int, end: int) -> Iterator[tuple[int, int, int | None]]:
        """Bytes of a published file by where they belong: from where to where, and their place in the final file, if they are in it."""
        position = start
        for name, (first, n_bytes) in sorted(self.sources[number].items(), key=lambda row: row[1]):
            low, high = max(first, start), min(first + n_bytes, end)
            if low < high:
                if position < low:
                    yield position, low, None
                to = self.merged.tensors.get(name)
                yield low, high, to[0] + low - first if to else None
                position = high
        if position < end:
            yield position, end, None

    def _compare(self, number: int, start: int, end: int, offset: int | None) -> int:
        """Sees that these bytes are there. Returns how many they are."""
        own = self.published.quant.files[number]
        path = self.incoming / (f"{own.sha256}.aside" if offset is None else _NAME)
        shift = 0 if offset is None else offset - start
        for position in range(start, end, _BLOCK_BYTES):
            stop = min(position + _BLOCK_BYTES, end)
            is_there = read(path, position + shift, stop - position) == self.published.read(number, position, stop)
            assert is_there, f"{own.name} from {position} on is not at {position + shift} of {path.name}"
        return end - start

    def _converted(self, final: Path) -> None:
        """The first tensor that others are made of, as the `gguf` package computes what comes of it."""
        start, n_bytes = self.sources[0][CONVERTED]
        raw = np.frombuffer(self.published.read(0, start, start + n_bytes), np.uint8).reshape(HEADS, 2 * KEY, -1)
        values = gguf.dequantize(raw.reshape(HEADS * 2 * KEY, -1), gguf.GGMLQuantizationType.Q6_K)
        keys = values.reshape(HEADS, 2 * KEY, RANK)[:, :KEY].transpose(0, 2, 1)
        made = gguf.quantize(np.ascontiguousarray(keys), gguf.GGMLQuantizationType.Q8_0)
        for name, wanted in (("k_b", made.tobytes()), ("v_b", raw[:, KEY:].tobytes())):
            place, size = self.merged.tensors[CONVERTED.replace("kv_b", name)]
            assert read(final, place, size) == wanted, name


def read(path: Path, start: int, count: int) -> bytes:
    """Some bytes of a file."""
    with path.open("rb") as stream:
        stream.seek(start)
        return stream.read(count)


def prove(place: Path) -> dict[str, Any]:
    """Makes the disk and the server, and tries all.

    Args:
        place: An empty folder on a real disk.
    """
    published = Published(place / "published", QUANT)
    with thin(place / "disk") as disk, Server(published) as server:
        found = Proof(published, server, disk).run()
        os.sync()
    found["real_disk_bytes"] = (place / "disk.img").stat().st_blocks * 512
    return found
