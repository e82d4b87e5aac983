"""Tests of the layout of the one file that is made of a model's published files: by it alone, the file comes out as the merge makes it."""

from __future__ import annotations

import random
from pathlib import Path

import gguf
import pytest
from ansible_collections.r1.prov.plugins.module_utils import gguf_header, gguf_layout, gguf_stream, mla, mla_form
from ansible_collections.r1.prov.plugins.module_utils.gguf_layout import Layout

from tests.cuda import fullsize
from tests.fixtures import shards, tinymodel

Q5_0 = gguf.GGMLQuantizationType.Q5_0


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    folder = tmp_path_factory.mktemp("published")
    legacy = tinymodel.write(folder / "legacy.gguf", legacy=Q5_0)
    return {
        "shards": shards.split(legacy, folder / "t", 60),
        "one": [legacy],
        "in MLA form": shards.split(tinymodel.write(folder / "new.gguf"), folder / "n", 60),
    }


def laid_out(paths: list[Path], attention: str) -> tuple[mla_form.Form, Layout]:
    heads = [gguf_header.read(path) for path in paths]
    form = mla_form.wanted(heads, attention)
    return form, gguf_layout.layout(form.keys, form.parts, heads, [path.stat().st_size for path in paths])


def written(form: mla_form.Form, path: Path) -> bytes:
    gguf_stream.write(path, form.keys, mla.able(form), lambda *_: None)
    return path.read_bytes()


@pytest.mark.parametrize("which", ["shards", "one", "in MLA form"])
@pytest.mark.parametrize("attention", ["mla", "legacy"])
def test_what_each_byte_is_put_to_is_the_file_that_the_merge_makes(
    published: dict[str, list[Path]], which: str, attention: str, tmp_path: Path
) -> None:
    paths = published[which]
    form, layout = laid_out(paths, attention)
    contents, made = [path.read_bytes() for path in paths], bytearray(layout.bytes)
    made[: len(layout.head)] = layout.head
    able = {part.name: part for part in mla.able(form)}
    last = 0
    for number, runs in enumerate(layout.runs):
        assert [0, *(run.end for run in runs)] == [*(run.start for run in runs), len(contents[number])]
        for run in runs:
            raw = contents[number][run.start : run.end]
            puts = [] if run.offset is None else [(run.offset, raw)]
            puts += [(each.offset, able[each.part.name].make(raw)) for each in run.made]
            for offset, data in puts:
                assert last <= offset
                made[offset : offset + len(data)] = data
                last = offset + len(data)
    assert bytes(made) == written(form, tmp_path / "new.gguf")
    assert form.attention == ("mla" if which != "in MLA form" and attention == "mla" else "legacy")


def test_a_place_in_the_new_file_is_made_of_what_it_needs_and_nothing_else(
    published: dict[str, list[Path]], tmp_path: Path
) -> None:
    paths = published["shards"]
    form, layout = laid_out(paths, "mla")
    contents, new = [path.read_bytes() for path in paths], written(form, tmp_path / "new.gguf")
    able, chance = {part.name: part for part in mla.able(form)}, random.Random(7)

    def put(run: gguf_layout.Run) -> list[tuple[int, bytes]]:
        raw = contents[run.shard][run.start : run.end]
        copy = [] if run.offset is None else [(run.offset, raw)]
        return copy + [(each.offset, able[each.part.name].make(raw)) for each in run.made]

    for _ in range(200):
        start = chance.randrange(layout.bytes)
        end = min(start + chance.randrange(1, 3 << 20), layout.bytes)
        made = bytearray(b"\0" * (end - start))
        for offset, data in [(0, layout.head), *((o, d) for run in layout.needed(start, end) for o, d in put(run))]:
            first, stop = max(offset, start), min(offset + len(data), end)
            if first < stop:
                made[first - start : stop - start] = data[first - offset : stop - offset]
        assert bytes(made) == new[start:end]
        copies = [run for run in layout.needed(start, end) if run.offset is not None]
        assert sum(run.end - run.start for run in copies) <= end - start


def test_a_range_of_a_published_file_is_cut_where_its_bytes_part(published: dict[str, list[Path]]) -> None:
    paths = published["shards"]
    _, layout = laid_out(paths, "mla")
    for number, path in enumerate(paths):
        size, step = path.stat().st_size, 300_001
        cut = [run for start in range(0, size, step) for run in layout.within(number, start, min(start + step, size))]
        assert [0, *(run.end for run in cut)] == [*(run.start for run in cut), size]
        for run in cut:
            (whole,) = layout.within(number, run.start, run.start + 1)
            (last,) = layout.within(number, run.end - 1, run.end)
            assert (whole.offset is None) == (run.offset is None)
            assert last.offset is None or last.offset == run.offset + run.end - run.start - 1


def test_the_full_size_takes_little_beside_the_new_file(tmp_path: Path) -> None:
    path = fullsize.write(tmp_path / "legacy.gguf", "UD-IQ1_S", mla=False)
    _, layout = laid_out([path], "mla")
    aside = sum(run.end - run.start for run in layout.runs[0] if run.offset is None)
    assert layout.bytes + aside < 1.01 * path.stat().st_size
    assert len(layout.runs[0]) < 200  # so few that to look one up costs nothing


@pytest.mark.parametrize("harm", ["cut short", "overlap"])
def test_a_head_whose_tensors_cannot_lie_so_is_refused(published: dict[str, list[Path]], harm: str) -> None:
    head = gguf_header.read(published["one"][0])
    form, size = mla_form.wanted([head], "legacy"), published["one"][0].stat().st_size
    if harm == "overlap":
        second = head.tensors[1]
        moved = gguf_header.Tensor(second.name, second.shape, second.type, head.tensors[0].start, second.bytes)
        head = gguf_header.Gguf(head.path, head.keys, (head.tensors[0], moved, *head.tensors[2:]), head.data)
    with pytest.raises(gguf_header.GgufError, match=harm):
        gguf_layout.layout(form.keys, form.parts, [head], [size - 100_000 if harm == "cut short" else size])
