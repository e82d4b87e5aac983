from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import pytest

from r1prov.common import paths
from r1prov.models import convert as weights
from r1prov.models import gguf as header
from r1prov.models import latent, layout
from tests.fixtures import tinymodel


@pytest.mark.parametrize("quant", layout.TYPES)
def test_a_published_quant_in_mla_form_is_what_the_catalogue_knows_of_it(quant: str) -> None:
    published = layout.model(quant)
    assert latent.is_legacy(published)
    assert latent.in_mla_form(published) == latent.served(published, "mla") == layout.model(quant, mla=True)
    assert latent.served(published, "legacy") is published


def test_what_the_conversion_would_refuse_is_served_as_published() -> None:
    readable = paths.module_util("mla_form").READABLE
    assert readable == paths.module_util("ggml_blocks").READABLE == latent.SPLIT_TYPES
    published = layout.model("UD-IQ1_S")
    tensors = tuple(
        replace(tensor, type="IQ2_XXS") if tensor.name == "blk.7.attn_kv_b.weight" else tensor
        for tensor in published.tensors
    )
    other = replace(published, tensors=tensors)
    assert not latent.is_legacy(other)
    assert latent.served(other, "mla") is other


def test_a_file_in_mla_form_is_what_was_foreseen_of_it(tmp_path: Path) -> None:
    source = tinymodel.write(tmp_path / "m.gguf", legacy=gguf.GGMLQuantizationType.Q5_0)
    (tmp_path / "new").mkdir()
    assert weights.convert(source, tmp_path / "new" / "m.gguf", "Q8_0", lambda *_: None)
    foreseen, made = latent.in_mla_form(header.read(source)), header.read(tmp_path / "new" / "m.gguf")
    assert foreseen == made
    assert not latent.is_legacy(made)
    assert latent.served(made, "mla") is made
