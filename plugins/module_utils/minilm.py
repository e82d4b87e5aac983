"""all-MiniLM-L6-v2 and its like as a GGUF file: BERT encoders with a WordPiece vocabulary. Bytes in, bytes out; the same for the same.

llama.cpp's own converter wants torch. This one copies numbers and needs nothing.
"""

from __future__ import annotations

import json
import re
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_ALIGNMENT = 32
_VERSION = 3
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_F32, _F16 = 0, 1
_NORMAL, _CONTROL = 1, 3
_MEAN, _CLS = 1, 2
_BLOCK_VALUES = 1 << 16

# Names as transformers writes them -> as llama.cpp reads them. What is not here, such as the pooler, is not used.
_OUTSIDE = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}
_IN_LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
# llama.cpp wants these, and everything of one dimension, whole.
_WHOLE = ("position_embd", "token_types", "norm")


class ModelError(Exception):
    """The files are not a model that can be converted; the message says why."""


def gguf(
    name: str, config: dict[str, Any], pooling: dict[str, Any], tokenizer: dict[str, Any], tensors: bytes
) -> bytes:
    """The file.

    Args:
        name: the model's name.
        config: its `config.json`.
        pooling: its `1_Pooling/config.json`.
        tokenizer: its `tokenizer.json`.
        tensors: its `model.safetensors`.

    Raises:
        ModelError: it is another kind of model.
    """
    if config.get("model_type") != "bert" or tokenizer["model"].get("type", "WordPiece") != "WordPiece":
        raise ModelError("it is no BERT model with a WordPiece vocabulary")
    described = [_pair(*entry) for entry in _described(name, config, pooling, tokenizer)]
    placed, data, offset = [], [], 0
    for tensor, shape, whole, raw in sorted(_named(tensors)):
        kind, content = (_F32, raw) if whole else (_F16, _halved(raw))
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        placed.append(_string(tensor) + dimensions + struct.pack("<IQ", kind, offset))
        data.append(content + bytes(-len(content) % _ALIGNMENT))
        offset += len(data[-1])
    head = b"GGUF" + struct.pack("<IQQ", _VERSION, len(placed), len(described)) + b"".join(described + placed)
    return head + bytes(-len(head) % _ALIGNMENT) + b"".join(data)


def _described(
    name: str, config: dict[str, Any], pooling: dict[str, Any], tokenizer: dict[str, Any]
) -> Iterator[tuple[str, int, Any]]:
    """Key, type and value of everything that the file says about the model."""
    yield "general.architecture", _STRING, "bert"
    yield "general.name", _STRING, name
    yield "general.alignment", _UINT32, _ALIGNMENT
    yield "general.file_type", _UINT32, _F16
    yield "bert.block_count", _UINT32, config["num_hidden_layers"]
    yield "bert.context_length", _UINT32, config["max_position_embeddings"]
    yield "bert.embedding_length", _UINT32, config["hidden_size"]
    yield "bert.feed_forward_length", _UINT32, config["intermediate_size"]
    yield "bert.attention.head_count", _UINT32, config["num_attention_heads"]
    yield "bert.attention.layer_norm_epsilon", _FLOAT32, config["layer_norm_eps"]
    yield "bert.attention.causal", _BOOL, False
    yield "bert.pooling_type", _UINT32, _CLS if pooling.get("pooling_mode_cls_token") else _MEAN
    ids = tokenizer["model"]["vocab"]
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"] if token["special"]}
    words = sorted(ids, key=ids.__getitem__)
    if list(map(ids.__getitem__, words)) != list(range(config["vocab_size"])):
        raise ModelError("its vocabulary has gaps")
    yield "tokenizer.ggml.model", _STRING, "bert"
    yield "tokenizer.ggml.pre", _STRING, "default"
    yield "tokenizer.ggml.token_type_count", _UINT32, config["type_vocab_size"]
    yield "tokenizer.ggml.tokens", _ARRAY, (_STRING, [_word(word) for word in words])
    kinds = [_CONTROL if word in special else _NORMAL for word in words]
    yield "tokenizer.ggml.token_type", _ARRAY, (_INT32, kinds)
    for token, key in (
        ("[UNK]", "unknown"),
        ("[SEP]", "seperator"),
        ("[PAD]", "padding"),
        ("[CLS]", "cls"),
        ("[MASK]", "mask"),
    ):
        yield f"tokenizer.ggml.{key}_token_id", _UINT32, special[token]


def _word(word: str) -> str:
    """A word of the vocabulary as llama.cpp looks for it: the beginning of a word is marked, not its continuation."""
    if word.startswith("[") and word.endswith("]"):
        return word
    return word[2:] if word.startswith("##") else f"\u2581{word}"


def _named(tensors: bytes) -> Iterator[tuple[str, list[int], bool, bytes]]:
    """Name, shape, whether it stays whole, and bytes of each tensor that is used."""
    start = 8 + struct.unpack_from("<Q", tensors)[0]
    for key, tensor in json.loads(tensors[8:start]).items():
        place, _, part = key.rpartition(".")
        layer = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", place)
        renamed = _OUTSIDE.get(place)
        if layer and layer[2] in _IN_LAYER:
            renamed = f"blk.{layer[1]}.{_IN_LAYER[layer[2]]}"
        if renamed is None or part not in ("weight", "bias"):
            continue
        if tensor["dtype"] != "F32":
            raise ModelError(f"its tensor {key} is {tensor['dtype']}, not F32")
        begin, end = tensor["data_offsets"]
        whole = len(tensor["shape"]) == 1 or renamed.endswith(_WHOLE)
        yield f"{renamed}.{part}", tensor["shape"], whole, tensors[start + begin : start + end]


def _halved(raw: bytes) -> bytes:
    """32-bit numbers as 16-bit ones."""
    step = 4 * _BLOCK_VALUES
    blocks = (raw[at : at + step] for at in range(0, len(raw), step))
    return b"".join(struct.pack(f"<{len(b) // 4}e", *struct.unpack(f"<{len(b) // 4}f", b)) for b in blocks)


def _pair(key: str, kind: int, value: Any) -> bytes:
    return _string(key) + struct.pack("<I", kind) + _value(kind, value)


def _value(kind: int, value: Any) -> bytes:
    if kind == _STRING:
        return _string(value)
    if kind == _ARRAY:
        inner, values = value
        return struct.pack("<IQ", inner, len(values)) + b"".join(_value(inner, one) for one in values)
    return struct.pack({_UINT32: "<I", _INT32: "<i", _FLOAT32: "<f", _BOOL: "<?"}[kind], value)


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded
