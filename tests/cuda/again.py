"""Checks that the engine built by `make test-cuda` still gives the answers kept in `tests/data`, by asking a sample of them again.

    python -m tests.cuda.again HOST FOLDER [COUNT] [SEED]

HOST is the lab host with the engine. FOLDER is a folder of this machine for the models' headers, and HOST sees it as /srv/models.
COUNT questions of each file are asked again, and a fifth of them are questions that the engine refused. `--fit` takes longer, so it
gets a quarter of COUNT. Each day has a sample of its own; a SEED such as 20261127 repeats the sample of that day. The result is
added to last-result.json. The program fails if one answer differs.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from r1prov import lab
from tests.cuda import ask_fit, ask_memory, fullsize
from tests.cuda.ask_memory import Engine, Setting

DATA = Path(__file__).parents[1] / "data"
RESULT = Path(__file__).with_name("last-result.json")
ENGINE, MODELS = "/srv/cuda/engine", Path("/srv/models")  # on the host

Answer = dict[str, Any]


def memory(engine: Engine, file: Path, kept: Answer) -> Answer:
    """The question of `kept` with the answer that the engine gives now."""
    question = {key: value for key, value in kept.items() if key not in ("mib", "refusal")}
    setting = Setting(
        kept.get("quant") or kept["model"], kept.get("mla"), tuple(kept["cards"]), tuple(kept["arguments"])
    )
    return question | ask_memory.ask(engine, file, setting)


def fit(engine: Engine, file: Path, kept: Answer) -> Answer:
    """The question of `kept` with the arguments that `--fit` chooses now."""
    return kept | {"arguments": ask_fit.ask(engine, file, kept)}


def sample(kept: list[Answer], count: int, dice: random.Random) -> list[Answer]:
    """A random sample of `count` answers. A fifth of it are refusals, or fewer where there are not so many."""
    refused = [answer for answer in kept if "refusal" in answer]
    answered = [answer for answer in kept if "refusal" not in answer]
    some = dice.sample(refused, min(count // 5, len(refused)))
    return [*dice.sample(answered, min(count - len(some), len(answered))), *some]


def differences(
    engine: Engine, folder: Path, answers: list[Answer], ask: Callable[[Engine, Path, Answer], Answer]
) -> list[str]:
    """A paragraph with the kept answer and the answer of now, for each question whose answer has changed."""
    differing = []
    for number, kept in enumerate(answers, 1):
        file = fullsize.file_in(folder, kept.get("quant") or kept["model"], mla=kept.get("mla"))
        now = ask(engine, MODELS / file.name, kept)
        if now != kept:
            differing.append(f"kept {json.dumps(kept)}\nnow  {json.dumps(now)}")
        sys.stderr.write(f"asked {number} of {len(answers)}, {len(differing)} differ\n")
    return differing


def main(name: str, folder: str, count: int = 30, seed: int = int(f"{datetime.now(UTC):%Y%m%d}")) -> None:
    host, dice = lab.get(name), random.Random(seed)
    asked: dict[str, Any] = {"seed": seed}
    wrong = []
    for data, number, ask in (
        ("engine_memory.json", count, memory),
        ("engine_memory_others.json", count, memory),
        ("engine_memory_mixed.json", count, memory),
        ("engine_memory_modes.json", count // 4, memory),
        ("engine_memory_workloads.json", count // 2, memory),
        ("engine_fit.json", count // 4, fit),
    ):
        started = time.monotonic()
        kept = json.loads((DATA / data).read_text(encoding="utf-8"))
        answers = sample(kept["answers"] if isinstance(kept, dict) else kept, number, dice)
        differing = differences(lambda words: lab.ssh(host, [ENGINE, *words]), Path(folder), answers, ask)
        seconds = round(time.monotonic() - started, 1)
        asked[data] = {"asked": len(answers), "agreed": len(answers) - len(differing), "seconds": seconds}
        wrong += [f"{data}\n{difference}" for difference in differing]
    result = json.loads(RESULT.read_text(encoding="utf-8")) | {"asked_again": asked}
    RESULT.write_text(json.dumps(result, indent=4) + "\n", encoding="utf-8")
    if wrong:
        sys.exit(
            "\n\n".join([*wrong, f"{len(wrong)} answers differ from those kept in tests/data; they are printed above"])
        )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
