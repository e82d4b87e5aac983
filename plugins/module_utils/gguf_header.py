"""The head of a GGUF file: its keys and its tensors, without their data. Standard library only."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_ARRAY, _STRING = 9, 8
_FIXED_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # GGUF's types of values
_DEFAULT_ALIGNMENT = 32
_LONGEST_VALUE = 1 << 30  # a length beyond this is none, and is not asked memory for


class GgufError(Exception):
    """The file is no whole GGUF file; the message says what is wrong with it."""


@dataclass(frozen=True)
class Tensor:
    """One tensor.

    Attributes:
        name: its name.
        shape: its dimensions.
        type: the number of its type.
        start: where its data begin in the file.
        bytes: up to the next tensor's data or the file's end, so with padding.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    start: int
    bytes: int


@dataclass(frozen=True)
class Gguf:
    """What a file says of itself.

    Attributes:
        path: the file.
        keys: the metadata by name, each value as its type and its bytes.
        tensors: in the order of their data.
    """

    path: Path
    keys: dict[str, bytes]
    tensors: tuple[Tensor, ...]

    def text(self, key: str) -> str:
        """A key's value, where it is a text; else empty."""
        raw = self.keys.get(key, b"")
        return raw[12:].decode("utf-8", "replace") if raw[:4] == struct.pack("<I", _STRING) else ""


def read(path: Path) -> Gguf:
    """Reads the head of a file.

    Raises:
        GgufError: it is none, or ends too early.
    """
    try:
        with path.open("rb") as stream:
            return _read(path, stream, os.fstat(stream.fileno()).st_size)
    except (EOFError, KeyError, UnicodeDecodeError) as error:
        raise GgufError(f"{path} is damaged or not whole: {error or 'its head ends too early'}") from error


def _read(path: Path, stream: IO[bytes], size: int) -> Gguf:
    if _take(stream, 4) != b"GGUF":
        raise GgufError(f"{path} is not a GGUF file")
    version, tensor_count, key_count = struct.unpack("<IQQ", _take(stream, 20))
    if version not in (2, 3):
        raise GgufError(f"{path} is a GGUF file of version {version}, and 2 or 3 is wanted")
    keys = {}
    for _ in range(key_count):
        name = _text(stream)
        kind = _take(stream, 4)
        keys[name] = kind + _value(stream, struct.unpack("<I", kind)[0])
    found = []
    for _ in range(tensor_count):
        name = _text(stream)
        (dimensions,) = struct.unpack("<I", _take(stream, 4))
        shape = struct.unpack(f"<{dimensions}Q", _take(stream, 8 * dimensions))
        kind, offset = struct.unpack("<IQ", _take(stream, 12))
        found.append((offset, name, shape, kind))
    alignment = keys.get("general.alignment")
    pad = struct.unpack("<I", alignment[4:])[0] if alignment else _DEFAULT_ALIGNMENT
    data = -(-stream.tell() // pad) * pad
    found.sort()
    starts = [data + offset for offset, *_ in found]
    ends = [*starts[1:], size]
    tensors = []
    for start, end, (_, name, shape, kind) in zip(starts, ends, found, strict=True):
        if end < start:
            raise EOFError(f"it has {size} bytes, and {name} lies behind them")
        tensors.append(Tensor(name, shape, kind, start, end - start))
    return Gguf(path, keys, tuple(tensors))


def _take(stream: IO[bytes], count: int) -> bytes:
    content = stream.read(count) if count <= _LONGEST_VALUE else b""
    if len(content) < count:
        raise EOFError
    return content


def _text(stream: IO[bytes]) -> str:
    (length,) = struct.unpack("<Q", _take(stream, 8))
    return _take(stream, length).decode("utf-8")


def _value(stream: IO[bytes], kind: int) -> bytes:
    """A value's bytes as they stand in the file."""
    if kind == _STRING:
        length = _take(stream, 8)
        return length + _take(stream, struct.unpack("<Q", length)[0])
    if kind != _ARRAY:
        return _take(stream, _FIXED_BYTES[kind])
    head = _take(stream, 12)
    element, count = struct.unpack("<IQ", head)
    if element in _FIXED_BYTES:
        return head + _take(stream, _FIXED_BYTES[element] * count)
    return head + b"".join(_value(stream, element) for _ in range(count))
