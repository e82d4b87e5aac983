"""Measures how good r1prov's plans are, and how long its commands take.

    python -m benchmarks.plan

First comes the table of docs/evidence/memory.md. It shows how much one token reads from RAM under four placements: the rule of thumb,
all experts in RAM, llama.cpp's `--fit` (tests/data/engine_fit.json), and r1prov's plan. Then come the seconds of processor time that
each command takes, the least of `RUNS` runs.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from r1prov.common.units import GB
from r1prov.machines.profile import load_profile
from r1prov.models import catalogue, layout
from r1prov.offload import compare, search
from r1prov.offload.arguments import parse
from r1prov.offload.memory import flash_on_cards
from r1prov.offload.outcome import Space, outcome
from r1prov.offload.setting import Setting
from tests.cuda import fullsize

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from r1prov.offload.outcome import Outcome

FITTED = json.loads((Path(__file__).parents[1] / "tests" / "data" / "engine_fit.json").read_text())
MACHINES = {"4x4090": "UD-IQ1_S", "4xh800": "Q4_K_M"}
"""The profiles of the reference machines, each with a quant that does not fit wholly on its cards."""

BY_HAND = ("-ngl", "35", "-c", "512", "--cache-type-k", "q4_0")
RUNS = 5


def table() -> str:
    """The Markdown table of the GB that one token reads from RAM, for one slot, an F16 cache and 1,024 MiB free on each card."""
    head = "| | rule of thumb | all experts in RAM | `--fit` | r1prov |\n|---|---|---|---|---|\n"
    return head + "".join(_rows())


def _rows() -> Iterator[str]:
    for profile, quant in MACHINES.items():
        machine = load_profile(profile).machine
        space = Space(machine.cards, machine.ram)
        for attention in ("legacy", "latent"):
            model = layout.model(quant, mla=attention == "latent")
            for context in (512, 8192):
                wanted = Setting(context=context, slots=1, unified=False, gpu_layers=0)
                thumb, *_, experts = compare.baselines(model, wanted, space, catalogue.quant(quant).bytes)
                fitted = next(
                    parse([*answer["arguments"], "-np", "1"], cards=len(space.cards))
                    for answer in FITTED
                    if (answer["quant"], answer["mla"]) == (quant, model.mla)
                    and answer["cards"] == [card >> 20 for card in space.cards]
                    and (answer["context"], answer["slots"], answer["type_k"]) == (context, 1, "f16")
                )
                planned = replace(wanted, flash=flash_on_cards(model))  # a plan names flash attention explicitly
                ours = search.best(model, planned, space) or planned
                ways = (thumb.outcome, experts.outcome, *(outcome(model, way, space) for way in (fitted, ours)))
                name = f"{profile}, {quant}, {attention} attention, {context:,} tokens"
                yield f"| {name} | {' | '.join(map(_cell, ways))} |\n"


def _cell(found: Outcome) -> str:
    return f"{found.reads.host / GB:.3f}" + ("" if found.fits else ", does not fit")


def times() -> Iterator[tuple[str, float]]:
    """The name of each command, and the least seconds of processor time that it took."""
    with tempfile.TemporaryDirectory() as folder:
        file = fullsize.write(Path(folder) / "r1.gguf", "UD-IQ1_S", mla=False)
        commands = {
            "Python": ["-c", "pass"],
            "r1prov --help": ["-m", "r1prov.cli", "--help"],
            "r1prov explain": ["-m", "r1prov.cli", "explain", "--gpus", "4x24GiB", "--ram", "480GiB", "--", *BY_HAND],
            "r1prov plan": ["-m", "r1prov.cli", "plan", "--profile", "4x4090"],
            "r1prov plan --gguf, of 140 GB": ["-m", "r1prov.cli", "plan", "--profile", "4x4090", "--gguf", str(file)],
        }
        for name, words in commands.items():
            yield name, min(_seconds(words) for _ in range(RUNS))


def _seconds(words: Sequence[str]) -> float:
    """The processor time of one run in seconds; other work on the machine changes it less than the time by the clock."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
    for what, seconds in times():
        sys.stdout.write(f"{seconds:6.2f} s  {what}\n")
