from __future__ import annotations

import re

import pytest

from r1prov.common.errors import Exit, SiteError
from r1prov.models.catalogue import quant, quants


def test_the_published_quants_are_whole() -> None:
    assert quants()[:4] == ["UD-IQ1_S", "UD-IQ1_M", "UD-IQ2_XXS", "UD-Q2_K_XL"]
    for name in quants():
        q = quant(name)
        assert q.name == name
        assert (q.repo, q.folder) == ("unsloth/DeepSeek-R1-GGUF", f"DeepSeek-R1-{name}")
        count = len(q.files)
        expected = [f"{q.folder}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]
        assert [file.name for file in q.files] == expected
        assert all(file.bytes > 10**9 and re.fullmatch("[0-9a-f]{64}", file.sha256) for file in q.files)


def test_the_size_is_the_sum_of_the_files() -> None:
    assert quant("UD-IQ1_S").bytes == 140_231_438_464


def test_capitals_do_not_matter() -> None:
    assert quant("ud-iq1_s") == quant("UD-IQ1_S")


@pytest.mark.parametrize(("typed", "near"), [("ud-iq1s", "UD-IQ1_S"), ("UD-IQ1S", "UD-IQ1_S"), ("Q4KM", "Q4_K_M")])
def test_an_unknown_quant_gets_near_names(typed: str, near: str) -> None:
    with pytest.raises(SiteError) as caught:
        quant(typed)
    (problem,) = caught.value.problems
    assert typed in problem.what
    assert near in problem.remedy.split("?")[0]
    assert caught.value.exit == Exit.SITE
