"""Tests that blocks are read as the `gguf` package reads them. llama.cpp tests that package against the engine."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from ansible_collections.r1.prov.plugins.module_utils import ggml_blocks
from gguf.quants import dequantize, quantize


@pytest.mark.parametrize("kind", sorted(ggml_blocks.READABLE))
def test_any_bytes_are_the_same_values(kind: str) -> None:
    type_ = gguf.GGMLQuantizationType[kind]
    _, n_bytes = gguf.GGML_QUANT_SIZES[type_]
    raw = np.random.default_rng(1).integers(0, 256, (3, 40 * n_bytes), dtype=np.uint8)
    with np.errstate(invalid="ignore"):  # some of these bytes are scales that are infinite or not a number
        ours, theirs = ggml_blocks.dequantise(kind, raw), dequantize(raw, type_)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs)


def test_q8_0_is_made_as_the_engine_makes_it() -> None:
    random = np.random.default_rng(2)
    values = np.concatenate(
        [
            random.standard_normal((64, 128), dtype=np.float32),
            np.zeros((1, 128), np.float32),
            np.arange(-63.5, 64.5, 1, dtype=np.float32)[
                None
            ],  # values halfway between two integers, and a scale that is no power of two
            np.tile(np.float32([127, 0.5, -0.5, 1.5, -2.5, 0.49999997, -0.49999997, 126.5]), (1, 16)),
        ]
    )
    np.testing.assert_array_equal(ggml_blocks.q8_0(values), quantize(values, gguf.GGMLQuantizationType.Q8_0))


def test_f16_is_numpy_s() -> None:
    values = np.float32([[1, 0.1, 6e-8, -65504]])
    np.testing.assert_array_equal(
        ggml_blocks.f16(values), quantize(values, gguf.GGMLQuantizationType.F16).view(np.uint8)
    )
