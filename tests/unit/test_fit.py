"""Plans beside the placements that llama.cpp's own `--fit` chose, in tests/data/engine_fit.json."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from r1prov import layout
from r1prov.offload import search
from r1prov.offload.outcome import Space, outcome
from r1prov.offload.setting import parse
from r1prov.units import GB, MIB

FITTED = [
    answer
    for answer in json.loads((Path(__file__).parents[1] / "data" / "engine_fit.json").read_text())
    if answer["arguments"]
]


def test_there_is_enough_to_compare_with() -> None:
    assert len(FITTED) >= 60


def _name(answer: dict) -> str:
    attention = "mla" if answer["mla"] else "legacy"
    return f"{answer['quant']}-{attention}-{answer['cards']}-{answer['slots']}x{answer['context']}-{answer['type_k']}"


@pytest.mark.parametrize("answer", FITTED, ids=_name)
def test_a_plan_fits_where_the_engines_own_does_and_reads_no_more_from_ram(answer: dict) -> None:
    model = layout.model(answer["quant"], mla=answer["mla"])
    space = Space(tuple(mib * MIB for mib in answer["cards"]), 480 * GB)
    words = ["-np", str(answer["slots"]), "-ctk", answer["type_k"], "-ctv", answer["type_v"]]
    theirs = outcome(model, parse([*answer["arguments"], *words], cards=len(space.cards)), space)
    wanted = replace(parse(words, cards=0), context=answer["context"], gpu_layers=0)
    ours = outcome(model, search.best(model, wanted, space.rooms) or wanted, space)
    if theirs.fits:
        assert ours.fits, ours.reasons
        assert ours.reads.host <= theirs.reads.host
