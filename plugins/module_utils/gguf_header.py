"""The head of a GGUF file: its keys and its tensors, without their data. Read and written. Standard library only."""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

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

_ARRAY, _STRING = 9, 8
_UINT32 = 4
_INTEGERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 10: "<Q", 11: "<q"}
_FIXED_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # GGUF's types of values
_VERSION = 3
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

    @property
    def type_name(self) -> str:
        """As `Q6_K`; the number where llama.cpp has no such type."""
        return TYPES[self.type][0] if self.type in TYPES else str(self.type)

    @property
    def n_bytes(self) -> int:
        """Bytes of its data, without padding.

        Raises:
            GgufError: it has a type that llama.cpp does not know.
        """
        return data_bytes(self.name, self.shape, self.type)


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

    def number(self, key: str) -> int | None:
        """A key's value, where it is a whole number; else None."""
        raw = self.keys.get(key)
        form = _INTEGERS.get(struct.unpack("<I", raw[:4])[0]) if raw else None
        return int(struct.unpack(form, raw[4:])[0]) if raw and form else None

    @property
    def alignment(self) -> int:
        """What the data of each tensor begin at a multiple of."""
        return alignment(self.keys)


def alignment(keys: dict[str, bytes]) -> int:
    """What the data of each tensor begin at a multiple of, by the metadata."""
    stated = keys.get("general.alignment")
    return struct.unpack("<I", stated[4:])[0] if stated else _DEFAULT_ALIGNMENT


def padded(size: int, to: int) -> int:
    """The next multiple of `to`."""
    return -(-size // to) * to


def data_bytes(name: str, shape: tuple[int, ...], kind: int) -> int:
    """Bytes of a tensor's data.

    Raises:
        GgufError: no such type, or rows that are no whole number of its blocks.
    """
    if kind not in TYPES:
        raise GgufError(f"{name} has the type {kind}, which llama.cpp does not know")
    type_name, elements, n_bytes = TYPES[kind]
    if not shape or shape[0] % elements:
        raise GgufError(
            f"{name} has rows of {shape[0] if shape else 0} elements, and {type_name} has blocks of {elements}"
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
    pieces, offset = [struct.pack("<4sIQQ", b"GGUF", _VERSION, len(listed), len(keys))], 0
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
        GgufError: it is none, ends too early, or cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return _read(path, stream, os.fstat(stream.fileno()).st_size)
    except (EOFError, KeyError, UnicodeDecodeError) as error:
        raise GgufError(f"{path} is damaged or not whole: {error or 'its head ends too early'}") from error
    except OSError as error:
        raise GgufError(f"{path} cannot be read: {error.strerror}") from error


def _read(path: Path, stream: IO[bytes], size: int) -> Gguf:
    if _take(stream, 4) != b"GGUF":
        raise GgufError(f"{path} is not a GGUF file")
    version, tensor_count, key_count = struct.unpack("<IQQ", _take(stream, 20))
    if version not in (2, _VERSION):
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
    data = padded(stream.tell(), alignment(keys))
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


def _named(name: str) -> bytes:
    raw = name.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


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
