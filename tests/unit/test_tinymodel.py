from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import gguf
import pytest

from tests.fixtures import tinymodel


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


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_saved_values_are_the_file_s(tmp_path: Path, kind: str) -> None:
    sizes = tinymodel.Sizes(layers=2, width=64, heads=2, q_rank=32, dense_ff=96, expert_ff=32, experts=4)
    values = tinymodel.random_values(sizes, 3, mla=False)
    kinds = dict.fromkeys(values, gguf.GGMLQuantizationType[kind])
    reader = gguf.GGUFReader(tinymodel.save(tmp_path / "saved.gguf", sizes, values, kinds))
    keys = {name.removeprefix("deepseek2."): field.contents() for name, field in reader.fields.items()}
    assert (keys["block_count"], keys["embedding_length"], keys["expert_count"]) == (2, 64, 4)
    assert (keys["attention.head_count_kv"], keys["attention.key_length"], keys["attention.value_length"]) == (
        2,
        192,
        128,
    )
    assert not {"attention.key_length_mla", "attention.value_length_mla"} & keys.keys()
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert {name: of_it.shape for name, of_it in values.items()} == {
        name: tuple(int(size) for size in reversed(tensor.shape)) for name, tensor in found.items()
    }
    assert found["blk.1.attn_kv_b.weight"].tensor_type.name == kind
    assert found["blk.1.ffn_gate_inp.weight"].tensor_type.name == "F32"
    if kind == "F32":
        assert all((tensor.data == values[name]).all() for name, tensor in found.items())


def test_a_text_s_tokens_are_its_bytes_but_for_the_merges() -> None:
    words = tinymodel.vocabulary()
    assert [words[token] for token in tinymodel.tokens("the other  thé\n")] == [
        *("t", "he", "Ġ", "o", "t", "he", "r"),
        *("Ġ", "Ġt", "h", "Ã", "©", "Ċ"),
    ]
    assert "".join(words[token] for token in tinymodel.tokens(" in the")) == "ĠinĠthe"
    assert len(tinymodel.tokens(" in the")) == 3


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
