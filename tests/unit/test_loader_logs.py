"""Compares with buffer sizes that loaders printed on real machines, under the placement rule of the engine that printed them.

These collected logs are left out:

- llama.cpp#11635 prints types but no sizes, and its two texts name 14 and 16 layers.
- JunweiLiang's notes on 4 x RTX 3090 have no sizes. There, 28 layers ran out of memory because of the compute buffer of an engine
  of February 2025.
- gpustack#1107 prints types but no sizes.
- ik_llama.cpp#245 is about the author's own quant, which has 1147 tensors.
- ik_llama.cpp#271 has further logs. They have types that this engine repacks, or Q8_0, whose layout is not in the catalogue.
"""

from dataclasses import dataclass

import pytest

from r1prov.common.units import GIB, MIB
from r1prov.models import layout
from r1prov.offload.memory import memory
from r1prov.offload.outcome import Space, outcome
from r1prov.offload.setting import EXPERTS, Setting


@dataclass(frozen=True)
class Log:
    """A log of a real load. `layers` is the number in the log; engines of early 2025 keep the output in RAM below 62 layers."""

    source: str
    quant: str
    layers: int
    cards: int
    told_mib: tuple[float, ...]  # the MiB on each card, then in RAM if the log says so clearly
    in_ram: str | None = None


LOGS = [
    Log("github.com/unslothai/unsloth/issues/1591", "UD-IQ1_S", 61, 2, (65208.70, 67299.27, 1222.09)),
    Log("github.com/ollama/ollama/issues/8447, 1 layer", "Q4_K_M", 1, 1, (7106.67, 378582.96)),
    Log("github.com/ollama/ollama/issues/8447, 3 layers", "Q4_K_M", 3, 1, (21320.01, 364369.62)),
    Log("github.com/ggml-org/llama.cpp/pull/11397", "Q4_K_M", 62, 1, (9460.52,), EXPERTS),
    Log("github.com/ikawrakow/ik_llama.cpp/issues/271", "UD-Q2_K_XL", 63, 1, (9885.95, 205716.00 + 497.11), "exps"),
]


def as_now(log: Log) -> Setting:
    """The log's placement as a setting of the pinned engine, which counts the output as a layer."""
    layers = min(log.layers, 61)
    per_card = [
        sum(1 for n in range(layers) if int(n * log.cards / min(log.layers, 62)) == card) for card in range(log.cards)
    ]
    per_card[-1] += 1
    rules = ((log.in_ram, None),) if log.in_ram else ()
    output_in_ram = (("^output", None),) if log.layers < 62 else ()
    return Setting(
        2048, slots=1, gpu_layers=layers + 1, split=tuple(map(float, per_card)), overrides=(*output_in_ram, *rules)
    )


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.source)
def test_weights_are_what_the_loader_printed(log: Log) -> None:
    taken = memory(layout.model(log.quant), as_now(log), [80 * GIB] * log.cards)
    found = [use.weights / MIB for use in (*taken.cards, taken.host)]
    assert found[: len(log.told_mib)] == pytest.approx(log.told_mib, rel=0.001)


def test_what_was_seen_to_run_out_of_memory_does_not_fit() -> None:
    """In ollama#8447, four layers of Q4_K_M on 23.3 GiB ended in `allocating 28426.68 MiB on device 0: cudaMalloc failed`."""
    log = Log("", "Q4_K_M", 4, 1, ())
    found = outcome(layout.model(log.quant), as_now(log), Space((int(23.3 * GIB),), 512 * GIB, reserve=0))
    assert "CUDA0 runs out of memory" in found.reasons[0]


def test_what_was_seen_to_work_fits() -> None:
    """In unsloth#1591, two A100 of 80 GB held 61 layers of UD-IQ1_S and 8,192 tokens with K in Q4_0."""
    setting = Setting(8192, slots=1, type_k="Q4_0", gpu_layers=62, split=(31.0, 31.0), overrides=(("^output", None),))
    assert outcome(layout.model("UD-IQ1_S"), setting, Space((81920 * MIB,) * 2, 256 * GIB, reserve=0)).fits
