"""Whether files together are one whole model: each tensor once, none lacking, each in the shape that the metadata give it.

It takes the standard library only, and runs here and on hosts. The engine makes the same demands when it loads a model.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Protocol

from ansible_collections.r1.prov.plugins.module_utils.gguf_header import GgufError, value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ansible_collections.r1.prov.plugins.module_utils.gguf_header import Gguf

    Number = Callable[[str], int | None]

_KNOWN = frozenset({"deepseek2", "llama", "qwen2", "qwen3", "qwen3moe"})
"""The architectures whose shapes are known, and whose layers all have the same tensors, apart from layers with and without experts."""
_OF_LAYER = re.compile(r"blk\.(0|[1-9][0-9]*)\.(.+)")
_MOST_LAYERS = 1024


class Named(Protocol):
    """A tensor, as far as it is looked at here."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, in the order of GGUF."""


def check_whole(
    files: Sequence[tuple[str, Sequence[Named]]], architecture: str, number: Number, tokens: int | None
) -> None:
    """Checks that files together hold each tensor of a model once, and in its shape.

    Args:
        files: the name of each file, and its tensors.
        architecture: as the metadata say it.
        number: gives a whole number of the metadata by its key without the architecture; None where there is none.
        tokens: how many tokens the metadata list; None where they list none.

    Raises:
        GgufError: a tensor stands there twice, is lacking as far as its likes in other layers tell, or is of another model; the message
            names it and the files.
    """
    places: dict[str, list[str]] = {}
    for file, tensors in files:
        for tensor in tensors:
            places.setdefault(tensor.name, []).append(file)
    blocks = number("block_count")
    lacking: list[str] = []
    strange: list[str] = []
    if architecture in _KNOWN:
        idle = number("nextn_predict_layers") or 0
        lacking, strange = _unlike(places, max(min(blocks or 0, _MOST_LAYERS) - idle, 0))
    found = [f"none of its files has {_several(lacking)}"] if lacking else []
    found += [f"no other layer has the like of {_several(strange)}"] if strange else []
    beyond = [name for name in places if blocks is not None and (_layer(name) or 0) >= max(blocks, 1)]
    found += [f"its metadata speak of {blocks} layers, and there is {_several(beyond)}"] if beyond else []
    twice = next((name for name, its in places.items() if len(its) > 1), None)
    if twice:
        first, second, *_ = places[twice]
        where = f"twice in {first}" if first == second else f"in {first} and again in {second}"
        raise GgufError(", and ".join([f"its tensor `{twice}` stands {where}", *found]))
    if found:
        raise GgufError(f"it is not the whole model: {', and '.join(found)}")
    if architecture in _KNOWN:
        _check_shapes(files, _shapes(architecture, number, tokens))


def check_set(files: Sequence[Gguf]) -> None:
    """Does the same as `check_whole` for the heads of files.

    Raises:
        GgufError: as `check_whole`.
    """
    first = files[0]
    architecture = first.text("general.architecture")
    tokens = value(first.keys.get("tokenizer.ggml.tokens"))
    check_whole(
        [(file.path.name, file.tensors) for file in files],
        architecture,
        lambda key: first.number(f"{architecture}.{key}"),
        len(tokens) if isinstance(tokens, (list, range)) else None,
    )


def _several(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"`{name}`" for name in names[:3]) + more


def _layer(name: str) -> int | None:
    match = _OF_LAYER.fullmatch(name)
    return int(match[1][:9]) if match else None


def _unlike(names: Iterable[str], layers: int) -> tuple[list[str], list[str]]:
    """Weights that a layer lacks and most layers of its kind have, and weights that a layer has and most lack.

    Layers with experts are one kind, and the others are another. Scales are left out: some quants have them in some layers only.
    """
    kinds: list[set[str]] = [set() for _ in range(layers)]
    for name in names:
        match = _OF_LAYER.fullmatch(name)
        if match and name.endswith(".weight") and int(match[1][:9]) < layers:
            kinds[int(match[1])].add(match[2])
    lacking = [name for name in ("token_embd.weight", "output_norm.weight") if name not in names]
    lacking += [f"blk.{n}" for n, of in enumerate(kinds) if not of]
    strange: list[str] = []
    for of_experts in (False, True):
        alike = {n: of for n, of in enumerate(kinds) if of and _has_experts(of) == of_experts}
        for kind, times in Counter(kind for of in alike.values() for kind in of).items():
            usual = 2 * times > len(alike)
            unlike = [f"blk.{n}.{kind}" for n, of in alike.items() if (kind in of) != usual]
            if 2 * times != len(alike):
                (lacking if usual else strange).extend(unlike)
    return lacking, strange


def _has_experts(kinds: Iterable[str]) -> bool:
    return any("_exps." in kind or "_gate_inp." in kind for kind in kinds)


def _check_shapes(files: Sequence[tuple[str, Sequence[Named]]], shapes: dict[str, tuple[int | None, ...]]) -> None:
    """Checks that each tensor has the shape of its kind, as the engine does (check_tensor_dims).

    Raises:
        GgufError: one has another; the message names it and its file.
    """
    wrong = []
    for file, tensors in files:
        for tensor in tensors:
            match = _OF_LAYER.fullmatch(tensor.name)
            wanted = shapes.get(match[2] if match else tensor.name)
            if wanted and not _is(tensor.shape, wanted):
                stated = " x ".join("any" if side is None else str(side) for side in wanted)
                shape = " x ".join(map(str, tensor.shape))
                wrong.append(f"its tensor `{tensor.name}` in {file} is {shape}, and by the metadata it is {stated}")
    if wrong:
        more = f"; so it is with {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise GgufError(wrong[0] + more)


def _is(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    """Whether a shape is the wanted one, of which a side that is not known (None) may be any. Sides of 1 at the end do not count."""
    longer = max(len(shape), len(wanted))
    both = zip((*shape, *(1,) * (longer - len(shape))), (*wanted, *(1,) * (longer - len(wanted))), strict=True)
    return all(side == its or its is None for side, its in both)


def _shapes(architecture: str, number: Number, tokens: int | None) -> dict[str, tuple[int | None, ...]]:
    """The shape of each kind of tensor by the metadata (src/models/*.cpp). A side that the metadata do not tell is None."""
    width, heads, inner = (number(key) for key in ("embedding_length", "attention.head_count", "feed_forward_length"))
    head = width // heads if width and heads else None
    key, of_value = (_first(number(f"attention.{which}_length"), head) for which in ("key", "value"))
    experts, of_expert = number("expert_count"), number("expert_feed_forward_length")
    if architecture == "llama":
        of_expert = inner
    elif architecture == "qwen3moe" and not of_expert:
        used = number("expert_used_count")
        of_expert = inner // used if inner and used else None
    shapes: dict[str, tuple[int | None, ...]] = {
        **dict.fromkeys(("token_embd.weight", "output.weight"), (width, tokens)),
        **dict.fromkeys(("output_norm.weight", "attn_norm.weight", "ffn_norm.weight"), (width,)),
        **dict.fromkeys(("ffn_gate.weight", "ffn_up.weight"), (width, inner)),
        "ffn_down.weight": (inner, width),
        "ffn_gate_inp.weight": (width, experts),
        **dict.fromkeys(("ffn_gate_exps.weight", "ffn_up_exps.weight"), (width, of_expert, experts)),
        "ffn_gate_up_exps.weight": (width, _times(2, of_expert), experts),
        "ffn_down_exps.weight": (of_expert, width, experts),
    }
    if architecture != "deepseek2":
        of_kv = _first(number("attention.head_count_kv"), heads)
        shapes |= {
            "attn_q.weight": (width, _times(heads, key)),
            "attn_k.weight": (width, _times(of_kv, key)),
            "attn_v.weight": (width, _times(of_kv, of_value)),
            "attn_output.weight": (_times(heads, key), width),
            **dict.fromkeys(("attn_q_norm.weight", "attn_k_norm.weight"), (key,)),
        }
        turned = _first(number("rope.dimension_count"), key)
        shapes["rope_freqs.weight"] = (turned // 2 if turned is not None else None,)
        biased = [kind for kind in shapes if kind.startswith("attn_") and len(shapes[kind]) == 2]
        return shapes | {kind.replace(".weight", ".bias"): (shapes[kind][1],) for kind in biased}
    key, of_value = (
        _first(number("attention.key_length_mla"), key),
        _first(number("attention.value_length_mla"), of_value),
    )
    rope, rank, of_query = (
        number(key) for key in ("rope.dimension_count", "attention.kv_lora_rank", "attention.q_lora_rank")
    )
    nope = key - rope if key is not None and rope is not None else None
    of_pair = nope + of_value if nope is not None and of_value is not None else None
    of_shared = _times(of_expert, number("expert_shared_count"))
    return shapes | {
        "attn_q.weight": (width, _times(heads, key)),
        "attn_q_a.weight": (width, of_query),
        "attn_q_a_norm.weight": (of_query,),
        "attn_q_b.weight": (of_query, _times(heads, key)),
        "attn_kv_a_mqa.weight": (width, rank + rope if rank is not None and rope is not None else None),
        "attn_kv_a_norm.weight": (rank,),
        "attn_kv_b.weight": (rank, _times(heads, of_pair)),
        "attn_k_b.weight": (nope, rank, heads),
        "attn_v_b.weight": (rank, of_value, heads),
        "attn_output.weight": (_times(heads, of_value), width),
        "exp_probs_b.bias": (experts,),
        **dict.fromkeys(("ffn_gate_shexp.weight", "ffn_up_shexp.weight"), (width, of_shared)),
        "ffn_down_shexp.weight": (of_shared, width),
    }


def _first(given: int | None, otherwise: int | None) -> int | None:
    return otherwise if given is None else given


def _times(*sides: int | None) -> int | None:
    known = [side for side in sides if side is not None]
    return math.prod(known) if len(known) == len(sides) else None
