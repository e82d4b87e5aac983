#!/usr/bin/python3
"""Measures settings of llama-bench around a plan, and keeps the best.

    tune.py JOB

Runs as r1prov-tune.service while the engine pauses. JOB is a JSON file:

    program       llama-bench's path
    fixed         its arguments that all settings share
    dimensions    [{name, choices: [{label, arguments}]}]; the first choice of each is the plan's own
    prompt_tokens, decode_tokens, repetitions    of each measurement
    prompt_share  one part in so many of an exchange is asked, the rest is answered
    limit_s       for all of it
    result        the file that gets the result

The plan's own setting is measured first, then one dimension after the other, while the others keep their best. The result is
written whole after each measurement, so one that was stopped goes on where it was. The standard library of Python 3.10 only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

PROGRESS = Path("/run/r1prov/tune/progress.json")
LEAST_GAIN = 0.02
"""A setting that is faster by less is not worth leaving what arithmetic chose."""


class BenchError(Exception):
    """llama-bench has no rates for a setting; the message says why."""


def exchange_s(measured: dict[str, Any], share: int, pick: Callable[[list[float]], float] = median) -> float:
    """Seconds per token of an exchange of which one part in `share` is asked, by the median of the repetitions or another `pick`."""
    return (1 / pick(measured["prompt"]) + (share - 1) / pick(measured["decode"])) / share


def gain(new: dict[str, Any], old: dict[str, Any], share: int) -> float:
    """How much sooner an exchange is over, as a part of what it takes now; negative where it is later."""
    return 1 - exchange_s(new, share) / exchange_s(old, share)


def noise(measured: dict[str, Any], share: int) -> float:
    """Half the distance between the slowest and the fastest repetition, as a part of the median."""
    slowest, fastest = exchange_s(measured, share, min), exchange_s(measured, share, max)
    return (slowest - fastest) / 2 / exchange_s(measured, share)


def is_better(new: dict[str, Any], old: dict[str, Any], share: int) -> bool:
    """Whether it gains more than chance would give it."""
    return gain(new, old, share) > max(LEAST_GAIN, noise(new, share), noise(old, share))


def rates(text: str) -> dict[str, list[float]]:
    """`prompt` and `decode` of each repetition (tokens/s), from llama-bench's JSON.

    Raises:
        BenchError: it does not hold both.
    """
    try:
        tests = json.loads(text)
        found = {"decode" if test["n_gen"] else "prompt": test["samples_ts"] for test in tests}
        if {*found} == {"prompt", "decode"} and min(map(min, found.values())) > 0:
            return found
    except (ValueError, KeyError, TypeError):
        pass
    raise BenchError(f"llama-bench said no rates: {text.strip()[-200:]!r}")


class Tuning:
    """The work on one job.

    Args:
        job: see above.
        earlier: the result of an earlier start; what it measured of the same job is not measured again.
    """

    def __init__(self, job: dict[str, Any], earlier: dict[str, Any]) -> None:
        self.job = job
        self.result = Path(job["result"])
        self.share = job["prompt_share"]
        self.started_s = time.monotonic()
        self.longest_s = 0.0
        same = {**earlier.get("job", {}), "limit_s": job["limit_s"]} == job  # another limit makes no other rates
        self.known: list[dict[str, Any]] = earlier["measured"] if same else []
        self.measured: list[dict[str, Any]] = []
        self.untried: list[str] = []
        self.total = 1 + sum(len(dimension["choices"]) - 1 for dimension in job["dimensions"])

    def run(self) -> None:
        """All of it.

        Raises:
            BenchError: the plan's own setting cannot be measured.
        """
        best = self.measure(
            {dimension["name"]: dimension["choices"][0]["label"] for dimension in self.job["dimensions"]}
        )
        if best["failed"]:
            raise BenchError(best["failed"])
        own = best
        self.write("running", own, best)
        for dimension in self.job["dimensions"]:
            base = best["chosen"]
            for choice in dimension["choices"][1:]:
                if self.out_of_time():
                    self.untried.append(f"{dimension['name']} {choice['label']}")
                    continue
                found = self.measure({**base, dimension["name"]: choice["label"]}, best)
                if not found["failed"] and is_better(found, best, self.share):
                    best = found
                self.write("running", own, best)
        self.write("done", own, best)

    def out_of_time(self) -> bool:
        """Whether another measurement would not be over within the limit."""
        limit_s: float = self.job["limit_s"]
        return time.monotonic() - self.started_s + self.longest_s > limit_s

    def measure(self, chosen: dict[str, str], best: dict[str, Any] | None = None) -> dict[str, Any]:
        """Rates of one setting, or why there are none. `best` is what it is held against."""
        known = next((found for found in self.known if found["chosen"] == chosen), None)
        if known:
            self.measured.append(known)
            self.longest_s = max(self.longest_s, known["seconds"])
            return known
        changed = [f"{name} {label}" for name, label in chosen.items() if not best or best["chosen"][name] != label]
        so_far = f"; best so far {median(best['decode']):.2f} tokens/s" if best else ""
        self.show(f"measuring: {', '.join(changed) if best else 'the setting of the plan'}{so_far}")
        began_s = time.monotonic()
        found: dict[str, Any] = {"chosen": chosen, "prompt": [], "decode": [], "failed": ""}
        try:
            found |= self.bench(chosen)
        except BenchError as error:
            found["failed"] = str(error)
        found["seconds"] = round(time.monotonic() - began_s, 1)
        self.longest_s = max(self.longest_s, found["seconds"])
        self.measured.append(found)
        return found

    def bench(self, chosen: dict[str, str]) -> dict[str, Any]:
        """Runs llama-bench; its rates, and its own output as `llama_bench`.

        Raises:
            BenchError: it fails, or does not end within the limit.
        """
        job = self.job
        command = [job["program"], *job["fixed"]]
        for dimension in job["dimensions"]:
            for choice in dimension["choices"]:
                command += choice["arguments"] if choice["label"] == chosen[dimension["name"]] else []
        command += ["--n-prompt", str(job["prompt_tokens"]), "--n-gen", str(job["decode_tokens"])]
        command += ["--repetitions", str(job["repetitions"]), "--output", "json"]
        left_s = self.started_s + job["limit_s"] - time.monotonic()
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", check=False, timeout=left_s
            )
        except subprocess.TimeoutExpired:
            raise BenchError("was not over within the time limit") from None
        except OSError as error:
            raise BenchError(f"llama-bench does not start: {error}") from None
        if done.returncode:
            said = " / ".join(line for line in done.stderr.splitlines() if line.strip())[-400:]
            raise BenchError(f"llama-bench ended with {done.returncode}: {said or 'it said nothing'}")
        return {**rates(done.stdout), "llama_bench": json.loads(done.stdout)}

    def reason(self, own: dict[str, Any], best: dict[str, Any]) -> str:
        """Why the best is kept, in one sentence."""
        if best is own:
            others = len(self.measured) - 1
            return (
                f"none of {others} others was faster by more than the noise" if others else "nothing else was measured"
            )
        return f"an exchange is over {gain(best, own, self.share):.0%} sooner than with the plan's own setting"

    def write(self, state: str, own: dict[str, Any], best: dict[str, Any]) -> None:
        """The result so far."""
        replace(
            self.result,
            {
                "job": self.job,
                "state": state,
                "chosen": best["chosen"],
                "reason": self.reason(own, best),
                "measured": self.measured,
                "untried": self.untried,
            },
        )

    def show(self, label: str, state: str = "running") -> None:
        """What others see of this run: progress.json (ARCHITECTURE.md, "Progress")."""
        done = len(self.measured)
        at = {"label": label, "done": done, "total": self.total, "unit": "steps"}
        replace(PROGRESS, {"step": "tune", **at, "state": state, "updated": time.time()})


def replace(path: Path, content: dict[str, Any]) -> None:
    """A JSON file, at once."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(path)


def main() -> int:
    """Do the job; the exit code."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        earlier = json.loads(Path(job["result"]).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = {}
    tuning = Tuning(job, earlier)
    try:
        tuning.run()
    except BenchError as error:
        tuning.show(str(error), state="failed")
        sys.stderr.write(f"the setting of the plan cannot be measured: {error}\n")
        return 1
    tuning.show("measured", state="done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
