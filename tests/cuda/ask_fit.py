"""Asks llama.cpp what its own `--fit` chooses for many machines, and writes the answers for `tests/data/engine_fit.json`.

    python -m tests.cuda.ask_fit PROGRAM > tests/data/engine_fit.json

A unit test checks with them that no plan reads more from RAM than `--fit` does. PROGRAM is that of `ask_memory`. The program takes
ten minutes on two cores.
"""

from __future__ import annotations

import itertools
import json
import random
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from r1prov.models.layout import TYPES
from tests.cuda import fullsize
from tests.cuda.ask_memory import CARDS, LARGE, SMALL, Engine, here

MIDDLE, LITTLE = 49_140, 16_376  # MiB that nvidia-smi shows for an RTX A6000 and an RTX 4080
MACHINES = (
    *(cards for cards in CARDS if cards),
    *((MIDDLE, MIDDLE), (LITTLE,), (LITTLE,) * 4, (LITTLE, SMALL), (SMALL, LITTLE, MIDDLE), (LARGE, LITTLE, LITTLE)),
    *((LITTLE, LARGE, SMALL, MIDDLE), (MIDDLE,) * 3, (SMALL,) * 7, (LARGE, MIDDLE, SMALL, LITTLE, SMALL)),
)
CONTEXTS = (512, 2048, 8192, 16_384, 32_768, 65_536)
SLOTS = (1, 1, 2, 4, 8)
CACHES = ("f16", "f16", "q8_0", "q4_0")
NAMED = tuple(
    (quant, cards, mla, context)
    for quant, cards in (("UD-IQ1_S", (SMALL,) * 4), ("Q4_K_M", (LARGE,) * 4))
    for mla in (False, True)
    for context in (512, 8192)
)
"""The questions whose answers docs/evidence/memory.md shows."""


def questions(count: int = 57) -> Iterator[dict[str, Any]]:
    """The questions of `NAMED`, and `count` others that take the machines in turn and choose the rest at random.

    As in r1prov's plans, V has the type of K in latent attention and is F16 in legacy attention.
    """
    for quant, cards, mla, context in NAMED:
        yield _question(quant, cards, mla=mla, context=context, slots=1, kind="f16")
    dice = random.Random(58)
    for cards in itertools.islice(itertools.cycle(MACHINES), count):
        yield _question(
            dice.choice(list(TYPES)),
            cards,
            mla=dice.random() < 0.5,
            context=dice.choice(CONTEXTS),
            slots=dice.choice(SLOTS),
            kind=dice.choice(CACHES),
        )


def _question(quant: str, cards: Sequence[int], *, mla: bool, context: int, slots: int, kind: str) -> dict[str, Any]:
    asked = {"quant": quant, "mla": mla, "cards": list(cards), "context": context, "slots": slots}
    return asked | {"type_k": kind, "type_v": kind if mla else "f16"}


def ask(engine: Engine, file: Path, asked: dict[str, Any]) -> list[str] | None:
    """The arguments that `--fit` chooses, or None where it gives up. `file` is the path by which the engine sees the model."""
    words = [",".join(map(str, asked["cards"])), "--model", str(file), "--fit", "on", "-c", str(asked["context"])]
    words += ["-np", str(asked["slots"]), "-ctk", asked["type_k"], "-ctv", asked["type_v"]]
    printed = engine(words).stdout
    return next((shlex.split(line) for line in printed.splitlines() if line.startswith("-c ")), None)


def main(program: str) -> None:
    answers = []
    engine = here(program)
    with tempfile.TemporaryDirectory() as folder:
        for asked in questions():
            fitted = ask(engine, fullsize.file_in(Path(folder), asked["quant"], mla=asked["mla"]), asked)
            answers.append(json.dumps(asked | {"arguments": fitted}))
            sys.stderr.write(answers[-1] + "\n")
    sys.stdout.write("[\n" + ",\n".join(answers) + "\n]\n")


if __name__ == "__main__":
    main(sys.argv[1])
