"""Compares plans with llama.cpp's own figures, and checks properties that hold for every machine."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1prov.common.errors import SiteError
from r1prov.common.units import GB, GIB, MIB
from r1prov.machines.profile import Machine, Serving, load_profile
from r1prov.models import catalogue, layout
from r1prov.models.model import Model
from r1prov.offload import DYNAMIC_QUANTS, best_on_gpus, plan, plan_model, search, speed, thumb
from r1prov.offload.arguments import parse
from r1prov.offload.memory import memory
from r1prov.offload.outcome import Space, outcome
from r1prov.offload.search import fits
from r1prov.offload.setting import Setting

FOUR = Space((24564 * MIB,) * 4, 480 * GB)
"""The cards and the RAM of the profile 4x4090."""


LEGACY = {"attention": "legacy", "context_per_slot": 8192, "kv_type_k": "q4_0"}
"""The serving settings of the published guides."""


def planned(profile: str, quant: str, **serving: object):
    machine = load_profile(profile).machine
    base = load_profile(profile).serving
    return plan(catalogue.quant(quant), machine, base.model_copy(update=serving))


def test_a_4x4090_reads_a_third_of_what_the_rule_of_thumb_would_read_if_it_fitted() -> None:
    result = planned("4x4090", "UD-IQ1_S", **LEGACY)
    assert result.outcome
    assert result.outcome.fits
    assert (result.thumb_layers, result.gpu_layers, result.ollama.gpu_layers) == (40, 62, 31)
    thumb_setting = Setting(context=8192, slots=1, unified=False, type_k="Q4_0", gpu_layers=40)
    by_rule = outcome(layout.model("UD-IQ1_S"), thumb_setting, FOUR)
    assert not by_rule.fits
    assert "runs out of memory" in by_rule.reasons[0]
    assert result.outcome.reads.host < by_rule.reads.host / 2


def test_the_plan_for_a_4x4090_is_what_its_arguments_say() -> None:
    result = planned("4x4090", "UD-IQ1_S")
    told = outcome(layout.model("UD-IQ1_S", mla=True), parse(result.arguments, cards=4), FOUR)
    assert told == result.outcome


def test_4xh800_takes_the_best_dynamic_quant_wholly_onto_the_cards() -> None:
    profile = load_profile("4xh800")
    candidates = [catalogue.quant(name) for name in DYNAMIC_QUANTS]
    assert best_on_gpus(candidates, profile.machine, profile.serving).quant == "UD-Q2_K_XL"
    result = best_on_gpus(candidates, profile.machine, profile.serving.model_copy(update=LEGACY))
    assert result.outcome
    assert (result.quant, result.gpu_layers, result.ollama.gpu_layers, result.whole) == ("UD-Q2_K_XL", 62, 48, True)
    # llama-fit-params prints these MiB of model and context for each card.
    assert [(d.weights // MIB, d.kv // MIB) for d in result.outcome.devices] == [
        (49825, 23296),
        (55017, 21840),
        (55017, 21840),
        (55742, 21840),
    ]


@pytest.mark.parametrize(
    ("mla", "context", "most", "fit"),
    [(False, 512, 1.46, 1.52), (True, 8192, 1.42, 1.485), (False, 8192, 2.75, 2.96), (True, 32768, 1.48, 1.52)],
)
def test_a_token_reads_less_from_ram_than_with_the_engines_own_fit(
    mla: bool, context: int, most: float, fit: float
) -> None:
    """The case is UD-IQ1_S on 4 cards of 24,564 MiB with one slot, an F16 cache and 1,024 MiB free per card.

    `most` and `fit` are GB; `fit` is what a token reads with the engine's own placement.
    """
    model = layout.model("UD-IQ1_S", mla=mla)
    found = search.best(model, Setting(context=context, slots=1, unified=False), FOUR)
    assert found
    assert outcome(model, found, FOUR).fits
    assert speed.reads(model, found, FOUR.cards).host <= most * GB < fit * GB


def test_nothing_fits_on_small_cards_is_said_with_figures() -> None:
    profile = load_profile("4x4090")
    with pytest.raises(SiteError, match="no dynamic quant fits"):
        best_on_gpus([catalogue.quant(name) for name in DYNAMIC_QUANTS], profile.machine, profile.serving)


def test_without_gpus_everything_is_in_ram() -> None:
    result = planned("cpu", "UD-IQ1_S")
    assert result.outcome
    assert (result.gpu_layers, result.outcome.devices) == (0, ())
    assert result.outcome.host.weights == layout.model("UD-IQ1_S", mla=True).n_bytes
    assert result.arguments[:2] == ("--ctx-size", "32768")


def test_context_is_per_slot() -> None:
    result = planned("4xh800", "UD-IQ1_S", slots=3, context_per_slot=4096)
    assert result.arguments[:4] == ("--ctx-size", "12288", "--parallel", "3")


@pytest.mark.parametrize(
    ("arguments", "slots", "unified"),
    [
        ("", 4, True),
        ("-np -1 --no-kv-unified", 4, True),
        ("-np 4", 4, False),
        ("-np 4 --kv-unified", 4, True),
        ("--no-kv-unified", 4, True),
    ],
)
def test_slots_that_were_not_counted_share_one_cache(arguments: str, slots: int, unified: bool) -> None:
    """A shared cache holds one context for all slots, and each slot computes its scores against the whole cache."""
    told = parse(["-c", "8192", *arguments.split()], cards=1)
    assert (told.slots, told.unified) == (slots, unified)
    cards = (81_559 * MIB,)
    model = layout.model("UD-IQ1_S")
    shared, apart = (memory(model, replace(told, unified=sharing), cards).cards[0] for sharing in (True, False))
    assert shared.kv == apart.kv
    assert shared.compute > apart.compute


def test_a_model_of_unknown_layers_is_not_placed_on_gpus() -> None:
    own = catalogue.quant("UD-IQ1_S").model_copy(update={"name": "mine", "repo": "me/mine"})
    profile = load_profile("4x4090")
    with pytest.raises(SiteError, match="its layers are not known"):
        plan(own, profile.machine, profile.serving)


@pytest.mark.parametrize(("vram_gb", "layers"), [(24, 7), (80, 33), (160, 61)])
def test_the_rule_of_thumb_is_the_published_one(vram_gb: int, layers: int) -> None:
    """The published table has this row for 1.58 bit, whose `131 GB` are 131e9 bytes. By it, two cards of 80 GB hold all layers."""
    assert thumb.layers_on_gpu(vram_gb * GB, 131 * GB) == pytest.approx(layers, abs=0)


def test_a_first_card_that_is_too_small_does_not_keep_the_others_idle() -> None:
    space = Space((4 * GIB, 80 * GIB, 48 * GIB), 480 * GB, reserve=3 * GIB)
    model, wanted = layout.model("UD-IQ1_S"), Setting(context=16384, slots=4, unified=False, gpu_layers=0)
    found = search.best(model, wanted, space)
    assert found
    assert not found.offload
    assert outcome(model, found, space).fits
    assert speed.reads(model, found, space.cards).host < 4 * GB


class Mixed(Machine):
    """A machine whose cards need not be equal."""

    sizes: tuple[int, ...]

    @property
    def cards(self) -> tuple[int, ...]:
        return self.sizes

    @property
    def vram(self) -> int:
        return sum(self.sizes)


card_sizes = st.sampled_from([16_376, 24_564, 49_140, 81_559])
card_sets = st.lists(card_sizes, max_size=8) | st.builds(
    lambda mib, count: [mib] * count, card_sizes, st.integers(1, 8)
)
machines = st.builds(
    Mixed,
    sizes=card_sets.map(lambda sizes: tuple(mib * MIB for mib in sizes)),
    ram=st.sampled_from([64, 128, 256, 384, 480, 512, 768, 1024, 2000]).map(lambda gigabytes: f"{gigabytes} GB"),
    disk=st.just("1 TB"),
)
models = st.builds(lambda quant, mla: layout.model(quant, mla=mla), st.sampled_from(list(layout.TYPES)), st.booleans())
servings = st.builds(
    Serving,
    quant=st.just(""),
    context_per_slot=st.sampled_from([512, 1000, 2048, 4096, 8192, 16_384, 32_768, 65_536]),
    slots=st.integers(1, 8),
    kv_type_k=st.sampled_from(["f16", "q8_0", "q4_0"]),
    micro_batch=st.sampled_from([64, 128, 256, 512, 1024, 2048]),
)
reserves = st.sampled_from([0, 512, 1024, 1024, 3000]).map(lambda mib: mib * MIB)


@given(models, machines, servings, reserves)
def test_a_plan_is_what_its_arguments_say_and_fits_where_it_says_so(
    model: Model, machine: Mixed, serving: Serving, reserve: int
) -> None:
    result = plan_model(model, machine, serving, floor=0, n_bytes=model.n_bytes, reserve=reserve)
    found = result.outcome
    assert found
    placed = (*found.devices, found.host)
    # The parts on the cards leave the reserve free; only RAM may be too small.
    assert result.gpu_layers == 0 or all(device.taken + reserve <= device.capacity for device in found.devices)
    assert found.fits == all(device.taken + device.reserve <= device.capacity for device in placed)
    assert len(found.reasons) == sum(device.taken + device.reserve > device.capacity for device in placed)
    assert sum(device.weights for device in placed) >= model.n_bytes
    assert fits(memory(model, result.ollama, machine.cards), Space(machine.cards, machine.ram, reserve).rooms) or not (
        result.ollama.gpu_layers
    )
    told = parse(
        result.arguments, cards=len(machine.cards)
    )  # raises an error for arguments that the engine would refuse
    if told != result.setting:  # with one card there is no split
        assert outcome(model, told, Space(machine.cards, machine.ram, reserve)) == found
