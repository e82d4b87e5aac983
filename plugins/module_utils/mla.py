"""Brings a legacy deepseek2 model into MLA form (latent attention).

A legacy file has one matrix per layer that makes keys and values of all heads from the latent vector c of 512 elements. By rows it is,
head by head, nope (128) of K and value (128) of V:

    attn_kv_b  [heads, nope + value, rank]      k = kv_b[h, :nope] c      v = kv_b[h, nope:] c

An MLA file keeps c itself in the cache. The score q . k = q . (K c) = (K^T q) . c wants K transposed, and V is applied after attention:

    attn_k_b   [heads, rank, nope]              K of each head, transposed
    attn_v_b   [heads, value, rank]             V of each head

V's rows are rows of kv_b, so its bytes stay as they are, whatever the type. K's new rows of 128 elements hold no block of 256, so they
become Q8_0 or F16. (GGUF names dimensions the other way round.) The metadata are those that llama.cpp's convert_hf_to_gguf writes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Any, Sequence

import numpy as np
from ansible_collections.r1.prov.plugins.module_utils import ggml_blocks
from ansible_collections.r1.prov.plugins.module_utils.gguf_header import TYPE_NUMBERS, TYPES, Gguf, Tensor, uint32
from ansible_collections.r1.prov.plugins.module_utils.gguf_stream import Part, copied

Array = Any

ARCHITECTURE = "deepseek2"

_LEGACY = re.compile(r"(blk\.(\d+)\.attn_)kv_b\.weight")
_NEW = re.compile(r"blk\.\d+\.attn_[kv]_b\.weight")
_HEADS_AT_ONCE = 8  # a few megabytes: what a core's cache holds


class FormError(Exception):
    """The model cannot be brought into MLA form; the message says why and what to do next."""


class AlreadyError(FormError):
    """The model is in MLA form already."""


@dataclass(frozen=True)
class Attention:
    """The sizes of a layer's attention. The shapes below are in GGUF's order."""

    heads: int
    nope: int  # elements of a head's key that carry no position
    rope: int  # elements of a head's key that carry the position
    value: int  # elements of a head's value
    rank: int  # elements of the latent vector

    @property
    def kv_b(self) -> tuple[int, int]:
        """The shape of `attn_kv_b`."""
        return self.rank, self.heads * (self.nope + self.value)

    @property
    def k_b(self) -> tuple[int, int, int]:
        """The shape of `attn_k_b`."""
        return self.nope, self.rank, self.heads

    @property
    def v_b(self) -> tuple[int, int, int]:
        """The shape of `attn_v_b`."""
        return self.rank, self.value, self.heads


def converted(shards: Sequence[Gguf], key_type: str) -> tuple[dict[str, bytes], list[Part]]:
    """Metadata and tensors of the model in MLA form, in one file.

    Args:
        shards: all files of the model, in order.
        key_type: the type of `attn_k_b`, `Q8_0` or `F16`, which takes twice the bytes.

    Raises:
        AlreadyError: it has that form.
        FormError: it is another model, not whole, or has neither form.
    """
    first = shards[0]
    _check_whole(shards)
    sizes = _attention(first, [tensor.name for shard in shards for tensor in shard.tensors])
    parts = []
    for shard in shards:
        for tensor in shard.tensors:
            match = _LEGACY.fullmatch(tensor.name)
            parts += _split(shard, tensor, match[1], sizes, key_type) if match else [copied(shard.path, tensor)]
    return _keys(first, sizes), parts


def k_b(raw: bytes, kind: str, sizes: Attention, key_type: str) -> bytes:
    """The data of `attn_k_b` from those of an `attn_kv_b` of type `kind`.

    Raises:
        ValueError: the source holds what the new type cannot. The message continues a sentence that begins with the tensor's name.
    """
    encode = {"Q8_0": ggml_blocks.q8_0, "F16": ggml_blocks.f16}[key_type]
    keys = _by_head(raw, sizes)[:, : sizes.nope]
    return b"".join(
        encode(_checked(_transposed(kind, keys[head : head + _HEADS_AT_ONCE]), key_type)).tobytes()
        for head in range(0, sizes.heads, _HEADS_AT_ONCE)
    )


def _checked(values: Array, key_type: str) -> Array:
    largest = np.abs(values).max()  # NaN, if any value is NaN
    if not np.isfinite(largest):
        raise ValueError("holds values that are no numbers (NaN or infinite)")
    if largest > ggml_blocks.LARGEST[key_type]:
        raise ValueError(f"holds values that are too large for {key_type}")
    return values


def v_b(raw: bytes, sizes: Attention) -> bytes:
    """The data of `attn_v_b` from those of an `attn_kv_b`, of any type whose rows follow one another."""
    data: bytes = _by_head(raw, sizes)[:, sizes.nope :].tobytes()
    return data


def k_b_agrees(kind: str, sizes: Attention, key_type: str, raw: bytes, written: bytes) -> bool:
    """Whether each value of a written `attn_k_b` differs from its source by no more than its type rounds."""
    keys = _by_head(raw, sizes)[:, : sizes.nope]
    made = np.frombuffer(written, np.uint8).reshape(sizes.heads, sizes.rank, -1)
    for head in range(0, sizes.heads, _HEADS_AT_ONCE):
        several = slice(head, head + _HEADS_AT_ONCE)
        exact = _transposed(kind, keys[several]).reshape(-1, 32)
        stored = ggml_blocks.dequantise(key_type, made[several]).reshape(-1, 32)
        if not (np.abs(stored - exact) <= _rounding(exact, key_type)).all():
            return False
    return True


def _rounding(values: Array, key_type: str) -> Array:
    """How far values may be from what they were rounded to, by blocks of 32.

    F16 keeps 11 bits, and nothing below 2^-24. The steps of Q8_0 are 1/127 of the largest value in its block, and a step is stored as F16.
    """
    sizes = np.abs(values)
    if key_type == "F16":
        return sizes * np.float32(2**-11) + np.float32(2**-25)
    largest = sizes.max(axis=1, keepdims=True)
    return largest * np.float32(0.5001 / 127 + 2**-11) + np.float32(127 * 2**-25)


def v_b_agrees(sizes: Attention, raw: bytes, written: bytes) -> bool:
    """Whether a written `attn_v_b` has the rows of its source."""
    row = len(raw) // (sizes.heads * (sizes.nope + sizes.value))
    before, behind = sizes.nope * row, sizes.value * row
    return all(
        written[head * behind : (head + 1) * behind] == raw[start + before : start + before + behind]
        for head, start in enumerate(range(0, len(raw), before + behind))
    )


def _by_head(raw: bytes, sizes: Attention) -> Array:
    """The rows of an `attn_kv_b` as (heads, nope + value, bytes of a row)."""
    return np.frombuffer(raw, np.uint8).reshape(sizes.heads, sizes.nope + sizes.value, -1)


def _transposed(kind: str, keys: Array) -> Array:
    """Rows of K by head, as float32 (heads, rank, nope)."""
    return np.ascontiguousarray(ggml_blocks.dequantise(kind, keys).transpose(0, 2, 1))


def _split(shard: Gguf, tensor: Tensor, prefix: str, sizes: Attention, key_type: str) -> list[Part]:
    """What becomes of one `attn_kv_b`."""
    kind = tensor.type_name
    if kind not in ggml_blocks.READABLE:
        raise FormError(
            f"{tensor.name} in {shard.path.name} has the type {kind}, whose rows cannot be taken apart here. "
            f"Take a file that has it in one of {', '.join(sorted(ggml_blocks.READABLE))}"
        )
    if tensor.shape != sizes.kv_b:
        shapes = (" x ".join(map(str, shape)) for shape in (tensor.shape, sizes.kv_b))
        raise FormError(
            "{} in {} is {}, and by the metadata it is {}. Fetch it anew".format(tensor.name, shard.path.name, *shapes)
        )
    make_k, make_v = partial(k_b, kind=kind, sizes=sizes, key_type=key_type), partial(v_b, sizes=sizes)
    agrees_k, agrees_v = partial(k_b_agrees, kind, sizes, key_type), partial(v_b_agrees, sizes)
    number = TYPE_NUMBERS[key_type]
    return [
        Part(f"{prefix}k_b.weight", sizes.k_b, number, shard.path, tensor, make_k, agrees_k),
        Part(f"{prefix}v_b.weight", sizes.v_b, tensor.type, shard.path, tensor, make_v, agrees_v),
    ]


def _check_whole(shards: Sequence[Gguf]) -> None:
    first = shards[0]
    counts: dict[str, tuple[int | None, int]] = {"shards": (first.number("split.count") or 1, len(shards))}
    counts["tensors"] = (first.number("split.tensors.count"), sum(len(shard.tensors) for shard in shards))
    for what, (stated, here) in counts.items():
        if stated not in (None, here):
            raise FormError(
                f"it belongs to a set of {stated} {what}, and {here} are here. Fetch those that are missing"
            )


def _attention(first: Gguf, names: Sequence[str]) -> Attention:
    """The sizes that a legacy model states.

    Raises:
        FormError: it is no legacy model.
    """
    architecture = first.text("general.architecture")
    if architecture != ARCHITECTURE:
        raise FormError(f"it is a model of `{architecture}`, and only `{ARCHITECTURE}` has a form to change")
    legacy, new = any(map(_LEGACY.fullmatch, names)), any(map(_NEW.fullmatch, names))
    if legacy and new:
        raise FormError(
            f"it has its attention in both forms ({len(names)} tensors: attn_kv_b, attn_k_b and attn_v_b), which llama.cpp "
            "does not read. Take the file as it was published, in one form"
        )
    if new:
        raise AlreadyError("it has its attention in MLA form already: nothing to do")
    if not legacy:
        raise FormError("it has no attn_kv_b. Take a file that llama.cpp's converter wrote")
    layers = {int(match[2]) for match in map(_LEGACY.fullmatch, names) if match}
    lacking = set(range(first.number(f"{ARCHITECTURE}.block_count") or 0)) - layers
    if lacking:
        raise FormError(f"it has no attn_kv_b in layer {min(lacking)}. Fetch it anew")

    def number(key: str) -> int:
        value = first.number(f"{ARCHITECTURE}.{key}")
        if value is None:
            raise FormError(f"it lacks `{ARCHITECTURE}.{key}`. Take a file that llama.cpp's converter wrote")
        return value

    rope = number("rope.dimension_count")
    nope = number("attention.key_length") - rope
    if nope <= 0 or nope % TYPES[TYPE_NUMBERS["Q8_0"]][1]:
        raise FormError(f"it has keys of {nope} elements without position, of which no row of Q8_0 can be made")
    return Attention(
        heads=number("attention.head_count"),
        nope=nope,
        rope=rope,
        value=number("attention.value_length"),
        rank=number("attention.kv_lora_rank"),
    )


def _keys(first: Gguf, sizes: Attention) -> dict[str, bytes]:
    """The metadata of the new file. Changed keys keep their place, two new keys come last, and those that count shards are left out."""
    new = {
        "head_count_kv": 1,
        "key_length": sizes.rank + sizes.rope,
        "value_length": sizes.rank,
        "key_length_mla": sizes.nope + sizes.rope,
        "value_length_mla": sizes.value,
    }
    kept = {key: value for key, value in first.keys.items() if not key.startswith("split.")}
    return kept | {f"{ARCHITECTURE}.attention.{key}": uint32(value) for key, value in new.items()}
