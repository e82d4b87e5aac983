"""Measuring modes: which servers a host would compare, what role `measure` is told of them, and the document about what came of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from r1prov.common.files import write_whole
from r1prov.models import headers
from r1prov.offload import document, experiment, model_of, modes
from r1prov.runs.report import now

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from r1prov.decision import Decision
    from r1prov.offload.experiment import Server

SCHEMA = 1
MEASURED = ("measured_unix_s", "earlier", "load_s", "seconds", "rates", "memory", "load")
"""What the document has of a mode that was measured."""

NO_TIME = "no time was left for it"
BROKEN_OFF = "the measurement was broken off before"

ABSENT = {
    modes.LEGACY: "the published files do not lie there any more, and are not fetched for this",
    modes.OLLAMA: "Ollama does not have the model there: `r1prov up` gives it to Ollama",
}
NOT_THERE = "the model does not lie there: run `r1prov up` first"


def servers(decision: Decision, host: str, asked: Sequence[str]) -> tuple[Server, ...]:
    """The servers that a host would compare in these modes."""
    decision = decision.of(host)
    site = decision.site
    without = "" if site.file.ollama.enabled else "the site has no Ollama (`ollama.enabled` is false)"
    return experiment.servers(
        asked,
        experiment.Subject(
            model=decision.model,
            published=model_of(decision.quant) or headers.kept(decision.quant),
            published_bytes=decision.quant.bytes,
            plan=decision.plan_for(host),
            arguments=decision.arguments(host),
            machine=decision.machine_of(host),
            serving=site.profile.serving,
            without_ollama=without,
            speeds=decision.speeds_of(host),
        ),
    )


def variables(decision: Decision, host: str, found: Sequence[Server], limit_s: int, *, at_once: bool) -> dict[str, Any]:
    """The variables that tell role `measure` of these servers."""
    return {
        "measure_modes": [_told(decision, host, server) for server in found if not server.left_out],
        "measure_limit_s": limit_s,
        "measure_now": at_once,
        "measure_report": "",  # `keep` writes the document, which has what is planned, too.
    }


def _told(decision: Decision, host: str, server: Server) -> dict[str, Any]:
    decision = decision.of(host)
    plan = decision.plan_for(host)
    published = f"{decision.weights_dir}/{decision.quant.files[0].name}"
    return {
        "mode": server.mode,
        "engine": _engine(server),
        "arguments": list(server.arguments),
        "model": published if server.mode == modes.LEGACY else decision.model_file,
        "ollama_model": decision.alias if server.mode == modes.OLLAMA else "",
        "environment": plan.environment,
        "slots": plan.slots,
        "context_per_slot": plan.context_per_slot,
        "decode_estimate": round(server.outcome.tokens_per_second[0], 3) if server.outcome else 0.0,
        "absent": ABSENT.get(server.mode, NOT_THERE),
    }


def _engine(server: Server) -> str:
    return "ollama" if server.mode == modes.OLLAMA else "llama-server"


def report(
    decision: Decision, host: str, found: Sequence[Server], limit_s: int, result: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The document about the modes of a host (docs/benchmark.md): what is planned, and beside it what was measured.

    Args:
        decision: what the host serves.
        host: its name.
        found: from `servers`.
        limit_s: how long it may measure, or might.
        result: what role `measure` returns; None where nothing was measured.
    """
    decision = decision.of(host)
    measured = {each["mode"]: each for each in result["modes"]} if result else {}
    not_reached = {server.mode: BROKEN_OFF for server in found if server.mode not in measured} if result else {}
    not_reached |= dict.fromkeys(result["untried"], NO_TIME) if result else {}
    return {
        "schema": SCHEMA,
        "host": host,
        "profile": decision.site.file.profile,
        "quant": decision.quant.name,
        "mla": decision.model.mla if decision.model else None,
        "context_per_slot": decision.plan_for(host).context_per_slot,
        "slots": decision.plan_for(host).slots,
        "limit_s": limit_s,
        "state": result["state"] if result else "planned",
        "written": now(),
        "modes": [_mode(server, measured.get(server.mode, {}), not_reached.get(server.mode, "")) for server in found],
        "notes": list(dict.fromkeys(note for server in found if server.outcome for note in server.outcome.notes)),
        "published": [figure.model_dump(mode="json") for figure in decision.site.profile.published],
    }


def _mode(server: Server, measured: Mapping[str, Any], not_reached: str) -> dict[str, Any]:
    found = server.outcome
    low, high = found.tokens_per_second if found else (0.0, 0.0)
    left_out = server.left_out or measured.get("skipped", "") or not_reached
    return {
        "mode": server.mode,
        "what": modes.MODES[server.mode],
        "engine": _engine(server),
        "arguments": list(server.arguments),
        "ollama": server.ollama,
        "fits": found.fits if found else None,
        "reasons": list(found.reasons) if found else [],
        "left_out": left_out,
        "failed": measured.get("failed", ""),
        "planned": {
            "devices": [document.of_device(each) for each in found.devices],
            "host": document.of_device(found.host),
            "decode_tokens_per_second": {"low": round(low, 2), "high": round(high, 2)},
        }
        if found
        else None,
        "measured": {key: measured[key] for key in MEASURED} if measured.get("rates") else None,
    }


def keep(reports: Path, document_of_host: Mapping[str, Any]) -> Path:
    """Keep the document about a host as `HOST.modes.json`."""
    text = json.dumps(document_of_host, indent=2, ensure_ascii=False) + "\n"
    return write_whole(reports / f"{document_of_host['host']}.modes.json", text)
