"""The journal of a file on its way: which bytes have arrived, how they looked, and where they came from.

It lies beside the file, and each line has a checksum of its own, so that one that is torn is noticed. A line is written after the bytes
that it names. A kill leaves both, but a power cut may leave the line alone. So from time to time the bytes are brought to the disk, and
then a mark says up to which line they are safe there. What comes after the last mark is compared before it is believed. A piece that
grows has several lines, of which the last one counts.
"""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ansible_collections.r1.prov.plugins.module_utils.weights_room import journal_of

if TYPE_CHECKING:
    from pathlib import Path

    from transfer.sources import File

VERSION = 1


@dataclass(frozen=True)
class Piece:
    """Bytes that arrived one after the other from one source."""

    start: int
    end: int
    crc: int | None  # of the bytes as they arrived; None where they were there before the journal
    origin: str  # which source they came from
    etag: str  # and which version of its file


@dataclass(frozen=True)
class Journal:
    """What a journal says.

    Attributes:
        is_there: whether there is one, of whatever content.
        is_sound: whether it is of this file.
        pieces: what has arrived, in the order in which it was written down.
        safe: how many of the first of them have been brought to the disk.
    """

    is_there: bool = False
    is_sound: bool = False
    pieces: tuple[Piece, ...] = ()
    safe: int = 0


def line(row: list[Any]) -> bytes:
    """A line. It begins on a new line even where the one before it is torn."""
    text = json.dumps(row).encode()
    return b"\n%08x %b\n" % (zlib.crc32(text), text)


def first_line(file: File) -> bytes:
    """The line that says of which file a journal is."""
    return line(["file", VERSION, file.sha256, file.bytes])


def piece_line(piece: Piece) -> bytes:
    """The line that says what has arrived."""
    return line(["piece", piece.start, piece.end, piece.crc, piece.origin, piece.etag])


def mark_line(safe: int) -> bytes:
    """The line that says that what the lines in the first so many bytes of the journal name is safely on the disk."""
    return line(["safe", safe])


def read(path: Path, file: File) -> Journal:
    """Reads the journal of a file. Lines that are torn are left out."""
    try:
        descriptor = os.open(journal_of(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return Journal()
    except OSError:
        return Journal(is_there=True)
    with os.fdopen(descriptor, "rb") as stream:
        try:
            content = stream.read()
        except OSError:
            return Journal(is_there=True)
    pieces: dict[int, tuple[Piece, int]] = {}  # by their start, with the place of the line
    safe_bytes, is_sound, place = 0, False, 0
    for raw in content.split(b"\n"):
        row = _row(raw)
        if row[:1] == ["file"]:
            is_sound = row[1:] == [VERSION, file.sha256, file.bytes]
        elif row[:1] == ["piece"]:
            piece = Piece(*row[1:])
            if 0 <= piece.start < piece.end <= file.bytes:
                pieces[piece.start] = piece, place
        elif row[:1] == ["safe"]:
            safe_bytes = max(safe_bytes, row[1])
        place += len(raw) + 1
    rows = sorted(pieces.values(), key=lambda row: row[1])
    safe = sum(place < safe_bytes for _, place in rows)
    return Journal(True, is_sound, tuple(piece for piece, _ in rows) if is_sound else (), safe)


def _row(raw: bytes) -> list[Any]:
    """What a line says. It is empty where the line is torn."""
    checksum, _, text = raw.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return []
    try:
        row = json.loads(text)
    except ValueError:
        return []
    return row if isinstance(row, list) else []
