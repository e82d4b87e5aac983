"""Whether the engine that `make test-cuda` has built says what `tests/data` keeps: asks it again for a sample of each file.

    python -m tests.cuda.again HOST FOLDER [COUNT] [SEED]

HOST is the lab host with the engine. FOLDER is on this machine, for the models' headers, and HOST sees it as /srv/models. Of each
file COUNT answers are asked again, a fifth of them refusals; of `--fit`, which takes longer, a quarter of COUNT. Each day has a
sample of its own, and SEED, that day as 20261127, repeats it. What came of it is added to last-result.json; it fails if one
answer differs.
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
    """The same question with the engine's answer of now."""
    question = {key: value for key, value in kept.items() if key not in ("mib", "refusal")}
    setting = Setting(
        kept.get("quant") or kept["model"], kept.get("mla"), tuple(kept["cards"]), tuple(kept["arguments"])
    )
    return question | ask_memory.ask(engine, file, setting)


def fit(engine: Engine, file: Path, kept: Answer) -> Answer:
    """The same question with what `--fit` chooses now."""
    return kept | {"arguments": ask_fit.ask(engine, file, kept)}


def sample(kept: list[Answer], count: int, dice: random.Random) -> list[Answer]:
    """`count` of them, a fifth of which the engine refused, as far as there are so many."""
    refused = [answer for answer in kept if "refusal" in answer]
    answered = [answer for answer in kept if "refusal" not in answer]
    some = dice.sample(refused, min(count // 5, len(refused)))
    return [*dice.sample(answered, min(count - len(some), len(answered))), *some]


def differences(
    engine: Engine, folder: Path, answers: list[Answer], ask: Callable[[Engine, Path, Answer], Answer]
) -> list[str]:
    """What was said and what is said now, a paragraph for each question with another answer."""
    found = []
    for number, kept in enumerate(answers, 1):
        file = fullsize.file_in(folder, kept.get("quant") or kept["model"], mla=kept.get("mla"))
        now = ask(engine, MODELS / file.name, kept)
        if now != kept:
            found.append(f"kept {json.dumps(kept)}\nnow  {json.dumps(now)}")
        sys.stderr.write(f"asked {number} of {len(answers)}, {len(found)} differ\n")
    return found


def main(name: str, folder: str, count: int = 30, seed: int = int(f"{datetime.now(UTC):%Y%m%d}")) -> None:
    host, dice = lab.get(name), random.Random(seed)
    asked: dict[str, Any] = {"seed": seed}
    wrong = []
    for data, number, ask in (
        ("engine_memory.json", count, memory),
        ("engine_memory_others.json", count, memory),
        ("engine_fit.json", count // 4, fit),
    ):
        started = time.monotonic()
        kept = json.loads((DATA / data).read_text(encoding="utf-8"))
        answers = sample(kept["answers"] if isinstance(kept, dict) else kept, number, dice)
        found = differences(lambda words: lab.ssh(host, [ENGINE, *words]), Path(folder), answers, ask)
        seconds = round(time.monotonic() - started, 1)
        asked[data] = {"asked": len(answers), "agreed": len(answers) - len(found), "seconds": seconds}
        wrong += [f"{data}\n{difference}" for difference in found]
    result = json.loads(RESULT.read_text(encoding="utf-8")) | {"asked_again": asked}
    RESULT.write_text(json.dumps(result, indent=4) + "\n", encoding="utf-8")
    if wrong:
        sys.exit("\n\n".join([*wrong, f"{len(wrong)} answers are others than tests/data keeps, see above"]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
