"""A file on its way, as it stands on the disk. Several connections write to it, and one frontier reads what they have written."""

from __future__ import annotations

import contextlib
import os
import threading
import zlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.r1.prov.plugins.module_utils.files import looks_of, sync_folder
from ansible_collections.r1.prov.plugins.module_utils.weights_room import journal_of
from transfer import journal
from transfer.disk import set_aside
from transfer.errors import CancelledError, DisturbedError
from transfer.journal import Piece
from transfer.places import OwnFile, Place
from transfer.spans import Span, Spans

if TYPE_CHECKING:
    from collections.abc import Callable

    from transfer.sources import File

BEFORE = "an earlier run"
PIECE_BYTES = 2 << 20  # A piece has as many bytes at most.
LEAST_GROWTH_BYTES = 32 << 10  # A piece that has grown by less is not written down anew,
GROWTH_BYTES = 256 << 10  # and one that has grown by as much is written down at once.
JOURNAL_BYTES = 4 << 20  # A longer journal is written anew, if half of it is of no use any more.
LINE_BYTES = 150  # of the journal, about
READ_BYTES = 1 << 20
MOST_ATTEMPTS = 3  # to take over a file that others take away


class Writer:
    """Whoever writes to the file, and what it has written that is not in the journal yet."""

    def __init__(self, origin: str, etag: str = "") -> None:
        self.origin, self.etag = origin, etag
        self.is_cancelled = False
        self.start = self.end = self.crc = self.noted = 0

    def piece(self) -> Piece:
        """What it has written."""
        return Piece(self.start, self.end, self.crc, self.origin, self.etag)


class Partial:
    """A file on its way.

    A lock may not reach every program that writes to it, such as one on another host. So the disk is looked at before each write: name,
    size and time have to be as this program left them. All methods may be called from any thread.
    """

    def __init__(self, place: Path | Place, file: File, *, trust: bool = True) -> None:
        """Takes over what is there.

        Args:
            place: where its bytes lie, or the file of its own in which they do.
            file: what is wanted.
            trust: as of `adopt`.
        """
        self.place, self.file = OwnFile(place) if isinstance(place, Path) else place, file
        self.path = self.place.path
        self.wanted = file.bytes  # So many of its first bytes are wanted.
        self.changed = threading.Condition()  # guards all that follows; it is notified when bytes come or go
        self.spans = Spans()
        self.epoch = 0  # grows when bytes go that the frontier has read
        self.hashed = 0  # how far the frontier has read, or is about to
        self.adopted = 0  # how far what was there at the beginning goes without a gap
        self._pieces: list[Piece] = []
        self._writers: set[Writer] = set()
        self._journal = -1
        self._is_synced = True
        self._syncing = threading.Lock()
        self.adopt(trust=trust)

    def adopt(self, *, trust: bool = True) -> int:
        """Takes over what is there, of whatever run.

        Args:
            trust: whether bytes that were brought to the disk are believed to be still there. Else all are compared with how they arrived.

        Returns:
            The number of bytes that are not as they arrived.
        """
        with self.changed:
            for _ in range(MOST_ATTEMPTS):
                with contextlib.suppress(
                    FileNotFoundError
                ):  # A program that the lock does not reach has taken it away meanwhile.
                    return self._adopt(trust=trust)
            return self._adopt(trust=trust)

    def _adopt(self, *, trust: bool) -> int:
        self._forget()
        size = self.place.look()
        if size is None:
            journal_of(self.path).unlink(missing_ok=True)
            return 0
        told = journal.read(self.path, self.file)
        if size > self.file.bytes or (told.is_there and not told.is_sound):
            self.begin_anew()
            return 0
        before = [Piece(0, size, None, BEFORE, "")] if self.place.is_own else []
        pieces = list(told.pieces) if told.is_there else before
        doubted = range(told.safe if trust else 0, len(pieces))
        lost = [pieces[index] for index in doubted if not self._stands(pieces[index])]
        self._pieces = [piece for piece in pieces if piece.end <= size]
        for piece in self._pieces:
            self.spans.add(piece.start, piece.end)
        for piece in lost:  # Others may have brought the same bytes, and it is not known who wrote last.
            self._drop(piece.start, piece.end)
        if lost or (self.place.is_linked() and self.spans.prefix < self.file.bytes):
            self._write_journal()
        self.adopted = self.spans.prefix
        return sum(piece.end - piece.start for piece in lost)

    def _stands(self, piece: Piece) -> bool:
        """Whether bytes stand on the disk as they arrived."""
        if piece.crc is None:
            return True
        crc, position = 0, piece.start
        while position < piece.end and (block := self.read(position, min(READ_BYTES, piece.end - position))):
            crc, position = zlib.crc32(block, crc), position + len(block)
        return (position, crc) == (piece.end, piece.crc)

    def drop_changed(self) -> int:
        """Throws away the bytes of a whole file that are not as they arrived, and returns how many those are."""
        with self.changed:
            pieces, epoch = list(self._pieces), self.epoch
        lost = [piece for piece in pieces if not self._stands(piece)]  # This reads everything, and holds nobody up.
        with self.changed:
            if self.epoch != epoch or not lost:
                return 0
            for piece in lost:
                self._drop(piece.start, piece.end)
            self._write_journal()
            return sum(piece.end - piece.start for piece in lost)

    def write(self, writer: Writer, position: int, block: bytes) -> None:
        """Writes bytes to their place. A whole file is never written to, because it may be a link to somebody else's.

        Args:
            writer: who brings them. It goes on where it was, or begins somewhere else.
            position: where they belong.
            block: the bytes.

        Raises:
            DisturbedError: the file is not as this program left it.
            CancelledError: they are not wanted any more.
        """
        with self.changed:
            if writer.is_cancelled:
                raise CancelledError
            self._check()
            self.place.write(position, block)
            place = position + len(block)
            if position != writer.end:
                self._close_piece(writer)
            if writer.end == writer.start:
                writer.start = writer.noted = position
                self._writers.add(writer)
            writer.end, writer.crc = place, zlib.crc32(block, writer.crc)
            self.spans.add(position, place)
            self._is_synced = False
            self.changed.notify_all()
            self._note(writer, GROWTH_BYTES)
            if writer.end - writer.start >= PIECE_BYTES:
                self._close_piece(writer)

    def end_piece(self, writer: Writer) -> None:
        """Writes down what a writer has brought, because it ends or goes on somewhere else."""
        with self.changed:
            if not writer.is_cancelled:
                self._close_piece(writer)

    def cancel(self, writer: Writer) -> None:
        """Keeps a writer from writing any more. What it has written stays."""
        with self.changed:
            if not writer.is_cancelled:
                self._close_piece(writer)
            writer.is_cancelled = True

    def _close_piece(self, writer: Writer) -> None:
        if writer.end > writer.start:
            self._note(writer, 1)
            self._pieces.append(writer.piece())
        writer.start = writer.end = writer.crc = 0
        self._writers.discard(writer)

    def note(self) -> None:
        """Writes down what has arrived, so that a kill costs little."""
        with self.changed:
            for writer in self._writers:
                self._note(writer, LEAST_GROWTH_BYTES)

    def _note(self, writer: Writer, least: int) -> None:
        if writer.end - writer.noted >= least:
            self._log(journal.piece_line(writer.piece()))
            writer.noted = writer.end

    def sync(self) -> None:
        """Brings what was written to the disk, and then writes down that it is there."""
        with self._syncing:
            with self.changed:
                if self._is_synced or not self.place.is_open:
                    return
                for writer in self._writers:
                    self._note(writer, 1)
                if os.fstat(self._journal).st_size > max(JOURNAL_BYTES, 2 * LINE_BYTES * len(self._pieces)):
                    self._write_journal()
                self._is_synced = True
                files, log = self.place.descriptors(), os.dup(self._journal)
                written = os.fstat(log).st_size
            try:
                for file in files:
                    os.fdatasync(file)
                os.write(log, journal.mark_line(written))
                os.fsync(log)
            except OSError:
                self._is_synced = False
                raise
            finally:
                for file in (*files, log):
                    os.close(file)

    def compare(self, start: int, block: bytes) -> int:
        """How many of the first of these bytes agree with what is there. What is not there agrees."""
        with self.changed:
            spans = self.spans.within(start, start + len(block))
        for begin, end in spans:
            known, wanted = self.read(begin, end - begin), block[begin - start : end - start]
            if known != wanted:
                differs = next((i for i, (a, b) in enumerate(zip(known, wanted)) if a != b), len(known))  # noqa: B905 - one may be cut
                return begin - start + differs
        return len(block)

    @property
    def is_written(self) -> bool:
        """Whether this run has written to it."""
        return self.place.is_open

    def missing(self, start: int, end: int) -> list[Span]:
        """Which of these bytes are not there."""
        with self.changed:
            return self.spans.missing(start, end)

    def read(self, position: int, most: int) -> bytes:
        """Some of the bytes that are there."""
        return self.place.read(position, most)

    def drop(self, start: int, end: int) -> None:
        """Throws bytes away."""
        with self.changed:
            self._drop(start, end)
            self._write_journal()

    def keep_of(self, keep: Callable[[str, str], bool]) -> None:
        """Throws away what came from other origins than those for which `keep` says yes, by their name and the version of the file."""
        with self.changed:
            for piece in list(self._pieces):
                if not keep(piece.origin, piece.etag):
                    self._drop(piece.start, piece.end)
            self._write_journal()

    def _drop(self, start: int, end: int) -> None:
        self.spans.remove(start, end)
        kept = []
        for piece in self._pieces:
            if piece.end <= start or piece.start >= end:
                kept.append(piece)
            else:  # What is left of it has no checksum any more.
                rest = [(piece.start, start), (end, piece.end)]
                kept += [Piece(a, b, None, piece.origin, piece.etag) for a, b in rest if a < b]
        self._pieces = kept
        if start < self.hashed:
            self._restart()

    def _restart(self) -> None:
        self.epoch, self.hashed, self.adopted = self.epoch + 1, 0, 0
        self.changed.notify_all()

    def credit(self, writer: Writer) -> None:
        """Says that a source has sent the whole file, and that what was there before is the same."""
        with self.changed:
            self._close_piece(writer)
            self._pieces = [replace(piece, origin=writer.origin, etag=writer.etag) for piece in self._pieces]

    def bytes_by_origin(self) -> dict[tuple[str, str], int]:
        """How many bytes came from which source, and of which version of its file."""
        with self.changed:
            found: dict[tuple[str, str], int] = {}
            for piece in [*self._pieces, *(writer.piece() for writer in self._writers)]:
                key = (piece.origin, piece.etag)
                found[key] = found.get(key, 0) + piece.end - piece.start
            return found

    def begin_anew(self) -> None:
        """Throws away the bytes that have arrived."""
        with self.changed:
            self._forget()
            self.place.remove()
            journal_of(self.path).unlink(missing_ok=True)

    def _forget(self) -> None:
        """Goes back to knowing nothing of the file."""
        self._close()
        for writer in self._writers:
            writer.is_cancelled = True
        self._writers.clear()
        self.spans, self._pieces, self._is_synced = Spans(), [], True
        self._restart()

    def close(self) -> None:
        """Waits until what was written is safely on the disk."""
        self.sync()
        with self._syncing, self.changed:
            self._close()

    def _close(self) -> None:
        self.place.close()
        if self._journal >= 0:
            os.close(self._journal)
        self._journal = -1

    def set_aside(self) -> tuple[Path, os.stat_result]:
        """Gives a whole file a name that no other program writes to. Returns that name, and how the file looks.

        Raises:
            DisturbedError: it is not as this program left it.
        """
        with self.changed:
            try:
                aside = set_aside(self.path)
                status = aside.lstat()
            except FileNotFoundError:
                raise DisturbedError from None
            if looks_of(status) != self.place.looks:
                raise DisturbedError
            self._close()
            return aside, status

    def forget_journal(self) -> None:
        """Removes the journal of a file that has its name."""
        journal_of(self.path).unlink(missing_ok=True)

    def _check(self) -> None:
        """Opens the file, and sees that it is what has this name, and as this program left it."""
        if not self.place.is_open:
            self._open()
        self.place.check()

    def _open(self) -> None:
        """Opens the file and its journal. The journal is on the disk before the first byte is."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        try:
            self.place.open()
            self._journal = os.open(journal_of(self.path), flags | os.O_APPEND, 0o644)
            if not os.fstat(self._journal).st_size:
                self._log(self._whole_journal())
                os.fsync(self._journal)
                sync_folder(self.path.parent)
        except OSError:
            self._close()
            raise

    def _whole_journal(self) -> bytes:
        pieces = [*self._pieces, *(writer.piece() for writer in self._writers)]
        return journal.first_line(self.file) + b"".join(map(journal.piece_line, pieces))

    def _log(self, text: bytes) -> None:
        if self._journal >= 0:
            os.write(self._journal, text)

    def _write_journal(self) -> None:
        """Writes the journal anew, because what it says holds no longer."""
        if not self.spans.bytes or self.place.is_linked():  # To somebody else's file nothing may be added.
            self.begin_anew()
            return
        place = journal_of(self.path)
        fresh = place.with_name(f"{place.name}.new")
        descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, self._whole_journal())
            os.fsync(descriptor)
            fresh.replace(place)
        except OSError:
            os.close(descriptor)
            raise
        if not self.place.is_open:
            os.close(descriptor)
            return
        os.close(self._journal)
        self._journal, self._is_synced = descriptor, False
