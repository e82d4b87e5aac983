"""A plan, or what arguments would do, as one JSON document. Its keys are described in docs/offload.md and do not change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from r1prov.models.model import Model
    from r1prov.offload.compare import Alternative, Baseline
    from r1prov.offload.foresight import ForeseenArguments
    from r1prov.offload.outcome import Device, Outcome
    from r1prov.offload.plan import Plan

BASIS = (
    "bytes read per token, of weights and of a full slot's cache, over what decoding gets out of RAM (35 to 60 GB/s, figures of others on"
    " such servers) and cards (400 to 800 GB/s), one after the other; not measured on this machine"
)


def of_outcome(
    model: Model,
    found: Outcome,
    arguments: Sequence[str],
    environment: dict[str, str],
    alternatives: Iterable[Alternative],
) -> dict[str, Any]:
    """What `arguments` would do with a model in `environment`, and what would fit if they do not."""
    low, high = found.tokens_per_second
    return {
        "model": model.name,
        "mla": model.mla,
        "devices": [_device(device) for device in found.devices],
        "host": _device(found.host),
        "arguments": list(arguments),
        "environment": environment,
        "bytes_per_token": {"host": found.reads.host, "devices": list(found.reads.cards)},
        "decode_tokens_per_second": {"low": round(low, 2), "high": round(high, 2), "basis": BASIS},
        "fits": found.fits,
        "reasons": list(found.reasons),
        "notes": list(found.notes),
        "alternatives": [_alternative(alternative) for alternative in alternatives],
    }


def of_refusal(
    model: Model,
    reason: str,
    arguments: Sequence[str],
    environment: dict[str, str],
    alternatives: Iterable[Alternative],
) -> dict[str, Any]:
    """Arguments with which the engine would not start, and near ones with which it would."""
    return {
        "model": model.name,
        "mla": model.mla,
        "devices": [],
        "host": None,
        "arguments": list(arguments),
        "environment": environment,
        "bytes_per_token": None,
        "decode_tokens_per_second": None,
        "fits": False,
        "reasons": [reason],
        "notes": [],
        "alternatives": [_alternative(alternative) for alternative in alternatives],
    }


def of_arguments(found: ForeseenArguments, arguments: Sequence[str]) -> dict[str, Any]:
    """What llama-server would do with `arguments`, and what would do instead where that does not."""
    if found.outcome:
        return of_outcome(found.model, found.outcome, arguments, found.environment, found.alternatives)
    return of_refusal(found.model, found.refusal, arguments, found.environment, found.alternatives)


def of_plan(
    model: Model, plan: Plan, found: Outcome, baselines: Iterable[Baseline], alternatives: Iterable[Alternative]
) -> dict[str, Any]:
    """A plan for a model, what others would do beside it, and what would fit if it does not."""
    return of_outcome(model, found, plan.arguments, plan.environment, alternatives) | {
        "ollama": {
            "num_gpu": plan.ollama.gpu_layers,
            "num_ctx": plan.context_per_slot,
            "num_batch": plan.ollama.micro_batch,
        },
        "baselines": [
            {
                "name": baseline.name,
                "fits": baseline.outcome.fits,
                "reasons": list(baseline.outcome.reasons),
                "bytes_per_token": {"host": baseline.outcome.reads.host, "devices": list(baseline.outcome.reads.cards)},
            }
            for baseline in baselines
        ],
    }


def _alternative(alternative: Alternative) -> dict[str, Any]:
    return {"change": alternative.change, "arguments": list(alternative.arguments)}


def _device(device: Device) -> dict[str, Any]:
    return {
        "name": device.name,
        "capacity_bytes": device.capacity,
        "weights_bytes": device.weights,
        "kv_bytes": device.kv,
        "compute_bytes": device.compute,
        "reserve_bytes": device.reserve,
    }
