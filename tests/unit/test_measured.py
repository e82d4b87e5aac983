"""Tests that the speeds of a machine follow from rates that were measured there: from made-up speeds to made-up rates, and back."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import pytest

from r1prov.common.units import GB, MIB
from r1prov.machines.known import Known, MeasuredSpeed
from r1prov.machines.tuned import Hardware
from r1prov.models import layout
from r1prov.offload import measured
from r1prov.offload.costs import costs
from r1prov.offload.measured import NAMES, Sample
from r1prov.offload.setting import Setting
from r1prov.offload.speed import DEFAULT

RAM, CARD, LINK, CARD_OPERATIONS, CPU_OPERATIONS = NAMES
R1 = layout.model("UD-IQ1_S", mla=True)
Q2 = layout.model("UD-Q2_K_XL", mla=True)
FOUR, LARGE = (24564 * MIB,) * 4, (81559 * MIB,) * 4
ALIKE = Setting(context=32768, slots=1, unified=False, flash=True, micro_batch=512, prompts=0)
ON_CPU = replace(ALIKE, gpu_layers=0)
EXPERTS_IN_RAM = replace(ALIKE, gpu_layers=62, overrides=(("exps", None),))
SOME_IN_RAM = replace(ALIKE, gpu_layers=62, overrides=(("blk[.]([0-9]|1[0-9])[.].*exps", None),))
WHOLE = replace(ALIKE, gpu_layers=62)


def sample(setting, cards, truth, which, *, prompt=0, depth=0, model=R1, noise=1.0):
    """A measurement on a machine with these speeds, for which the formulas hold exactly, but for the noise."""
    found = Sample(costs(model, setting, cards), 1.0, prompt, depth)
    return replace(found, seconds=found.foreseen(truth, which) * noise)


def made_up(random):
    """Speeds of a machine. The formulas are sure about two of them, which are up to twice as high or low as the middle of the defaults.

    Whether a device computes while it reads or copies, they leave open, so that the link and the operations lie in the defaults.
    """
    truth = {}
    for name in NAMES:
        low, high = math.log(getattr(DEFAULT, name).low), math.log(getattr(DEFAULT, name).high)
        middle = (low + high) / 2
        ends = (middle - math.log(2), middle + math.log(2)) if name in SURE else (low, high)
        truth[name] = math.exp(random.uniform(*ends))
    return truth


def of_hybrid(truth, which, **more):
    """What `bench --modes cpu,hybrid,experts-in-ram` measures on four small cards."""
    for setting in (ON_CPU, SOME_IN_RAM, EXPERTS_IN_RAM):
        for depth in (0, 16000):
            yield sample(setting, FOUR, truth, which, depth=depth + 500, **more)
        yield sample(setting, FOUR, truth, which, prompt=512, **more)


def of_large(truth, which, **more):
    """The same on large cards that hold all."""
    for users_depth in (500, 16000):
        yield sample(WHOLE, LARGE, truth, which, depth=users_depth, **more)
    yield sample(WHOLE, LARGE, truth, which, prompt=2000, **more)


def of_cpu(truth, which, **more):
    """The same without cards."""
    yield sample(ON_CPU, (), truth, which, depth=500, **more)
    yield sample(ON_CPU, (), truth, which, prompt=512, **more)


SURE = {RAM, CARD}
MACHINES = {
    "hybrid": (of_hybrid, {RAM, LINK}),
    "large": (of_large, {CARD, CARD_OPERATIONS}),
    "cpu": (of_cpu, {RAM, CPU_OPERATIONS}),
}


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("machine", MACHINES)
def test_made_up_speeds_come_back(machine: str, which: int) -> None:
    simulated, names = MACHINES[machine]
    random = Random(f"{machine} {which}")
    for _ in range(5):
        truth = made_up(random)
        noises = [random.uniform(0.985, 1.015) for _ in range(12)]
        samples = [
            replace(each, seconds=each.seconds * noise)
            for each, noise in zip(simulated(truth, which), noises, strict=False)
        ]
        found = measured.speeds(samples, DEFAULT)
        assert names <= found.keys()
        for name, (low, high) in found.items():
            known = getattr(DEFAULT, name)
            assert low <= truth[name] <= high, (name, low, high, truth)
            assert high / low <= known.high / known.low
            if name in SURE & names:
                assert math.sqrt(low * high) == pytest.approx(truth[name], rel=0.05)


def test_what_was_not_measured_is_not_claimed() -> None:
    truth = made_up(Random(16))
    assert measured.speeds([], DEFAULT) == {}
    assert measured.speeds(list(of_cpu(truth, 0)), DEFAULT).keys() == {RAM, CPU_OPERATIONS}
    assert not {RAM, CPU_OPERATIONS, LINK} & measured.speeds(list(of_large(truth, 0)), DEFAULT).keys()


def test_one_rate_of_a_hybrid_machine_tells_about_the_ram_as_far_as_the_cards_are_known() -> None:
    truth = made_up(Random(17)) | {CARD: 500 * GB, RAM: 42 * GB}
    found = measured.speeds([sample(EXPERTS_IN_RAM, FOUR, truth, 0, depth=500)], DEFAULT)
    assert measured.speeds([sample(SOME_IN_RAM, FOUR, truth, 0, depth=500)], DEFAULT) == {}  # each explains half of it
    low, high = found[RAM]
    assert {*found} == {RAM}
    assert low < 42 * GB < high < 1.6 * low


def test_speeds_are_the_machines_and_not_the_models() -> None:
    truth = made_up(Random(18))
    for model in (R1, Q2):
        low, high = measured.speeds(list(of_cpu(truth, 0, model=model)), DEFAULT)[RAM]
        assert math.sqrt(low * high) == pytest.approx(truth[RAM], rel=0.05)


def test_rates_that_contradict_each_other_make_the_range_wide_and_never_upside_down() -> None:
    truth = made_up(Random(19))
    random = Random(20)
    for _ in range(20):
        samples = [replace(each, seconds=each.seconds * 2 ** random.uniform(-3, 3)) for each in of_hybrid(truth, 1)]
        for low, high in measured.speeds(samples, DEFAULT).values():
            assert 0 < low <= high
    slow, fast = (sample(ON_CPU, (), truth | {RAM: speed * GB}, 0, depth=500) for speed in (20, 40))
    low, high = measured.speeds([slow, fast], DEFAULT)[RAM]
    assert low < 20 * GB < 40 * GB < high


def test_a_model_that_the_processors_caches_hold_tells_nothing() -> None:
    found = costs(R1, ON_CPU, ())
    tiny = replace(found, host=replace(found.host, always=10**7, experts=10**8))
    assert measured.speeds([Sample(tiny, 0.01, 0, 100), Sample(tiny, 1.0, 512, 0)], DEFAULT) == {}


MACHINE = Hardware(cpu="Xeon", cores=64, threads=64, ram=480 * GB, cards=(("RTX 4090", 24564 * MIB),) * 4)


def speed_of(low: float, high: float, day: int) -> MeasuredSpeed:
    return MeasuredSpeed(low=low, high=high, by="r1prov tune", model="Q", measured=f"2026-11-{day}T10:00:00+00:00")


def test_a_later_measurement_narrows_an_earlier_one_or_takes_its_place() -> None:
    known = Known(hardware=MACHINE).with_measured({RAM: speed_of(30, 50, 20), LINK: speed_of(1, 2, 20)})
    narrower = known.with_measured({RAM: speed_of(40, 60, 21)}).measured
    assert (narrower[RAM].low, narrower[RAM].high, narrower[RAM].measured[:10]) == (40, 50, "2026-11-21")
    assert narrower[LINK] == speed_of(1, 2, 20)
    assert known.with_measured({RAM: speed_of(10, 20, 21)}).measured[RAM] == speed_of(10, 20, 21)
    assert known.with_measured({RAM: speed_of(10, 20, 19)}).measured[RAM] == speed_of(30, 50, 20)  # it was read late
    assert Known.model_validate_json(known.model_dump_json()) == known
