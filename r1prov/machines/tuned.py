"""What hosts of a site were tuned to: kept with the site, and used as long as it is of the same hardware, engine, model and plan."""

from __future__ import annotations

from datetime import UTC, datetime
from statistics import median
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from r1prov import inventory
from r1prov.models import latent
from r1prov.offload import search, tuning
from r1prov.offload.tuning import Hardware, Measurement, Subject, Tuned
from r1prov.site.state import SiteState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from r1prov.offload.tuning import Trial
    from r1prov.site import Site

AGAIN = "run `r1prov tune`"


def subject(site: Site, hardware: Hardware) -> Subject:
    """What would be tuned on a host of the site."""
    quant, plan = inventory.plan_for(site)
    file, source = site.file, site.file.sources.llama_cpp
    backend = "cuda" if site.profile.machine.gpus else "cpu"
    return Subject(
        hardware=hardware,
        engine=(file.llama_cpp_version, backend, source.type, source.sha256 if source.type == "archive" else ""),
        model=tuple(each.sha256 for each in quant.files),
        plan=plan.arguments,
    )


def trial(site: Site, facts: dict[str, Any]) -> Trial:
    """What is to be tried on a host of the site, where first contact found `facts`."""
    quant, plan = inventory.plan_for(site)
    published = inventory.published_model(quant)
    model = published and latent.served(published, site.profile.serving.attention)
    return tuning.trial(plan, model, site.profile.machine, subject(site, Hardware.of(facts)))


def kept(site: Site, host: str) -> Tuned | None:
    """What a host was tuned to, whether it still holds or not; None where nothing that can be read is kept."""
    path = SiteState.of(site.path).tuned(host)
    try:
        return Tuned.model_validate_json(path.read_text()) if path.is_file() else None
    except ValidationError:
        return None  # another version of r1prov wrote it in its own way


def keep(site: Site, host: str, found: Tuned) -> None:
    """From now on the host serves with it."""
    SiteState.of(site.path).keep_tuned(host, found.model_dump_json(indent=1) + "\n")


def forget(site: Site, host: str) -> None:
    """From now on the host serves with the plan's own setting."""
    SiteState.of(site.path).tuned(host).unlink(missing_ok=True)


def lapsed(site: Site, found: Tuned, facts: dict[str, Any] | None) -> str:
    """What has changed since a host was tuned, in the words of `tuned for ...`; empty where it still holds.

    Args:
        site: as it is now.
        found: what the host was tuned to.
        facts: what first contact found there; None for a host that was not met, whose hardware is taken to be the same.
    """
    hardware = Hardware.of(facts) if facts else found.subject.hardware
    return found.lapsed(subject(site, hardware))


def holding(site: Site, facts: Mapping[str, dict[str, Any]]) -> tuple[dict[str, Tuned], dict[str, str]]:
    """What the hosts of a site serve with instead of the plan's own setting.

    Args:
        site: whose.
        facts: what first contact found, of the hosts that were met.

    Returns:
        by host, what holds; and a remark about each host for which it no longer does.
    """
    holds, remarks = {}, {}
    for host in site.hosts:
        found = kept(site, host.name)
        if not found:
            continue
        if why := lapsed(site, found, facts.get(host.name)):
            remarks[host.name] = f"is tuned for {why}, so the plan's own setting serves: {AGAIN}"
        else:
            holds[host.name] = found
    return holds, remarks


def state(site: Site, host: str, facts: dict[str, Any]) -> str:
    """Whether a host is tuned, in a few words."""
    found = kept(site, host)
    if not found:
        return f"not tuned: {AGAIN}"
    why = lapsed(site, found, facts)
    return f"tuned for {why}: {AGAIN}" if why else f"tuned: {found.what} ({found.reason})"


def variables(what: Trial, limit_s: int, *, force: bool) -> dict[str, Any]:
    """What role `tune` is told of a trial."""
    return {
        "tune_arguments": list(what.bench_fixed),
        "tune_dimensions": [
            {
                "name": dimension.name,
                "choices": [
                    {"label": choice.label, "arguments": list(tuning.in_bench_words(choice.arguments))}
                    for choice in dimension.choices
                ],
            }
            for dimension in what.dimensions
        ],
        "tune_prompt_tokens": what.prompt_tokens,
        "tune_decode_tokens": tuning.DECODE_TOKENS,
        "tune_prompt_share": search.PROMPT_SHARE,
        "tune_limit_s": limit_s,
        "tune_subject": what.subject.model_dump(mode="json"),
        "tune_force": force,
    }


def outcome(what: Trial, result: dict[str, Any]) -> Tuned:
    """What came of a trial, from the result that role `tune` returns."""
    chosen, own = result["chosen"], result["measured"][0]["chosen"]
    return Tuned(
        subject=what.subject,
        chosen=chosen,
        # As they are where nothing is changed: another order would restart the service.
        arguments=what.subject.plan if chosen == own else what.arguments(chosen),
        measured=tuple(
            Measurement(
                chosen=each["chosen"],
                prompt_tokens_per_second=round(median(each["prompt"] or [0]), 2),
                decode_tokens_per_second=round(median(each["decode"] or [0]), 2),
                seconds=each["seconds"],
                failed=each["failed"],
            )
            for each in result["measured"]
        ),
        untried=tuple(result["untried"]),
        reason=result["reason"],
        ended=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def describe(what: Trial) -> list[str]:
    """What will be measured, for people: one line per dimension, the plan's own choice first."""
    lines = []
    for dimension in what.dimensions:
        own, *others = (choice.label for choice in dimension.choices)
        lines.append(f"{dimension.name}: {own} as planned, {', '.join(others)}")
    return lines


def rows(found: Tuned) -> list[tuple[str, str, str, str]]:
    """What was measured: the setting, prompt and decode rates (tokens/s), and what became of it."""
    own = found.measured[0].chosen
    table = []
    for each in found.measured:
        other = ", ".join(f"{name} {label}" for name, label in each.chosen.items() if label != own[name])
        fate = "kept" if each.chosen == found.chosen else each.failed
        rates = each.prompt_tokens_per_second, each.decode_tokens_per_second
        prompt, decode = ("" if each.failed else f"{rate:.2f}" for rate in rates)
        table.append((other or "the plan's own", prompt, decode, fate))
    return [*table, *((label, "", "", "no time was left for it") for label in found.untried)]
