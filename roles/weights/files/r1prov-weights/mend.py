#!/usr/bin/python3
"""Brings damaged pieces of files anew from where the model comes from, and nothing else.

    mend.py < JOB

JOB is that of `fetch.py`, and `damaged`: of each file its `name`, `bytes`, `pieces` (the sha256 of each piece) and `places` (`start` and
`end`, on borders of pieces). A piece of a published file is fetched as it is. A piece of the one file that was made of them is made anew of
the ranges that it came from. It is written only if its sha256 is that which was recorded, where it lies: whoever has mapped the file sees
right bytes in the place of wrong ones. It prints a JSON object: `fetched`, the bytes that came, and `faults`, for each file that is not
mended, why.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.dont_write_bytecode = True  # It would be left beside the program when root runs this by hand.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from ansible_collections.r1.prov.plugins.module_utils import gguf_header, gguf_layout, mla_form  # noqa: E402
from ansible_collections.r1.prov.plugins.module_utils.digest import digest_at  # noqa: E402
from ansible_collections.r1.prov.plugins.module_utils.files import write_at  # noqa: E402
from ansible_collections.r1.prov.plugins.module_utils.gguf_header import CutShortError, Gguf, GgufError  # noqa: E402
from ansible_collections.r1.prov.plugins.module_utils.piece_digests import PIECE_BYTES  # noqa: E402
from transfer.errors import SourceError, UnreachableError  # noqa: E402
from transfer.limit import Limit  # noqa: E402
from transfer.sources import File, Folder, Part, Web, as_source  # noqa: E402
from transfer.wording import words  # noqa: E402

if TYPE_CHECKING:
    from ansible_collections.r1.prov.plugins.module_utils.gguf_layout import Layout
    from ansible_collections.r1.prov.plugins.module_utils.mla_form import Form

MLA = "ansible_collections.r1.prov.plugins.module_utils.mla"  # It needs numpy, so it is imported when it is needed.
HEAD_BYTES, MOST_HEAD_BYTES = 1 << 20, 256 << 20
PAUSE_S = 5.0


class LyingError(SourceError):
    """What a source has sent does not make the piece that it should be."""


class Origin:
    """One source, and what its heads of the published files say."""

    def __init__(self, source: Folder | Web, job: dict[str, Any], limit: Limit) -> None:
        self.source, self._job, self._limit = source, job, limit
        self._files = [File(**row) for row in job["files"]]
        self._layout: Layout | None = None
        self._form: Form | None = None
        self._able: dict[str, gguf_layout.Part] = {}
        self.fetched = 0

    def piece(self, name: str, start: int, end: int) -> bytes:
        """The bytes of a file of the model that should stand there.

        Raises:
            SourceError: this source does not bring them.
        """
        published = next((file for file in self._files if file.name == name), None)
        return self._fetched(published, start, end) if published else self._made(start, end)

    def _made(self, start: int, end: int) -> bytes:
        """Bytes of the file that was made of the published ones."""
        try:
            layout = self._layout = self._layout or self._laid_out()
        except (GgufError, mla_form.FormError) as error:
            raise LyingError(f"sends files of which the served one was not made: {error}") from None
        made = bytearray(end - start)

        def put(at: int, content: bytes) -> None:
            first, last = max(at, start), min(at + len(content), end)
            if first < last:
                made[first - start : last - start] = content[first - at : last - at]

        put(0, layout.head)
        for run in layout.needed(start, end):
            content = self._fetched(self._files[run.shard], run.start, run.end)
            if run.offset is not None:
                put(run.offset, content)
            for placed in run.made:
                put(placed.offset, self._tensor(placed.part.name, content))
        return bytes(made)

    def _laid_out(self) -> Layout:
        heads = [self._head(file) for file in self._files]
        form = mla_form.wanted(heads, self._job["attention"])
        self._form = form
        return gguf_layout.layout(form.keys, form.parts, heads, [file.bytes for file in self._files])

    def _tensor(self, name: str, source: bytes) -> bytes:
        """The data of a tensor that is made of another one.

        Raises:
            LyingError: the source has sent what nothing can be made of.
            ModuleNotFoundError: this host has no numpy.
        """
        assert self._form  # noqa: S101 - for the types: there is a layout
        if not self._able:
            self._able = {part.name: part for part in importlib.import_module(MLA).able(self._form)}
        make = self._able[name].make
        assert make  # noqa: S101 - for the types: what has another name than its source is made
        try:
            return make(source)
        except ValueError as error:
            raise LyingError(f"sends a tensor that {error}") from None

    def _head(self, file: File) -> Gguf:
        """The head of a published file."""
        content, wanted = b"", HEAD_BYTES
        while True:
            content += self._fetched(file, len(content), min(wanted, file.bytes))
            try:
                return gguf_header.header(io.BytesIO(content), Path(file.name), file.bytes)
            except CutShortError:
                if wanted >= min(file.bytes, MOST_HEAD_BYTES):
                    raise
                wanted *= 2

    def _fetched(self, file: File, start: int, end: int) -> bytes:
        """A range of a published file.

        Raises:
            SourceError: this source does not bring it.
        """
        content = b""
        while len(content) < end - start:
            part = Part(file, start + len(content), end)
            answer = self.source.open(part)
            with answer.stream:
                if answer.start != part.start:
                    raise LyingError("sends whole files only")
                try:
                    came = self._read(answer.head, answer.stream, min(answer.end, end) - part.start)
                except OSError as error:
                    raise UnreachableError(f"has broken off: {words(error)}") from None
            if not came:
                raise UnreachableError("has broken off")
            content += came
        return content

    def _read(self, head: bytes, stream: Any, count: int) -> bytes:
        parts, left = [head[:count]], count - len(head[:count])
        while left > 0 and (block := stream.read(min(left, self._limit.block_bytes()))):
            parts.append(block)
            left -= len(block)
            if self.source.is_web:
                self._limit.wait(len(block), lambda: False)
        self.fetched += count - max(left, 0)
        return b"".join(parts)


class Mending:
    """The files that are damaged, and the sources of what they should hold."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._folder, self._patience_s = Path(job["folder"]), job["patience_s"]
        limit = Limit(job["rate_limit"])
        # What still lies in the folder needs no way. It may be what is damaged, which the digest of the piece tells.
        sources: list[Folder | Web] = [Folder(job["folder"]), *(as_source(row, job["token"]) for row in job["sources"])]
        self.origins = [Origin(source, job, limit) for source in sources]

    def mend(self, file: dict[str, Any]) -> str:
        """Brings the damaged pieces of a file anew. Returns why that was not possible; nothing where it was."""
        try:
            for number in pieces_of(file["places"]):
                start = number * PIECE_BYTES
                end = min(start + PIECE_BYTES, file["bytes"])
                content = self._brought(file["name"], start, end, file["pieces"][number])
                write(self._folder / file["name"], start, content)
                if digest_at(self._folder / file["name"], start, end) != file["pieces"][number]:
                    return f"its disk does not keep bytes {start}-{end - 1}"
        except SourceError as error:
            return str(error)
        except OSError as error:
            return f"it cannot be written: {error.strerror}"
        except ModuleNotFoundError:
            return "a converted tensor lies there, and this host has no numpy, which `r1prov up` installs"
        return ""

    def _brought(self, name: str, start: int, end: int, sha256: str) -> bytes:
        """A piece, from the first source that has it as it should be.

        Raises:
            SourceError: none has, after as long as sources are asked.
        """
        until_s = time.monotonic() + self._patience_s
        while True:
            said = []
            for origin in self.origins:
                try:
                    content = origin.piece(name, start, end)
                    if hashlib.sha256(content).hexdigest() == sha256:
                        return content
                    raise LyingError("sends other bytes")
                except SourceError as error:
                    said.append((origin.source, error))
            # The folder itself is no source of which anybody has to know.
            if time.monotonic() >= until_s or all(isinstance(error, LyingError) for _, error in said[1:]):
                raise SourceError("; ".join(f"{source} {error}" for source, error in said[1:]) or "there is no source")
            time.sleep(PAUSE_S)


def pieces_of(places: list[dict[str, int]]) -> list[int]:
    """The numbers of the pieces at some places."""
    return [
        number for place in places for number in range(place["start"] // PIECE_BYTES, -(-place["end"] // PIECE_BYTES))
    ]


def write(path: Path, start: int, content: bytes) -> None:
    """Writes bytes where they belong in a file, safely to the disk. Nothing but these is touched."""
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
    try:
        write_at(descriptor, content, start)
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def main() -> None:
    """Mends what is damaged, and prints what came of it."""
    job = json.load(sys.stdin)
    os.environ.update(job["environment"])
    mending = Mending(job)
    faults = {file["name"]: why for file in job["damaged"] if (why := mending.mend(file))}
    fetched = sum(origin.fetched for origin in mending.origins[1:])
    print(json.dumps({"fetched": fetched, "faults": faults}))  # noqa: T201 - stdout is the interface


if __name__ == "__main__":
    main()
