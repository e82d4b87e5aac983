"""The block types of ggml in numpy: what a matrix is, bit for bit as the engine reads it, and how Q8_0 and F16 hold it.

A row is blocks of 32 or 256 elements, each of some scales and small integers (ggml-common.h, ggml-quants.c of llama.cpp). The types
here are those without tables of vectors: all that a matrix of attention has in a published quant.
"""

from __future__ import annotations

from typing import Any, Callable, Dict

import numpy as np

Array = Any  # numpy's own types say nothing that the docstrings do not
_NON_LINEAR = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)  # IQ4_*


def dequantise(kind: str, raw: Array) -> Array:
    """The values of whole blocks.

    Args:
        kind: one of `READABLE`.
        raw: uint8, the last dimension a row's bytes.

    Returns:
        float32, the last dimension a row's elements; a block whose scale is NaN gives NaNs.
    """
    n_bytes, decode = _DECODERS[kind]
    with np.errstate(invalid="ignore"):
        values = decode(np.ascontiguousarray(raw).reshape(-1, n_bytes))
    return values.reshape(*raw.shape[:-1], -1)


def f16(values: Array) -> Array:
    """The values, of at most `LARGEST`, rounded, as the bytes of F16."""
    return values.astype("<f2").view(np.uint8)


def q8_0(values: Array) -> Array:
    """The values as blocks of Q8_0, as `quantize_row_q8_0_ref` makes them.

    Args:
        values: float32, of at most `LARGEST`; rows of a multiple of 32.

    Returns:
        uint8, the last dimension a row's bytes.
    """
    blocks = values.reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    steps = blocks * np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale >= _INVERTIBLE)
    made = np.empty((len(blocks), 34), np.uint8)
    made[:, :2] = f16(scale)
    # roundf(): halves away from zero, where numpy's own rounding takes them to the even neighbour.
    made[:, 2:] = np.trunc(steps + np.copysign(_BEFORE_HALF, steps)).astype(np.int8).view(np.uint8)
    return made.reshape(*values.shape[:-1], -1)


def _f16(raw: Array) -> Array:
    return np.ascontiguousarray(raw).view("<f2").astype(np.float32)


def _nibbles(raw: Array, run: int) -> Array:
    """The low halves of each `run` bytes, then their high halves."""
    pairs = raw.reshape(len(raw), -1, 1, run)
    return np.concatenate([pairs & 15, pairs >> 4], axis=2).reshape(len(raw), -1)


def _pairs_of_bits(raw: Array, run: int) -> Array:
    """The lowest two bits of each `run` bytes, then the next two, and so on."""
    four = raw.reshape(len(raw), -1, 1, run) >> np.array([0, 2, 4, 6], np.uint8)[:, None]
    return (four & 3).reshape(len(raw), -1)


def _planes(raw: Array) -> Array:
    """The lowest bit of all bytes, then the next bit, and so on."""
    return ((raw[:, None, :] >> np.arange(8, dtype=np.uint8)[:, None]) & 1).reshape(len(raw), -1)


def _q4_0(raw: Array) -> Array:
    return _f16(raw[:, :2]) * (_nibbles(raw[:, 2:], 16).view(np.int8) - np.int8(8))


def _q4_1(raw: Array) -> Array:
    return _f16(raw[:, :2]) * _nibbles(raw[:, 4:], 16) + _f16(raw[:, 2:4])


def _fifth_bits(raw: Array) -> Array:
    return np.unpackbits(raw, axis=1, bitorder="little") << 4


def _q5_0(raw: Array) -> Array:
    steps = _nibbles(raw[:, 6:], 16) | _fifth_bits(raw[:, 2:6])
    return _f16(raw[:, :2]) * (steps.view(np.int8) - np.int8(16))


def _q5_1(raw: Array) -> Array:
    return _f16(raw[:, :2]) * (_nibbles(raw[:, 8:], 16) | _fifth_bits(raw[:, 4:8])) + _f16(raw[:, 2:4])


def _q8_0(raw: Array) -> Array:
    return _f16(raw[:, :2]) * np.ascontiguousarray(raw[:, 2:]).view(np.int8)


def _scaled(scales: Array, steps: Array) -> Array:
    """Runs of elements, each times its scale: (blocks, runs) and (blocks, 256) to (blocks, runs, elements)."""
    return scales[:, :, None] * steps.reshape(*scales.shape, -1)


def _q2_k(raw: Array) -> Array:
    packed, steps = raw[:, :16], _pairs_of_bits(raw[:, 16:80], 32)
    scales, minima = _f16(raw[:, 80:82]) * (packed & 15), _f16(raw[:, 82:84]) * (packed >> 4)
    return _scaled(scales, steps) - minima[:, :, None]


def _q3_k(raw: Array) -> Array:
    low = np.concatenate([raw[:, 96:104] & 15, raw[:, 96:104] >> 4], axis=1)
    scales = (low | _pairs_of_bits(raw[:, 104:108], 4) << 4).view(np.int8) - np.int8(32)
    steps = (_pairs_of_bits(raw[:, 32:96], 32) | _planes(raw[:, :32]) << 2).view(np.int8) - np.int8(4)
    return _scaled(_f16(raw[:, 108:110]) * scales, steps)


def _scales_and_minima(raw: Array) -> "tuple[Array, Array]":
    """Eight scales and eight minima of 6 bits, in 12 bytes behind their own two scales (Q4_K, Q5_K)."""
    first, second, third = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6 << 4)], axis=1)
    minima = np.concatenate([second & 63, (third >> 4) | (second >> 6 << 4)], axis=1)
    return _f16(raw[:, :2]) * scales, _f16(raw[:, 2:4]) * minima


def _q4_k(raw: Array) -> Array:
    scales, minima = _scales_and_minima(raw)
    return _scaled(scales, _nibbles(raw[:, 16:], 32)) - minima[:, :, None]


def _q5_k(raw: Array) -> Array:
    scales, minima = _scales_and_minima(raw)
    steps = _nibbles(raw[:, 48:], 32) | _planes(raw[:, 16:48]) << 4
    return _scaled(scales, steps) - minima[:, :, None]


def _q6_k(raw: Array) -> Array:
    steps = (_nibbles(raw[:, :128], 64) | _pairs_of_bits(raw[:, 128:192], 32) << 4).view(np.int8) - np.int8(32)
    return _scaled(_f16(raw[:, 208:]) * np.ascontiguousarray(raw[:, 192:208]).view(np.int8), steps)


def _iq4_nl(raw: Array) -> Array:
    return _f16(raw[:, :2]) * _NON_LINEAR[_nibbles(raw[:, 2:], 16)]


def _iq4_xs(raw: Array) -> Array:
    low = np.stack([raw[:, 4:8] & 15, raw[:, 4:8] >> 4], axis=2).reshape(len(raw), 8)
    high = _pairs_of_bits(raw[:, 2:4].reshape(len(raw), 2), 1)
    scales = (low | high << 4).view(np.int8) - np.int8(32)
    return _scaled(_f16(raw[:, :2]) * scales, _NON_LINEAR[_nibbles(raw[:, 8:], 16)])


def _bf16(raw: Array) -> Array:
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)


LARGEST = {"F16": 65504.0, "Q8_0": 127 * 65504.0}
"""The largest value that each type can hold, because its scales are F16."""

_INVERTIBLE = np.float32(2**-127)  # scales below have no finite inverse, and as F16 they are zero long before
_BEFORE_HALF = np.nextafter(np.float32(0.5), np.float32(0))  # + 0.5 would lift 0.49999997 to 1
_DECODERS: "Dict[str, tuple[int, Callable[[Array], Array]]]" = {
    "F32": (4, lambda raw: raw.view("<f4")),
    "F16": (2, _f16),
    "BF16": (2, _bf16),
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
    "Q5_0": (22, _q5_0),
    "Q5_1": (24, _q5_1),
    "Q8_0": (34, _q8_0),
    "Q2_K": (84, _q2_k),
    "Q3_K": (110, _q3_k),
    "Q4_K": (144, _q4_k),
    "Q5_K": (176, _q5_k),
    "Q6_K": (210, _q6_k),
    "IQ4_NL": (18, _iq4_nl),
    "IQ4_XS": (136, _iq4_xs),
}
READABLE = frozenset(_DECODERS)
"""The types that `dequantise` knows, by ggml's names. `mla_form.py` lists them where there is no numpy."""
