"""What a model's published files become when they are made one file: its tensors and its metadata, in MLA form where that is wanted.

A legacy deepseek2 file has one matrix per layer that makes keys and values of all heads from the latent vector c of 512 elements. By
rows it is, head by head, nope (128) of K and value (128) of V:

    attn_kv_b  [heads, nope + value, rank]      k = kv_b[h, :nope] c      v = kv_b[h, nope:] c

An MLA file keeps c itself in the cache. The score q . k = q . (K c) = (K^T q) . c wants K transposed, and V is applied after attention:

    attn_k_b   [heads, rank, nope]              K of each head, transposed
    attn_v_b   [heads, value, rank]             V of each head

V's rows are rows of kv_b, so its bytes stay as they are, whatever the type. K's new rows of 128 elements hold no block of 256, so they
become Q8_0 or F16. (GGUF names dimensions the other way round.) The metadata are those that llama.cpp's convert_hf_to_gguf writes.

It takes the standard library only, so the new file is known before a byte of it is there. `mla.py` makes the data, with numpy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Sequence

from ansible_collections.r1.prov.plugins.module_utils.gguf_header import (
    TYPE_NUMBERS,
    TYPES,
    Gguf,
    Tensor,
    uint32,
)
from ansible_collections.r1.prov.plugins.module_utils.gguf_layout import Part, copied
from ansible_collections.r1.prov.plugins.module_utils.gguf_whole import check_set

MLA, LEGACY = "mla", "legacy"
"""The forms of a file: with latent attention (MLA), or with the attention with which it was published."""
ARCHITECTURE = "deepseek2"
KEY_TYPE = "Q8_0"
"""The type of `attn_k_b` in the file that serves."""
READABLE = frozenset(
    "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS".split()  # noqa: SIM905 - a line
)
"""The types of an `attn_kv_b` that can be taken apart. `ggml_blocks.py` reads them."""

_LEGACY = re.compile(r"(blk\.(\d+)\.attn_)kv_b\.weight")
_NEW = re.compile(r"blk\.\d+\.attn_[kv]_b\.weight")


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


@dataclass(frozen=True)
class Form:
    """One file that is to be made of a model's files.

    Attributes:
        keys: its metadata, as `Gguf.keys`.
        parts: its tensors, in the order of the files that they come from.
        attention: MLA or LEGACY.
        sizes: those of its attention; None where nothing is converted.
        key_type: the type of `attn_k_b`.
    """

    keys: dict[str, bytes]
    parts: list[Part]
    attention: str
    sizes: Attention | None = None
    key_type: str = KEY_TYPE


def wanted(shards: Sequence[Gguf], attention: str) -> Form:
    """The one file that serves: in MLA form where that is wanted and the model has the other one, else merged as published.

    Raises:
        GgufError: the files are no whole model.
        FormError: it cannot be brought into MLA form.
    """
    check_set(shards)
    first = shards[0]
    if attention == MLA and first.text("general.architecture") == ARCHITECTURE:  # the one with a legacy form
        try:
            return converted(shards)
        except AlreadyError:
            pass
    return Form(
        _of_one_file(first), [copied(shard.path, tensor) for shard in shards for tensor in shard.tensors], LEGACY
    )


def refusal(name: str, why: object) -> str:
    """What to say of a model that cannot be brought into MLA form. `name` is that of its file."""
    return f"{name} cannot be brought into MLA form: {why}. With `attention: legacy` it is served as it is"


def converted(shards: Sequence[Gguf], key_type: str = KEY_TYPE) -> Form:
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
    return Form(_keys(first, sizes), parts, MLA, sizes, key_type)


def _split(shard: Gguf, tensor: Tensor, prefix: str, sizes: Attention, key_type: str) -> list[Part]:
    """What becomes of one `attn_kv_b`."""
    kind = tensor.type_name
    if kind not in READABLE:
        raise FormError(
            f"{tensor.name} in {shard.path.name} has the type {kind}, whose rows cannot be taken apart here. "
            f"Take a file that has it in one of {', '.join(sorted(READABLE))}"
        )
    if tensor.shape != sizes.kv_b:
        shapes = (" x ".join(map(str, shape)) for shape in (tensor.shape, sizes.kv_b))
        raise FormError(
            "{} in {} is {}, and by the metadata it is {}. Fetch it anew".format(tensor.name, shard.path.name, *shapes)
        )
    number = TYPE_NUMBERS[key_type]
    return [
        Part(f"{prefix}k_b.weight", sizes.k_b, number, shard.path, tensor),
        Part(f"{prefix}v_b.weight", sizes.v_b, tensor.type, shard.path, tensor),
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
    """The metadata of the new file. Changed keys keep their place, and two new keys come last."""
    new = {
        "head_count_kv": 1,
        "key_length": sizes.rank + sizes.rope,
        "value_length": sizes.rank,
        "key_length_mla": sizes.nope + sizes.rope,
        "value_length_mla": sizes.value,
    }
    return _of_one_file(first) | {f"{ARCHITECTURE}.attention.{key}": uint32(value) for key, value in new.items()}


def _of_one_file(first: Gguf) -> dict[str, bytes]:
    """The metadata of the first file of a set, without those that say so."""
    return {key: value for key, value in first.keys.items() if not key.startswith("split.")}
