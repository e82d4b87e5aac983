"""Tests of how the engine runs a plan: each choice on a machine that calls for it, and on one that does not."""

from typing import get_args

import pytest

from r1prov.common.units import GB
from r1prov.machines.profile import load_profile
from r1prov.models import catalogue
from r1prov.models.latent import Attention
from r1prov.offload import Plan, plan


def planned(profile: str, quant: str = "UD-IQ1_S", attention: Attention = "mla", **machine: object) -> Plan:
    base = load_profile(profile)
    changed = base.machine.model_copy(update=machine)
    serving = base.serving.model_copy(update={"quant": quant, "attention": attention, "context_per_slot": 8192})
    return plan(catalogue.quant(quant), changed, serving)


def said(found: Plan, name: str) -> str | None:
    """The value of an argument of the plan, or None where the plan does not give it."""
    words = list(found.arguments)
    return words[words.index(name) + 1] if name in words else None


def test_threads_are_the_profiles_where_the_cpu_computes_and_few_where_it_does_not() -> None:
    assert said(planned("4x4090"), "--threads") == "64"
    assert said(planned("4xh800", "UD-Q2_K_XL"), "--threads") == "8"
    assert said(planned("4xh800", "UD-Q2_K_XL", cpu_threads=4), "--threads") == "4"
    assert said(planned("cpu"), "--threads") is None


def test_flash_attention_is_what_the_plan_counts_with() -> None:
    assert said(planned("4x4090", attention="legacy"), "--flash-attn") == "off"  # no kernel computes legacy heads
    assert said(planned("4x4090"), "--flash-attn") == "on"
    assert said(planned("cpu", attention="legacy"), "--flash-attn") == "on"
    for profile in ("4x4090", "cpu"):
        for attention in get_args(Attention):
            found = planned(profile, attention=attention)
            assert said(found, "--flash-attn") == ("on" if found.setting.flash else "off")


@pytest.mark.parametrize(
    ("profile", "quant", "machine", "mode", "more"),
    [
        ("4x4090", "UD-IQ1_S", {}, "none", []),
        ("4x4090", "UD-IQ1_S", {"ram": 40 * GB}, "mmap", []),
        ("4x4090", "UD-IQ1_S", {"numa_nodes": 2}, "mmap", ["--numa", "distribute"]),
        ("4xh800", "UD-Q2_K_XL", {}, "none", []),
        ("4xh800", "UD-Q2_K_XL", {"numa_nodes": 2}, "none", []),  # the CPU computes nothing from RAM
        ("cpu", "UD-IQ1_S", {}, "mmap+mlock", []),
        ("cpu", "UD-IQ1_S", {"numa_nodes": 2}, "mmap", ["--numa", "distribute"]),
        # The locked file and its repacked form take 404 GB each. 512 GB hold one of them, but not both.
        ("cpu", "Q4_K_M", {"ram": 1024 * GB}, "mmap+mlock", []),
        ("cpu", "Q4_K_M", {"ram": 512 * GB}, "mmap", []),
        ("cpu", "Q4_K_M", {"ram": 256 * GB}, "mmap", ["--no-repack"]),
    ],
)
def test_the_file_is_read_as_ram_and_nodes_allow(
    profile: str, quant: str, machine: dict[str, object], mode: str, more: list[str]
) -> None:
    found = planned(profile, quant, **machine)
    assert said(found, "--load-mode") == mode
    assert list(found.arguments[found.arguments.index("--load-mode") + 2 :]) == more


def test_a_model_of_unknown_layers_is_read_as_its_size_allows() -> None:
    demo = load_profile("demo")
    assert demo.model
    for ram, mode in ((GB // 10, "mmap"), (16 * GB, "mmap+mlock")):
        machine = demo.machine.model_copy(update={"ram": ram})
        assert said(plan(demo.model, machine, demo.serving), "--load-mode") == mode


def test_cards_are_counted_along_the_bus() -> None:
    assert planned("4x4090").environment == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert planned("cpu").environment == {}
