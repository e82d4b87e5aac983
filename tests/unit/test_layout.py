"""Tests that the layout gives the size of the published files to the byte."""

import pytest

from r1prov.models import catalogue
from r1prov.models.layout import TYPES, tensors

HEADER_BYTES = {
    "UD-IQ1_S": 5_302_912,
    "UD-IQ1_M": 5_303_040,
    "UD-IQ2_XXS": 5_303_040,
    "UD-Q2_K_XL": 5_302_944,
    "Q2_K": 5_302_912,
    "Q2_K_L": 5_302_912,
    "Q3_K_M": 5_303_136,
    "Q4_K_M": 5_303_392,
    "Q5_K_M": 5_303_616,
    "Q6_K": 5_303_904,
}
"""The bytes of all shards' headers together, by quant.

The numbers of the dynamic quants and of Q4_K_M were read from the published files. Those of the other static quants are the size of the
files less that of the tensors. A test below checks that they differ from Q4_K_M's only by the headers of more or fewer shards.
"""


@pytest.mark.parametrize("quant", TYPES)
def test_tensors_and_headers_make_the_published_bytes(quant: str) -> None:
    assert sum(tensor.n_bytes for tensor in tensors(quant)) + HEADER_BYTES[quant] == catalogue.quant(quant).bytes


def test_the_whole_catalogue_is_known() -> None:
    assert TYPES.keys() == HEADER_BYTES.keys() == set(catalogue.quants())


@pytest.mark.parametrize("quant", ["Q2_K", "Q2_K_L", "Q3_K_M", "Q5_K_M", "Q6_K"])
def test_headers_differ_by_what_a_shard_adds(quant: str) -> None:
    """Each shard adds 106 bytes (magic, counts, three keys of the split), and its header is padded to a multiple of 32 bytes."""
    shards, others = (len(catalogue.quant(name).files) for name in (quant, "Q4_K_M"))
    difference = HEADER_BYTES[quant] - HEADER_BYTES["Q4_K_M"]
    assert abs(difference - 106 * (shards - others)) < 32 * max(shards, others)


@pytest.mark.parametrize("quant", TYPES)
def test_every_quant_has_1025_tensors_of_671_billion_parameters(quant: str) -> None:
    all_tensors = tensors(quant)
    assert len({tensor.name for tensor in all_tensors}) == 1025
    parameters = 0
    for tensor in all_tensors:
        count = 1
        for length in tensor.shape:
            count *= length
        parameters += count
    assert parameters == 671_026_419_200


def test_layer_sizes_are_those_that_loaders_print() -> None:
    by_layer = {layer: sum(t.n_bytes for t in tensors("UD-IQ1_S") if t.layer == layer) / 2**20 for layer in (0, 3, 9)}
    assert by_layer == pytest.approx({0: 350.683, 3: 2467.309, 9: 2243.309}, abs=0.001)
