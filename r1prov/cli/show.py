"""How the end of a run is shown."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1prov import output, report
from r1prov.pace import clock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from r1prov.report import RunReport
    from r1prov.site import Host, Site


def summary(done: RunReport, *, check: bool = False) -> None:
    """What changed on each host, step by step; after a `check`, what would."""
    rows = []
    for name, host in done.hosts.items():
        per_step = Counter(change.partition(":")[0] for change in host.changes)
        changes = ", ".join(f"{step} {count}" for step, count in per_step.items()) or "nothing"
        rows.append((name, host.result, str(host.changed), changes, clock(sum(seconds for _, seconds in host.steps))))
    output.say()
    changed = ("would change>", "what would change") if check else ("changed>", "what changed")
    output.table(("host", "result", *changed, "took>"), rows, talk=True)
    if check:
        output.say("Nothing was changed: this was a check.")


def addresses(chosen: Site, hosts: Sequence[Host]) -> None:
    """Where the API is, and how to try it."""
    service = chosen.file.service
    output.say()
    for host in hosts:
        output.say(f"{host.name}: http://{service.address}:{service.port}/v1")
    first = hosts[0]
    if service.address.startswith("127.") and not first.local:
        login = f"{first.user}@{first.address}" if first.user else first.address
        port = f" -p {first.port}" if first.port else ""
        tunnel = f"ssh -N -L {service.port}:{service.address}:{service.port}{port} {login}"
        output.say(f"The API listens on the server itself only; a tunnel to it: {tunnel}")
    elsewhere = f" --site {chosen.path}" if chosen.path and chosen.path.parent != Path.cwd() else ""
    output.say(f'Ask: r1prov ask{elsewhere} --host {first.name} "How many r are in strawberry?"')


def benchmark(done: RunReport, chosen: Site, *, talk: bool) -> None:
    """What was measured, with the published figures beside it."""
    measured = {name: host.benchmark for name, host in done.hosts.items() if host.benchmark}
    if measured:
        output.say()
        rows = report.benchmark_rows(measured, chosen.profile.published)
        output.table(("tokens per second", "prompt>", "decode>"), rows, talk=talk)


def status_row(name: str, status: dict[str, Any]) -> tuple[str, ...]:
    """One host of `r1prov status`: engine, service, health, slots x context per slot, weights, decode rate."""
    units = {unit.removeprefix("r1prov-").removesuffix(".service"): each for unit, each in status["units"].items()}
    props = status["props"] or {}
    context = props.get("default_generation_settings", {}).get("n_ctx")
    alone = (status["benchmark"] or {}).get("sweep", [{}])[0]
    decode = alone.get("decode_tokens_per_second_each")
    return (
        name,
        status["release"] or "not installed",
        units.get("llama-server", {}).get("ActiveState", "not installed"),
        status["health"],
        f"{props['total_slots']} x {context:,}" if context else "",
        (status["weights"] or {}).get("state", "not installed"),
        f"{decode:.2f}" if decode else "",
    )
