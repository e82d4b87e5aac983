from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import gguf
import pytest

from r1prov.machines.profile import load_profile
from r1prov.models.catalogue import Quant
from tests.fixtures import shards, tinymodel


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymodel.write(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def test_shards_hold_what_the_whole_file_held(tiny: Path, tmp_path: Path) -> None:
    made = shards.split(tiny, tmp_path / "t", 60)
    assert [path.name for path in made] == [f"t-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
    whole, parts = gguf.GGUFReader(tiny), [gguf.GGUFReader(path) for path in made]
    tensors = [tensor for part in parts for tensor in part.tensors]
    assert [len(part.tensors) for part in parts][:2] == [60, 60]
    assert [tensor.name for tensor in tensors] == [tensor.name for tensor in whole.tensors]
    for ours, theirs in zip(tensors, whole.tensors, strict=True):
        assert ours.data.tobytes() == theirs.data.tobytes()
    for number, part in enumerate(parts):
        keys = {name: part.fields[name].contents() for name in part.fields if name.startswith("split.")}
        assert keys == {"split.no": number, "split.count": 3, "split.tensors.count": len(tensors)}
    assert parts[0].fields["general.architecture"].contents() == "deepseek2"


def test_a_shard_is_not_split_again(tiny: Path, tmp_path: Path) -> None:
    first = shards.split(tiny, tmp_path / "t", 60)[0]
    with pytest.raises(ValueError, match="is a shard already"):
        shards.split(first, tmp_path / "u", 10)


def test_the_demo_s_shards_in_the_cache_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = shards.split(tinymodel.write(tmp_path / "tiny.gguf"), tmp_path / "hub" / "me" / "tiny" / "T" / "T", 60)
    files = [{"name": p.name, "bytes": p.stat().st_size, "sha256": sha256(p.read_bytes()).hexdigest()} for p in made]
    profile = load_profile("demo")
    model = Quant.model_validate({"name": "T", "repo": "me/tiny", "folder": "T", "files": files})
    monkeypatch.setattr(shards, "load_profile", lambda _: profile.model_copy(update={"model": model}))
    monkeypatch.setattr(shards, "_wheel", None)  # a download would fail the test
    assert shards.demo_shards(tmp_path / "hub") is model
