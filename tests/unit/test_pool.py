"""One model on several hosts: which cards there are, where its layers lie, and what the way to other hosts costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from pydantic import ValidationError

from r1prov.common.errors import SiteError
from r1prov.common.units import GB, GIB, MIB
from r1prov.machines.profile import Machine, load_profile
from r1prov.models import catalogue, gguf, latent
from r1prov.models.model import Model
from r1prov.offload import Plan, model_of, plan
from r1prov.offload.arguments import parse
from r1prov.offload.costs import costs
from r1prov.offload.foresight import foresee_plan
from r1prov.offload.memory import memory, placement
from r1prov.offload.outcome import RESERVE_BYTES
from r1prov.offload.speed import GRAPH_BYTES, of_machine
from tests.fixtures import tinymodel

PROFILE = load_profile("2x4x4090")
POOL = PROFILE.machine
LINK: dict[str, Any] = {"gbit_per_s": 10, "round_trip_us": 100}


def machine(**keys: Any) -> Machine:
    return Machine.model_validate({"ram": "96 GB", "disk": "1 TB", **keys})


def planned(on: Machine = POOL, quant: str = "UD-IQ1_S", **serving: Any) -> Plan:
    return plan(catalogue.quant(quant), on, PROFILE.serving.model_copy(update={"quant": quant, **serving}))


def model(quant: str = "UD-IQ1_S") -> Model:
    found = model_of(catalogue.quant(quant))
    assert found
    return latent.served(found, "mla")


def test_a_pool_has_the_cards_of_all_its_hosts() -> None:
    card = POOL.gpus.memory if POOL.gpus else 0
    assert (POOL.cards, POOL.lent, POOL.vram) == ((card,) * 8, 4, 8 * card)
    assert (POOL.alone.cards, POOL.alone.lent) == ((card,) * 4, 0)
    without = machine(hosts=3, network=LINK)
    assert (without.cards, without.lent) == ((without.ram,) * 2, 2)


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"hosts": 2}, "`hosts` and `network` belong together"),
        ({"network": LINK}, "`hosts` and `network` belong together"),
        ({"hosts": 5, "network": LINK, "gpus": {**dict(POOL.gpus or {}), "memory": "24 GiB"}}, "these are 20"),
        ({"hosts": 2, "network": {"gbit_per_s": 0}}, "greater than 0"),
    ],
)
def test_a_pool_that_cannot_be_is_refused(keys: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        machine(**keys)


def test_all_lies_on_the_cards_of_both_hosts_layer_by_layer() -> None:
    found = planned()
    assert found.outcome
    assert found.outcome.fits
    assert found.whole
    assert [device.name for device in found.outcome.devices] == [
        *(f"{of}{n}" for of in ("RPC", "CUDA") for n in range(4))
    ]
    assert "--override-tensor" not in found.arguments
    assert all(device.weights > 0 and device.free >= RESERVE_BYTES for device in found.outcome.devices)
    said = parse(found.arguments, cards=len(POOL.cards), lent=POOL.lent)
    assert memory(model(), said, POOL.cards) == memory(model(), found.setting, POOL.cards)


def test_cards_of_other_hosts_are_no_pipeline() -> None:
    setting = planned().setting
    assert costs(model(), setting, POOL.cards, of_machine(POOL)).stages == 1
    as_one = replace(setting, lent=0)
    assert costs(model(), as_one, POOL.cards).stages > 1
    # A pipeline has several copies of what goes between cards.
    pool, one = (memory(model(), each, POOL.cards).cards for each in (setting, as_one))
    assert sum(use.compute for use in pool) < sum(use.compute for use in one)


def test_weights_in_ram_are_copied_to_the_first_card_of_the_engines_own_host() -> None:
    setting = parse(("--ctx-size", "4096", "--parallel", "1", "--n-gpu-layers", "30", "--flash-attn", "on"), cards=8)
    alone, pool = (memory(model(), replace(setting, lent=lent), POOL.cards).cards for lent in (0, 4))
    assert alone[0].compute > 2 * alone[4].compute
    assert pool[4].compute > 2 * pool[0].compute


@given(tokens=some.integers(1, 4096), which=some.integers(0, 1))
def test_what_crosses_the_network_follows_from_bytes_and_round_trips(tokens: int, which: int) -> None:
    found = costs(model(), planned().setting, POOL.cards, of_machine(POOL))
    layers = sum(layer < 4 for layer in placement(model(), planned().setting, POOL.cards).layers)
    graph = 0 if which else GRAPH_BYTES * layers
    expected = (2 * 4 * 7168 * tokens + graph) / (10 * GB / 8) + 5 * 200e-6
    assert found.crossing_seconds(tokens, which) == pytest.approx(expected)
    nothing = replace(found, speeds=of_machine(POOL.alone))
    assert found.token_seconds(1, 8192, which) - nothing.token_seconds(1, 8192, which) == pytest.approx(
        found.crossing_seconds(1, which) + 2 * 8192 * 4 / (10 * GB / 8)
    )


def test_a_slower_network_makes_a_slower_plan() -> None:
    slow = POOL.model_copy(
        update={"network": machine(hosts=2, network={"gbit_per_s": 1, "round_trip_us": 2000}).network}
    )
    rates = [each.outcome.tokens_per_second for each in (planned(), planned(slow)) if each.outcome]
    assert rates[0] > rates[1]


def test_a_pool_is_compared_with_one_of_its_hosts() -> None:
    published = model_of(catalogue.quant("UD-IQ1_S"))
    assert published

    def seconds(on: Machine) -> tuple[float, float]:
        found = foresee_plan(
            published, catalogue.quant("UD-IQ1_S").bytes, on, PROFILE.serving, reserve=RESERVE_BYTES, smaller=list
        )
        assert found.alone
        return found.day.mean[0], found.alone.mean[0]

    pool, alone = seconds(POOL)
    assert pool < alone
    crawling = machine(hosts=2, network={"gbit_per_s": 0.001, "round_trip_us": 900_000}).network
    pool, alone = seconds(POOL.model_copy(update={"network": crawling}))
    assert pool > alone


def test_hosts_without_cards_share_the_model_by_their_ram() -> None:
    pool = machine(hosts=2, network=LINK, cpu_threads=32)
    found = planned(pool, context_per_slot=8192, micro_batch=512)
    assert found.outcome
    assert found.outcome.fits
    (lent,) = found.outcome.devices
    assert min(lent.weights, found.outcome.host.weights) > 60 * GIB
    roomy = planned(machine(hosts=2, network=LINK, ram="400 GB"), context_per_slot=8192)
    assert roomy.outcome
    assert roomy.outcome.devices[0].weights > 60 * GIB, "the other host has its part also where one has room for all"
    assert found.environment == {}
    with pytest.raises(SiteError, match="do not lie in the"):
        planned(machine(hosts=2, network=LINK, ram="40 GB"), context_per_slot=8192)


def test_what_no_pool_holds_is_refused() -> None:
    with pytest.raises(
        SiteError, match=r"UD-Q2_K_XL: .* do not lie in the 191.9 GiB of cards of 2 hosts layer by layer"
    ):
        planned(quant="UD-Q2_K_XL")


ENGINE_MIB = {"RPC0": (2.88, 9.00, 16.01), "CPU": (8.45, 27.00, 17.01)}
"""What llama-server of llama-cpp-python 0.3.36 said of its model, KV and compute buffers with the words below and one worker."""


def test_what_a_lent_device_takes_is_what_the_engine_says(tmp_path: Path) -> None:
    tiny = gguf.read(tinymodel.write(tmp_path / "tiny.gguf"))
    words = "--ctx-size 4096 --parallel 1 --no-kv-unified --fit off --ubatch-size 512 --n-gpu-layers 3 --flash-attn on"
    taken = memory(tiny, parse(words.split(), cards=1, lent=1), [2 * GB])
    for use, said in zip((*taken.cards, taken.host), ENGINE_MIB.values(), strict=True):
        # A card's weights are counted with the padding of CUDA.
        assert [use.weights / MIB, use.kv / MIB, use.compute / MIB] == pytest.approx(said, abs=0.02)
