"""The description of a model: its tensors, and the few numbers that determine its cache and its graph."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING

from r1prov.common import paths

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ansible_collections.r1.prov.plugins.module_utils import gguf_header
else:
    gguf_header = paths.module_util("gguf_header")


@cache
def block(type_: str) -> tuple[int, int]:
    """(elements, bytes) of a block of a ggml type.

    Raises:
        KeyError: no such type.
    """
    _, elements, n_bytes = gguf_header.TYPES[gguf_header.TYPE_NUMBERS[type_]]
    return elements, n_bytes


def row_bytes(type_: str, elements: int) -> int:
    """The bytes of a row of `elements` of `type_`, which must be a whole number of blocks."""
    per_block, n_bytes = block(type_)
    return elements // per_block * n_bytes


@cache
def layer_of(name: str) -> int | None:
    """The layer that a tensor of this name belongs to; None for embedding and output."""
    return int(name.split(".")[1]) if name.startswith("blk.") else None


def is_embedding(name: str) -> bool:
    """Whether the name is that of the token embedding. The engine keeps it in RAM and reads one row of it for each token."""
    return name.startswith("token_embd.")


@dataclass(frozen=True)
class Tensor:
    """One tensor of a GGUF file.

    Attributes:
        shape: in GGUF's order, fastest first.
        type: a ggml type as `IQ1_S`.
    """

    name: str
    shape: tuple[int, ...]
    type: str

    @property
    def layer(self) -> int | None:
        """The layer it belongs to; None for embedding and output."""
        return layer_of(self.name)

    @property
    def kind(self) -> str:
        """Its name without the number of its layer."""
        return self.name if self.layer is None else self.name.split(".", 2)[2]

    @cached_property
    def n_bytes(self) -> int:
        """Bytes of its data, without padding."""
        return row_bytes(self.type, math.prod(self.shape))

    @property
    def is_experts(self) -> bool:
        """Whether the tensor holds the routed experts of a layer, of which a token reads only a few."""
        return "_exps." in self.name


@dataclass(frozen=True)
class Model:
    """A model as its GGUF metadata describe it.

    Attributes:
        layers: The number of layers that compute, without the output.
        idle_layers: The number of layers after them that the engine counts but does not load; they predict several tokens (`nextn`).
        heads: The number of attention heads.
        kv_heads: The number of heads of K and V in the cache; 1 with latent attention.
        key_length: The elements of one cached K head: 576 with R1's latent attention, 192 in its legacy form.
        value_length: The elements of one V head. With latent attention V is a part of K and is not cached by itself.
        mla: Whether attention is latent, so that the file has `attn_k_b` and `attn_v_b`.
        head_key_length: The elements of one K head when attention computes scores (`key_length_mla`).
        rope_length: The number of these elements that carry the position.
        vocabulary: The number of tokens in the vocabulary.
        experts_used: The number of routed experts for each token; 0 for a dense model.
        expert_weights_normed, expert_weights_scaled: Whether the weights of the experts' results are normalised, and scaled.
        expert_groups, expert_groups_used: The number of groups of experts, and of groups that a token may use; 1 without groups.
        context_length: The number of tokens that the model was trained for.
        tensors: All tensors, in the order of the file.
        thinks: Whether its chat template leaves the thoughts out of earlier answers.
    """

    name: str
    architecture: str
    layers: int
    idle_layers: int
    heads: int
    kv_heads: int
    key_length: int
    value_length: int
    mla: bool
    head_key_length: int
    rope_length: int
    vocabulary: int
    experts_used: int
    expert_weights_normed: bool
    expert_weights_scaled: bool
    expert_groups: int
    expert_groups_used: int
    context_length: int
    tensors: tuple[Tensor, ...]
    thinks: bool = False

    def __hash__(self) -> int:
        """A hash of a few attributes. Hashing a thousand tensors for each cache look-up would take longer than the cached work."""
        return hash((self.name, self.architecture, self.layers, self.mla, len(self.tensors)))

    @cached_property
    def by_name(self) -> dict[str, Tensor]:
        """The tensors by their names."""
        return {tensor.name: tensor for tensor in self.tensors}

    @property
    def entries(self) -> int:
        """What `--n-gpu-layers` counts: all layers, and the output after them."""
        return self.layers + self.idle_layers + 1

    @cached_property
    def kinds(self) -> frozenset[str]:
        """The names of its weights without the numbers of their layers: `attn_q.weight`."""
        return frozenset(tensor.kind for tensor in self.weights.values())

    def of_kind(self, kind: str) -> Iterator[Tensor]:
        """Its weights of one kind, of all layers."""
        return (tensor for tensor in self.weights.values() if tensor.kind == kind)

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The tensors by the names under which the graph reads them.

        A tied embedding is also the output, and the rope factors belong to each layer.

        The engine keeps one copy of such a tensor on each device where it is read.
        """
        named = {name: tensor for name, tensor in self.by_name.items() if (layer_of(name) or 0) < self.layers}
        named.setdefault("output.weight", named["token_embd.weight"])
        factors = named.pop("rope_freqs.weight", None)
        if factors:
            named |= {f"blk.{layer}.rope_freqs.weight": factors for layer in range(self.layers)}
        return named

    @cached_property
    def shared(self) -> tuple[str, ...]:
        """The names of `weights` that share their tensor with another name."""
        count = Counter(tensor.name for tensor in self.weights.values())
        return tuple(name for name, tensor in self.weights.items() if count[tensor.name] > 1)

    @cached_property
    def n_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.n_bytes for tensor in self.tensors)
