"""Writes a plan, or the outcome of arguments, as one JSON document. docs/offload.md describes its keys, which do not change."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from r1prov.common.units import GB
from r1prov.offload.ollama import parameters
from r1prov.offload.plan import arguments
from r1prov.offload.speed import RANGES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from r1prov.models.model import Model
    from r1prov.offload.compare import Alternative
    from r1prov.offload.conversation import Conversation, Course
    from r1prov.offload.foresight import ForeseenArguments, ForeseenPlan, Measured
    from r1prov.offload.outcome import Device, Outcome
    from r1prov.offload.speed import Speed, Speeds
    from r1prov.offload.trade import Choice
    from r1prov.offload.waits import Day, Range, Wait

_BASIS = (
    "the bytes of weights and of a full slot's cache that a token reads, divided by the speed of RAM ({ram}) and of cards ({card}); the"
    " devices work one after the other"
)


def of_outcome(
    model: Model,
    found: Outcome,
    words: Sequence[str],
    environment: dict[str, str],
    alternatives: Iterable[Alternative],
) -> dict[str, Any]:
    """The document about an outcome of `words` in `environment`, with the alternatives if the model does not fit."""
    return {
        "model": model.name,
        "mla": model.mla,
        "devices": [of_device(device) for device in found.devices],
        "host": of_device(found.host),
        "arguments": list(words),
        "environment": environment,
        "bytes_per_token": {"host": found.reads.host, "devices": list(found.reads.cards)},
        "decode_tokens_per_second": _decoding(found) if found.fits else None,
        "fits": found.fits,
        "sure": found.sure,
        "reasons": list(found.reasons),
        "notes": list(found.notes),
        "alternatives": [_alternative(alternative) for alternative in alternatives],
    }


def _decoding(found: Outcome) -> dict[str, Any]:
    low, high = found.tokens_per_second
    return {"low": round(low, 2), "high": round(high, 2), "basis": _basis(found.speeds)}


def _basis(speeds: Speeds) -> str:
    """What the rates follow from, in words."""

    def told(speed: Speed) -> str:
        return f"{speed.low / GB:g} to {speed.high / GB:g} GB/s, {speed.detail or speed.origin}"

    return _BASIS.format(ram=told(speeds.ram_bytes_per_second), card=told(speeds.card_bytes_per_second))


def of_refusal(
    model: Model,
    reason: str,
    words: Sequence[str],
    environment: dict[str, str],
    alternatives: Iterable[Alternative],
) -> dict[str, Any]:
    """The document about words that the engine refuses, with alternatives with which it would start."""
    return {
        "model": model.name,
        "mla": model.mla,
        "devices": [],
        "host": None,
        "arguments": list(words),
        "environment": environment,
        "bytes_per_token": None,
        "decode_tokens_per_second": None,
        "workload": None,
        "conversation": None,
        "fits": False,
        "sure": True,
        "reasons": [reason],
        "notes": [],
        "alternatives": [_alternative(alternative) for alternative in alternatives],
    }


def of_arguments(found: ForeseenArguments, words: Sequence[str]) -> dict[str, Any]:
    """The document of `r1prov explain`: the outcome of `words`, or the reason why the engine refuses them."""
    if found.outcome and found.day:
        told = of_outcome(found.model, found.outcome, words, found.environment, found.alternatives)
        fits = found.outcome.fits
        return told | {
            "workload": _day(found.day) if fits else None,
            "conversation": _conversation(found.talk) if fits else None,
        }
    return of_refusal(found.model, found.refusal, words, found.environment, found.alternatives)


def of_plan(found: ForeseenPlan, measured: Measured | None = None) -> dict[str, Any]:
    """The document of `r1prov plan`: the plan, what people wait for, the baselines, and the alternatives if the plan does not fit.

    Args:
        found: The plan.
        measured: The same at the speeds that were measured on a host, if it is about a host where some were.
    """
    plan, fits = found.plan, found.outcome.fits
    told = of_outcome(found.model, found.outcome, plan.arguments, plan.environment, found.alternatives)
    return told | {
        "quant": {"name": plan.quant, "reason": plan.quant_reason},
        "workload": _day(found.day) if fits else None,
        "speeds": _speeds(found.outcome.speeds),
        "measured": _measured(measured) if measured else None,
        "pool": _pool(found),
        "conversation": _conversation(found.talk) if fits else None,
        "cache_ram": {"bytes": plan.setting.prompts, "reason": plan.prompts_reason},
        "slots": {"number": plan.slots, "reason": plan.slots_reason},
        "context": {"tokens_per_slot": plan.context_per_slot, "reason": plan.context_reason},
        "trade": [_choice(choice) for choice in found.trade],
        "ollama": parameters(plan),
        "baselines": [
            {
                "name": baseline.name,
                "fits": baseline.outcome.fits,
                "sure": baseline.outcome.sure,
                "reasons": list(baseline.outcome.reasons),
                "bytes_per_token": {"host": baseline.outcome.reads.host, "devices": list(baseline.outcome.reads.cards)},
            }
            for baseline in found.baselines
        ],
    }


def _speeds(speeds: Speeds) -> dict[str, Any]:
    return {
        name: {"low": speed.low, "high": speed.high, "origin": speed.origin.name.lower(), "detail": speed.detail}
        for name, speed in ((name, getattr(speeds, name)) for name in RANGES)
    }


def _pool(found: ForeseenPlan) -> dict[str, Any] | None:
    """What is told of a pool; None where one host serves the model by itself."""
    crossing = found.outcome.speeds.crossing
    if not crossing:
        return None
    return dataclasses.asdict(crossing) | {"alone": _day(found.alone) if found.alone else None}


def _measured(measured: Measured) -> dict[str, Any]:
    low, high = measured.tokens_per_second
    return {
        "host": measured.host,
        "speeds": _speeds(measured.speeds),
        "decode_tokens_per_second": {"low": round(low, 2), "high": round(high, 2)},
        "workload": _day(measured.day),
    }


def _choice(choice: Choice) -> dict[str, Any]:
    return {
        "names": list(choice.names),
        "chosen": choice.chosen,
        "slots": choice.setting.slots,
        "micro_batch": choice.setting.micro_batch,
        "first_token_seconds": _seconds(choice.first_token),
        "mean_seconds": _seconds(choice.mean),
        "tokens_per_second": _rates(choice.alone),
        "tokens_per_second_in_all": _rates(choice.together),
        "bytes_per_token": {"host": choice.from_ram},
        "arguments": list(arguments(choice.setting)),
    }


def _day(day: Day) -> dict[str, Any]:
    return {
        "description": day.workload.description,
        "mean_first_token_seconds": _seconds(day.first_token),
        "mean_seconds": _seconds(day.mean),
        "exchanges": [_wait(wait) for wait in day.waits],
    }


def _wait(wait: Wait) -> dict[str, Any]:
    return wait.exchange.model_dump() | {
        "first_token_seconds": _seconds(wait.first_token),
        "copying_seconds": _seconds(wait.copying),
        "end_seconds": _seconds(wait.end),
        "tokens_per_second": _rates(wait.each),
        "tokens_per_second_in_all": _rates(wait.together),
    }


def _conversation(found: Conversation | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return dataclasses.asdict(found.talk) | {
        "kept_in": {course.kept.value: _course(course) for course in found.courses}
    }


def _course(course: Course) -> dict[str, Any]:
    turns = zip(course.computed, course.first_token, course.end, strict=True)
    return {
        "computed_in_all": sum(course.computed),
        "seconds_in_all": _seconds(course.whole),
        "each_turn": [
            {"computed": computed, "first_token_seconds": _seconds(first), "end_seconds": _seconds(end)}
            for computed, first, end in turns
        ],
    }


def _seconds(found: Range) -> dict[str, float]:
    """A range of seconds, of which the low one comes of the high speeds."""
    slow, fast = found
    return {"low": round(fast, 2), "high": round(slow, 2)}


def _rates(found: Range) -> dict[str, float]:
    slow, fast = found
    return {"low": round(slow, 2), "high": round(fast, 2)}


def _alternative(alternative: Alternative) -> dict[str, Any]:
    without = {"without": list(alternative.without)} if alternative.without else {}
    return {"change": alternative.change, "arguments": list(alternative.arguments), **without}


def of_device(device: Device) -> dict[str, Any]:
    """What a setting takes of a device."""
    return {
        "name": device.name,
        "capacity_bytes": device.capacity,
        "weights_bytes": device.weights,
        "kv_bytes": device.kv,
        "compute_bytes": device.compute,
        "reserve_bytes": device.reserve,
    }
