"""Trains a tiny DeepSeek-R1 in legacy form, so that its predictions of the next token are meaningful.

    uv run --no-project --with jax==0.10.2 --with gguf==0.19.0 python -m benchmarks.trained_model FOLDER

The model is the lab's model with fewer heads and layers. It learns from Python's own language reference, all but the last part, which
takes some minutes on two cores. FOLDER/trained.gguf is the trained model, wholly in F32; FOLDER/random.gguf is the model before the
training; FOLDER/held-out.txt is the last part of the text. At the end, the program prints the model's perplexity on that part as one
JSON document. llama-perplexity must find the same perplexity with the file, or this graph is not the one that llama.cpp runs.
"""

from __future__ import annotations

import json
import math
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from gguf import GGMLQuantizationType
from jax import Array

from r1prov.models import perplexity
from tests.fixtures import tinymodel
from tests.fixtures.tinymodel import KV_RANK, NOPE, ROPE, VALUE, Sizes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.fixtures.tinymodel import Values

SIZES = Sizes(layers=3, width=128, heads=2, q_rank=64, dense_ff=384, expert_ff=48)
STEPS = 1000
BATCH = 2
"""The number of windows, each of `perplexity.CONTEXT` tokens, that one step learns from."""
RATE = 1e-2
CHUNKS = 16
"""The number of chunks of the held-out text over which the perplexity is computed."""

Weights = dict[str, Array]


def logits(weights: Weights, tokens: Array) -> Array:
    """The logits of each next token, computed by the graph of `deepseek2` in llama.cpp with attn_kv_b.

    Args:
        weights: The tensors by their names in GGUF; each matrix has the shape (outputs, inputs).
        tokens: The tokens from position 0 on, of shape (windows, length).

    Returns:
        The logits, of shape (windows, length, vocabulary).
    """
    state = weights["token_embd.weight"][tokens]
    for layer in range(SIZES.layers):
        prefix = f"blk.{layer}."
        block = {name.removeprefix(prefix): of_it for name, of_it in weights.items() if name.startswith(prefix)}
        state += _attention(block, _norm(state, block["attn_norm.weight"]))
        state += _network(block, _norm(state, block["ffn_norm.weight"]))
    return _norm(state, weights["output_norm.weight"]) @ weights["output.weight"].T


def _norm(state: Array, weight: Array) -> Array:
    return state * jax.lax.rsqrt(jnp.mean(state**2, axis=-1, keepdims=True) + tinymodel.RMS_EPSILON) * weight


def _attention(block: Weights, state: Array) -> Array:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, 2.1), which computes the keys and values of all heads again."""
    windows, length, _ = state.shape
    queries = _norm(state @ block["attn_q_a.weight"].T, block["attn_q_a_norm.weight"]) @ block["attn_q_b.weight"].T
    queries = queries.reshape(windows, length, SIZES.heads, NOPE + ROPE)
    latent, position = jnp.split(state @ block["attn_kv_a_mqa.weight"].T, [KV_RANK], axis=-1)
    made = _norm(latent, block["attn_kv_a_norm.weight"]) @ block["attn_kv_b.weight"].T
    keys, values = jnp.split(made.reshape(windows, length, SIZES.heads, NOPE + VALUE), [NOPE], axis=-1)
    scores = jnp.einsum("wqhd,wkhd->whqk", queries[..., :NOPE], keys)
    scores += jnp.einsum("wqhd,wkd->whqk", _rotated(queries[..., NOPE:]), _rotated(position[:, :, None])[:, :, 0])
    # YaRN multiplies the scores by the square of this factor, which DeepSeek calls mscale (arXiv:2309.00071, 3.4).
    sharper = 1 + tinymodel.YARN_LOG_MULTIPLIER * math.log(tinymodel.YARN_FACTOR)
    scores *= sharper**2 / math.sqrt(NOPE + ROPE)
    scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -jnp.inf)
    heads = jnp.einsum("whqk,wkhd->wqhd", jax.nn.softmax(scores), values)
    return heads.reshape(windows, length, -1) @ block["attn_output.weight"].T


def _rotated(pairs: Array) -> Array:
    """RoPE, which rotates pairs of neighbouring elements by their position, with YaRN's slower rotation (arXiv:2309.00071, 3.2).

    Argument and result have the shape (windows, length, heads, ROPE).
    """
    half = np.arange(ROPE // 2)
    speed = tinymodel.ROPE_BASE ** (-2.0 * half / ROPE)

    def turning(times: float) -> float:
        """The index of the pair that makes `times` turns within the original context."""
        turns = math.log(tinymodel.YARN_CONTEXT / (2 * math.pi * times))
        return ROPE * turns / (2 * math.log(tinymodel.ROPE_BASE))

    low, high = math.floor(turning(32)), math.ceil(turning(1))
    slowed = np.clip((half - low) / (high - low), 0, 1)
    speed = speed * (1 - slowed) + speed / tinymodel.YARN_FACTOR * slowed
    angle = jnp.arange(pairs.shape[1])[:, None, None] * jnp.asarray(speed, jnp.float32)
    even, odd = pairs[..., ::2], pairs[..., 1::2]
    turned = (even * jnp.cos(angle) - odd * jnp.sin(angle), even * jnp.sin(angle) + odd * jnp.cos(angle))
    return jnp.stack(turned, axis=-1).reshape(pairs.shape)


def _network(block: Weights, state: Array) -> Array:
    """The feed-forward network of a layer: dense, or a mixture of experts with DeepSeek-V3's weights (arXiv:2412.19437, 2.1.2)."""
    if "ffn_up.weight" in block:
        return _gated(block, "", state)
    affinity = jax.nn.sigmoid(state @ block["ffn_gate_inp.weight"].T)
    _, chosen = jax.lax.top_k(affinity + block["exp_probs_b.bias"], SIZES.experts_used)
    share = affinity * jax.nn.one_hot(chosen, SIZES.experts).sum(axis=-2)
    share *= tinymodel.EXPERT_SCALE / share.sum(axis=-1, keepdims=True)
    # Every expert computes every token. The experts are small, and so the shapes stay simple.
    up = jnp.einsum("wti,eoi->wteo", state, block["ffn_up_exps.weight"])
    inside = jax.nn.silu(jnp.einsum("wti,eoi->wteo", state, block["ffn_gate_exps.weight"])) * up
    routed = jnp.einsum("wteo,eio->wti", inside * share[..., None], block["ffn_down_exps.weight"])
    return routed + _gated(block, "_shexp", state)


def _gated(block: Weights, suffix: str, state: Array) -> Array:
    gate, up, down = (block[f"ffn_{name}{suffix}.weight"] for name in ("gate", "up", "down"))
    return (jax.nn.silu(state @ gate.T) * (state @ up.T)) @ down.T


def _surprise(weights: Weights, tokens: Array) -> Array:
    """The surprise of each token but the first, in nats, of shape (windows, length - 1)."""
    expected = jax.nn.log_softmax(logits(weights, tokens[:, :-1]))
    return -jnp.take_along_axis(expected, tokens[:, 1:, None], axis=-1)[..., 0]


def _share(name: str, weight: Array) -> float:
    """The share of the learning rate that a tensor gets.

    A step changes a matrix's output in proportion to the number of its inputs, so a matrix with more inputs gets a smaller share
    (maximal update parametrization, arXiv:2203.03466).
    """
    return 1.0 if weight.ndim == 1 or "embd" in name else 32 / weight.shape[-1]


@partial(jax.jit, donate_argnums=(0, 1))
def _step(
    weights: Weights, moments: tuple[Weights, Weights], tokens: Array, step: Array
) -> tuple[Weights, tuple[Weights, Weights], Array]:
    """One step of Adam (arXiv:1412.6980). The rate rises for 30 steps and then falls along a cosine to a tenth."""
    loss, gradient = jax.value_and_grad(lambda these: _surprise(these, tokens).mean())(weights)
    rate = RATE * jnp.minimum((step + 1) / 30, 0.55 + 0.45 * jnp.cos(jnp.pi * step / STEPS))
    first = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, moments[0], gradient)
    second = jax.tree.map(lambda old, new: 0.99 * old + 0.01 * new**2, moments[1], gradient)
    once, twice = 1 - 0.9 ** (step + 1), 1 - 0.99 ** (step + 1)
    weights = {
        name: old - rate * _share(name, old) * (first[name] / once) / (jnp.sqrt(second[name] / twice) + 1e-8)
        for name, old in weights.items()
    }
    return weights, (first, second), loss


def train(untrained: Mapping[str, Values], tokens: np.ndarray) -> Weights:
    """The weights after `STEPS` steps over windows of the text. Each window starts with the BOS token, as in llama.cpp."""
    # At first the layers add nothing to the residual stream, because random additions would drown the token's own embedding.
    adds = ("attn_output.weight", "ffn_down.weight", "ffn_down_exps.weight", "ffn_down_shexp.weight")
    weights = {name: jnp.asarray(of_it * (not name.endswith(adds))) for name, of_it in untrained.items()}
    moments = (jax.tree.map(jnp.zeros_like, weights), jax.tree.map(jnp.zeros_like, weights))
    random, started = np.random.default_rng(1), time.monotonic()
    for step in range(STEPS):
        starts = random.integers(len(tokens) - perplexity.CONTEXT, size=BATCH)
        windows = tokens[starts[:, None] + np.arange(perplexity.CONTEXT)]
        windows[:, 0] = tinymodel.BOS
        weights, moments, loss = _step(weights, moments, windows, jnp.asarray(step))
        if step % 100 == 0 or step == STEPS - 1:
            seconds = time.monotonic() - started
            print(f"step {step}: {loss:.3f} nats, {seconds:.0f} s", file=sys.stderr, flush=True)  # noqa: T201
    return weights


def main(folder: Path) -> None:
    """Trains the model, writes the files, and prints the model's perplexity on the text that it has not seen."""
    # The blanks of tables and margins are left out. They are easy to predict, and answers would be full of them.
    text = " ".join(perplexity.prose(None).split())
    seen, held_out = text[: len(text) * 7 // 8], text[len(text) * 7 // 8 :]
    untrained = tinymodel.random_values(SIZES, 1, mla=False)
    kinds = dict.fromkeys(untrained, GGMLQuantizationType.F32)
    tinymodel.save(folder / "random.gguf", SIZES, untrained, kinds)
    weights = train(untrained, np.array(tinymodel.tokens(seen)))
    values = {name: np.asarray(of_it) for name, of_it in weights.items()}
    tinymodel.save(folder / "trained.gguf", SIZES, values, kinds)
    (folder / "held-out.txt").write_text(held_out, encoding="utf-8")
    trained = _perplexity(weights, held_out)
    uniform = len(weights["output.weight"])
    print(json.dumps({"perplexity": trained, "of uniform guesses": uniform, "chunks": CHUNKS}))  # noqa: T201


def _perplexity(weights: Weights, text: str) -> float:
    """The perplexity as llama-perplexity computes it: each chunk starts with the BOS token, and only its second half counts."""
    tokens = np.array([tinymodel.BOS, *tinymodel.tokens(text)])[: CHUNKS * perplexity.CONTEXT].reshape(CHUNKS, -1)
    tokens[:, 0] = tinymodel.BOS
    judged = [jax.jit(_surprise)(weights, chunk[None])[0, perplexity.CONTEXT // 2 :] for chunk in tokens]
    return round(math.exp(float(np.mean(judged))), 4)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
