"""Buffer sizes that loaders printed on real machines, reproduced with the placement rule of the engine that printed them.

Of the logs that were collected these are left out:

- llama.cpp#11635: prints types, no sizes, and its two texts name 14 and 16 layers.
- JunweiLiang's notes, 4 x RTX 3090: no sizes; that 28 layers ran out of memory was the compute buffer of an engine of February 2025.
- gpustack#1107: prints types, no sizes.
- ik_llama.cpp#245: a quant of the author's own with 1147 tensors.
- ik_llama.cpp#271, all but one: types repacked by that engine, or Q8_0, whose layout is not in the catalogue.
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
    """`layers` as the log says: engines of early 2025 leave the output in RAM until there are 62."""

    source: str
    quant: str
    layers: int
    cards: int
    told_mib: tuple[float, ...]  # of each card, then of RAM where the log says it plainly
    in_ram: str | None = None


LOGS = [
    Log("github.com/unslothai/unsloth/issues/1591", "UD-IQ1_S", 61, 2, (65208.70, 67299.27, 1222.09)),
    Log("github.com/ollama/ollama/issues/8447, 1 layer", "Q4_K_M", 1, 1, (7106.67, 378582.96)),
    Log("github.com/ollama/ollama/issues/8447, 3 layers", "Q4_K_M", 3, 1, (21320.01, 364369.62)),
    Log("github.com/ggml-org/llama.cpp/pull/11397", "Q4_K_M", 62, 1, (9460.52,), EXPERTS),
    Log("github.com/ikawrakow/ik_llama.cpp/issues/271", "UD-Q2_K_XL", 63, 1, (9885.95, 205716.00 + 497.11), "exps"),
]


def as_now(log: Log) -> Setting:
    """The same placement in the words of the pinned engine, which counts the output as an entry."""
    layers = min(log.layers, 61)
    each = [
        sum(1 for n in range(layers) if int(n * log.cards / min(log.layers, 62)) == card) for card in range(log.cards)
    ]
    each[-1] += 1
    rules = ((log.in_ram, None),) if log.in_ram else ()
    output_in_ram = (("^output", None),) if log.layers < 62 else ()
    return Setting(
        2048, slots=1, gpu_layers=layers + 1, split=tuple(map(float, each)), overrides=(*output_in_ram, *rules)
    )


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.source)
def test_weights_are_what_the_loader_printed(log: Log) -> None:
    taken = memory(layout.model(log.quant), as_now(log), [80 * GIB] * log.cards)
    found = [use.weights / MIB for use in (*taken.cards, taken.host)]
    assert found[: len(log.told_mib)] == pytest.approx(log.told_mib, rel=0.001)


def test_what_was_seen_to_run_out_of_memory_does_not_fit() -> None:
    """ollama#8447: four layers of Q4_K_M on 23.3 GiB, `allocating 28426.68 MiB on device 0: cudaMalloc failed`."""
    log = Log("", "Q4_K_M", 4, 1, ())
    found = outcome(layout.model(log.quant), as_now(log), Space((int(23.3 * GIB),), 512 * GIB, reserve=0))
    assert "CUDA0 runs out of memory" in found.reasons[0]


def test_what_was_seen_to_work_fits() -> None:
    """unsloth#1591: 61 layers of UD-IQ1_S on two A100 of 80 GB, 8,192 tokens with K in Q4_0."""
    setting = Setting(8192, slots=1, type_k="Q4_0", gpu_layers=62, split=(31.0, 31.0), overrides=(("^output", None),))
    assert outcome(layout.model("UD-IQ1_S"), setting, Space((81920 * MIB,) * 2, 256 * GIB, reserve=0)).fits
