"""Tests of the files of R1 that `make fullsize` serves: they are the published ones in all but their data."""

from __future__ import annotations

import gguf
import pytest

from r1prov.models import catalogue, layout
from tests.fullsize import published
from tests.fullsize.published import Published

MIB = 1 << 20


@pytest.mark.parametrize("name", catalogue.quants())
def test_the_tensors_of_each_published_file_come_out_to_its_bytes(name: str) -> None:
    """The first file of each quant has the vocabulary, which takes as much in all of them."""
    quant = catalogue.quant(name)
    groups = published.groups(quant)
    assert sorted(each.name for group in groups for each in group) == sorted(t.name for t in layout.tensors(name))
    data = sum(-(-each.n_bytes // 32) * 32 for each in groups[0])
    entries = sum(8 + len(each.name) + 4 + 8 * len(each.shape) + 4 + 8 for each in groups[0])
    assert 5_236_800 < quant.files[0].bytes - data - entries < 5_237_200


def test_the_files_have_their_real_sizes_and_say_where_their_tensors_lie(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    made = Published(tmp_path_factory.mktemp("full") / "r1", "UD-IQ1_S")
    assert [path.stat().st_size for path in made.files] == [file.bytes for file in made.quant.files]
    assert sum(path.stat().st_blocks * 512 for path in made.files) < 8 * MIB
    last = gguf.GGUFReader(made.files[2]).tensors[-1]
    assert (last.name, int(last.data_offset + last.n_bytes)) == (
        "blk.60.ffn_up_shexp.weight",
        made.quant.files[2].bytes,
    )
    assert made.read(1, 0, 4096).startswith(b"GGUF")


def test_no_two_places_in_them_are_alike(tmp_path_factory: pytest.TempPathFactory) -> None:
    made = Published(tmp_path_factory.mktemp("full") / "r1", "UD-IQ1_S")
    whole = made.read(1, 0, 3 * MIB)
    assert b"".join(made.read(1, start, start + MIB // 2) for start in range(0, 3 * MIB, MIB // 2)) == whole
    blocks = {made.read(number, place * MIB, place * MIB + 64) for number in range(3) for place in range(1, 30_000, 7)}
    assert len(blocks) == 3 * len(range(1, 30_000, 7))
