"""How long people wait for the first token: prompts of several lengths, from one person and from several at once, within a time limit."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import fmean
from threading import Lock
from typing import TYPE_CHECKING, Any

from ansible_collections.r1.prov.plugins.module_utils.doors import SEED, Limits
from ansible_collections.r1.prov.plugins.module_utils.http_api import ApiError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ansible_collections.r1.prov.plugins.module_utils.doors import LlamaServer, Ollama, Reply
    from ansible_collections.r1.prov.plugins.module_utils.progress import Progress

ANSWER_TOKENS = 2
"""The tokens of each answer. The first is what people wait for, and the second shows that it was not the last."""


class FirstTokens:
    """The measurement of one engine.

    Args:
        engine: Its door.
        words: What prompts are made of.
        temperature: Of the sampling.
        progress: Is told how much of the prompts is computed.
    """

    def __init__(
        self, engine: LlamaServer | Ollama, words: Sequence[str], temperature: float, progress: Progress
    ) -> None:
        self._engine, self._words, self._temperature, self._progress = engine, words, temperature, progress

    def measure(self, asked: Sequence[dict[str, Any]], rate: float, limit_s: float) -> list[dict[str, Any]]:
        """Measures one point after the other, the cheapest first, as far as the time goes.

        A point is begun only if it should be over in time, by the rate at which prompts were computed so far.

        Args:
            asked: The points: `users`, the `length` of the prompt of each in tokens, and `planned_s`, which is only passed on.
            rate: The tokens of prompt in a second, by which the first point is foreseen; 0 where nobody knows.
            limit_s: The seconds for all points together.

        Returns:
            The points as docs/benchmark.md describes them (`first_tokens`).

        Raises:
            ApiError: The engine cannot be asked.
        """
        ends_s, found = time.monotonic() + limit_s, []
        facts = self._engine.facts() if asked else {}
        for wanted in sorted(asked, key=_cost):
            left_s = ends_s - time.monotonic()
            too_large, too_long = misfit(wanted, facts), overrun(wanted, rate, left_s)
            point = {
                "users": wanted["users"],
                "prompt_tokens": wanted["length"],
                "planned_s": wanted["planned_s"],
                "left_out": too_large or too_long,
                "for_want_of_time": bool(too_long and not too_large),
            }
            if not point["left_out"]:
                try:
                    point |= self._measured(wanted["users"], wanted["length"], left_s)
                    rate = _cost(wanted) / point["last_first_token_s"]
                except ApiError:
                    if time.monotonic() < ends_s:
                        raise
                    point["left_out"] = f"it was not over after the {left_s:,.0f} s that were left"
                    point["for_want_of_time"] = True
            found.append(point)
        return found

    def _measured(self, users: int, tokens: int, left_s: float) -> dict[str, Any]:
        who = "one user" if users == 1 else f"{users} users at once"
        self._progress.begin(f"measuring the first token after {tokens:,} tokens, {who}", users * tokens, "steps")
        counts, telling, dice = [0] * users, Lock(), random.SystemRandom()
        prompts = [self._engine.prompt(new_text(self._words, tokens, dice), tokens) for _ in range(users)]
        limits = Limits(ANSWER_TOKENS, left_s, self._temperature)

        def one(user: int) -> Reply:
            def report(done: int) -> None:
                counts[user] = done
                with telling:
                    self._progress.update(sum(counts))

            return self._engine.first_token(prompts[user], SEED + user, limits, report)

        with ThreadPoolExecutor(users) as pool:
            replies = list(pool.map(one, range(users)))
        began_s = min(reply.started_s for reply in replies)
        return {
            "evaluated_tokens": sum(reply.prompt_tokens for reply in replies),
            "time_to_first_token_s": round(fmean(reply.first_s - reply.started_s for reply in replies), 3),
            "last_first_token_s": round(max(reply.first_s for reply in replies) - began_s, 3),
            "prompt_tokens_per_second_each": round(fmean(reply.prompt_tokens_per_second for reply in replies), 2),
        }


def _cost(point: dict[str, Any]) -> int:
    """The tokens of prompt that the engine computes for a point."""
    tokens: int = point["users"] * point["length"]
    return tokens


def misfit(point: dict[str, Any], facts: dict[str, Any]) -> str:
    """Why the engine cannot be asked about a point at all; empty where it can."""
    context, slots = facts["context_per_slot"], facts["slots"]
    if point["users"] > slots:
        return f"there {'is' if slots == 1 else 'are'} {slots} slot{'s' * (slots > 1)}"
    if point["length"] + ANSWER_TOKENS > context:
        return f"a slot holds {context:,} tokens"
    return ""


def overrun(point: dict[str, Any], rate: float, left_s: float) -> str:
    """Why a point would not be over in time; empty where it should be."""
    expected_s = _cost(point) / rate if rate else 0.0
    if left_s <= 0 or expected_s > left_s:
        return f"it would take about {expected_s:,.0f} s, and {max(left_s, 0):,.0f} s are left"
    return ""


def new_text(words: Sequence[str], count: int, dice: random.Random) -> str:
    """A text of so many words that nobody has asked before, so that no cache holds any part of it."""
    return " ".join((f"{dice.getrandbits(64):x}", *dice.choices(words, k=count)))
