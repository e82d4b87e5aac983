"""Compares patterns of `--override-tensor` with what std::regex of the engine finds in names of tensors."""

import pytest

from r1prov.offload.pattern import compiled
from r1prov.offload.setting import RefusedError, UnknownArgumentError

NAME = "blk.12.ffn_down_exps.weight"


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            "blk[.][[:digit:]]+[.]ffn_.*_exps",
            "[^]",
            "^blk",
            "weight$",
            r"\bffn",
            "a{0}",
            "|",
            "",
            "(a|)b",
            "f{2}n",
            "f+?n",
        ),
        *(r"\x62lk", r"\u0062lk", r"\cblk", r"[\d]{2}", "[.-9]", r"(1)2[.](?=ffn)", r"(f)\1n", "(?!x)e", "f**n"),
        *("[[:ALPHA:]]", r"\_", "[b-l]lk", "[-x.]1", r"[^\D]2"),
    ],
)
def test_a_pattern_finds_what_the_engine_finds(pattern: str) -> None:
    assert compiled(pattern).search(NAME)


@pytest.mark.parametrize(
    "pattern", ["[]a]", r"\Ablk", r"weight\Z", "x[^]]", "[]", r"\Bffn", "[^[:alpha:]_.0-9]", r"[\b]", "}", "]"]
)
def test_a_pattern_misses_what_the_engine_misses(pattern: str) -> None:
    assert not compiled(pattern).search(NAME)


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            "(?i)exps",
            "(?P<a>ffn)",
            "(?#x)exps",
            "(?<=k)exps",
            r"exps\1",
            r"(exps\1)",
            "[[:nope:]]",
            "[[:alpha:",
            "exps)",
            "(exps",
        ),
        *(
            "[exps",
            "[z-a]",
            "[a--]",
            r"[\w-z]",
            "*exps",
            "^*",
            "(?=a)*",
            "exps{a}",
            "exps{",
            r"[\B]",
            r"[\1]",
            "exps\\",
            r"\x2",
            r"\xgg",
            "a|*",
        ),
        *("((ab{200}){200}c){200}", "a{99999999999}"),
    ],
)
def test_a_pattern_that_the_engine_refuses_is_refused(pattern: str) -> None:
    with pytest.raises(RefusedError) as refusal:
        compiled(pattern)
    assert not isinstance(refusal.value, UnknownArgumentError)


@pytest.mark.parametrize("pattern", ["[[.a.]]", "[[=a=]]", "ä", r"\xff", "(" * 60])
def test_what_is_not_translated_is_no_defect_of_the_arguments(pattern: str) -> None:
    with pytest.raises(UnknownArgumentError):
        compiled(pattern)
