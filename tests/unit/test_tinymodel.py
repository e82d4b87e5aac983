from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import gguf
import pytest

from r1prov.lab import tinymodel


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymodel.write(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def test_it_is_always_the_same_file_and_a_small_one(model: Path, tmp_path: Path) -> None:
    assert sha256(tinymodel.write(tmp_path / "again.gguf").read_bytes()).digest() == sha256(model.read_bytes()).digest()
    assert (
        sha256(tinymodel.write(tmp_path / "other.gguf", seed=2).read_bytes()).digest()
        != sha256(model.read_bytes()).digest()
    )
    assert model.stat().st_size < 13_000_000


def test_it_has_r1_s_architecture(model: Path) -> None:
    reader = gguf.GGUFReader(model)
    keys = {name.removeprefix("deepseek2."): field.contents() for name, field in reader.fields.items()}
    assert keys["general.architecture"] == "deepseek2"
    assert keys["attention.key_length"] == 576
    assert keys["attention.value_length"] == 512
    assert keys["attention.head_count_kv"] == 1
    assert keys["expert_gating_func"] == 2
    assert keys["tokenizer.ggml.pre"] == "deepseek-v3"
    names = {tensor.name for tensor in reader.tensors}
    assert {"blk.0.ffn_gate.weight", "blk.1.ffn_gate_exps.weight", "blk.7.attn_k_b.weight"} <= names
    assert "blk.0.ffn_gate_exps.weight" not in names
