"""Tests of the conversion from legacy attention to MLA: the algebra, the new file, and the sources that are refused."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
import signal
import struct
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import gguf
import numpy as np
import pytest
from ansible_collections.r1.prov.plugins.module_utils import files, gguf_header, gguf_layout, gguf_stream, mla, mla_form
from ansible_collections.r1.prov.plugins.module_utils.gguf_header import TYPES
from gguf.quants import dequantize

from r1prov import cli, output
from r1prov.common.errors import Exit, SiteError
from r1prov.models import convert as weights
from r1prov.models import gguf as header
from r1prov.models import layout
from tests.cuda import fullsize
from tests.fixtures import shards, tinymodel

F16, Q8_0 = gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.Q8_0
HEADS, NOPE, VALUE, RANK = 4, 128, 128, 512


@pytest.fixture(scope="module")
def legacy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymodel.write(tmp_path_factory.mktemp("legacy") / "legacy.gguf", legacy=Q8_0)


def ignore(_done: int, _total: int) -> None:
    """Takes progress and ignores it."""


def tensors(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def keys(path: Path) -> dict[str, object]:
    fields = gguf.GGUFReader(path).fields
    return {name: field.contents() for name, field in fields.items() if not name.startswith("GGUF.")}


def test_ggml_s_types_are_those_of_the_gguf_package() -> None:
    assert {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()} == TYPES


@pytest.mark.parametrize("key_type", weights.KEY_TYPES)
def test_each_matrix_is_cut_and_k_transposed(legacy: Path, tmp_path: Path, key_type: str) -> None:
    written = weights.convert(legacy, tmp_path / "new.gguf", key_type, ignore)
    assert written
    assert written.sha256 == sha256(written.path.read_bytes()).hexdigest()
    assert (tmp_path / "new.gguf.sha256").read_text() == f"{written.sha256}  new.gguf\n"
    assert {path.name for path in tmp_path.iterdir()} == {"new.gguf", "new.gguf.sha256"}
    old, new = tensors(legacy), tensors(written.path)
    for layer in range(tinymodel.LAYERS):
        kv_b = old.pop(f"blk.{layer}.attn_kv_b.weight")
        k_b, v_b = (new.pop(f"blk.{layer}.attn_{name}_b.weight") for name in "kv")
        source = dequantize(kv_b.data, kv_b.tensor_type).reshape(HEADS, NOPE + VALUE, RANK)
        wanted = source[:, :NOPE].transpose(0, 2, 1)
        assert k_b.tensor_type.name == key_type
        if key_type == "F16":
            np.testing.assert_array_equal(k_b.data, wanted.astype(np.float16))
        else:
            quantised = gguf.quants.quantize(np.ascontiguousarray(wanted), Q8_0)
            np.testing.assert_array_equal(k_b.data, quantised)
        assert v_b.tensor_type == kv_b.tensor_type
        np.testing.assert_array_equal(v_b.data, kv_b.data.reshape(HEADS, NOPE + VALUE, -1)[:, NOPE:])
    assert old.keys() == new.keys()
    assert all(new[name].data.tobytes() == tensor.data.tobytes() for name, tensor in old.items())


def test_the_head_is_what_a_converter_to_mla_writes(legacy: Path, tmp_path: Path) -> None:
    wanted = tinymodel.write(tmp_path / "mla.gguf")
    weights.convert(legacy, tmp_path / "new.gguf", "Q8_0", ignore)
    assert keys(tmp_path / "new.gguf") == keys(wanted)
    told = [(t.name, tuple(t.shape), t.tensor_type, t.n_bytes) for t in tensors(tmp_path / "new.gguf").values()]
    assert told == [(t.name, tuple(t.shape), t.tensor_type, t.n_bytes) for t in tensors(wanted).values()]


def test_shards_become_one_file_the_same_as_the_whole_one_does(legacy: Path, tmp_path: Path) -> None:
    parts = shards.split(legacy, tmp_path / "t", 60)
    seen = []
    whole = weights.convert(legacy, tmp_path / "whole.gguf", "Q8_0", lambda done, total: seen.append((done, total)))
    merged = weights.convert(parts[1], tmp_path / "merged.gguf", "Q8_0", ignore)
    assert whole
    assert merged
    assert merged.sha256 == whole.sha256
    assert seen[-1] == (whole.n_bytes, whole.n_bytes)


@pytest.mark.parametrize("quant", layout.TYPES)
def test_the_published_quants_become_what_layout_says_of_mla(quant: str, tmp_path: Path) -> None:
    source = gguf_header.read(fullsize.write(tmp_path / "legacy.gguf", quant, mla=False))
    form = mla_form.converted([source])
    metadata, parts = form.keys, form.parts
    told = [(part.name, part.shape, TYPES[part.type][0], part.n_bytes) for part in parts]
    assert told == [(t.name, t.shape, t.type, t.n_bytes) for t in layout.tensors(quant, mla=True)]
    new = tmp_path / "new.gguf"
    new.write_bytes(gguf_header.head(metadata, [(part.name, part.shape, part.type) for part in parts]))
    os.truncate(new, new.stat().st_size + sum(gguf_header.padded(part.n_bytes, 32) for part in parts))
    fullsize.write(tmp_path / "mla.gguf", quant, mla=True)
    found, wanted = (header.read(tmp_path / name) for name in ("new.gguf", "mla.gguf"))
    assert vars(found) | {"name": ""} == vars(wanted) | {"name": ""}
    assert keys_of(new) == keys_of(tmp_path / "mla.gguf")


def keys_of(path: Path) -> dict[str, bytes]:
    return gguf_header.read(path).keys


def test_ud_iq1_s_grows_by_124_mb() -> None:
    grown = sum(t.n_bytes for t in layout.tensors("UD-IQ1_S", mla=True))
    assert round((grown - sum(t.n_bytes for t in layout.tensors("UD-IQ1_S"))) / 1e6) == 124


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "BF16", "F32"])
@pytest.mark.parametrize("key_type", weights.KEY_TYPES)
def test_what_is_made_of_any_type_agrees_and_what_is_not_does_not(kind: str, key_type: str) -> None:
    """The test uses the algebra of MLA itself, which is that q . (K c) equals (K^T q) . c."""
    sizes = mla_form.Attention(heads=2, nope=128, rope=64, value=128, rank=512)
    _, elements, n_bytes = TYPES[gguf_header.TYPE_NUMBERS[kind]]
    numbers = np.random.default_rng(3)
    raw = numbers.integers(0, 256, (512, 512 // elements * n_bytes), dtype=np.uint8)
    scale = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    at = {"Q4_K": (0, 2), "Q6_K": (208,), "BF16": (), "F32": ()}[kind]
    for first in at:
        raw.reshape(-1, n_bytes)[:, first : first + 2] = scale
    if not at:
        plain = numbers.standard_normal((512, 512), dtype=np.float32)
        raw = plain.view(np.uint8) if kind == "F32" else (plain.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
    source = raw.tobytes()
    kv_b = dequantize(raw, gguf.GGMLQuantizationType[kind]).reshape(2, 256, 512).astype(np.float64)
    made = mla.k_b(source, kind, sizes, key_type)
    shape = gguf.quants.quant_shape_to_byte_shape((2, 512, 128), gguf.GGMLQuantizationType[key_type])
    k_b = dequantize(np.frombuffer(made, np.uint8).reshape(shape), gguf.GGMLQuantizationType[key_type])
    query, latent = numbers.standard_normal((2, 128)), numbers.standard_normal(512)
    legacy_scores = np.einsum("hn,hnr,r->h", query, kv_b[:, :128], latent)
    scores = np.einsum("hrn,hn,r->h", k_b.astype(np.float64), query, latent)
    assert np.abs(scores - legacy_scores).max() < 0.01 * np.abs(kv_b).max() * np.linalg.norm(query) * np.linalg.norm(
        latent
    )
    assert mla.k_b_agrees(kind, sizes, key_type, source, made)
    values = mla.v_b(source, sizes)
    assert mla.v_b_agrees(sizes, source, values)
    for data, agrees in (
        (made, lambda data: mla.k_b_agrees(kind, sizes, key_type, source, data)),
        (values, lambda data: mla.v_b_agrees(sizes, source, data)),
    ):
        wrong = bytearray(data)
        wrong[len(wrong) // 2 + 1] ^= 0x10
        assert not agrees(bytes(wrong))


def changed(path: Path, old: bytes, new: bytes) -> Path:
    content = path.read_bytes()
    assert len(old) == len(new)
    assert old in content
    path.write_bytes(content.replace(old, new))
    return path


def both_forms(path: Path) -> Path:
    source = gguf_header.read(tinymodel.write(path.with_name("legacy.gguf"), legacy=Q8_0))
    parts = mla.able(mla_form.converted([source]))
    parts += [gguf_layout.copied(source.path, tensor) for tensor in source.tensors if "kv_b" in tensor.name]
    gguf_stream.write(path, source.keys, parts, ignore)
    return path


def of_type(path: Path, number: int) -> Path:
    """A legacy model whose first attn_kv_b has the number of another type in the header, with the same bytes."""
    name = b"blk.0.attn_kv_b.weight" + struct.pack("<I2Q", 2, RANK, HEADS * (NOPE + VALUE))
    made = tinymodel.write(path, legacy=Q8_0)
    return changed(made, name + struct.pack("<I", 8), name + struct.pack("<I", number))


def with_a_tensor_twice(path: Path) -> Path:
    """Shards of which one has a tensor of another in place of its own; their number is right."""
    parts = shards.split(tinymodel.write(path, legacy=Q8_0), path.with_suffix(""), 60)
    place = next(part for part in parts if b"blk.4.ffn_norm" in part.read_bytes())
    return changed(place, b"blk.4.ffn_norm.weight", b"blk.5.ffn_norm.weight")


def first_alone(path: Path) -> Path:
    parts = shards.split(tinymodel.write(path, legacy=Q8_0), path.with_suffix(""), 60)
    parts[2].unlink()
    return parts[0]


def cut_short(path: Path) -> Path:
    os.truncate(tinymodel.write(path, legacy=Q8_0), 9_000_000)
    return path


def of_another_architecture(path: Path) -> Path:
    return changed(tinymodel.write(path, legacy=Q8_0), b"deepseek2", b"codeshell")


def without_a_layer(path: Path) -> Path:
    return changed(tinymodel.write(path, legacy=Q8_0), b"blk.1.attn_kv_b", b"blk.1.attn_kv_x")


def no_gguf(path: Path) -> Path:
    path.write_text("hello")
    return path


BAD = {
    "its tensor `blk.5.ffn_norm.weight` stands": with_a_tensor_twice,
    "in both forms (150 tensors": both_forms,
    "none of its files has `blk.1.attn_kv_b.weight`": without_a_layer,
    "is a model of `codeshell`": of_another_architecture,
    "shards are missing beside it: b-00003-of-00003.gguf": first_alone,
    "has the type IQ1_S, whose rows cannot be taken apart": lambda path: of_type(path, 19),
    "`blk.0.attn_kv_b.weight` has a type that is not known": lambda path: of_type(path, 212),
    "it is cut short": cut_short,
    "it is no GGUF file": no_gguf,
    "it cannot be read: No such file": lambda path: path,
}


@pytest.mark.parametrize("says", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = BAD[says](tmp_path / "b.gguf"), tmp_path / "out"
    out.mkdir()
    with pytest.raises(SystemExit) as ended:
        cli.main(["weights", "convert", str(source), str(out / "new.gguf")])
    assert ended.value.code == Exit.SITE
    lines = capsys.readouterr().err.splitlines()
    assert says in lines[0]
    assert [line[:4] for line in lines[1:]] == ["  ->"]
    assert not list(out.iterdir())


def test_a_file_in_mla_form_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tinymodel.write(tmp_path / "mla.gguf")
    with pytest.raises(SystemExit) as ended:
        cli.main(["weights", "convert", str(source), str(tmp_path / "new.gguf")])
    assert not ended.value.code
    assert capsys.readouterr().err.endswith("is in MLA form already: nothing to do\n")
    assert list(tmp_path.iterdir()) == [source]


def test_a_disk_without_room_is_not_written_to(legacy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.statvfs_result((4096, 4096, 1000, 1000, 1000, 0, 0, 0, 0, 255))
    monkeypatch.setattr(gguf_stream.os, "statvfs", lambda _: full)
    with pytest.raises(SiteError, match=r"has 4 MiB free, and the new file takes \d\d MiB"):
        weights.convert(legacy, tmp_path / "new.gguf", "Q8_0", ignore)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_never_written_over(legacy: Path, tmp_path: Path) -> None:
    (tmp_path / "new.gguf").write_text("mine")
    with pytest.raises(SiteError, match="it is there already"):
        weights.convert(legacy, tmp_path / "new.gguf", "Q8_0", ignore)
    assert (tmp_path / "new.gguf").read_text() == "mine"


def test_what_changes_on_its_way_to_the_disk_is_noticed(legacy: Path, tmp_path: Path) -> None:
    done = []

    def damage(position: int, _total: int) -> None:
        """Changes the last written byte, once, before it is read again."""
        if not done and position > 5_000_000:
            done.append(position)
            with (tmp_path / ".new.gguf.growing").open("r+b") as file:
                file.seek(position - 1)
                byte = file.read(1)[0]
                file.seek(position - 1)
                file.write(bytes([byte ^ 1]))

    with pytest.raises(SiteError, match=r"blk\.\d+\..* in the new file differs from legacy\.gguf"):
        weights.convert(legacy, tmp_path / "new.gguf", "Q8_0", damage)
    assert done
    assert not list(tmp_path.iterdir())


def test_two_runs_do_not_write_one_file(legacy: Path, tmp_path: Path) -> None:
    with gguf_stream._alone(tmp_path / ".new.gguf.growing"), pytest.raises(SiteError, match="another run is writing"):
        weights.convert(legacy, tmp_path / "new.gguf", "Q8_0", ignore)
    assert weights.convert(legacy, tmp_path / "new.gguf", "Q8_0", ignore)


def test_a_run_that_waited_does_not_write_what_the_first_has_named(tmp_path: Path) -> None:
    """The second run opens the file before the first run renames it, and locks it afterwards."""
    path, done = tmp_path / "growing", tmp_path / "done"
    real = fcntl.flock

    def late(file: int, how: int) -> None:
        if not done.exists():
            path.write_text("the first's")
            path.rename(done)
        real(file, how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf_stream.fcntl, "flock", late)
        with gguf_stream._alone(path) as file:
            os.write(file, b"the second's")
    assert (done.read_text(), path.read_text()) == ("the first's", "the second's")


def test_what_a_killed_run_left_is_not_written_over(legacy: Path, tmp_path: Path) -> None:
    """The killed run may have given the file its final name already, and someone may have moved it since."""
    (tmp_path / "moved.gguf").write_text("whole")
    os.link(tmp_path / "moved.gguf", tmp_path / ".new.gguf.growing")
    assert weights.convert(legacy, tmp_path / "new.gguf", "Q8_0", ignore)
    assert (tmp_path / "moved.gguf").read_text() == "whole"


def test_the_file_is_another_run_s_to_write_only_when_it_has_its_name(
    legacy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, growing = tmp_path / "new.gguf", tmp_path / ".new.gguf.growing"
    seen = []

    def publish(temporary: Path, path: Path) -> None:
        with pytest.raises(SiteError, match="another run is writing"):
            weights.convert(legacy, target, "Q8_0", ignore)
        seen.append((temporary, path, temporary.exists(), path.exists()))
        name_anew(temporary, path)

    def sync(folder: Path) -> None:
        seen.append((folder, sha256(target.read_bytes()).hexdigest()))

    name_anew = files.name_anew
    monkeypatch.setattr(files, "name_anew", publish)
    monkeypatch.setattr(files, "sync_folder", sync)
    # Without this, the second run would be refused because of the digest.
    monkeypatch.setattr(weights, "_check_target", lambda _: None)
    written = weights.convert(legacy, target, "Q8_0", ignore)
    assert written
    assert seen == [(growing, target, True, False), (tmp_path, written.sha256)]


def test_the_file_gets_its_name_when_its_digest_is_whole(
    legacy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    name_anew = files.name_anew

    def look(temporary: Path, path: Path) -> None:
        found.append((tmp_path / "new.gguf.sha256").read_text())
        name_anew(temporary, path)

    monkeypatch.setattr(files, "name_anew", look)
    written = weights.convert(legacy, tmp_path / "new.gguf", "Q8_0", ignore)
    assert written
    assert found == [f"{written.sha256}  new.gguf\n"]


def test_what_appears_in_its_place_meanwhile_is_not_written_over(legacy: Path, tmp_path: Path) -> None:
    for name in ("new.gguf", "new.gguf.sha256"):
        other = tmp_path / name
        with pytest.raises(SiteError, match=f"{name}: it is there already"):
            weights.convert(legacy, tmp_path / "new.gguf", "Q8_0", lambda *_, other=other: other.write_text("mine"))
        assert other.read_text() == "mine"
        assert list(tmp_path.iterdir()) == [other]
        other.unlink()


def once(first: Callable[..., None], then: Callable[..., None]) -> Callable[..., None]:
    calls = iter([first])

    def call(*arguments: object, **named: object) -> None:
        next(calls, then)(*arguments, **named)

    return call


@pytest.mark.parametrize("step", ["link", "unlink", "sync_folder"])
def test_what_fails_after_the_last_byte_leaves_nothing(
    legacy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    if step == "link":
        monkeypatch.setattr(files.os, "link", refuse)
        monkeypatch.setattr(Path, "rename", refuse)
    elif step == "unlink":
        monkeypatch.setattr(Path, "unlink", once(refuse, Path.unlink))
    else:
        monkeypatch.setattr(files, "sync_folder", refuse)
    with pytest.raises(SiteError, match="it cannot be written: Input/output error"):
        weights.convert(legacy, tmp_path / "new.gguf", "Q8_0", ignore)
    assert not list(tmp_path.iterdir())


def test_what_stands_in_its_way_is_said_at_once(legacy: Path, tmp_path: Path) -> None:
    target, digest = tmp_path / "new.gguf", tmp_path / "new.gguf.sha256"
    for path, says in ((target, r"new\.gguf: it is there already"), (digest, r"\.sha256: it is there already")):
        path.symlink_to("nowhere")
        with pytest.raises(SiteError, match=says):
            weights.convert(legacy, target, "Q8_0", lambda *_: pytest.fail("it was begun"))
        path.unlink()
    digest.mkdir()
    with pytest.raises(SiteError, match=r"\.sha256: it is there already"):
        weights.convert(legacy, target, "Q8_0", lambda *_: pytest.fail("it was begun"))
    assert list(tmp_path.iterdir()) == [digest]


@pytest.mark.parametrize(
    ("out", "says", "remedy"),
    [
        (b"", "it is a folder", "name a file in it"),
        (b"new\xff.gguf", "its name is no UTF-8", "name another file"),
        (b"n" * 250, "it cannot be written: File name too long", "write it elsewhere, or under another name"),
        (b"n" * 300, "it cannot be written: File name too long", "write it elsewhere, or under another name"),
    ],
)
def test_a_name_that_cannot_be_is_one_line(
    legacy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: bytes, says: str, remedy: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["weights", "convert", str(legacy), str(tmp_path / os.fsdecode(out))])
    assert ended.value.code == Exit.SITE
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(says)
    assert second == f"  -> {remedy}"
    assert not list(tmp_path.iterdir())


def test_a_disk_that_gives_a_file_one_name_takes_it_too(
    legacy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(files.os, "link", refuse)
    assert weights.convert(legacy, tmp_path / "new.gguf", "Q8_0", ignore)
    assert {path.name for path in tmp_path.iterdir()} == {"new.gguf", "new.gguf.sha256"}
    with pytest.raises(FileExistsError):
        files.name_anew(tmp_path / "new.gguf.sha256", tmp_path / "new.gguf")


def test_a_shard_that_goes_away_meanwhile_is_named(legacy: Path, tmp_path: Path) -> None:
    parts, out = shards.split(legacy, tmp_path / "t", 60), tmp_path / "out"
    out.mkdir()
    with pytest.raises(SiteError, match=r"t-00003-of-00003\.gguf cannot be read: No such file"):
        weights.convert(parts[0], out / "new.gguf", "Q8_0", lambda *_: parts[2].unlink(missing_ok=True))
    assert not list(out.iterdir())


def with_kv_b(path: Path, kind: str, values: Callable[[np.ndarray], None]) -> Path:
    """A legacy model with attn_kv_b in `kind`, in which `values` has changed the first attn_kv_b."""
    source = gguf_header.read(tinymodel.write(path, legacy=gguf.GGMLQuantizationType[kind]))
    tensor = next(tensor for tensor in source.tensors if tensor.name == "blk.0.attn_kv_b.weight")
    data = np.memmap(path, np.uint8, "r+", tensor.start, tensor.n_bytes)
    values(data)
    data.flush()
    return path


def f32(value: float, at: int = 5) -> Callable[[np.ndarray], None]:
    def change(data: np.ndarray) -> None:
        data.view("<f4")[at] = value

    return change


def scale(value: float) -> Callable[[np.ndarray], None]:
    def change(data: np.ndarray) -> None:
        data[:2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)

    return change


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("key_type", weights.KEY_TYPES)
@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("F32", f32(np.nan), "are no numbers"),
        ("F32", f32(-np.inf), "are no numbers"),
        ("Q8_0", scale(np.nan), "are no numbers"),
        ("Q8_0", scale(np.inf), "are no numbers"),
        ("F32", f32(-1e7), "are too large for"),
    ],
)
def test_values_that_nothing_can_be_made_of_are_said_to_be_the_source_s(
    tmp_path: Path, kind: str, change: Callable[[np.ndarray], None], says: str, key_type: str
) -> None:
    source = with_kv_b(tmp_path / "bad.gguf", kind, change)
    with pytest.raises(SiteError, match=rf"blk\.0\.attn_kv_b\.weight in .*bad\.gguf holds values that {says}"):
        weights.convert(source, tmp_path / "new.gguf", key_type, ignore)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("key_type", weights.KEY_TYPES)
@pytest.mark.parametrize("value", [1e-45, 1e-42, 3e-37, 1e-6, 65504])
def test_the_smallest_and_largest_values_are_taken(tmp_path: Path, value: float, key_type: str) -> None:
    def change(data: np.ndarray) -> None:
        data.view("<f4")[:] = 0
        f32(value)(data)
        f32(-value, 512 + 5)(data)

    source = with_kv_b(tmp_path / "small.gguf", "F32", change)
    assert weights.convert(source, tmp_path / "new.gguf", key_type, ignore)


def test_ctrl_c_says_that_nothing_was_left(
    legacy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(output.Meter, "update", interrupted)
    with pytest.raises(SystemExit) as ended:
        cli.main(["weights", "convert", str(legacy), str(tmp_path / "new.gguf"), "--k-b", "F16"])
    assert ended.value.code == Exit.INTERRUPTED
    assert capsys.readouterr().err == f"\nStopped. Nothing was left of {tmp_path / 'new.gguf'}.\n"
    assert not list(tmp_path.iterdir())


def test_blocks_of_any_size_make_the_same_file(legacy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = weights.convert(legacy, tmp_path / "wanted.gguf", "Q8_0", ignore)
    monkeypatch.setattr(gguf_stream, "_BLOCK_BYTES", 10_000)
    monkeypatch.setattr(gguf_stream, "_PIECES_AHEAD", 1)
    monkeypatch.setattr(gguf_stream, "_AT_ONCE_BYTES", 123_457)  # not a multiple of a block or a page
    written = weights.convert(legacy, tmp_path / "new.gguf", "Q8_0", ignore)
    assert wanted
    assert written
    assert written.sha256 == wanted.sha256 == sha256(written.path.read_bytes()).hexdigest()


def test_what_the_disk_refuses_while_the_file_grows_is_said(
    legacy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel reports a failed write to only one call of fdatasync. Here that is the last call before the end."""
    asked = []

    def refuse(file: int) -> None:
        asked.append(file)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(gguf_stream, "_AT_ONCE_BYTES", legacy.stat().st_size // 3 * 2)
    monkeypatch.setattr(gguf_stream.os, "fdatasync", refuse)
    with pytest.raises(SiteError, match="it cannot be written: Input/output error"):
        weights.convert(legacy, tmp_path / "new.gguf", "Q8_0", ignore)
    assert len(asked) == 1
    assert not list(tmp_path.iterdir())


def test_a_source_that_becomes_shorter_meanwhile_is_noticed(legacy: Path, tmp_path: Path) -> None:
    source = Path(shutil.copy(legacy, tmp_path / "source.gguf"))
    with pytest.raises(SiteError, match=r"source\.gguf has become shorter while it was read"):
        weights.convert(source, tmp_path / "new.gguf", "Q8_0", lambda *_: os.truncate(source, 1 << 20))
    assert list(tmp_path.iterdir()) == [source]


def large(path: Path) -> Path:
    """A legacy model whose conversion takes a moment: the tiny model with one large extra tensor."""
    source = gguf_header.read(tinymodel.write(path.with_name("tiny.gguf"), legacy=Q8_0))
    parts = [gguf_layout.copied(source.path, tensor) for tensor in source.tensors]
    blank = path.with_name("blank")
    blank.write_bytes(random.Random(1).randbytes(1 << 20) * 48)
    extra = gguf_header.Tensor("extra.weight", (1 << 20, 12), 0, 0, 48 << 20)
    gguf_stream.write(path, source.keys, [gguf_layout.copied(blank, extra), *parts], ignore)
    return path


def test_a_kill_at_any_point_leaves_no_wrong_file(tmp_path: Path) -> None:
    source, new = large(tmp_path / "large.gguf"), tmp_path / "new.gguf"

    def start() -> int:
        if child := os.fork():
            return child
        try:
            weights.convert(source, new, "Q8_0", ignore)
        finally:
            os._exit(0)

    began = time.monotonic()
    os.waitpid(start(), 0)
    whole_s = time.monotonic() - began
    wanted = sha256(new.read_bytes()).digest()
    points, cut = random.Random(2), 0
    digest = new.with_name("new.gguf.sha256")
    for _ in range(20):
        for path in (new, digest):
            path.unlink(missing_ok=True)
        child, point = start(), points.uniform(0, whole_s)
        time.sleep(point)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            cut += 1
        else:  # the run was over before, because the machine is less busy now
            whole_s = min(whole_s, point)
        assert not new.exists() or sha256(new.read_bytes()).digest() == wanted
        assert not new.exists() or digest.exists()
    assert cut >= 5, "a test that never kills in time proves nothing"
    for path in (new, digest):
        path.unlink(missing_ok=True)
    os.waitpid(start(), 0)
    assert sha256(new.read_bytes()).digest() == wanted
    assert not new.with_name(".new.gguf.growing").exists()
