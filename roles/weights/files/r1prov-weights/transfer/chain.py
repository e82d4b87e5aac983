"""Reads the shards one after the other while they arrive, hashes them, and makes of the same bytes the digests of the one final file.

What is in the final file and in no shard, such as a converted tensor, is written here, in its turn.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import threading
from typing import TYPE_CHECKING

from ansible_collections.r1.prov.plugins.module_utils.piece_digests import Digests
from transfer.disk import BLOCK_BYTES, DirectReader
from transfer.errors import DisturbedError
from transfer.frontier import Frontier
from transfer.places import Spread

if TYPE_CHECKING:
    import queue
    from collections.abc import Callable
    from hashlib import _Hash
    from types import ModuleType

    from ansible_collections.r1.prov.plugins.module_utils.gguf_layout import Layout, Part, Placed, Run
    from ansible_collections.r1.prov.plugins.module_utils.mla_form import Form
    from transfer.partial import Partial
    from transfer.places import Final

NUMPY_POLL_S, TURN_POLL_S = 1.0, 0.2


class Chain:
    """What all readers of shards share: whose turn it is, and the digests of the final file up to there.

    Attributes:
        digests: those of the final file, as far as it is verified and as the reader whose turn it is has come.
        flaws: what of a shard can be no source of what is to be made, by its number. If the shard is right, nothing can be made of it.
        waits: what the reader waits for beside bytes; empty for nothing.
    """

    def __init__(self, final: Final, layout: Layout, form: Form) -> None:
        self.final, self.layout = final, layout
        self.digests, self.flaws, self.waits = Digests(), dict[int, str](), ""
        self.changed = threading.Condition()
        self.turn = 0
        self._form = form
        self._able: dict[str, Part] = {}
        self._kept = self.digests.keep()

    def begin(self, number: int) -> None:
        """Goes back to where a shard begins."""
        self.flaws.pop(number, None)
        self.digests.go_back(self._kept)
        if number == 0:
            self.put(0, self.layout.head)

    def advance(self) -> list[str]:
        """Takes what the shard whose turn it was has given, because it is right.

        Returns:
            The digests of the final file's pieces that are full and right. The reader of the next shard may go on at once, and what it
            reads is not right yet.
        """
        with self.changed:
            self._kept, right = self.digests.keep(), self.digests.pieces
            self.turn += 1
            self.changed.notify_all()
        return right

    def put(self, offset: int, content: bytes) -> None:
        """Writes bytes that come from no shard, and takes what stands there then.

        Raises:
            DisturbedError: something else stands there.
        """
        self.final.write(offset, content)
        for position in range(0, len(content), BLOCK_BYTES):
            block = self.final.read(offset + position, min(BLOCK_BYTES, len(content) - position))
            if block != content[position : position + BLOCK_BYTES]:
                raise DisturbedError
            self.digests.update(block)

    def fill(self, offset: int) -> None:
        """Writes the zeros that come before a place."""
        if offset > self.digests.bytes:
            self.put(self.digests.bytes, bytes(offset - self.digests.bytes))

    def make(self, number: int, placed: Placed, raw: bytes, is_over: Callable[[], bool]) -> bool:
        """Makes a tensor of another one. Returns False where that was given up because it is over.

        Raises:
            DisturbedError: what stands in its place then is not what was made.
        """
        if not self._able and not self._enable(is_over):
            return False
        part = self._able[placed.part.name]
        assert part.make  # noqa: S101 - for the types: what is no copy is made
        assert part.agrees  # noqa: S101
        try:
            data = part.make(raw)
        except ValueError as error:  # That may be a source's fault, and is known when its shard has been read.
            self.flaws[number] = f"{part.source.name} {error}"
            data = bytes(part.n_bytes)
        self.fill(placed.offset)
        self.put(placed.offset, data)
        if number not in self.flaws and not part.agrees(raw, data):
            self.flaws[number] = f"{part.name} came out wrong: this host's memory or processor may be damaged"
        return True

    def _enable(self, is_over: Callable[[], bool]) -> bool:
        """Loads what makes tensors, which takes numpy. The role installs that while the transfer runs."""
        while True:
            with contextlib.suppress(ImportError):
                self._able = {part.name: part for part in _mla().able(self._form)}
                self.waits = ""
                return True
            self.waits = "numpy, which the role weights installs,"
            with self.changed:
                self.changed.wait(NUMPY_POLL_S)
            if is_over():
                return False


def _mla() -> ModuleType:
    """The module that takes numpy. The threads of numpy's own would take memory, and bring nothing here."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    importlib.invalidate_caches()
    return importlib.import_module("ansible_collections.r1.prov.plugins.module_utils.mla")


class Link(Frontier):
    """The reader of one shard. It begins when all shards before it are verified."""

    def __init__(self, partial: Partial, events: queue.SimpleQueue[object], chain: Chain) -> None:
        super().__init__(partial, events)
        assert isinstance(partial.place, Spread)  # noqa: S101 - for the types
        self._place, self._chain = partial.place, chain

    def end(self) -> None:
        """Ends the thread."""
        super().end()
        with self._chain.changed:
            self._chain.changed.notify_all()

    def _read_once(self, epoch: int) -> None:
        chain, number, digest = self._chain, self._place.number, hashlib.sha256()
        with chain.changed:
            while not self._is_past(epoch) and chain.turn != number:
                chain.changed.wait(TURN_POLL_S)  # Who throws bytes away tells only those that wait for bytes.
        if self._is_past(epoch):
            return
        chain.begin(number)
        with contextlib.closing(DirectReader(chain.final.path)) as direct:
            if not all(self._take(run, epoch, digest, direct) for run in chain.layout.runs[number]):
                return
        if number + 1 == len(chain.layout.runs):
            chain.fill(chain.layout.bytes)
        self._say(epoch, digest.hexdigest())

    def _is_doubted(self) -> bool:
        """Nothing is, because the final file is read once more, when it is whole, where it is in memory."""
        return False

    def _is_past(self, epoch: int) -> bool:
        """Whether what was read is worth nothing any more."""
        return self._is_over or self._partial.epoch != epoch

    def _take(self, run: Run, epoch: int, digest: _Hash, direct: DirectReader) -> bool:
        """Reads a run, and makes what is made of it. Returns False where that is worth nothing any more."""
        chain, position, raw = self._chain, run.start, list[bytes]()
        if run.offset is not None:
            chain.fill(run.offset)
        while position < run.end:
            count = self._may_read(epoch, position, min(BLOCK_BYTES, run.end - position))
            if not count:
                return False
            if run.offset is None or position + count > self._partial.adopted:
                block = self._place.read(position, count)
            else:  # What was here before this run is read from the disk itself.
                block = direct.at(run.offset + position - run.start, count)
            if not block:
                raise DisturbedError
            digest.update(block)
            if run.offset is not None:
                chain.digests.update(block)
            elif run.made:
                raw.append(block)
            position += len(block)
        data = b"".join(raw)
        return all(chain.make(run.shard, each, data, lambda: self._is_past(epoch)) for each in run.made)
