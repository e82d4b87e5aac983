"""What the rates that were measured on a host tell about its speeds. That is kept with the site, and changes no plan."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from statistics import median
from typing import TYPE_CHECKING, Any

from r1prov.machines.known import MeasuredSpeed
from r1prov.offload import measured, modes
from r1prov.offload.arguments import parse
from r1prov.offload.costs import costs
from r1prov.offload.measured import Sample
from r1prov.offload.setting import RefusedError, UnknownArgumentError
from r1prov.site.state import SiteState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from r1prov.decision import Decision
    from r1prov.machines.tuned import Tuned
    from r1prov.offload.costs import Costs
    from r1prov.offload.tuning import Trial


def of_modes(decision: Decision, host: str, document: Mapping[str, Any]) -> None:
    """Keep what `r1prov bench --modes` tells.

    Args:
        decision: what the host serves.
        host: its name.
        document: about its modes, see docs/benchmark.md. What Ollama and `--fit` place themselves, nobody knows exactly. The files of
            `legacy` are others.
    """
    unclear = {modes.OLLAMA, modes.FIT, modes.LEGACY}
    clear = [
        mode
        for mode in document["modes"]
        if mode["measured"] and mode["mode"] not in unclear and not mode["measured"]["load"]["foreign"]
    ]
    if not clear:
        return
    samples = [
        sample
        for mode in clear
        for rate in mode["measured"]["rates"]
        if rate["users"] == 1
        for sample in _samples(decision, mode["arguments"], rate)
    ]
    last = max(mode["measured"]["measured_unix_s"] for mode in clear)
    _keep(decision, host, samples, "r1prov bench --modes", _iso(last))


def of_tuning(decision: Decision, host: str, trial: Trial, tuned: Tuned) -> None:
    """Keep what `r1prov tune` tells: the settings with the threads and the packing that were kept, for others make the CPU slower."""
    decision = decision.of(host)
    alike = {name: label for name, label in tuned.chosen.items() if name != "placement"}
    samples: list[Sample] = []
    for each in tuned.measured:
        if each.failed or not alike.items() <= each.chosen.items():
            continue
        for point in each.points:
            if point["users"] == 1:
                rate = {
                    "depth_tokens": 0,
                    "prompt_tokens": point["prompt_tokens"],
                    "prompt_tokens_per_second": point["prompt_tokens"] / median(point["prompt_s"]),
                    "decode_tokens": point["decode_tokens"],
                    "decode_tokens_per_second": 1 / median(point["token_s"]),
                }
                samples += _samples(decision, trial.arguments(each.chosen), rate)
    _keep(decision, host, samples, "r1prov tune", tuned.ended)


def of_benchmark(decision: Decision, host: str, benchmark: Mapping[str, Any]) -> None:
    """Keep what the benchmark tells with which `r1prov up` ends, unless something else kept the host busy.

    Args:
        decision: what the host serves.
        host: its name.
        benchmark: its result, see docs/benchmark.md.
    """
    decision, subject = decision.of(host), benchmark["subject"]
    # An older result without a load may have been measured beside one.
    if subject["engine"] != "llama-server" or benchmark.get("load", {}).get("foreign", True):
        return
    try:
        words = shlex.split(subject["command"])
    except ValueError:
        return
    alone = [{"depth_tokens": 0, **each} for each in benchmark["sweep"] if each["users"] == 1]
    rates = [
        {key.removesuffix("_each"): value for key, value in each.items()}
        for each in (*alone, *_first_tokens(benchmark))
    ]
    samples = [sample for rate in rates for sample in _samples(decision, words, rate)]
    _keep(decision, host, samples, "the benchmark", _iso(benchmark["measured_unix_s"]))


def _iso(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds")


def _first_tokens(benchmark: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The longer prompts of one user that were measured."""
    for each in benchmark.get("first_tokens", ()):
        if each["users"] == 1 and not each["left_out"] and each["evaluated_tokens"] >= each["prompt_tokens"]:
            yield {"depth_tokens": 0, "decode_tokens_per_second": 0, **each}


def _samples(decision: Decision, words: Sequence[str], rate: Mapping[str, Any]) -> Iterator[Sample]:
    """The times of a prompt and of a token of the answer, as far as they were measured and the placement is known."""
    found = _costs(decision, words)
    if not found:
        return
    tokens, depth = rate["prompt_tokens"], rate["depth_tokens"]
    if rate["prompt_tokens_per_second"] > 0:
        yield Sample(found, tokens / rate["prompt_tokens_per_second"], tokens, depth)
    if rate["decode_tokens_per_second"] > 0:
        deep = depth + tokens + rate.get("decode_tokens", 0) / 2
        yield Sample(found, 1 / rate["decode_tokens_per_second"], 0, deep)


def _costs(decision: Decision, words: Sequence[str]) -> Costs | None:
    """What lies where with these arguments of llama-server; None where that is not known."""
    cards = decision.site.profile.machine.cards
    if not decision.model:
        return None
    try:
        setting = parse(words, cards=len(cards))
        return None if setting.fit else costs(decision.model, setting, cards)
    except (RefusedError, UnknownArgumentError):
        return None


def _keep(decision: Decision, host: str, samples: Iterable[Sample], by: str, when: str) -> None:
    state = SiteState.of(decision.site.path)
    known = state.known(host)
    found = measured.speeds(list(samples), decision.speeds_of(host))
    if not known or not found:
        return
    told = {
        name: MeasuredSpeed(low=low, high=high, by=by, model=decision.quant.name, measured=when)
        for name, (low, high) in found.items()
    }
    state.keep_known(host, known.with_measured(told))
