"""The plan against llama.cpp's own figures, and against arithmetic that must hold for any machine."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1prov import catalogue
from r1prov.catalogue import Quant
from r1prov.errors import SiteError
from r1prov.machine import Gpus, Machine, Serving, load_profile
from r1prov.offload import DYNAMIC_QUANTS, best_on_gpus, memory, plan, thumb
from r1prov.units import GB, MIB

# llama-fit-params of the pinned llama.cpp with its CUDA backend, full-size UD-IQ1_S and UD-Q2_K_XL headers, K cache Q4_0:
# (context per slot, slots, micro-batch) -> compute MiB of (first card with layers in RAM, another card)
MEASURED_COMPUTE_MIB = {
    (512, 1, 512): (1110, 351),
    (2048, 1, 512): (1110, 672),
    (4096, 1, 512): (1448, 1252),
    (8192, 1, 64): (947, 525),
    (8192, 1, 128): (1174, 795),
    (8192, 1, 256): (1729, 1334),
    (8192, 1, 512): (2868, 2412),
    (8192, 1, 1024): (5008, 4568),
    (16384, 1, 512): (5660, 4732),
    (32768, 1, 512): (11836, 9372),
    (8192, 4, 512): (5644, 3340),
    (8192, 4, 256): (0, 2182),
}


@pytest.mark.parametrize(("setting", "measured"), MEASURED_COMPUTE_MIB.items())
def test_compute_is_a_bound_of_what_llama_cpp_takes_and_not_far_above(
    setting: tuple[int, int, int], measured: tuple[int, int]
) -> None:
    context, slots, micro_batch = setting
    first, other = (mib * MIB for mib in measured)
    bound = memory.compute_bytes(context, slots, micro_batch)
    assert other <= bound <= other + 256 * MIB
    assert first <= bound + memory.first_card_extra_bytes(context, slots, "q4_0")


def test_kv_cache_is_what_llama_cpp_takes() -> None:
    # 8 layers, 8,192 tokens: 2,912 MiB with K in Q4_0, 5,120 MiB in F16 (measured as above); 38 GiB for all layers at 8k
    assert 8 * 8192 * memory.kv_bytes_per_token("q4_0") == 2912 * MIB
    assert 8 * 8192 * memory.kv_bytes_per_token("f16") == 5120 * MIB


def planned(profile: str, quant: str, **serving: object):
    machine = load_profile(profile).machine
    base = load_profile(profile).serving
    return plan(catalogue.quant(quant), machine, base.model_copy(update=serving))


def test_4x4090_is_lowered_from_the_rule_of_thumb_and_matches_llama_cpp_on_weights_and_kv() -> None:
    result = planned("4x4090", "UD-IQ1_S")
    assert (result.thumb_layers, result.gpu_layers) == (40, 31)
    # llama-fit-params for these arguments: model and context MiB by card
    assert [(d.weights // MIB, d.kv // MIB) for d in result.devices] == [
        (15703, 2548),
        (17946, 2912),
        (17946, 2912),
        (16428, 2548),
    ]


def test_the_bare_rule_would_run_out_of_memory_on_a_4x4090() -> None:
    result = planned("4x4090", "UD-IQ1_S")
    per_card = sum(d.weights + d.kv + d.compute for d in result.devices) / result.gpu_layers * 40 / 4
    assert per_card > result.devices[0].capacity


def test_4xh800_takes_the_best_dynamic_quant_wholly_onto_the_cards() -> None:
    profile = load_profile("4xh800")
    result = best_on_gpus([catalogue.quant(name) for name in DYNAMIC_QUANTS], profile.machine, profile.serving)
    assert (result.quant, result.gpu_layers) == ("UD-Q2_K_XL", 62)
    assert [(d.weights // MIB, d.kv // MIB) for d in result.devices] == [
        (49825, 23296),
        (55017, 21840),
        (55017, 21840),
        (55742, 21840),
    ]


def test_nothing_fits_on_small_cards_is_said_with_figures() -> None:
    profile = load_profile("4x4090")
    with pytest.raises(SiteError, match="no dynamic quant fits"):
        best_on_gpus([catalogue.quant(name) for name in DYNAMIC_QUANTS], profile.machine, profile.serving)


def test_without_gpus_everything_is_in_ram() -> None:
    result = planned("cpu", "UD-IQ1_S")
    assert (result.gpu_layers, result.devices, result.host_weights) == (0, (), catalogue.quant("UD-IQ1_S").bytes)
    assert result.arguments[:2] == ("--ctx-size", "8192")


def test_context_is_per_slot() -> None:
    result = planned("4xh800", "UD-IQ1_S", slots=3, context_per_slot=4096)
    assert result.arguments[:4] == ("--ctx-size", "12288", "--parallel", "3")


def test_a_model_of_unknown_layers_is_not_placed_on_gpus() -> None:
    own = catalogue.quant("UD-IQ1_S").model_copy(update={"name": "mine", "repo": "me/mine"})
    profile = load_profile("4x4090")
    with pytest.raises(SiteError, match="its layers are not known"):
        plan(own, profile.machine, profile.serving)


@pytest.mark.parametrize(("vram_gb", "layers"), [(24, 7), (80, 33), (160, 61)])
def test_the_rule_of_thumb_is_the_published_one(vram_gb: int, layers: int) -> None:
    """The published table's row for 1.58 bit, whose `131 GB` is 131e9; two cards of 80 GB are said to take all."""
    assert thumb.layers_on_gpu(vram_gb * GB, 131 * GB) == pytest.approx(layers, abs=0)


quants = st.sampled_from(catalogue.quants()).map(catalogue.quant)
machines = st.builds(
    Machine,
    gpus=st.builds(
        Gpus,
        count=st.integers(1, 8),
        name=st.just("card"),
        memory=st.integers(8 * 1024, 144 * 1024).map(lambda mib: mib * MIB),
        compute_capability=st.just("8.9"),
    ),
    ram=st.just(512 * GB),
    disk=st.just(1000 * GB),
)
servings = st.builds(
    Serving,
    quant=st.just(""),
    context_per_slot=st.sampled_from([512, 2048, 8192, 32768]),
    slots=st.integers(1, 4),
    kv_type_k=st.sampled_from(["f16", "q8_0", "q4_0"]),
    micro_batch=st.sampled_from([64, 128, 512]),
)


@settings(max_examples=200, deadline=None)
@given(quants, machines, servings)
def test_no_card_is_ever_overfull_and_nothing_is_lost(quant: Quant, machine: Machine, serving: Serving) -> None:
    result = plan(quant, machine, serving)
    assert all(d.weights + d.kv + d.compute + d.reserve <= d.capacity for d in result.devices if d.weights)
    assert result.host_weights + sum(d.weights for d in result.devices) == quant.bytes
    assert result.gpu_layers <= 62
    if "--tensor-split" in result.arguments:
        split = result.arguments[result.arguments.index("--tensor-split") + 1]
        assert sum(int(part) for part in split.split(",")) == result.gpu_layers
