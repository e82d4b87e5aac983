"""Describes the MLA form of a deepseek2 model with legacy attention, as `plugins/module_utils/mla.py` converts its files.

A legacy file has one matrix per layer, `attn_kv_b`, that computes the keys and values of all heads, and the cache holds them by head.
MLA form has two matrices instead: `attn_k_b` (transposed, Q8_0) and `attn_v_b` (the same bytes). Its cache holds the latent vector, from
which both matrices compute keys and values.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from r1prov.models.model import Model, Tensor, block

if TYPE_CHECKING:
    from collections.abc import Iterator

Attention = Literal["mla", "legacy"]
"""What is served: MLA form wherever a model can have it, or the files as they were published."""

SPLIT_TYPES = frozenset(
    (
        "F32",
        "F16",
        "BF16",
        "Q8_0",
        "Q4_0",
        "Q4_1",
        "Q5_0",
        "Q5_1",
        "Q2_K",
        "Q3_K",
        "Q4_K",
        "Q5_K",
        "Q6_K",
        "IQ4_NL",
        "IQ4_XS",
    )
)
"""The types of `attn_kv_b` that can be converted, which are those that `plugins/module_utils/ggml_blocks.py` reads."""

_LEGACY = ".attn_kv_b.weight"


def is_legacy(model: Model) -> bool:
    """Whether the model has legacy attention and can be brought into MLA form."""
    split = [tensor for tensor in model.tensors if _is_split(tensor)]
    return (
        model.architecture == "deepseek2"
        and not model.mla
        and bool(split)
        and all(tensor.type in SPLIT_TYPES for tensor in split)
        and (model.key_length - model.rope_length) % block("Q8_0")[0] == 0
    )


def served(model: Model, attention: Attention) -> Model:
    """The model in the form in which it is served."""
    return in_mla_form(model) if attention == "mla" and is_legacy(model) else model


def in_mla_form(model: Model) -> Model:
    """A legacy model in MLA form.

    Raises:
        ValueError: its `attn_kv_b` is not what its metadata say.
    """
    rank = next(filter(_is_split, model.tensors)).shape[0]
    return replace(
        model,
        kv_heads=1,
        key_length=rank + model.rope_length,
        value_length=rank,
        mla=True,
        tensors=tuple(part for tensor in model.tensors for part in _parts(tensor, model)),
    )


def _is_split(tensor: Tensor) -> bool:
    return tensor.name.endswith(_LEGACY)


def _parts(tensor: Tensor, model: Model) -> Iterator[Tensor]:
    if not _is_split(tensor):
        yield tensor
        return
    rank, rows = tensor.shape
    nope, value = model.key_length - model.rope_length, model.value_length
    if rows != model.heads * (nope + value):
        raise ValueError(f"{tensor.name} has {rows} rows, and by the metadata {model.heads * (nope + value)}")
    prefix = tensor.name.removesuffix("kv_b.weight")
    yield Tensor(f"{prefix}k_b.weight", (nope, rank, model.heads), "Q8_0")
    yield Tensor(f"{prefix}v_b.weight", (rank, value, model.heads), tensor.type)
