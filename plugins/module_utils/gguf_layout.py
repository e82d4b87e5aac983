"""Where the bytes of a model's published files belong in the one file that is made of them: arithmetic, from their heads alone.

It takes the standard library only. The transfer knows by it where on the disk to put what arrives, and whoever mends a file knows by it
which bytes of which published file a damaged place comes from.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, Sequence

from ansible_collections.r1.prov.plugins.module_utils import gguf_header
from ansible_collections.r1.prov.plugins.module_utils.gguf_header import GgufError, Tensor, padded

if TYPE_CHECKING:
    from pathlib import Path

    from ansible_collections.r1.prov.plugins.module_utils.gguf_header import Gguf


@dataclass(frozen=True)
class Part:
    """One tensor of the new file.

    `make` makes its data of the source's, and raises a ValueError where it cannot. `agrees` says whether data (second) are what should have
    been made of the source's (first). Both are None where the data stay the same.
    """

    name: str
    shape: tuple[int, ...]
    type: int  # the number of its type
    path: Path  # the file with the source
    source: Tensor
    make: Callable[[bytes], bytes] | None = None
    agrees: Callable[[bytes, bytes], bool] | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of its data, without padding."""
        return gguf_header.data_bytes(self.name, self.shape, self.type)

    @property
    def is_copy(self) -> bool:
        """Whether its data are its source's. A tensor that is made of another has a name of its own."""
        return self.name == self.source.name


def copied(path: Path, tensor: Tensor) -> Part:
    """A tensor that stays what it is."""
    return Part(tensor.name, tensor.shape, tensor.type, path, tensor)


def takes(keys: dict[str, bytes], parts: Sequence[Part]) -> int:
    """The bytes of the file that has these keys and tensors."""
    start = _head(keys, parts)
    return len(start) + sum(padded(part.n_bytes, gguf_header.alignment(keys)) for part in parts)


def _head(keys: dict[str, bytes], parts: Sequence[Part]) -> bytes:
    return gguf_header.head(keys, [(part.name, part.shape, part.type) for part in parts])


@dataclass(frozen=True)
class Placed:
    """A tensor of the new file that is made of another one, and where in the new file it begins."""

    part: Part
    offset: int


@dataclass(frozen=True)
class Run:
    """Bytes of a published file that go the same way.

    Attributes:
        shard: the number of the file, from 0.
        start: where they begin in it.
        end: where they end in it.
        offset: where they begin in the new file. None where they are not in it as they are: heads, padding, and what others are made of.
        made: what is made of them.
    """

    shard: int
    start: int
    end: int
    offset: int | None = None
    made: tuple[Placed, ...] = ()


@dataclass(frozen=True)
class Layout:
    """The new file, as far as the heads of the published files tell.

    Attributes:
        head: its first bytes, up to the data of its first tensor. What lies between its tensors and behind the last one is zeros.
        bytes: its size.
        runs: for each published file all its bytes, in order. Their places in the new file grow from run to run and from file to file.
    """

    head: bytes
    bytes: int
    runs: tuple[tuple[Run, ...], ...]

    def within(self, shard: int, start: int, end: int) -> list[Run]:
        """The runs of these bytes of a published file, cut to them. What is made of a run is named with each of its parts."""
        runs = self.runs[shard]
        first = bisect.bisect_right([run.start for run in runs], start) - 1
        found = []
        for run in runs[max(first, 0) :]:
            if run.start >= end:
                break
            if run.end > start:
                found.append(_cut(run, max(start, run.start), min(end, run.end)))
        return found

    def needed(self, start: int, end: int) -> list[Run]:
        """The bytes of the published files that these bytes of the new file come from.

        What is made of others takes the whole of them. The head and what lies between tensors come from no run.
        """
        found = []
        for run in (run for runs in self.runs for run in runs):
            if run.offset is not None and run.offset < end and start < run.offset + run.end - run.start:
                shift = run.start - run.offset
                found.append(_cut(run, max(start + shift, run.start), min(end + shift, run.end)))
            elif any(each.offset < end and start < each.offset + each.part.n_bytes for each in run.made):
                found.append(run)
        return found


def _cut(run: Run, start: int, end: int) -> Run:
    return Run(run.shard, start, end, None if run.offset is None else run.offset + start - run.start, run.made)


def layout(keys: dict[str, bytes], parts: Sequence[Part], shards: Sequence[Gguf], sizes: Sequence[int]) -> Layout:
    """Lays the new file out.

    Args:
        keys: its metadata.
        parts: its tensors, in the order of the published files.
        shards: the heads of these files.
        sizes: the bytes of each of them.

    Raises:
        GgufError: a published file is cut short, or two of its tensors overlap; the message names the file.
    """
    head, to = _head(keys, parts), gguf_header.alignment(keys)
    places: dict[tuple[Path, str], list[Placed]] = {}
    offset = len(head)
    for part in parts:
        places.setdefault((part.path, part.source.name), []).append(Placed(part, offset))
        offset += padded(part.n_bytes, to)
    rows = [
        tuple(_runs(number, shard, size, places))
        for number, (shard, size) in enumerate(zip(shards, sizes, strict=True))
    ]
    return Layout(head, offset, tuple(rows))


def _runs(number: int, shard: Gguf, size: int, places: dict[tuple[Path, str], list[Placed]]) -> list[Run]:
    """All bytes of one published file, in order."""
    found: list[Run] = []

    def add(run: Run) -> None:
        last = found[-1] if found else None
        if last and not last.made and not run.made and _ends(last) == run.offset:
            found[-1] = Run(number, last.start, run.end, last.offset)
        elif run.start < run.end:
            found.append(run)

    position = 0
    for tensor in shard.tensors:
        end = tensor.start + tensor.n_bytes
        if tensor.start < position or end > size:
            what = "its tensors overlap" if end <= size else "it is cut short"
            raise GgufError(f"{shard.path.name} cannot be used: {what} at `{tensor.name}`")
        add(Run(number, position, tensor.start))
        placed = places[shard.path, tensor.name]
        if len(placed) == 1 and placed[0].part.is_copy:
            add(Run(number, tensor.start, end, placed[0].offset))
        else:
            found.append(Run(number, tensor.start, end, None, tuple(placed)))
        position = end
    add(Run(number, position, size))
    return found


def _ends(run: Run) -> int | None:
    """Where a run ends in the new file. None where it is not in it."""
    return None if run.offset is None else run.offset + run.end - run.start
