"""Sentence encoders such as all-MiniLM-L6-v2 as a GGUF file: BERT models with a WordPiece vocabulary. The same model gives the same bytes.

llama.cpp's own converter wants torch. This one copies numbers and needs the standard library only.
"""

from __future__ import annotations

import json
import re
import struct
from typing import TYPE_CHECKING, Any

from ansible_collections.r1.prov.plugins.module_utils.gguf_header import TYPE_NUMBERS, alignment, head, padded

if TYPE_CHECKING:
    from collections.abc import Iterator

_INT32, _TEXT, _ARRAY = 5, 8, 9  # types of values in a GGUF file
_F32, _F16 = TYPE_NUMBERS["F32"], TYPE_NUMBERS["F16"]
_NORMAL, _CONTROL = 1, 3
_MEAN, _CLS = 1, 2
_BLOCK_VALUES = 1 << 16

# The names that transformers writes, with those that llama.cpp reads. A tensor that is not here, such as the pooler, is not used.
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
# llama.cpp wants 32-bit numbers in these, and in every tensor of one dimension.
_WHOLE = ("position_embd", "token_types", "norm")


class ModelError(Exception):
    """The files are not a model that can be converted. The message says why."""


def gguf(
    name: str, config: dict[str, Any], pooling: dict[str, Any], tokenizer: dict[str, Any], tensors: bytes
) -> bytes:
    """The bytes of the GGUF file, from the name of a model and its four files: config, pooling, tokenizer and safetensors.

    Raises:
        ModelError: it is another kind of model.
    """
    if config.get("model_type") != "bert" or tokenizer["model"].get("type", "WordPiece") != "WordPiece":
        raise ModelError("it is no BERT model with a WordPiece vocabulary")
    keys = {key: _value(value) for key, value in _described(name, config, pooling, tokenizer).items()}
    listed, data = [], []
    for tensor, shape, whole, raw in sorted(_named(tensors)):
        content = raw if whole else _halved(raw)
        listed.append((tensor, tuple(reversed(shape)), _F32 if whole else _F16))
        data.append(content.ljust(padded(len(content), alignment(keys)), b"\0"))
    return head(keys, listed) + b"".join(data)


def _described(name: str, config: dict[str, Any], pooling: dict[str, Any], tokenizer: dict[str, Any]) -> dict[str, Any]:
    """Everything that the file says about the model, by key."""
    ids = tokenizer["model"]["vocab"]
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"] if token["special"]}
    words = sorted(ids, key=ids.__getitem__)
    if list(map(ids.__getitem__, words)) != list(range(config["vocab_size"])):
        raise ModelError("its vocabulary has gaps")
    return {
        "general.architecture": "bert",
        "general.name": name,
        "general.alignment": 32,
        "general.file_type": 1,  # mostly F16
        "bert.block_count": config["num_hidden_layers"],
        "bert.context_length": config["max_position_embeddings"],
        "bert.embedding_length": config["hidden_size"],
        "bert.feed_forward_length": config["intermediate_size"],
        "bert.attention.head_count": config["num_attention_heads"],
        "bert.attention.layer_norm_epsilon": float(config["layer_norm_eps"]),
        "bert.attention.causal": False,
        "bert.pooling_type": _CLS if pooling.get("pooling_mode_cls_token") else _MEAN,
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.token_type_count": config["type_vocab_size"],
        "tokenizer.ggml.tokens": [_word(word) for word in words],
        "tokenizer.ggml.token_type": [_CONTROL if word in special else _NORMAL for word in words],
        "tokenizer.ggml.unknown_token_id": special["[UNK]"],
        "tokenizer.ggml.seperator_token_id": special["[SEP]"],
        "tokenizer.ggml.padding_token_id": special["[PAD]"],
        "tokenizer.ggml.cls_token_id": special["[CLS]"],
        "tokenizer.ggml.mask_token_id": special["[MASK]"],
    }


def _word(word: str) -> str:
    """A word of the vocabulary as llama.cpp looks for it: it marks the beginnings of words, and a tokenizer file their continuations."""
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


def _value(value: Any) -> bytes:
    """A value with its type, as a head holds it."""
    if isinstance(value, list):
        kind, items = (
            (_TEXT, map(_text, value))
            if isinstance(value[0], str)
            else (_INT32, (struct.pack("<i", one) for one in value))
        )
        return struct.pack("<IIQ", _ARRAY, kind, len(value)) + b"".join(items)
    if isinstance(value, str):
        return struct.pack("<I", _TEXT) + _text(value)
    kind, form = {bool: (7, "?"), int: (4, "I"), float: (6, "f")}[type(value)]
    return struct.pack(f"<I{form}", kind, value)


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded
