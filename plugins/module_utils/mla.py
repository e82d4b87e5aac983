"""Makes the data of a deepseek2 model in MLA form from those of a legacy one. `mla_form.py` says what becomes of what, and why."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from ansible_collections.r1.prov.plugins.module_utils import ggml_blocks

if TYPE_CHECKING:
    from ansible_collections.r1.prov.plugins.module_utils.gguf_layout import Part
    from ansible_collections.r1.prov.plugins.module_utils.mla_form import Attention, Form

Array = Any

_HEADS_AT_ONCE = 8  # a few megabytes: what a core's cache holds


def able(form: Form) -> list[Part]:
    """The tensors of a file, each with what makes and checks its data."""
    return [part if part.is_copy else _able(part, form) for part in form.parts]


def _able(part: Part, form: Form) -> Part:
    sizes, kind = form.sizes, part.source.type_name
    assert sizes  # noqa: S101 - for the types: only what has sizes is converted
    if part.name.endswith("k_b.weight"):
        make = partial(k_b, kind=kind, sizes=sizes, key_type=form.key_type)
        return replace(part, make=make, agrees=partial(k_b_agrees, kind, sizes, form.key_type))
    return replace(part, make=partial(v_b, sizes=sizes), agrees=partial(v_b_agrees, sizes))


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
