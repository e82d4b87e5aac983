"""Asks the engine itself how much memory many settings take, for R1 and for other models; the unit tests compare with its answers.

    python -m tests.cuda.ask_memory PROGRAM r1 [SEED] > tests/data/engine_memory.json
    python -m tests.cuda.ask_memory PROGRAM others [SEED] > tests/data/engine_memory_others.json
    python -m tests.cuda.ask_memory PROGRAM mixed [SEED] > tests/data/engine_memory_mixed.json
    python -m tests.cuda.ask_memory PROGRAM modes > tests/data/engine_memory_modes.json
    python -m tests.cuda.ask_memory PROGRAM workloads > tests/data/engine_memory_workloads.json

PROGRAM runs llama-fit-params of the pinned llama.cpp, with its CUDA backend, on cards that need not exist. `tests/cuda/engine` is
such a program; it runs on a machine without a driver where r1prov has built the engine:

    PROGRAM MIB,MIB,... ARGUMENTS      (an empty list means no card)

Each of them takes two to four minutes on two cores. Another SEED asks about other settings.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from r1prov.common.units import GB, MIB
from r1prov.machines.workload import WORKLOADS, shortened
from r1prov.models import layout
from r1prov.models.layout import LAYERS, TYPES
from r1prov.offload import search
from r1prov.offload import setting as placing
from r1prov.offload.experiment import servers
from r1prov.offload.modes import MODES
from r1prov.offload.outcome import Space
from r1prov.offload.trade import trade
from tests.cuda import experiments, fullsize, models, patterns

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
)  # llama-fit-params has no unified cache for several slots
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
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
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
    # These are r1prov's own plans for its profiles, and settings of users that the engine refuses.
    ("UD-IQ1_S", False, (SMALL,) * 4, "-c 8192 -np 1 -ctk q4_0 -ub 512 -ngl 31 -ts 7,8,8,8"),
    ("UD-Q2_K_XL", False, (LARGE,) * 4, "-c 32768 -np 4 -ctk q4_0 -ub 256 -ngl 62 -ts 16,15,15,16"),
    ("UD-IQ1_S", True, (SMALL,) * 4, "-c 8192 -np 1 -ctk q4_0"),
    ("UD-IQ1_S", False, (SMALL,) * 4, "-c 8192 -np 1 -ctk q4_0 -ctv q4_0"),
    ("UD-IQ1_S", False, (SMALL,) * 4, "-c 8192 -np 1 -ngl 62 -fa on"),
    ("UD-IQ1_S", True, (SMALL,) * 4, "-c 8192 -np 1 -ngl 62 -fa off -ctk q8_0 -ctv q8_0"),
)

PLANNED = (
    # The machines for which plans are asked about: a profile with a quant, and machines for which `--fit` was asked (ask_fit.py).
    ("UD-IQ1_S", True, (SMALL,) * 4, 32_768, 1),
    ("UD-IQ1_S", True, (SMALL,) * 4, 32_768, 8),
    ("UD-Q2_K_XL", True, (LARGE,) * 4, 32_768, 4),
    ("UD-Q2_K_XL", True, (LARGE,) * 4, 32_768, 16),
    ("Q4_K_M", True, (LARGE,) * 4, 32_768, 1),
    ("UD-IQ1_S", True, (SMALL,) * 2, 32_768, 1),
    ("UD-IQ1_S", True, (SMALL, LARGE), 32_768, 1),
    ("UD-IQ1_M", True, (SMALL, 16_376, 49_140), 16_384, 2),
    ("UD-IQ1_M", False, (SMALL,) * 8, 16_384, 1),
    ("UD-IQ1_S", True, (SMALL,) * 8, 32_768, 2),
    # Pairs of slots and a context that the plan chooses where both are open.
    ("UD-IQ1_S", True, (SMALL,) * 4, 24_576, 8),
    ("UD-IQ1_S", False, (SMALL,) * 4, 12_288, 1),
    ("Q6_K", True, (SMALL,) * 4, 20_480, 8),
)

TRADED = (("UD-IQ1_S", (SMALL,) * 4, 1), ("UD-IQ1_S", (SMALL,) * 4, 8), ("UD-Q2_K_XL", (LARGE,) * 4, 16))
"""The plans of the profiles, of which everything that the trade shows is asked about: quant, cards and slots."""

Engine = Callable[[Sequence[str]], subprocess.CompletedProcess[str]]
"""A function that runs PROGRAM with the given arguments."""


@dataclass(frozen=True)
class Setting:
    """One question to the engine. For R1, `model` is the quant and `mla` says its form; for other models `mla` is None."""

    model: str
    mla: bool | None
    cards: tuple[int, ...]
    arguments: tuple[str, ...]


class Dice:
    """Makes settings by going through each list of choices in turn, so that each choice meets many choices of the other lists."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.turns: dict[tuple[Any, ...], Iterator[Any]] = {}

    def next_of(self, choices: tuple[Any, ...]) -> Any:
        """The next choice of a list. It sometimes skips one or two, or lists of equal length would always pair the same choices."""
        turn = self.turns.setdefault(choices, itertools.cycle(choices))
        return next(itertools.islice(turn, self.random.randrange(3), None))

    def setting(
        self, model: str, *, mla: bool | None, caches: tuple[str, ...], placements: tuple[Any, ...], layers: int
    ) -> Setting:
        """The next setting of a model that has `layers` layers."""
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
            # Without cards, no argument may name one. Repacking is off because the engine's sum leaves out weights repacked for the CPU.
            placement = ("--no-repack",)
        k, v = self.random.choice(caches).split("/")
        words = ("-c", str(context), "-ub", str(micro), *slots, "-ctk", k, "-ctv", v)
        return Setting(model, mla, cards, (*words, *_filled(placement, filled)))


def settings(seed: int, count_each: int = 14) -> Iterator[Setting]:
    """`count_each` settings of every quant of R1 in each of its two forms, and those of `CHOSEN`."""
    dice = Dice(seed)
    for mla, quant in itertools.product((False, True), TYPES):
        caches = LATENT_CACHES if mla else LEGACY_CACHES
        for _ in range(count_each):
            yield dice.setting(quant, mla=mla, caches=caches, placements=PLACEMENTS, layers=LAYERS)
    for quant, mla, cards, words in CHOSEN:
        yield Setting(quant, mla, cards, tuple(words.split()))


def settings_of_others(seed: int, count_each: int = 14) -> Iterator[Setting]:
    """`count_each` settings of every model of `models`."""
    dice = Dice(seed)
    for name, describe in models.MODELS.items():
        model = describe().model(name)
        placements = (*DENSE_PLACEMENTS, *(EXPERT_PLACEMENTS if model.experts_used else ()))
        caches = LATENT_CACHES if model.mla else OTHER_CACHES
        for _ in range(count_each):
            yield dice.setting(name, mla=None, caches=caches, placements=placements, layers=model.layers)


def mixed_settings(seed: int, count: int = 320) -> Iterator[Setting]:
    """Settings of R1 in both forms with every cache type, with and without flash attention. Two in three have patterns by a grammar."""
    random = Random(seed)
    for number in range(count):
        mla, quant, cards = number % 2 == 1, random.choice(tuple(TYPES)), random.choice(CARDS[1:])
        k = random.choice(CACHE_TYPES)
        v = k if mla or random.random() < 0.5 else random.choice(CACHE_TYPES)
        words = ["-c", str(random.choice(CONTEXTS)), "-ub", str(random.choice((1, 16, *MICRO_BATCHES)))]
        words += [*random.choice(SLOTS), "-ctk", k, "-ctv", v, "-fa", random.choice(("on", "off", "auto", "on"))]
        words += ["-ngl", random.choice(("99", "99", "61", "30", "0"))]
        if random.random() < 0.67:
            rules = [
                f"{patterns.pattern(random)}={random.choice(('CPU', 'CPU', f'CUDA{random.randrange(len(cards))}'))}"
                for _ in range(random.choice((1, 1, 2)))
            ]
            words += ["-ot", ",".join(rules)]
        else:
            words += random.choice((["-cmoe"], ["-ncmoe", str(random.randrange(60))], ["-nkvo"], ["--no-op-offload"]))
        yield Setting(quant, mla, cards, tuple(words))


def settings_of_modes(_seed: int) -> Iterator[Setting]:
    """What the modes of `r1prov bench --modes` tell llama-server on the reference machines, as far as llama-fit-params takes it."""
    for profile in ("4x4090", "4xh800"):
        subject = experiments.subject(profile)
        for server in servers(tuple(MODES), subject):
            mla, words = experiments.asked(server, subject)
            yield Setting(subject.plan.quant, mla, (SMALL if profile == "4x4090" else LARGE,) * 4, words)


def _filled(words: tuple[str, ...], values: dict[str, Any]) -> Iterator[str]:
    """The words with each `{name}` replaced by its value."""
    for word in words:
        yield re.sub(r"\{(\w+)\}", lambda match: str(values[match[1]]), word)


def here(program: str) -> Engine:
    """The engine that runs `program` on this machine."""
    return lambda words: subprocess.run([program, *words], capture_output=True, text=True, check=False)


def planned_settings(_: int) -> Iterator[Setting]:
    """What a plan chooses for each workload on each machine of `PLANNED`, and what it shows beside that on `TRADED`."""
    for quant, mla, cards, context, slots in PLANNED:
        model, space = layout.model(quant, mla=mla), Space(tuple(mib * MIB for mib in cards), 480 * GB)
        wanted = placing.Setting(
            context=context * slots, slots=slots, unified=False, gpu_layers=0, micro_batch=4096, flash=mla
        )
        for workload in WORKLOADS.values():
            found = search.best(model, wanted, space, shortened(workload, context))
            assert found
            placed = [found]
            if (quant, cards, slots) in TRADED:
                one = placing.with_slots(wanted, 1)
                placed += [
                    choice.setting
                    for choice in trade(model, found, one, space, shortened(workload, context))
                    if not choice.chosen
                ]
            for setting in placed:
                yield Setting(quant, mla, cards, words_of(setting))


def words_of(found: placing.Setting) -> tuple[str, ...]:
    """A setting as arguments of llama-fit-params, which has no unified cache for several slots."""
    return (
        *("-c", str(found.context), "-np", str(found.slots), *placing.batches(found)),
        *("-ngl", str(found.gpu_layers), "-ts", ",".join(f"{share:g}" for share in found.split) or "1"),
        *(("-ot", placing.rules(found)) if found.overrides else ()),
        *("-fa", "on" if found.flash else "off", *(() if found.offload else ("--no-op-offload",))),
    )


def ask(engine: Engine, file: Path, setting: Setting) -> dict[str, Any]:
    """The engine's answer to one question.

    `file` is the path by which the engine sees the model.

    Returns:
        Under `mib`, the MiB of weights, KV cache and compute buffer of each device, the host last; or under `refusal`, the reason why
        the engine refuses the setting; or nothing, where the engine aborts.
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
    """The line of the log that gives the reason of a refusal, without its time stamp."""
    lines = [line for line in log.splitlines() if re.search(r" [EW] |error|requires|not support|failed", line)]
    # These lines say that there is no card, that an option stood there twice, and that an exception came.
    lines = [line for line in lines if not re.search("ggml_cuda_init|DEPRECATED|terminate called", line)]
    return re.sub(r"^[\d.]+ [EWI] ", "", lines[0]) if lines else log[-300:]


_QUESTIONS: dict[str, Callable[[int], Iterator[Setting]]] = {
    "r1": settings,
    "others": settings_of_others,
    "mixed": mixed_settings,
    "modes": settings_of_modes,
    "workloads": planned_settings,
}


def main(program: str, which: str, seed: int = 671) -> None:
    answers = []
    engine = here(program)
    with tempfile.TemporaryDirectory() as folder:
        for number, setting in enumerate(_QUESTIONS[which](seed)):
            answer = ask(engine, fullsize.file_in(Path(folder), setting.model, mla=setting.mla), setting)
            if not answer:
                continue
            of = {"model": setting.model} if setting.mla is None else {"quant": setting.model, "mla": setting.mla}
            answers.append(json.dumps(of | {"cards": setting.cards, "arguments": setting.arguments} | answer))
            sys.stderr.write(f"{number} {setting} {answer}\n")
    sys.stdout.write('{"engine": "llama-cpp-python 0.3.36", "answers": [\n' + ",\n".join(answers) + "\n]}\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
