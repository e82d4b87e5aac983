"""The prompts after which `r1prov bench` measures the time to the first token, with what the plan says of each, and what came of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from r1prov.machines.workload import Exchange, Workload
from r1prov.offload import waits
from r1prov.offload.arguments import parse
from r1prov.offload.memory import context_per_slot

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from r1prov.decision import Decision

LENGTHS = (512, 2000, 8000)
"""The tokens of the prompts: a question with its context, some pages, a document."""


def asked(decision: Decision, host: str) -> list[dict[str, Any]]:
    """The prompts for a host, of one user and of as many as there are slots, as role `smoke_bench` is told of them."""
    decision = decision.of(host)
    machine, model, speeds = decision.site.profile.machine, decision.model, decision.speeds_of(host)
    setting = decision.plan_for(host).ollama
    if decision.site.file.engine == "llama-server":
        setting = parse(decision.arguments(host), cards=len(machine.cards), lent=machine.lent)
    pairs = [(length, users) for length in LENGTHS for users in dict.fromkeys((1, setting.slots))]
    found: list[dict[str, Any]] = [{"length": length, "users": users, "planned_s": []} for length, users in pairs]
    for prompt in found:
        exchange = Exchange(prompt=prompt["length"], answer=1, at_once=prompt["users"])
        if model and exchange.tokens <= context_per_slot(model, setting):
            wait = waits.day(model, setting, machine.cards, Workload(exchanges=(exchange,)), speeds).waits[0]
            prompt["planned_s"] = [round(seconds, 3) for seconds in sorted(wait.first_token)]
    return found


def rows(benchmarks: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, str, str, str]]:
    """A row for each prompt that was measured: host, users, tokens, seconds until the last user's first token, seconds as planned."""
    return [
        (
            host,
            str(point["users"]),
            f"{point['prompt_tokens']:,}",
            seconds(point["last_first_token_s"]),
            "-".join(map(seconds, point["planned_s"])),
        )
        for host, point in _points(benchmarks)
        if not point["left_out"]
    ]


def left_out(benchmarks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for each prompt that was not measured."""
    return [
        f"{host}: {point['prompt_tokens']:,} tokens from {_people(point['users'])} not measured: {point['left_out']}"
        for host, point in _points(benchmarks)
        if point["left_out"]
    ]


def seconds(number: float) -> str:
    """Seconds with as many decimals as tell something."""
    return f"{number:.2f}" if number < 1 else f"{number:.1f}" if number < 10 else f"{number:,.0f}"


def _points(benchmarks: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for host, benchmark in benchmarks.items():
        points: Iterable[dict[str, Any]] = benchmark.get("first_tokens", ())
        yield from ((host, point) for point in points)


def _people(users: int) -> str:
    return "one user" if users == 1 else f"{users} users at once"
