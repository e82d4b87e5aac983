"""Brings the published files of a model straight into the one file that is made of them."""

from __future__ import annotations

import errno
import logging
import time
from typing import TYPE_CHECKING

from ansible_collections.r1.prov.plugins.module_utils import gguf_layout, merged_weights, mla_form, weights_room
from ansible_collections.r1.prov.plugins.module_utils.files import sync_folder
from ansible_collections.r1.prov.plugins.module_utils.gguf_header import Gguf, GgufError
from ansible_collections.r1.prov.plugins.module_utils.mla_form import FormError
from ansible_collections.r1.prov.plugins.module_utils.weights_kept import as_kept, seen
from ansible_collections.r1.prov.plugins.module_utils.weights_room import journal_of, room_of
from transfer.again import Again
from transfer.chain import Chain, Link
from transfer.delivery import MOST_CONFLICTS, wait_until_quiet
from transfer.disk import reserve
from transfer.errors import DisturbedError, HopelessError
from transfer.heads import FIRST_BYTES, Headed, HeadReader
from transfer.memory import memory_bytes
from transfer.partial import Partial, Writer
from transfer.places import Final, Spread

if TYPE_CHECKING:
    import queue
    from pathlib import Path

    from ansible_collections.r1.prov.plugins.module_utils.gguf_layout import Layout
    from ansible_collections.r1.prov.plugins.module_utils.mla_form import Form
    from transfer.bringing import Bringing
    from transfer.frontier import Frontier, Hashed
    from transfer.run import Transfer
    from transfer.sources import File

LONGEST_END_S = 10.0  # that a reader is waited for

log = logging.getLogger("fetch")


def head_of(incoming: Path, file: File) -> Path:
    """Where the first bytes of a published file lie until the final file is whole."""
    return incoming / f"{file.sha256}.head"


def aside_of(incoming: Path, file: File) -> Path:
    """Where the bytes of a published file lie that are not in the final file as they are."""
    return weights_room.aside_of(incoming, file.sha256)


class Heads:
    """The way in which the first bytes of all files come."""

    most_files, is_shared, remark = 1000, True, ""

    def __init__(self, incoming: Path) -> None:
        self._incoming = incoming
        self.found: dict[str, Gguf] = {}

    def partial(self, file: File) -> Partial:
        """What is there of the first bytes of a file."""
        partial = Partial(head_of(self._incoming, file), file)
        there = partial.spans.prefix
        partial.wanted = min(max(FIRST_BYTES, there), file.bytes)
        return partial

    def reader(self, partial: Partial, events: queue.SimpleQueue[object]) -> Frontier:
        """What reads them."""
        return HeadReader(partial, events)

    def is_there(self, _file: File) -> bool:
        """Nobody else brings them."""
        return False

    def accept(self, bringing: Bringing, found: Hashed | Headed) -> None:
        """Takes what a file says of itself."""
        assert isinstance(found, Headed)  # noqa: S101 - for the types
        assert found.head  # noqa: S101
        self.found[bringing.file.name] = found.head


class Straight:
    """The way in which all bytes come, each to its final place."""

    most_files, is_shared = 0, True

    def __init__(self, transfer: Transfer, form: Form, layout: Layout, *, trust: bool) -> None:
        self._transfer, self._trust = transfer, trust
        self._incoming, self._files = transfer.incoming, transfer.files
        self.attention, self.layout = form.attention, layout
        self.final = Final(self._incoming / transfer.merged, layout.bytes)
        self.chain = Chain(self.final, layout, form)
        self._again = Again(self.final, layout.bytes)
        self._is_in_memory = 2 * layout.bytes <= memory_bytes()
        self._links: list[Link] = []

    @property
    def remark(self) -> str:
        """What the reader waits for beside bytes."""
        return f"; {self.chain.waits} is waited for" if self.chain.waits else ""

    def reserve(self) -> None:
        """Makes sure that the disk has room for all, and opens the final file.

        Raises:
            HopelessError: it has not.
        """
        asides = [aside_of(self._incoming, file) for file in self._files]
        if self.final.look() != self.layout.bytes:  # Nothing that journals tell is there.
            self.final.remove()
            for path in asides:
                path.unlink(missing_ok=True)
                journal_of(path).unlink(missing_ok=True)
        rows = [(run.end - run.start) for runs in self.layout.runs for run in runs if run.offset is None]
        there = room_of(self.final.path) + sum(map(room_of, asides))
        self._transfer.require(self.layout.bytes + sum(rows) - there)
        self.final.open()
        try:
            self.final.extend()
            for path, runs in zip(asides, self.layout.runs, strict=True):
                with path.open("ab") as stream:
                    for run in runs:
                        if run.offset is None:
                            reserve(stream.fileno(), run.start, run.end - run.start)
        except OSError as error:
            if error.errno == errno.EFBIG:
                raise HopelessError(
                    f"the disk of {self._incoming} takes no file of {self.layout.bytes} bytes: take another for the models"
                ) from None
            raise

    def partial(self, file: File) -> Partial:
        """What is there of a file. Its first bytes have come before.

        Raises:
            DisturbedError: they are gone, because another program has removed them.
        """
        number = self._files.index(file)
        place = Spread(aside_of(self._incoming, file), self.final, self.layout, number)
        partial = Partial(place, file, trust=self._trust)
        head = Partial(head_of(self._incoming, file), file)
        origins = list(head.bytes_by_origin())
        if not origins:
            raise DisturbedError
        writer = Writer(*origins[0])
        for start, end in partial.missing(0, head.spans.prefix):
            partial.write(writer, start, head.read(start, end - start))
        partial.end_piece(writer)
        return partial

    def reader(self, partial: Partial, events: queue.SimpleQueue[object]) -> Frontier:
        """What reads it."""
        self._links.append(Link(partial, events, self.chain))
        return self._links[-1]

    def is_there(self, _file: File) -> bool:
        """That is looked at when all begins anew."""
        return False

    def accept(self, bringing: Bringing, found: Hashed | Headed) -> None:
        """Takes a file that is right. The next one is read then.

        Raises:
            DisturbedError: it has another head than was believed.
            HopelessError: what is made of it cannot be made.
        """
        partial = bringing.partial
        number = self._files.index(bringing.file)
        if flaw := self.chain.flaws.get(number):
            raise HopelessError(mla_form.refusal(bringing.file.name, f"its {flaw}"))
        path = head_of(self._incoming, bringing.file)
        believed = path.read_bytes()
        if believed != (right := partial.read(0, len(believed))):
            log.warning("%s: its head came wrong, and the final file is laid out anew", bringing.file.name)
            fresh = path.with_name(f"{path.name}.new")
            fresh.write_bytes(right)
            journal_of(path).unlink(missing_ok=True)
            fresh.replace(path)
            raise DisturbedError
        pieces = self.chain.advance()
        if self._is_in_memory:
            self._again.read(pieces)
        self._transfer.record.came(bringing.file, bringing.origins())
        self._transfer.progress.done += bringing.file.bytes
        log.info("%s is verified", bringing.file.name)

    def finish(self) -> None:
        """Gives the final file its record and its name, when all files are verified.

        Raises:
            DisturbedError: another program has changed it meanwhile.
        """
        transfer, sums = self._transfer, self.chain.digests.sums()
        if self._is_in_memory:
            self._again.read(sums.pieces["sha256"])
            if not self._again.agrees():
                raise DisturbedError
        self.final.fsync()
        place = transfer.folder / transfer.merged
        aside, status = self.final.set_aside()
        kept = as_kept(status, sums.sha256)
        try:
            if seen(aside, sums.sha256) != kept:
                raise DisturbedError
            merged_weights.record(place, sums, self.attention, [vars(file) for file in self._files])
            aside.replace(place)
        except FileNotFoundError:
            raise DisturbedError from None
        sync_folder(transfer.folder)
        transfer.record.add(place, kept)
        log.info("%s is made of them, and verified", transfer.merged)

    def close(self) -> None:
        """Ends all that is done for it. A file stays open as long as somebody may still write to it."""
        self._again.close()
        for link in self._links:
            link.end()
        for link in self._links:
            link.join(LONGEST_END_S)
        if not any(link.is_alive() for link in self._links):
            self.chain.digests.close()
            self.final.close()


def bring(transfer: Transfer) -> None:
    """Brings the model's files straight into the one that is made of them.

    Raises:
        HopelessError: that cannot be.
        OSError: the disk refuses.
    """
    conflicts, incoming = 0, transfer.incoming
    while True:
        transfer.progress.done = 0
        try:
            _bring_once(transfer, trust=not conflicts)
        except (DisturbedError, FileNotFoundError):
            conflicts += 1
        else:
            return
        paths = [incoming / transfer.merged, *(aside_of(incoming, file) for file in transfer.files)]
        if conflicts > MOST_CONFLICTS:
            raise HopelessError(
                f"another program keeps writing to {paths[0]}, and locks do not keep it off:"
                " let one host, and one run, fetch into that folder"
            )
        wait_until_quiet(paths, conflicts, transfer.progress.show)
        if transfer.is_made():
            return


def _bring_once(transfer: Transfer, *, trust: bool) -> None:
    way = Straight(transfer, *_formed(transfer), trust=trust)
    try:
        way.reserve()
        transfer.deliver(way)
        way.finish()
    finally:
        way.close()


def _formed(transfer: Transfer) -> tuple[Form, Layout]:
    """What is to be made of all files, by what they say of themselves, and where each byte of them belongs in it.

    Heads from which nothing can be made are fetched once more, because a source may have sent wrong ones.

    Raises:
        HopelessError: nothing can be made of them.
    """
    before, until = b"", time.monotonic() + transfer.patience_s
    while True:
        way = Heads(transfer.incoming)
        transfer.deliver(way)
        heads = [way.found[file.name] for file in transfer.files]
        try:
            form = mla_form.wanted(heads, transfer.attention)
            return form, gguf_layout.layout(form.keys, form.parts, heads, [file.bytes for file in transfer.files])
        except GgufError as error:
            why = str(error)
        except FormError as error:
            why = mla_form.refusal(transfer.files[0].name, error)
        paths = [head_of(transfer.incoming, file) for file in transfer.files]
        now = b"".join(path.read_bytes() for path in paths)
        if now == before or time.monotonic() > until:
            raise HopelessError(why)
        log.warning("%s; the heads of all files are fetched once more", why)
        before = now
        for path in paths:
            journal_of(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
