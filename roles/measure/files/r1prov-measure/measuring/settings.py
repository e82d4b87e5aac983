"""Measures settings of llama-bench around a plan, and finds the best.

The job:

    kind          `settings`
    program       llama-bench's path
    fixed         its arguments that all settings share
    dimensions    [{name, choices: [{label, arguments}]}]; the first choice of each is the plan's own
    prompt_tokens, decode_tokens, repetitions    of each measurement
    prompt_share  one part in so many of an exchange is asked, the rest is answered
    limit_s       for all of it
    result        the file that gets the result

The plan's own setting is measured first, then one dimension after the other, while the others keep their best. The result is
written after each measurement, so one that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from statistics import median
from typing import TYPE_CHECKING, Any

from measuring.work import FailedError, Work

if TYPE_CHECKING:
    from collections.abc import Callable

LEAST_GAIN = 0.02
"""A setting that is faster by less is not worth leaving what arithmetic chose."""


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
        FailedError: it does not hold both.
    """
    try:
        tests = json.loads(text)
        found = {"decode" if test["n_gen"] else "prompt": test["samples_ts"] for test in tests}
        if {*found} == {"prompt", "decode"} and min(map(min, found.values())) > 0:
            return found
    except (ValueError, KeyError, TypeError):
        pass
    raise FailedError(f"llama-bench said no rates: {text.strip()[-200:]!r}")


class Tuning:
    """The work on one job.

    Args:
        job: see above.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.share = job["prompt_share"]
        self.work = Work(job, 1 + sum(len(dimension["choices"]) - 1 for dimension in job["dimensions"]))
        self.longest_s = 0.0
        self.known = self.work.known("measured")
        self.measured: list[dict[str, Any]] = []
        self.untried: list[str] = []

    def run(self) -> None:
        """All of it.

        Raises:
            FailedError: the plan's own setting cannot be measured.
        """
        best = self.measure(
            {dimension["name"]: dimension["choices"][0]["label"] for dimension in self.job["dimensions"]}
        )
        if best["failed"]:
            raise FailedError(best["failed"])
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
        return self.longest_s > self.work.left_s

    def measure(self, chosen: dict[str, str], best: dict[str, Any] | None = None) -> dict[str, Any]:
        """Rates of one setting, or why there are none. `best` is what it is held against."""
        known = next((found for found in self.known if found["chosen"] == chosen), None)
        if known:
            self.add(known)
            return known
        changed = [f"{name} {label}" for name, label in chosen.items() if not best or best["chosen"][name] != label]
        so_far = f"; best so far {median(best['decode']):.2f} tokens/s" if best else ""
        self.work.tell(f"{', '.join(changed) if best else 'the setting of the plan'}{so_far}")
        began_s = time.monotonic()
        found: dict[str, Any] = {"chosen": chosen, "prompt": [], "decode": [], "failed": ""}
        try:
            found |= self.bench(chosen)
        except FailedError as error:
            found["failed"] = str(error)
        found["seconds"] = round(time.monotonic() - began_s, 1)
        self.add(found)
        return found

    def add(self, found: dict[str, Any]) -> None:
        """Takes note of what was measured of one setting."""
        self.longest_s = max(self.longest_s, found["seconds"])
        self.measured.append(found)
        self.work.done += 1

    def bench(self, chosen: dict[str, str]) -> dict[str, Any]:
        """Runs llama-bench; its rates, and its own output as `llama_bench`.

        Raises:
            FailedError: it fails, or does not end within the limit.
        """
        job = self.job
        command = [job["program"], *job["fixed"]]
        for dimension in job["dimensions"]:
            for choice in dimension["choices"]:
                command += choice["arguments"] if choice["label"] == chosen[dimension["name"]] else []
        command += ["--n-prompt", str(job["prompt_tokens"]), "--n-gen", str(job["decode_tokens"])]
        command += ["--repetitions", str(job["repetitions"]), "--output", "json"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", check=False, timeout=self.work.left_s
            )
        except subprocess.TimeoutExpired:
            raise FailedError("was not over within the time limit") from None
        except OSError as error:
            raise FailedError(f"llama-bench does not start: {error}") from None
        if done.returncode:
            said = " / ".join(line for line in done.stderr.splitlines() if line.strip())[-400:]
            raise FailedError(f"llama-bench ended with {done.returncode}: {said or 'it said nothing'}")
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
        self.work.write(
            state,
            chosen=best["chosen"],
            reason=self.reason(own, best),
            measured=self.measured,
            untried=self.untried,
        )


def run(job: dict[str, Any]) -> int:
    """Do the job; the exit code."""
    tuning = Tuning(job)
    try:
        tuning.run()
    except FailedError as error:
        tuning.work.show(str(error), state="failed")
        sys.stderr.write(f"the setting of the plan cannot be measured: {error}\n")
        return 1
    tuning.work.show("measured", state="done")
    return 0
