"""R1's files as they are published: real names, sizes and tensors, each where it lies in the real file. Their data are a pattern.

Which tensors a file has follows from the sizes in the catalogue: in the order in which llama.cpp writes tensors, each file after the first
one comes out to the byte. The vocabulary in the head of the first one is not known here, so filler makes up its length.
"""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

from r1prov.common import paths
from r1prov.models import catalogue, layout
from tests.cuda import fullsize

if TYPE_CHECKING:
    from pathlib import Path

    from ansible_collections.r1.prov.plugins.module_utils import gguf_header

    from r1prov.models.catalogue import Quant
    from r1prov.models.model import Tensor
else:
    gguf_header = paths.module_util("gguf_header")

_FILLER = "general.description"
_TEXT, _UINT16, _INT32 = 8, 2, 5
_BLOCK_BYTES = 1 << 20
_STEP_BYTES = 457  # between what two blocks begin with; so many fit that no two blocks of a model are alike
_POOL_BYTES = 64 << 20
_VALUES = bytes(number & 0x3F for number in range(256))  # Of such bytes no block of a quant has an endless scale.


def groups(quant: Quant) -> list[list[Tensor]]:
    """The tensors of each published file.

    Raises:
        ValueError: They do not come out to the bytes of the files.
    """
    rest = sorted(layout.tensors(quant.name), key=lambda each: (-1 if each.layer is None else each.layer, each.name))
    found: list[list[Tensor]] = []
    for number, file in reversed([*enumerate(quant.files)][1:]):
        count = next(count for count in range(1, len(rest)) if _bytes(quant, number, rest[-count:]) >= file.bytes)
        if _bytes(quant, number, rest[-count:]) != file.bytes:
            raise ValueError(f"{file.name} has other tensors than are described")
        found.insert(0, rest[-count:])
        del rest[-count:]
    return [rest, *found]


def _bytes(quant: Quant, number: int, tensors: list[Tensor]) -> int:
    return len(_head(_keys_of_split(quant, number), tensors)) + _data_bytes(tensors)


def _data_bytes(tensors: list[Tensor]) -> int:
    return sum(gguf_header.padded(each.n_bytes, gguf_header.DEFAULT_ALIGNMENT) for each in tensors)


def _head(keys: dict[str, bytes], tensors: list[Tensor]) -> bytes:
    rows = [(each.name, each.shape, gguf_header.TYPE_NUMBERS[each.type]) for each in tensors]
    return gguf_header.head(keys, rows)


def _keys_of_split(quant: Quant, number: int) -> dict[str, bytes]:
    return {
        "split.no": struct.pack("<IH", _UINT16, number),
        "split.tensors.count": struct.pack("<Ii", _INT32, len(layout.tensors(quant.name))),
        "split.count": struct.pack("<IH", _UINT16, len(quant.files)),
    }


class Published:
    """The files of a quant.

    Attributes:
        quant: Which one.
        files: The files, by their numbers: a head, and behind it a hole.
    """

    def __init__(self, folder: Path, name: str) -> None:
        """Writes the heads.

        Args:
            folder: Where they are written. It is made.
            name: The name of the quant.
        """
        self.quant = catalogue.quant(name)
        folder.mkdir()
        self.files = [folder / file.name for file in self.quant.files]
        whole = fullsize.write(folder / "whole.gguf", name, mla=False)
        keys = gguf_header.read(whole).keys
        whole.unlink()
        self._heads = []
        for number, tensors in enumerate(groups(self.quant)):
            its = _keys_of_split(self.quant, number)
            if not number:
                its = _filled(keys | its, tensors, self.quant.files[0].bytes)
            self._heads.append(_head(its, tensors))
            self.files[number].write_bytes(self._heads[-1])
            with self.files[number].open("r+b") as stream:
                stream.truncate(self.quant.files[number].bytes)
        noise = random.Random(1).randbytes(_POOL_BYTES + _BLOCK_BYTES).translate(_VALUES)
        self._pool = memoryview(noise)

    def read(self, number: int, start: int, end: int) -> bytes:
        """Bytes of a file."""
        head = self._heads[number][start:end]
        found, position = [memoryview(head)], start + len(head)
        while position < end:
            block, place = divmod(position, _BLOCK_BYTES)
            count = min(_BLOCK_BYTES - place, end - position)
            first = (self._first_block(number) + block) * _STEP_BYTES + place
            found.append(self._pool[first : first + count])
            position += count
        return b"".join(found)

    def _first_block(self, number: int) -> int:
        """The number of a file's first block among those of all files."""
        return sum(-(-file.bytes // _BLOCK_BYTES) for file in self.quant.files[:number])


def _filled(keys: dict[str, bytes], tensors: list[Tensor], n_bytes: int) -> dict[str, bytes]:
    """Keys with so much filler that the file with these tensors has its size."""

    def of(length: int) -> dict[str, bytes]:
        return keys | {_FILLER: struct.pack("<IQ", _TEXT, length) + b"." * length}

    return of(n_bytes - _data_bytes(tensors) - len(_head(of(0), tensors)))
