"""Measures settings around a plan with llama-batched-bench, and finds the one with which the exchanges of a workload are over first.

The job:

    kind          `settings`
    program       llama-batched-bench's path
    fixed         its arguments that all settings share
    dimensions    [{name, choices: [{label, arguments}]}]; the first choice of each is the plan's own
    exchanges     [{share, prompt, cached, answer, at_once}]: the workload
    decode_tokens, repetitions    of each measurement
    limit_s       for all of it
    result        the file that gets the result

The plan's own setting is measured first, then one dimension after the other, while the others keep their best. The result is
written after each measurement, so one that was stopped goes on where it was.

Settings with slots alike are compared by the end of an exchange. Otherwise it counts with the wait for the first token, as in the plan,
because the end alone would speak for few slots.

Measured are the prompts of the exchanges, asked by as many people as a setting serves at once, and a few tokens of the answers behind
each of them and behind the deepest. A token of an answer that begins elsewhere takes what lies between. Where all prompts
together have more than `MOST_TOKENS`, shorter ones are measured, and the time counts for as much more as was asked.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from statistics import median
from typing import TYPE_CHECKING, Any

from measuring.work import FailedError, Work

if TYPE_CHECKING:
    from collections.abc import Sequence

LEAST_GAIN = 0.02
"""A setting that is faster by less is not worth leaving what arithmetic chose."""

MORE_IS_WORTH = 0.1
"""Longer slots, and then more of them, are worth it to the plan where people wait longer by no more than this part."""

MOST_TOKENS = 8192
"""The tokens of prompt that are computed at most for one point. From there on twice as many take twice as long."""

Point = dict[str, Any]
"""What was measured of some people at once with prompts of one length: `users`, `prompt_tokens` and `decode_tokens` of each, and of each
repetition `prompt_s` and `token_s`, in which all of them get one more token."""


def gain(new: Sequence[float], old: Sequence[float]) -> float:
    """How much less the new takes, as a part of what the old takes; negative where it takes more. Both are seconds of each repetition."""
    return float(1 - median(new) / median(old))


def noise(seconds: Sequence[float]) -> float:
    """Half the distance between the slowest and the fastest repetition, as a part of the median."""
    return float((max(seconds) - min(seconds)) / 2 / median(seconds))


def waits(measured: dict[str, Any]) -> list[float]:
    """The mean waits for the first token and for the end, both together, in each repetition."""
    return [end + first for end, first in zip(measured["exchange_s"], measured["first_token_s"], strict=True)]


def is_faster(new: dict[str, Any], old: dict[str, Any]) -> bool:
    """Whether it gains more than chance would give it."""
    new_s, old_s = (waits(new), waits(old)) if new["slots"] != old["slots"] else (new["exchange_s"], old["exchange_s"])
    return gain(new_s, old_s) > max(LEAST_GAIN, noise(new_s), noise(old_s))


def is_better(new: dict[str, Any], old: dict[str, Any]) -> bool:
    """Whether it is worth leaving the old setting for it.

    With longer slots, or with as long ones but more of them, that is so where it is not slower. With shorter or fewer ones it is so where
    it gains more than the tenth that the plan gives for them. More than a tenth is never chance, however much the repetitions differ.
    """
    if new["slots"] > old["slots"]:
        return not is_faster(old, new) and _longer(new, old) <= MORE_IS_WORTH
    return is_faster(new, old) and (new["slots"] == old["slots"] or _longer(old, new) > MORE_IS_WORTH)


def _longer(one: dict[str, Any], other: dict[str, Any]) -> float:
    """By which part people wait longer with one than with the other."""
    return float(median(waits(one)) / median(waits(other)) - 1)


def slots_of(words: Sequence[str]) -> list[int]:
    """The tokens of each slot, and the number of slots, by the arguments of the engine. Where they do not tell the tokens, these are 0."""
    context, number = (
        int(words[words.index(option) + 1]) if option in words else default
        for option, default in (("--ctx-size", 0), ("--parallel", 1))
    )
    return [context // number, number]


def in_words(slots: Sequence[int]) -> str:
    """Slots for people."""
    tokens, number = slots
    return f"{number} slot{'s' * (number > 1)}" + (f" of {tokens:,} tokens" if tokens else "")


def served(exchange: dict[str, Any], slots: int) -> int:
    """How many of those who ask at once are served together."""
    return min(int(exchange["at_once"]), slots)


def lengths(exchanges: Sequence[dict[str, Any]], users: int, decode_tokens: int) -> list[int]:
    """The lengths of the prompts to measure for so many people: those of their exchanges, and the depth of the deepest answer."""
    depths = [each["cached"] + each["prompt"] + max(each["answer"] - decode_tokens, 0) // 2 for each in exchanges]
    most = max(MOST_TOKENS // users, 1)
    return sorted({min(length, most) for length in (*(each["prompt"] for each in exchanges), max(depths))})


def waited(exchange: dict[str, Any], points: Sequence[Point], slots: int, repetition: int) -> tuple[float, float]:
    """The seconds until an answer begins and until it is whole, as the means of all who ask at once.

    Who finds no free slot waits for those before.
    """
    users = served(exchange, slots)
    own = sorted((point for point in points if point["users"] == users), key=lambda point: point["prompt_tokens"])
    prompts = [(point["prompt_tokens"], point["prompt_s"][repetition]) for point in own]
    tokens = [(point["prompt_tokens"], point["token_s"][repetition]) for point in own]
    longest, took_s = prompts[-1]
    prompt_s = (
        took_s * exchange["prompt"] / longest if exchange["prompt"] > longest else between(prompts, exchange["prompt"])
    )
    depth = exchange["cached"] + exchange["prompt"] + exchange["answer"] / 2
    each_s = prompt_s + exchange["answer"] * between(tokens, depth)
    queued_s = each_s * (math.ceil(exchange["at_once"] / users) - 1) / 2
    return float(queued_s + prompt_s), float(queued_s + each_s)


def between(found: Sequence[tuple[float, float]], at: float) -> float:
    """What lies at a place between the nearest two of what was found; beyond the ends what was found there."""
    below = max((pair for pair in found if pair[0] <= at), default=found[0])
    above = min((pair for pair in found if pair[0] >= at), default=found[-1])
    if above[0] <= below[0]:
        return above[1] if above[0] > at else below[1]
    return below[1] + (above[1] - below[1]) * (at - below[0]) / (above[0] - below[0])


def points(text: str, users: int, repetitions: int) -> list[Point]:
    """What llama-batched-bench has measured, from its JSON lines.

    Raises:
        FailedError: they do not hold every length in every repetition.
    """
    found: dict[int, Point] = {}
    try:
        for line in text.splitlines():
            if not line.startswith("{"):
                continue
            test = json.loads(line)
            point = found.setdefault(
                test["pp"],
                {
                    "users": users,
                    "prompt_tokens": test["pp"],
                    "decode_tokens": test["tg"],
                    "prompt_s": [],
                    "token_s": [],
                },
            )
            if len(point["prompt_s"]) < repetitions:
                point["prompt_s"].append(test["t_pp"])
                point["token_s"].append(test["t_tg"] / test["tg"])
    except (ValueError, KeyError, TypeError, ZeroDivisionError):
        found = {}
    whole = [
        len(point[key]) == repetitions and min(point[key]) > 0
        for point in found.values()
        for key in ("prompt_s", "token_s")
    ]
    if not whole or not all(whole):
        raise FailedError(f"llama-batched-bench said no rates: {text.strip()[-200:]!r}")
    return list(found.values())


class Tuning:
    """The work on one job.

    Args:
        job: see above.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.exchanges = job["exchanges"]
        # Tokens behind the last answer would find no room in a slot that the exchange fills.
        self.decode_tokens = min(job["decode_tokens"], *(exchange["answer"] for exchange in self.exchanges))
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
                if not found["failed"] and is_better(found, best):
                    best = found
                self.write("running", own, best)
        self.write("done", own, best)

    def out_of_time(self) -> bool:
        """Whether another measurement would not be over within the limit."""
        return self.longest_s > self.work.left_s

    def measure(self, chosen: dict[str, str], best: dict[str, Any] | None = None) -> dict[str, Any]:
        """What was measured of one setting, or why nothing was. `best` is what it is held against."""
        known = next((found for found in self.known if found["chosen"] == chosen), None)
        if known:
            self.add(known)
            return known
        changed = [f"{name} {label}" for name, label in chosen.items() if not best or best["chosen"][name] != label]
        so_far = f"; best so far {median(best['exchange_s']):.3g} s for an exchange" if best else ""
        self.work.tell(f"{', '.join(changed) if best else 'the setting of the plan'}{so_far}")
        began_s = time.monotonic()
        found: dict[str, Any] = {
            "chosen": chosen,
            "slots": slots_of(self.words(chosen)),
            "exchange_s": [],
            "first_token_s": [],
            "prompt": [],
            "decode": [],
            "points": [],
            "failed": "",
        }
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
        """Runs llama-batched-bench once for each number of people at once; what that comes to.

        `exchange_s` are the mean seconds of an exchange, `first_token_s` those until its answer begins, `prompt` and `decode` the tokens/s
        of all that was computed, in each repetition.

        Raises:
            FailedError: it fails, or does not end within the limit.
        """
        job = self.job
        words = self.words(chosen)
        _, slots = slots_of(words)
        found: list[Point] = []
        for users in sorted({served(exchange, slots) for exchange in self.exchanges}):
            of_users = [exchange for exchange in self.exchanges if served(exchange, slots) == users]
            own = lengths(of_users, users, self.decode_tokens)
            # llama-batched-bench may end before it has printed its last line, so that is one that nobody needs.
            asked = ",".join(map(str, [*own * job["repetitions"], own[0]]))
            measured = ["-npp", asked, "-ntg", str(self.decode_tokens), "-npl", str(users)]
            said = self.said([job["program"], *words, *measured, "--output-format", "jsonl"])
            found += points(said, users, job["repetitions"])
        shares = sum(exchange["share"] for exchange in self.exchanges)
        each = range(job["repetitions"])
        first_token_s, exchange_s = (
            [
                sum(exchange["share"] * waited(exchange, found, slots, number)[which] for exchange in self.exchanges)
                / shares
                for number in each
            ]
            for which in (0, 1)
        )
        return {
            "points": found,
            "exchange_s": exchange_s,
            "first_token_s": first_token_s,
            "prompt": [
                sum(point["users"] * point["prompt_tokens"] for point in found)
                / sum(point["prompt_s"][number] for point in found)
                for number in each
            ],
            "decode": [
                sum(point["users"] for point in found) / sum(point["token_s"][number] for point in found)
                for number in each
            ],
        }

    def words(self, chosen: dict[str, str]) -> list[str]:
        """The arguments of a setting."""
        words = list(self.job["fixed"])
        for dimension in self.job["dimensions"]:
            for choice in dimension["choices"]:
                words += choice["arguments"] if choice["label"] == chosen[dimension["name"]] else []
        return words

    def said(self, command: list[str]) -> str:
        """What a program prints.

        Raises:
            FailedError: it fails, or does not end within the limit.
        """
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", check=False, timeout=max(self.work.left_s, 0)
            )
        except subprocess.TimeoutExpired:
            raise FailedError("was not over within the time limit; a longer --limit gives it more") from None
        except OSError as error:
            raise FailedError(f"llama-batched-bench does not start: {error}") from None
        if done.returncode:
            lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            said = " / ".join(lines)[-400:]
            raise FailedError(f"llama-batched-bench ended with {done.returncode}: {said or 'it said nothing'}")
        return done.stdout

    def reason(self, own: dict[str, Any], best: dict[str, Any]) -> str:
        """Why the best is kept, in one sentence."""
        if best is own:
            others = [each for each in self.measured if each is not own]
            if not others:
                return "nothing else was measured"
            if any(is_faster(each, own) for each in others if not each["failed"]):
                return f"none of {len(others)} others was so much faster that shorter or fewer slots are worth it"
            return f"none of {len(others)} others was faster by more than the noise"
        if best["slots"] == own["slots"]:
            gained = gain(best["exchange_s"], own["exchange_s"])
            return f"an exchange is over {gained:.0%} sooner than with the plan's own setting"
        gained = gain(waits(best), waits(own))
        wait = f"{abs(gained):.0%} {'less' if gained > 0 else 'longer'}" if round(gained, 2) else "as long"
        return f"{in_words(best['slots'])} instead of {in_words(own['slots'])}, and people wait {wait}"

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
