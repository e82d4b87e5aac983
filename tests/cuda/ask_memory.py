"""What the engine itself says about the memory of many settings, with which the unit tests compare: of R1, and of other models.

    python -m tests.cuda.ask_memory PROGRAM r1 [SEED] > tests/data/engine_memory.json
    python -m tests.cuda.ask_memory PROGRAM others [SEED] > tests/data/engine_memory_others.json

PROGRAM runs llama-fit-params of the pinned llama.cpp with its CUDA backend on cards that need not exist; `tests/cuda/engine` is
one, on a machine without a driver where r1prov has built it:

    PROGRAM MIB,MIB,... ARGUMENTS      (an empty list: no card)

About four minutes on two cores each. Another SEED asks about other settings.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1prov.models.layout import LAYERS, TYPES
from tests.cuda import fullsize, models

SMALL, LARGE = 24_564, 81_559  # MiB that nvidia-smi shows for an RTX 4090 and an H800
CARDS = (
    *((), (SMALL,), (LARGE,), (SMALL, SMALL), (LARGE, LARGE), (SMALL,) * 4, (LARGE,) * 4, (SMALL,) * 8, (LARGE,) * 8),
    *((SMALL, LARGE), (LARGE, SMALL, SMALL), (SMALL, SMALL, LARGE, LARGE)),
)
CONTEXTS = (512, 1024, 2048, 4096, 8192, 12_000, 16_384, 32_768, 65_536)
MICRO_BATCHES = (64, 128, 256, 512, 1024, 2048)
SLOTS = (
    ("-np", "1"),
    ("-np", "1"),
    ("-np", "4"),
    ("-np", "2"),
    ("-np", "3"),
    ("-np", "8"),
)  # llama-fit-params knows no unified cache of several slots
LEGACY_CACHES = ("f16/f16", "q4_0/f16", "q8_0/f16", "f16/f16", "q4_0/f16", "q8_0/q8_0")
LATENT_CACHES = ("f16/f16", "q8_0/q8_0", "q4_0/q4_0", "f16/f16", "q8_0/q8_0", "q4_0/f16")
PLACEMENTS = (
    ("-ngl", "99"),
    ("-ngl", "99", "-ot", "exps=CPU"),
    ("-ngl", "{few}"),
    ("-ngl", "99", "-ncmoe", "{many}"),
    ("-ngl", "61"),
    ("-ngl", "{many}", "-ts", "{split}"),
    ("-ngl", "99", "-ot", r"blk\.([3-9]|1\d)\.ffn_.*_exps\.=CUDA0,blk\.2\d\.ffn_down_exps=CUDA{last},exps=CPU"),
    ("-ngl", "0"),
    ("-ngl", "99", "-ot", r"blk\.(3|4|5)\.ffn_(gate|up)_exps=CPU", "-ts", "{split}"),
    ("-ngl", "99", "-ncmoe", "{few}", "-fa", "off"),
    ("-ngl", "{few}", "-nkvo"),
    ("-ngl", "99", "-ot", "exps=CPU", "--no-op-offload"),
)
OTHER_CACHES = ("f16/f16", "q8_0/q8_0", "q4_0/f16", "f16/f16", "q4_0/q4_0", "q8_0/f16")
DENSE_PLACEMENTS = (
    ("-ngl", "99"),
    ("-ngl", "{few}"),
    ("-ngl", "99", "-fa", "off"),
    ("-ngl", "{many}", "-ts", "{split}"),
    ("-ngl", "{all}"),
    ("-ngl", "99", "-ts", "{split}", "-fa", "on"),
    ("-ngl", "0"),
    ("-ngl", "99", "-ot", r"blk\.(3|4|1\d)\.ffn_=CPU"),
    ("-ngl", "{few}", "-nkvo"),
    ("-ngl", "{many}", "--no-op-offload"),
)
EXPERT_PLACEMENTS = (
    ("-ngl", "99", "-ot", "exps=CPU"),
    ("-ngl", "99", "-ncmoe", "{few}"),
    ("-ngl", "99", "-ot", r"blk\.([3-9])\.ffn_.*_exps\.=CUDA0,blk\.1\d\.ffn_down_exps=CUDA{last},exps=CPU"),
    ("-ngl", "99", "-ncmoe", "{many}", "-ts", "{split}"),
)
CHOSEN = (
    # r1prov's own plans for its profiles, and the refusals that users meet
    ("UD-IQ1_S", False, (SMALL,) * 4, "-c 8192 -np 1 -ctk q4_0 -ub 512 -ngl 31 -ts 7,8,8,8"),
    ("UD-Q2_K_XL", False, (LARGE,) * 4, "-c 32768 -np 4 -ctk q4_0 -ub 256 -ngl 62 -ts 16,15,15,16"),
    ("UD-IQ1_S", True, (SMALL,) * 4, "-c 8192 -np 1 -ctk q4_0"),
    ("UD-IQ1_S", False, (SMALL,) * 4, "-c 8192 -np 1 -ctk q4_0 -ctv q4_0"),
    ("UD-IQ1_S", False, (SMALL,) * 4, "-c 8192 -np 1 -ngl 62 -fa on"),
    ("UD-IQ1_S", True, (SMALL,) * 4, "-c 8192 -np 1 -ngl 62 -fa off -ctk q8_0 -ctv q8_0"),
)

Engine = Callable[[Sequence[str]], subprocess.CompletedProcess[str]]
"""Runs PROGRAM with these arguments."""


@dataclass(frozen=True)
class Setting:
    """One question; `mla` only of R1, whose `model` is a quant."""

    model: str
    mla: bool | None
    cards: tuple[int, ...]
    arguments: tuple[str, ...]


class Dice:
    """Settings in which the lists take turns, so that each of their entries meets many others."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.turns: dict[tuple[Any, ...], Iterator[Any]] = {}

    def next_of(self, choices: tuple[Any, ...]) -> Any:
        """A skip now and then, or lists of like length would keep meeting in the same places."""
        turn = self.turns.setdefault(choices, itertools.cycle(choices))
        return next(itertools.islice(turn, self.random.randrange(3), None))

    def setting(
        self, model: str, *, mla: bool | None, caches: tuple[str, ...], placements: tuple[Any, ...], layers: int
    ) -> Setting:
        """One more setting of a model with so many layers."""
        lists = (CARDS, CONTEXTS, MICRO_BATCHES, SLOTS, placements)
        cards, context, micro, slots, placement = (self.next_of(choices) for choices in lists)
        filled = {
            "few": self.random.randrange(1, layers // 2),
            "many": self.random.randrange(layers // 2, layers - 3),
            "all": layers,
            "split": ",".join(str(self.random.randrange(1, 9)) for _ in cards) or "1",
            "last": max(len(cards) - 1, 0),
        }
        if not cards:
            # no card can be named; and weights repacked for the processor are left out of the engine's own sum
            placement = ("--no-repack",)
        k, v = self.random.choice(caches).split("/")
        words = ("-c", str(context), "-ub", str(micro), *slots, "-ctk", k, "-ctv", v)
        return Setting(model, mla, cards, (*words, *_filled(placement, filled)))


def settings(seed: int, count_each: int = 14) -> Iterator[Setting]:
    """Every quant of R1 in both forms, `count_each` times."""
    dice = Dice(seed)
    for mla, quant in itertools.product((False, True), TYPES):
        caches = LATENT_CACHES if mla else LEGACY_CACHES
        for _ in range(count_each):
            yield dice.setting(quant, mla=mla, caches=caches, placements=PLACEMENTS, layers=LAYERS)
    for quant, mla, cards, words in CHOSEN:
        yield Setting(quant, mla, cards, tuple(words.split()))


def settings_of_others(seed: int, count_each: int = 14) -> Iterator[Setting]:
    """Every model of `models`, `count_each` times."""
    dice = Dice(seed)
    for name, describe in models.MODELS.items():
        model = describe().model(name)
        placements = (*DENSE_PLACEMENTS, *(EXPERT_PLACEMENTS if model.experts_used else ()))
        caches = LATENT_CACHES if model.mla else OTHER_CACHES
        for _ in range(count_each):
            yield dice.setting(name, mla=None, caches=caches, placements=placements, layers=model.layers)


def _filled(words: tuple[str, ...], values: dict[str, Any]) -> Iterator[str]:
    """Words with `{name}` replaced; braces of patterns stay."""
    for word in words:
        yield re.sub(r"\{(\w+)\}", lambda match: str(values[match[1]]), word)


def here(program: str) -> Engine:
    """A program of this machine."""
    return lambda words: subprocess.run([program, *words], capture_output=True, text=True, check=False)


def ask(engine: Engine, file: Path, setting: Setting) -> dict[str, Any]:
    """The engine's answer: MiB of weights, KV and compute by device, the host last; or its refusal; nothing where it breaks off.

    `file` is the model's, where the engine sees it.
    """
    cards = ",".join(map(str, setting.cards))
    done = engine([cards, "--model", str(file), "--fit", "off", "--fit-print", "on", *setting.arguments])
    if "fatal error" in done.stderr:
        return {}
    lines = [line.split() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode or not lines:
        return {"refusal": _reason(done.stderr)}
    return {"mib": [[int(value) for value in line[-3:]] for line in lines]}


def _reason(log: str) -> str:
    """The line of the log that says why, without time stamp."""
    told = [line for line in log.splitlines() if re.search(r" [EW] |error|requires|not support|failed", line)]
    told = [line for line in told if "ggml_cuda_init" not in line]  # says only that there is no card
    return re.sub(r"^[\d.]+ [EWI] ", "", told[0]) if told else log[-300:]


def main(program: str, which: str, seed: int = 671) -> None:
    answers = []
    engine = here(program)
    with tempfile.TemporaryDirectory() as folder:
        for number, setting in enumerate({"r1": settings, "others": settings_of_others}[which](seed)):
            answer = ask(engine, fullsize.file_in(Path(folder), setting.model, mla=setting.mla), setting)
            if not answer:
                continue
            of = {"model": setting.model} if setting.mla is None else {"quant": setting.model, "mla": setting.mla}
            answers.append(json.dumps(of | {"cards": setting.cards, "arguments": setting.arguments} | answer))
            sys.stderr.write(f"{number} {setting} {answer}\n")
    sys.stdout.write('{"engine": "llama-cpp-python 0.3.36", "answers": [\n' + ",\n".join(answers) + "\n]}\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
