"""Measures a model in several modes, each a server of its own.

The job:

    kind          `modes`
    modes         [{mode, engine, arguments, model, ollama_model, environment, slots, context_per_slot, decode_estimate, absent}]
                  (roles/measure/meta/argument_specs.yml)
    llama_server, ollama    the programs
    ollama_models_dir       where Ollama has its models
    limit_s       for all of it
    result        the file that gets the result

Each mode gets an equal share of the time that is left. Its measurements are as long as its share allows; one that is slow gets short
ones, and is broken off where even these take much longer than its share. The result is written after each mode, so one that was stopped
goes on where it was. What it takes over from then is marked as `earlier`.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING, Any

from measuring.load import Load
from measuring.memory import Sampler
from measuring.servers import ENGINES, SkippedError
from measuring.work import FailedError, Work

if TYPE_CHECKING:
    from measuring.servers import Server, Timing

PROMPT_TOKENS, DECODE_TOKENS = 64, 64
FEWEST = 4
"""So many tokens are decoded at least: fewer make no rate."""
DEFAULTS: dict[str, Any] = {
    "arguments": [],
    "environment": {},
    "ollama_model": "",
    "decode_estimate": 0.0,
    "absent": "the model is not there",
}
FIRST_SHARE, DEEP_SHARE = 0.1, 0.5
"""The parts of a mode's time for the first measurement, and of the rest for the filled slot."""

MOST_SHARES = 1.5
"""A mode that is slower than was foreseen is broken off when it has taken so many times its share. What it has measured stays."""


@dataclass(frozen=True)
class Answer:
    """What a server said of an answer, and when that was over, by time.monotonic()."""

    told: Timing
    over_s: float

    @property
    def first_token_s(self) -> float:
        """When decoding began, by the server's own rate."""
        return self.over_s - (self.told.decode_tokens / self.told.decode_rate if self.told.decode_rate else 0.0)


class Modes:
    """The work on one job.

    Args:
        job: see above.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self.modes: list[dict[str, Any]] = [{**DEFAULTS, **mode} for mode in job["modes"]]
        self.work = Work(job, sum(1 + len(steps(mode)) for mode in self.modes))
        self.known = {found["mode"]: found for found in self.work.known("modes") if not found["failed"]}
        self.measured: list[dict[str, Any]] = []
        self.untried: list[str] = []
        self.ends_s = self.work.ends_s
        """Until when the mode that is measured may take, by time.monotonic()."""

    def run(self) -> None:
        """All of it."""
        self.write("running")
        done = 0
        for number, mode in enumerate(self.modes):
            if self.work.left_s <= 0:
                self.untried.append(mode["mode"])
                continue
            found = self.known.get(mode["mode"])
            if found:
                found["earlier"] = True
            else:
                share_s = self.work.left_s / (len(self.modes) - number)
                found = self.measure(mode, share_s)
            self.measured.append(found)
            done += 1 + len(steps(mode))
            self.work.done = done
            self.write("running")
        self.write("done")

    def write(self, state: str) -> None:
        """The result so far."""
        self.work.write(state, modes=self.measured, untried=self.untried)

    def measure(self, mode: dict[str, Any], share_s: float) -> dict[str, Any]:
        """One mode: its rates and its memory, or why there are none."""
        began_s = time.monotonic()
        found: dict[str, Any] = {"mode": mode["mode"], "skipped": "", "failed": "", "load_s": 0.0, "rates": []}
        found |= {"earlier": False, "measured_unix_s": round(time.time())}
        found["memory"] = {"devices_bytes": [], "ram_bytes": 0, "ram_anonymous_bytes": 0}
        found["load"] = {"others_cores": 0.0, "cores": os.cpu_count() or 1, "foreign": False}
        server = ENGINES[mode["engine"]](mode, self.work.job)
        self.ends_s = min(self.work.ends_s, began_s + MOST_SHARES * share_s)
        try:
            self.work.tell(f"{mode['mode']}, loading the model")
            server.start(began_s + share_s)
            found["load_s"] = round(time.monotonic() - began_s, 1)
            self.work.done += 1
            sampler, load = Sampler(server.pid), Load(os.getpid())
            try:
                self.ask(server, mode, began_s + share_s, found["rates"])
            finally:
                found["load"], found["memory"] = load.so_far(), sampler.stop()
        except SkippedError as reason:
            found["skipped"] = str(reason)
        except FailedError as reason:
            found["failed"] = str(reason)
        finally:
            server.stop()
        found["seconds"] = round(time.monotonic() - began_s, 1)
        return found

    def ask(self, server: Server, mode: dict[str, Any], share_ends_s: float, rates: list[dict[str, Any]]) -> None:
        """Measures all rates of a server that is loaded, and adds each to `rates`."""
        context, slots, estimate = mode["context_per_slot"], mode["slots"], mode["decode_estimate"]
        prompt = max(1, min(PROMPT_TOKENS, context // 4))
        most = max(FEWEST, min(DECODE_TOKENS, context // 4))
        first_s = (share_ends_s - time.monotonic()) * FIRST_SHARE

        self.work.tell(f"{mode['mode']}, one user, an empty slot")
        first = self.measured_rate(server, 1, prompt, between(FEWEST, first_s * estimate, most))
        rates.append(first)
        prompt_rate, decode_rate = first["prompt_tokens_per_second"], first["decode_tokens_per_second"]
        self.work.done += 1

        deep_s = (share_ends_s - time.monotonic()) * DEEP_SHARE
        decode = between(FEWEST, deep_s * 0.3 * decode_rate, most)
        # A deep slot is filled more slowly than an empty one, so half of the time is planned for it.
        depth = between(1, deep_s * 0.5 * prompt_rate, context - prompt - decode - 1)
        self.work.tell(f"{mode['mode']}, one user, {depth} tokens deep")
        rates.append(self.deep_rate(server, depth, prompt, decode))
        self.work.done += 1

        crowds = steps(mode)[2:]
        for left, users in zip(range(len(crowds), 0, -1), crowds, strict=True):
            crowd_s = (share_ends_s - time.monotonic()) / left
            each = between(8, crowd_s * 0.3 * prompt_rate / users, prompt)
            decode = between(FEWEST, crowd_s * 0.6 * decode_rate / users, most)
            self.work.tell(f"{mode['mode']}, {users} users on {slots} slots")
            rates.append(self.measured_rate(server, users, min(each, prompt), decode))
            self.work.done += 1

    def measured_rate(self, server: Server, users: int, prompt: int, decode: int) -> dict[str, Any]:
        """So many users at once, each with a prompt and an empty slot."""

        def answer(user: int) -> Answer:
            told = server.ask(server.prompt(prompt, users * 100 + user), decode, self.ends_s)
            return Answer(told, time.monotonic())

        began_s = time.monotonic()
        with ThreadPoolExecutor(users) as pool:
            return rate(list(pool.map(answer, range(users))), 0, began_s)

    def deep_rate(self, server: Server, depth: int, prompt: int, decode: int) -> dict[str, Any]:
        """One user, whose slot holds so many tokens before."""
        whole = server.prompt(depth + prompt, 1)
        begin = whole[:depth] if isinstance(whole, list) else server.prompt(depth, 1)
        filled = server.ask(begin, 1, self.ends_s, keep=True)
        began_s = time.monotonic()
        told = server.ask(whole, decode, self.ends_s, keep=True)
        return rate([Answer(told, time.monotonic())], filled.prompt_tokens, began_s)


def steps(mode: dict[str, Any]) -> list[int]:
    """How many users each measurement of a mode has: one, one with a filled slot, as many as slots, and twice as many."""
    slots: int = mode["slots"]
    return [1, 1, *([slots] if slots > 1 else []), 2 * slots]


def between(least: int, wanted: float, most: int) -> int:
    """The number of tokens that is wanted, within limits. The upper one wins."""
    return max(1, min(max(least, int(wanted)), most))


def rate(answers: list[Answer], depth: int, began_s: float) -> dict[str, Any]:
    """The rates of users who asked at once. All together decode from the first one's first token to the last one's last."""
    told, over_s = [each.told for each in answers], max(each.over_s for each in answers)
    decoding_s = over_s - min(each.first_token_s for each in answers)
    tokens = sum(each.decode_tokens for each in told)
    return {
        "users": len(told),
        "depth_tokens": depth,
        "prompt_tokens": round(mean(each.prompt_tokens for each in told)),
        "decode_tokens": round(mean(each.decode_tokens for each in told)),
        "prompt_tokens_per_second": round(mean(each.prompt_rate for each in told), 3),
        "decode_tokens_per_second": round(mean(each.decode_rate for each in told), 3),
        "decode_tokens_per_second_total": round(tokens / decoding_s, 3) if decoding_s else 0.0,
        "wall_s": round(over_s - began_s, 2),
    }


def run(job: dict[str, Any]) -> int:
    """Do the job; the exit code."""
    modes = Modes(job)
    modes.run()
    modes.work.show("measured", state="done")
    return 0
