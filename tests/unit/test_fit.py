"""Compares plans with the placements that llama.cpp's own `--fit` chose, which tests/data/engine_fit.json holds."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from r1prov.common.units import GB, GIB, MIB
from r1prov.models import layout
from r1prov.models.model import Model
from r1prov.offload import search
from r1prov.offload.arguments import parse
from r1prov.offload.fit import fitted
from r1prov.offload.memory import memory
from r1prov.offload.outcome import SYSTEM_BYTES, Space, outcome
from r1prov.offload.setting import Setting

FITTED = [
    answer
    for answer in json.loads((Path(__file__).parents[1] / "data" / "engine_fit.json").read_text())
    if answer["arguments"]
]


def _name(answer: dict) -> str:
    attention = "mla" if answer["mla"] else "legacy"
    return f"{answer['quant']}-{attention}-{answer['cards']}-{answer['slots']}x{answer['context']}-{answer['type_k']}"


def _theirs(answer: dict) -> tuple[Model, tuple[int, ...], Setting]:
    words = ["-np", str(answer["slots"]), "-ctk", answer["type_k"], "-ctv", answer["type_v"]]
    cards = tuple(mib * MIB for mib in answer["cards"])
    setting = parse([*answer["arguments"], *words], cards=len(cards))
    return layout.model(answer["quant"], mla=answer["mla"]), cards, setting


def _space(answer: dict) -> Space:
    """The cards, and half a GiB more RAM than the engine's own placement takes. In one case our plan takes 330 MiB more."""
    model, cards, theirs = _theirs(answer)
    return Space(cards, memory(model, theirs, cards).host.total + SYSTEM_BYTES + theirs.prompts + GIB // 2)


def test_there_is_enough_to_compare_with() -> None:
    """Some of the engine's own placements leave less than the reserve on a card."""
    for spaces in ([Space(_theirs(answer)[1], 480 * GB) for answer in FITTED], list(map(_space, FITTED))):
        fitting = [
            answer
            for answer, space in zip(FITTED, spaces, strict=True)
            if outcome(_theirs(answer)[0], _theirs(answer)[2], space).fits
        ]
        assert len(fitting) >= 60


@pytest.mark.parametrize("answer", FITTED, ids=_name)
def test_a_plan_fits_where_the_engines_own_does_and_reads_no_more_from_ram(answer: dict) -> None:
    model, cards, setting = _theirs(answer)
    space = Space(cards, 480 * GB)
    theirs, wanted = outcome(model, setting, space), replace(setting, gpu_layers=0, split=(), overrides=())
    ours = outcome(model, search.best(model, wanted, space) or wanted, space)
    if theirs.fits:
        assert ours.fits, ours.reasons
        assert ours.reads.host <= theirs.reads.host


@pytest.mark.parametrize("answer", FITTED, ids=_name)
def test_a_plan_fits_in_the_ram_that_the_engines_own_does(answer: dict) -> None:
    model, _, theirs = _theirs(answer)
    space = _space(answer)
    if outcome(model, theirs, space).fits:
        wanted = replace(theirs, gpu_layers=0, split=(), overrides=())
        ours = outcome(model, search.best(model, wanted, space) or wanted, space)
        assert ours.fits, ours.reasons


@pytest.mark.parametrize("answer", FITTED[::4], ids=_name)  # All of them take 12 s.
def test_what_the_engine_chooses_by_itself_is_foreseen(answer: dict) -> None:
    model, cards, theirs = _theirs(answer)
    ours = fitted(model, replace(theirs, gpu_layers=None, split=(), overrides=()), cards)
    assert (ours.gpu_layers, ours.split, ours.overrides) == (theirs.gpu_layers, theirs.split, theirs.overrides)
