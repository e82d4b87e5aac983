"""The head of a GGUF file: its keys and its tensors, without their data. The one reader and writer of heads, here and on hosts.

It takes the standard library only. A head is a few megabytes, and is read in a second for files of 140 GB, on any disk.
"""

from __future__ import annotations

import io
import math
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    30: ("BF16", 1, 2),
    28: ("F64", 1, 8),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    41: ("Q1_0", 128, 18),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
    20: ("IQ4_NL", 32, 18),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
}
"""ggml's types by number: name, elements and bytes of a block."""
TYPE_NUMBERS = {name: number for number, (name, _, _) in TYPES.items()}

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_UINT32, _TEXT, _ARRAY = 4, 8, 9
_VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
"""Where the metadata name no other."""

_MOST_KEYS, _MOST_TENSORS, _LONGEST_NAME, _LONGEST_TEXT = 10_000, 100_000, 1024, 16 << 20
_LONGEST_ARRAY, _LONGEST_LIST = 16 << 20, 10_000
"""Beyond these a header is not believed: a wrong length would read gigabytes into memory."""


class GgufError(ValueError):
    """The file is no whole GGUF file. The message is one sentence, in which "it" is the file."""


class CutShortError(GgufError):
    """There is more of the header than could be read."""


class NoGgufError(GgufError):
    """The file is no GGUF file.

    Attributes:
        remedy: what to do next; empty where that depends on where the file comes from.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.remedy = remedy


class VersionError(NoGgufError):
    """The file is of a version of GGUF that the engine does not read."""


class LfsPointerError(GgufError):
    """The file is a pointer of Git LFS, which stands for the file itself."""


class BigEndianError(GgufError):
    """The file is written for processors that begin with the largest byte."""


@dataclass(frozen=True)
class Tensor:
    """One tensor."""

    name: str
    shape: tuple[int, ...]
    type: int  # the number of its type
    start: int  # where its data begin in the file
    bytes: int  # up to the next tensor's data or the file's end, so with padding

    @property
    def type_name(self) -> str:
        """As `Q6_K`; the number where llama.cpp has no such type."""
        return TYPES[self.type][0] if self.type in TYPES else str(self.type)

    @property
    def n_bytes(self) -> int:
        """Bytes of its data, without padding."""
        return data_bytes(self.name, self.shape, self.type)


@dataclass(frozen=True)
class Gguf:
    """What a file says of itself."""

    path: Path
    keys: dict[str, bytes]  # the metadata by name, each value as its type and its bytes
    tensors: tuple[Tensor, ...]  # in the order of their data
    data: int  # where the data begin, in bytes from the file's start

    def text(self, key: str) -> str:
        """The value of a key that holds a text; empty where the key is missing or holds something else."""
        content = value(self.keys.get(key))
        return content if isinstance(content, str) else ""

    def number(self, key: str) -> int | None:
        """The value of a key that holds a whole number; None where the key is missing or holds something else."""
        return _whole(value(self.keys.get(key)))

    @property
    def n_bytes(self) -> int:
        """Bytes of a whole file with this header, without padding after the last tensor."""
        return max((tensor.start + tensor.n_bytes for tensor in self.tensors), default=self.data)


def value(raw: bytes | None) -> Any:
    """The Python value of a key from its bytes as `Gguf.keys` holds them; None for None.

    It is a number, a bool, a text, or a list of numbers. A longer list, or a list of texts, is `range(length)`.
    """
    if raw is None:
        return None
    (kind,) = struct.unpack("<I", raw[:4])
    if kind in _SCALARS:
        return struct.unpack(f"<{_SCALARS[kind]}", raw[4:])[0]
    if kind == _TEXT:
        return raw[12:].decode("utf-8", "replace")
    inner, length = struct.unpack("<IQ", raw[4:16])
    if inner in _SCALARS and length <= _LONGEST_LIST:
        return list(struct.unpack(f"<{length}{_SCALARS[inner]}", raw[16:]))
    return range(length)


def alignment(keys: dict[str, bytes]) -> int:
    """The number of which the start of each tensor's data is a multiple, by the metadata."""
    stated = _whole(value(keys.get("general.alignment")))
    return stated if stated and stated > 0 else DEFAULT_ALIGNMENT


def _whole(content: Any) -> int | None:
    return content if isinstance(content, int) and not isinstance(content, bool) else None


def padded(size: int, to: int) -> int:
    """The next multiple of `to`."""
    return -(-size // to) * to


def data_bytes(name: str, shape: tuple[int, ...], kind: int) -> int:
    """Bytes of a tensor's data.

    Raises:
        GgufError: there is no such type, or a row is no whole number of its blocks.
    """
    if kind not in TYPES:
        raise GgufError(f"`{name}` has a type that is not known: {kind}")
    type_name, elements, n_bytes = TYPES[kind]
    if not shape or shape[0] % elements:
        raise GgufError(
            f"`{name}` has the shape {' x '.join(map(str, shape)) or 'of nothing'}, and {type_name} has blocks of {elements}"
        )
    return math.prod(shape) // elements * n_bytes


def uint32(value: int) -> bytes:
    """A whole number as `Gguf.keys` holds it."""
    return struct.pack("<II", _UINT32, value)


def head(keys: dict[str, bytes], tensors: Iterable[tuple[str, tuple[int, ...], int]]) -> bytes:
    """All that stands before the data, up to where they begin.

    Args:
        keys: as `Gguf.keys`.
        tensors: name, shape and type of each, in the order of their data.
    """
    listed, pad = list(tensors), alignment(keys)
    pieces, offset = [struct.pack("<4sIQQ", b"GGUF", _VERSIONS[-1], len(listed), len(keys))], 0
    for name, value in keys.items():
        pieces += [_named(name), value]
    for name, shape, kind in listed:
        pieces += [_named(name), struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)]
        offset += padded(data_bytes(name, shape, kind), pad)
    content = b"".join(pieces)
    return content.ljust(padded(len(content), pad), b"\0")


def read(path: Path) -> Gguf:
    """Reads the head of a file.

    Raises:
        GgufError: the file is no GGUF file, is cut short, or cannot be read; the message names it.
    """
    try:
        with path.open("rb") as stream:
            return header(stream, path, os.fstat(stream.fileno()).st_size)
    except GgufError as error:
        raise type(error)(f"{path} cannot be used: {error}") from error
    except OSError as error:
        raise GgufError(f"{path} cannot be read: {error.strerror}") from error


def header(stream: BinaryIO, path: Path, size: int | None = None) -> Gguf:
    """The head at the beginning of a stream, which is left where the head ends.

    Args:
        stream: a file, or as many of its first bytes as there are.
        path: the file's, for `Gguf.path`.
        size: bytes of the file, where they are known.

    Raises:
        CutShortError: the stream or the file ends too early.
        GgufError: there is no head that can be believed.
    """
    magic = stream.read(4)
    if magic == b"vers":
        raise LfsPointerError("it is a pointer of Git LFS, not the file itself")
    if magic != b"GGUF":
        what, remedy = _other_kind(magic + stream.read(_ENOUGH))
        raise NoGgufError(f"it is no GGUF file{what and f', but {what}'}", remedy)
    version = _number(stream, "I")
    if version not in _VERSIONS and int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS:
        raise BigEndianError("it is big-endian, for another kind of processor than x86-64")
    if version not in _VERSIONS:
        what = f"its GGUF version is {version}; {' and '.join(map(str, _VERSIONS))} are known"
        raise VersionError(what, f"take a file of version {_VERSIONS[-1]}, which llama.cpp has written since 2023")
    tensor_count, key_count = _number(stream, "Q", _MOST_TENSORS), _number(stream, "Q", _MOST_KEYS)
    keys = {_name(stream): _value(stream) for _ in range(key_count)}
    entries = sorted(_entry(stream) for _ in range(tensor_count))
    data = padded(stream.tell(), alignment(keys)) if entries else stream.tell()
    ends = [*(data + offset for offset, *_ in entries[1:]), size]
    tensors = []
    for (offset, name, shape, kind), following in zip(entries, ends):  # noqa: B905 - without tensors there is one end too many
        start = data + offset
        end = start + data_bytes(name, shape, kind) if following is None else following
        if end < start:
            raise CutShortError(f"it is cut short: it has {end:,} bytes, and the data of `{name}` begin behind them")
        tensors.append(Tensor(name, shape, kind, start, end - start))
    return Gguf(path, keys, tuple(tensors), data)


_ENOUGH = 508
"""The bytes behind the magic that tell other kinds of files."""

_CONVERT = "convert its model with llama.cpp's convert_hf_to_gguf.py, or take a GGUF file of it"
_UNPACK = "unpack it, and name the GGUF file that was inside"
_KINDS = (
    (b"PK", "a zip archive, perhaps of PyTorch", _UNPACK),
    (b"\x1f\x8b", "packed by gzip", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "packed by zstd", _UNPACK),
    (b"\xfd7zXZ", "packed by xz", _UNPACK),
    (b"BZh", "packed by bzip2", _UNPACK),
    (b"7z\xbc\xaf", "a 7z archive", _UNPACK),
    (b"Rar!", "a rar archive", _UNPACK),
    (b"\x80\x02", "a file of PyTorch", _CONVERT),
    *((magic, "a file of llama.cpp from before GGUF", _CONVERT) for magic in (b"lmgg", b"fmgg", b"tjgg", b"algg")),
)
_LARGEST_JSON = 1 << 30
_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head")
_UNPRINTED = frozenset(range(32)) - frozenset(b"\t\r\n")


def _other_kind(start: bytes) -> tuple[str, str]:
    """What a file is that begins with these bytes, and what to do about it; empty texts where nothing tells."""
    text = start.strip().lower()
    length = int.from_bytes(start[:8], "little")
    kinds = (
        *((start.startswith(magic), what, remedy) for magic, what, remedy in _KINDS),
        (start[257:262] == b"ustar", "a tar archive", _UNPACK),
        (start[8:10] == b'{"' and length < _LARGEST_JSON, "a safetensors file", _CONVERT),
        (not start, "empty", ""),
        (not start.strip(b"\0"), "zeros: room that was kept for a download", ""),
        (text.startswith(_PAGES), "a page of a web server", "fetch the file itself, not a page about it"),
        (
            text.startswith((b"{", b"[")),
            "JSON",
            "name the model's own file, or fetch it anew if a server answered this",
        ),
        (start.isascii() and not set(start) & _UNPRINTED, "text", ""),
    )
    return next(((what, remedy) for found, what, remedy in kinds if found), ("", ""))


def _entry(stream: BinaryIO) -> tuple[int, str, tuple[int, ...], int]:
    """What the head says of one tensor: where its data begin behind the head, its name, its shape and the number of its type."""
    name = _name(stream)
    shape = tuple(_number(stream, "Q", 1 << 40) for _ in range(_number(stream, "I", 4)))
    kind = _number(stream, "I")
    if not shape or 0 in shape:
        raise GgufError(f"its header is damaged: `{name}` has the shape {' x '.join(map(str, shape)) or 'of nothing'}")
    data_bytes(name, shape, kind)
    return _number(stream, "Q", 1 << 50), name, shape, kind


def _take(stream: BinaryIO, count: int) -> bytes:
    content = stream.read(count)
    if len(content) < count:
        raise CutShortError("its header is cut short")
    return content


def _number(stream: BinaryIO, form: str, most: int | None = None) -> int:
    (number,) = struct.unpack(f"<{form}", _take(stream, struct.calcsize(form)))
    if most is not None and number > most:
        raise GgufError(f"its header is damaged: it speaks of {number:,} where at most {most:,} are possible")
    return int(number)


def _name(stream: BinaryIO) -> str:
    raw = _take(stream, _number(stream, "Q", _LONGEST_NAME))
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise GgufError(f"its header is damaged: {raw[:40]!r} is no name") from None


def _named(name: str) -> bytes:
    raw = name.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _value(stream: BinaryIO) -> bytes:
    """The type and the bytes of a value, as they stand in the file."""
    kind = _number(stream, "I")
    start = struct.pack("<I", kind)
    if kind in _SCALARS:
        return start + _take(stream, struct.calcsize(_SCALARS[kind]))
    if kind == _TEXT:
        return start + _text(stream)
    if kind != _ARRAY:
        raise GgufError(f"its header is damaged: there is no kind of value {kind}")
    inner, length = _number(stream, "I"), _number(stream, "Q", _LONGEST_ARRAY)
    start += struct.pack("<IQ", inner, length)
    if inner in _SCALARS:
        return start + _take(stream, struct.calcsize(_SCALARS[inner]) * length)
    if inner != _TEXT:
        raise GgufError("its header is damaged: it has an array of arrays")
    return start + b"".join(_texts(stream, length))


def _texts(stream: BinaryIO, count: int) -> list[bytes]:
    """So many texts, with their lengths. A vocabulary has 100,000 of them, and `_text` would take three times as long."""
    found = []
    for _ in range(count):
        raw = stream.read(8)
        length = int.from_bytes(raw, "little")
        if len(raw) < 8 or length > _LONGEST_TEXT:
            _number(io.BytesIO(raw), "Q", _LONGEST_TEXT)  # It says what is wrong.
        content = stream.read(length)
        if len(content) < length:
            _take(io.BytesIO(content), length)
        found += [raw, content]
    return found


def _text(stream: BinaryIO) -> bytes:
    length = _number(stream, "Q", _LONGEST_TEXT)
    return struct.pack("<Q", length) + _take(stream, length)
