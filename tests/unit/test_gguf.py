"""Tests of reading headers of real architectures, and of files that are no GGUF files."""

import contextlib
import io
import os
import re
import shutil
import struct
import time
from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from r1prov.common.errors import SiteError
from r1prov.models import convert, gguf, layout
from r1prov.offload.engine import graphs
from tests.cuda import fullsize, models
from tests.fixtures import shards, tinymodel


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymodel.write(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.mark.parametrize("mla", [False, True])
def test_a_file_of_140_gb_is_what_the_catalogue_says_and_takes_two_seconds_of_a_core(tmp_path: Path, mla: bool) -> None:
    path = fullsize.write(tmp_path / "r1.gguf", "UD-IQ1_S", mla=mla)
    before = time.process_time()
    found = gguf.read(path)
    assert time.process_time() - before < 2
    expected = layout.model("UD-IQ1_S", mla=mla)
    assert found.tensors == expected.tensors
    assert found == replace(expected, name="r1.gguf")


@pytest.mark.parametrize("name", ["llama-8b", "qwen2-1.5b", "qwen3-30b-a3b", "glm4-air"])
def test_models_of_other_makes_are_read_too(tmp_path: Path, name: str) -> None:
    description = models.MODELS[name]()
    assert gguf.read(fullsize.write_other(tmp_path / name, description)) == description.model(name)


@pytest.mark.parametrize("key", ["block_count", "embedding_length", "attention.head_count", "context_length"])
def test_a_key_that_the_arithmetic_needs_is_missed_by_its_name(tmp_path: Path, key: str) -> None:
    description = models.MODELS["qwen3-8b"]()
    metadata = {name: value for name, value in description.metadata.items() if name != f"qwen3.{key}"}
    path = fullsize.write_other(tmp_path / "it.gguf", replace(description, metadata=metadata))
    with pytest.raises(SiteError, match=f"its metadata lack `qwen3.{key}`"):
        gguf.read(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"block_count": 2**31}, "`qwen3.block_count` is 2,147,483,648"),
        ({"block_count": 0}, "`qwen3.block_count` is 0"),
        ({"nextn_predict_layers": 36}, "`qwen3.nextn_predict_layers` is 36"),
        ({"attention.head_count": 0}, "its 0 heads cannot share 8"),
        ({"attention.head_count_kv": 5}, "its 32 heads cannot share 5 of K and V"),
        ({"attention.key_length": 2**31}, "`qwen3.attention.key_length` is 2,147,483,648"),
    ],
)
def test_absurd_figures_are_said(tmp_path: Path, changes: dict[str, int], reason: str) -> None:
    description = models.MODELS["qwen3-8b"]()
    metadata = description.metadata | {f"qwen3.{key}": value for key, value in changes.items()}
    path = fullsize.write_other(tmp_path / "it.gguf", replace(description, metadata=metadata))
    with pytest.raises(SiteError, match=reason):
        gguf.read(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"embedding_length": 7168}, r"embedding_length` is 7,168, its token embedding is 2,048 wide"),
        ({"block_count": 61}, r"block_count` is 61, its tensors are of 27 layers"),
    ],
)
def test_metadata_that_the_tensors_contradict_are_said(tmp_path: Path, changes: dict[str, int], reason: str) -> None:
    description = models.MODELS["deepseek-v2-lite"]()
    metadata = description.metadata | {f"deepseek2.{key}": value for key, value in changes.items()}
    path = fullsize.write_other(tmp_path / "it.gguf", replace(description, metadata=metadata))
    with pytest.raises(SiteError, match=f"it contradicts itself: `deepseek2.{reason}"):
        gguf.read(path)


def test_a_model_may_come_without_its_layers_that_only_predict() -> None:
    description = models.MODELS["glm4-air"]()
    computing = tuple(tensor for tensor in description.tensors if tensor.layer != 46)
    assert replace(description, tensors=computing).model("").layers == 46


@pytest.mark.parametrize(
    ("metadata", "reason", "remedy"),
    [
        ({"general.architecture": "llama", "general.type": "adapter"}, r"an adapter \(LoRA\)", "it goes with"),
        ({"general.architecture": "clip", "general.type": "mmproj"}, "a projector for images or sound", "it goes with"),
        ({"general.architecture": "clip"}, "a projector for images or sound", "it goes with"),
        ({"general.type": "imatrix"}, "an importance matrix", "it goes with"),
    ],
)
def test_what_the_engine_cannot_serve_is_told_what_it_is(
    tmp_path: Path, metadata: dict[str, str], reason: str, remedy: str
) -> None:
    path = tmp_path / "it.gguf"
    writer = GGUFWriter(path, "")
    writer.kv_data[0].clear()  # the writer starts with an architecture, but an importance matrix has none
    for key, value in metadata.items():
        writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(SiteError, match=reason) as refused:
        gguf.read(path)
    assert remedy in refused.value.problems[0].remedy


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(SiteError, match="no regular file"):
        gguf.read(tmp_path / "m.gguf")


def test_a_set_of_shards_is_one_model_whichever_is_named(tiny: Path, tmp_path: Path) -> None:
    parts = shards.split(tiny, tmp_path / "tiny", 40)
    whole = gguf.read(tiny)
    assert len(parts) > 2
    for part in parts:
        found = gguf.read(part)
        assert (found.tensors, found.layers, found.mla) == (whole.tensors, 8, True)


def test_a_missing_shard_is_named(tiny: Path, tmp_path: Path) -> None:
    first, second, *_ = shards.split(tiny, tmp_path / "tiny", 40)
    second.unlink()
    with pytest.raises(SiteError, match=second.name):
        gguf.read(first)


def test_a_set_of_absurdly_many_shards_is_said_shortly(tiny: Path, tmp_path: Path) -> None:
    lonely = tmp_path / "m-00002-of-99999.gguf"
    lonely.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(SiteError, match=r"m-00001-of-99999.gguf, .* and 99995 more$"):
        gguf.read(lonely)


def test_shards_under_each_others_names_are_said(tiny: Path, tmp_path: Path) -> None:
    first, second, *_ = shards.split(tiny, tmp_path / "tiny", 40)
    aside = first.rename(tmp_path / "aside")
    second.rename(first)
    aside.rename(second)
    with pytest.raises(SiteError, match=r"file 1 of 4 of the set .* says `split.no` 1, where 0 belongs") as refused:
        gguf.read(first)
    assert "under the names that they have there" in refused.value.problems[0].remedy


def renamed(path: Path, old: str, new: str) -> None:
    """Gives a tensor another name of the same length in the head of a file."""
    content = path.read_bytes()
    assert len(old) == len(new)
    assert old.encode() in content
    path.write_bytes(content.replace(old.encode(), new.encode()))


@pytest.mark.parametrize(
    ("place", "old", "new", "reasons"),
    [
        (
            0,
            "blk.0.ffn_up.weight",
            "blk.1.ffn_up.weight",
            ("not the whole model", "no other layer has the like of `blk.1.ffn_up.weight`"),
        ),
        (
            1,
            "blk.3.ffn_norm.weight",
            "blk.2.ffn_norm.weight",
            ("`blk.2.ffn_norm.weight` stands", "none of its files has `blk.3.ffn_norm.weight`"),
        ),
        (1, "blk.3.ffn_norm.weight", "blk.3.ffn_nor2.weight", ("not the whole model", "`blk.3.ffn_norm.weight`")),
        (3, "output_norm.weight", "blk.7.attn_norm.wt", ("not the whole model", "`output_norm.weight`")),
    ],
)
def test_shards_that_together_are_not_the_model_are_said(
    tiny: Path, tmp_path: Path, place: int, old: str, new: str, reasons: tuple[str, ...]
) -> None:
    """The number of tensors is right each time."""
    parts = shards.split(tiny, tmp_path / "tiny", 40)
    renamed(next(part for part in (parts[place], *parts) if old.encode() in part.read_bytes()), old, new)
    with pytest.raises(SiteError) as refused:
        gguf.read(parts[0])
    said = str(refused.value)
    assert all(re.search(reason, said) for reason in reasons), said
    if "stands" in said:
        assert "tiny-0000" in said
    assert "graph" not in said


def reshaped(path: Path, name: str, shape: tuple[int, ...]) -> None:
    """Gives a tensor another shape of as many sides in the head of a file."""
    content = path.read_bytes()
    start = content.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name)
    assert content[start : start + 4] == struct.pack("<I", len(shape))
    sides = struct.pack(f"<{len(shape)}Q", *shape)
    path.write_bytes(content[: start + 4] + sides + content[start + 4 + len(sides) :])


@pytest.mark.parametrize(
    ("name", "shape", "stated"),
    [
        ("token_embd.weight", (256, 270), "256 x 271"),
        ("output.weight", (256, 135), "256 x 271"),
        ("output_norm.weight", (128,), "256"),
        ("blk.0.ffn_down.weight", (256, 256), "512 x 256"),
        ("blk.1.attn_q_a_norm.weight", (64,), "128"),
        ("blk.2.attn_kv_a_mqa.weight", (256, 288), "256 x 576"),
        ("blk.3.attn_k_b.weight", (128, 512, 2), "128 x 512 x 4"),
        ("blk.4.attn_output.weight", (256, 256), "512 x 256"),
        ("blk.5.exp_probs_b.bias", (4,), "8"),
        ("blk.6.ffn_up_exps.weight", (256, 64, 4), "256 x 64 x 8"),
        ("blk.7.ffn_down_shexp.weight", (32, 256), "64 x 256"),
    ],
)
def test_a_tensor_of_another_model_is_said_with_its_shard(
    tiny: Path, tmp_path: Path, name: str, shape: tuple[int, ...], stated: str
) -> None:
    """All names are there once, as where one shard is of a smaller model. The engine refuses such a set (check_tensor_dims)."""
    parts = shards.split(tiny, tmp_path / "tiny", 40)
    shard = next(part for part in parts if name.encode() in part.read_bytes())
    reshaped(shard, name, shape)
    turned = " x ".join(map(str, shape))
    with pytest.raises(
        SiteError, match=f"`{re.escape(name)}` in {shard.name} is {turned}, and by the metadata it is {stated}"
    ):
        gguf.read(parts[0])
    target = tmp_path / "new.gguf"
    with pytest.raises(SiteError, match=re.escape(name)):
        convert.convert(parts[0], target, "Q8_0", lambda *_: None)
    assert not target.exists()


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (
            "blk.1.attn_norm.weight",
            "blk.9.attn_norm.weight",
            "speak of 8 layers, and there is `blk.9.attn_norm.weight`",
        ),
        ("blk.1.attn_norm.weight", "blk.01.attn_nor.weight", "none of its files has `blk.1.attn_norm.weight`"),
    ],
)
def test_a_tensor_of_no_layer_is_said(tiny: Path, tmp_path: Path, old: str, new: str, reason: str) -> None:
    copy = shutil.copy(tiny, tmp_path / "m.gguf")
    renamed(copy, old, new)
    with pytest.raises(SiteError, match=reason):
        gguf.read(copy)


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_other_models_have_the_shapes_that_their_metadata_tell(name: str) -> None:
    made = models.MODELS[name]()
    architecture = str(made.metadata["general.architecture"])
    gguf.gguf_whole.check_whole(
        [("m.gguf", made.tensors)],
        architecture,
        lambda key: made.metadata.get(f"{architecture}.{key}"),
        made.vocabulary,
    )


def test_a_shard_of_another_set_is_said(tiny: Path, tmp_path: Path) -> None:
    first, second, *_ = shards.split(tiny, tmp_path / "tiny", 40)
    shards.split(tiny, tmp_path / "other" / "tiny", 80)[1].replace(second)
    with pytest.raises(SiteError, match=r"file 2 of 4 of the set belongs to another set: .* `split.count` 2"):
        gguf.read(first)


def test_a_shard_that_holds_what_another_holds_is_said_before_what_that_leaves_missing(
    tiny: Path, tmp_path: Path
) -> None:
    """The last shard holds the last layers."""
    *_, third, last = shards.split(tiny, tmp_path / "tiny", 40)
    number = b"split.no" + struct.pack("<I", 2)  # UINT16
    content = third.read_bytes()
    assert number + struct.pack("<H", 2) in content
    last.write_bytes(content.replace(number + struct.pack("<H", 2), number + struct.pack("<H", 3)))
    with pytest.raises(SiteError, match=rf"stands in {third.name} and again in {last.name}, and none of its files has"):
        gguf.read(third)


def test_a_pointer_in_the_place_of_a_shard_is_named(tiny: Path, tmp_path: Path) -> None:
    first, second, *_ = shards.split(tiny, tmp_path / "tiny", 40)
    second.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(SiteError, match=rf"{second.name}: it is a pointer of Git LFS") as refused:
        gguf.read(first)
    assert "git lfs pull" in refused.value.problems[0].remedy


def test_a_shard_under_another_name_is_known_for_one(tiny: Path, tmp_path: Path) -> None:
    first, *_ = shards.split(tiny, tmp_path / "tiny", 40)
    with pytest.raises(SiteError, match="it is one shard of 4"):
        gguf.read(first.rename(tmp_path / "mine.gguf"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no GGUF file"),
        (b"PK\x03\x04" + bytes(64), "no GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "pointer of Git LFS"),
        (b"GGUF" + struct.pack("<I", 9), "GGUF version is 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 1), "damaged: it speaks of 1,152,921,504,606,846,976"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**50), "damaged"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0), "header is cut short"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q1sIQIQ", 1, b"t", 1, 3, 12, 0), "has the shape 3"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q1sIQIQ", 1, b"t", 1, 3, 999, 0),
            "type that is not known",
        ),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "lack `general.architecture`"),
    ],
)
def test_what_is_no_whole_model_is_refused_in_one_sentence(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "it.gguf"
    path.write_bytes(content)
    with pytest.raises(SiteError, match=reason):
        gguf.read(path)


def test_a_download_that_is_not_done_is_said_with_figures(tiny: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    content = tiny.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    with pytest.raises(SiteError, match=rf"cut short: .* bytes of {len(content):,}"):
        gguf.read(cut)


def test_shards_joined_by_cat_are_known(tiny: Path, tmp_path: Path) -> None:
    joined = tmp_path / "joined.gguf"
    joined.write_bytes(b"".join(part.read_bytes() for part in shards.split(tiny, tmp_path / "tiny", 40)))
    with pytest.raises(SiteError, match="several GGUF files one behind the other") as refused:
        gguf.read(joined)
    assert "llama-gguf-split --merge" in refused.value.problems[0].remedy


def test_a_shard_that_the_hub_keeps_under_its_digest_is_named_by_its_snapshot(tiny: Path, tmp_path: Path) -> None:
    first, *_ = shards.split(tiny, tmp_path / "tiny", 40)
    blob, link = tmp_path / "repo" / "blobs" / "ab12", tmp_path / "repo" / "snapshots" / "rev" / "q" / first.name
    for folder in (blob.parent, link.parent):
        folder.mkdir(parents=True)
    first.rename(blob)
    link.symlink_to(blob)
    with pytest.raises(SiteError, match="it is one shard of 4") as refused:
        gguf.read(blob)
    assert refused.value.problems[0].remedy == f"name it as its snapshot does: {link}"


@pytest.mark.parametrize(
    ("content", "kind", "remedy"),
    [
        (struct.pack("<Q", 80) + b'{"a":{"dtype":"F32"', "a safetensors file", "convert"),
        (b"PK\x03\x04" + bytes(60), "a zip archive", "unpack"),
        (b"\x1f\x8b\x08" + bytes(60), "packed by gzip", "unpack"),
        (b"\x28\xb5\x2f\xfd" + bytes(60), "packed by zstd", "unpack"),
        (b"\xfd7zXZ\0" + bytes(60), "packed by xz", "unpack"),
        (b"r1.gguf".ljust(257, b"\0") + b"ustar" + bytes(250), "a tar archive", "unpack"),
        (b"\n<!DOCTYPE html><html>", "a page of a web server", "fetch the file itself"),
        (b'{"error": "not found"}', "JSON", "name the model's own file"),
        (b"Access to this model is restricted", "text", "fetch it anew"),
        (bytes(600), "zeros", "fetch it anew"),
        (b"", "empty", "fetch it anew"),
        (b"tjgg\x03\0\0\0", "a file of llama.cpp from before GGUF", "convert"),
        (b"\x80\x02}q\0", "a file of PyTorch", "convert"),
    ],
)
def test_another_kind_of_file_is_called_what_it_is(tmp_path: Path, content: bytes, kind: str, remedy: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(SiteError, match=f"it is no GGUF file, but {kind}") as refused:
        gguf.read(path)
    assert refused.value.problems[0].remedy.startswith(remedy)


@pytest.mark.parametrize("name", ["s-00000-of-00003.gguf", "s-00009-of-00003.gguf", "s-00001-of-00000.gguf"])
def test_a_shard_that_its_set_cannot_have_is_not_read_as_another(tiny: Path, tmp_path: Path, name: str) -> None:
    shards.split(tiny, tmp_path / "s", 50)
    with pytest.raises(SiteError, match=f"{name}: it cannot be read: No such file"):
        gguf.read(tmp_path / name)


def test_what_stands_in_the_place_of_a_shard_is_said(tiny: Path, tmp_path: Path) -> None:
    first, second, third = shards.split(tiny, tmp_path / "s", 50)
    second.unlink()
    os.mkfifo(second)
    with pytest.raises(SiteError, match=f"{second.name}: it is no regular file"):
        gguf.read(first)
    third.unlink()
    with pytest.raises(SiteError, match=f"{third.name}: it cannot be read: No such file"):
        gguf.read(third)


def test_a_big_endian_file_is_called_one(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    path.write_bytes(b"GGUF" + struct.pack(">IQQ", 3, 1, 1))
    with pytest.raises(SiteError, match="it is big-endian") as refused:
        gguf.read(path)
    assert "gguf-convert-endian" in refused.value.problems[0].remedy


@pytest.mark.parametrize("name", [".", "/", "..", "x" * 300])
def test_what_is_no_name_of_a_file_is_no_defect(name: str) -> None:
    with pytest.raises(SiteError, match=r"Is a directory|name too long"):
        gguf.read(Path(name))


def test_a_folder_that_one_may_not_enter_is_no_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "stat", refuse)
    monkeypatch.setattr(Path, "stat", refuse)
    for name in ("m.gguf", "m-00001-of-00002.gguf"):
        with pytest.raises(SiteError, match="Permission denied"):
            gguf.read(Path("/closed") / name)


def test_a_folder_or_nothing_is_refused(tiny: Path, tmp_path: Path) -> None:
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "none.gguf", "No such file")):
        with pytest.raises(SiteError, match=f"cannot be read: {reason}"):
            gguf.read(path)
    with pytest.raises(SiteError) as refused:
        gguf.read(tiny.parent)
    assert refused.value.problems[0].remedy == f"name a file in it, e.g. {tiny}"


def test_a_file_that_may_not_be_read_is_said(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # file modes would not stop root, who may run the tests
    with pytest.raises(SiteError, match="cannot be read: Permission denied"):
        gguf.read(tiny)


STRANGE = (True, False, -1, 0, 1, 2, 7, 2**31, 2**63, 1.5, float("nan"), "", "x", [], [1, 2], [0.5], range(0), range(9))
"""What a key of the metadata may hold in a damaged file."""


@settings(max_examples=400)
@given(st.data())
def test_metadata_of_any_kind_are_either_harmless_or_said(tiny_header: bytes, data: st.DataObject) -> None:
    header = gguf.header(io.BytesIO(tiny_header))
    keys = sorted({*header.metadata, "split.no", "split.count", "split.tensors.count", "general.type"})
    changes = data.draw(st.dictionaries(st.sampled_from(keys), st.sampled_from(STRANGE), min_size=1, max_size=2))
    with contextlib.suppress(ValueError):
        graphs.check(gguf.joined("m.gguf", [replace(header, metadata=header.metadata | changes)]))


def test_a_count_of_shards_that_is_no_number_is_said(tiny_header: bytes) -> None:
    header = gguf.header(io.BytesIO(tiny_header))
    for count in ("x", 1.5, [2], range(2)):
        with pytest.raises(ValueError, match=r"`split\.count` is no whole number"):
            gguf.joined("m.gguf", [replace(header, metadata=header.metadata | {"split.count": count})])


@settings(max_examples=300)
@given(st.integers(0, 4000), st.binary(max_size=20))
def test_damage_anywhere_is_either_harmless_or_said(tiny_header: bytes, position: int, damage: bytes) -> None:
    content = tiny_header[:position] + damage + tiny_header[position + len(damage) :]
    with contextlib.suppress(ValueError):
        gguf.header(io.BytesIO(content))


@pytest.fixture(scope="module")
def tiny_header(tiny: Path) -> bytes:
    with tiny.open("rb") as stream:
        return stream.read(64 * 1024)
