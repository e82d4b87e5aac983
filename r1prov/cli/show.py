"""Shows the end of a run, and the state of hosts."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1prov import output
from r1prov.cli.options import site_words
from r1prov.common import paths
from r1prov.common.systemctl import in_words
from r1prov.common.units import GIB, gib
from r1prov.machines import tuned
from r1prov.output.pace import clock
from r1prov.runs import prompts
from r1prov.runs.report import benchmark_rows
from r1prov.site import versions
from r1prov.site.addresses import url
from r1prov.site.authority import AUTHORITY, news
from r1prov.site.state import ADMIN_PASSWORD, SiteState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from r1prov.machines.tuned import Tuned
    from r1prov.runs.report import RunReport
    from r1prov.site import Host, Site


LOOKS_S = 120
"""The watcher of an engine writes more often than that what it has seen."""


def summary(report: RunReport, *, check: bool = False) -> None:
    """Show what changed on each host, step by step. After a `check`, show what would."""
    rows = []
    for name, host in report.hosts.items():
        per_step = Counter(change.partition(":")[0] for change in host.changes)
        changes = ", ".join(f"{step} {count}" for step, count in per_step.items()) or "nothing"
        rows.append((name, host.result, str(host.changed), changes, clock(sum(seconds for _, seconds in host.steps))))
    output.say()
    changed = ("would change>", "what would change") if check else ("changed>", "what changed")
    output.table(("host", "result", *changed, "took>"), rows, talk=True)
    for name, host in report.hosts.items():
        done = "to put right" if check else "put right" if host.result == "ok" else "wrong"
        lost = f"what was lost when it was built anew, {len(host.differences)} differences (--json names them)"
        for difference in [lost] if host.built_anew else host.differences:
            output.say(f"{name}: {done}: {difference}")
        if host.starts:
            waits = ", ".join(
                f"{unit.removeprefix('r1prov-')} after {took:.1f} s" for unit, took in host.starts.items()
            )
            output.say(f"{name}: started, and ready: {waits}")
        if host.compared:
            output.say(f"{name}: {host.compared}")
    if check:
        output.say("Nothing was changed: this was a check.")


def versions_to_come(site: Site, hosts: Sequence[Host]) -> None:
    """Say which versions of hosts change, as far as is known here, and which hosts will have others than their site."""
    state = SiteState.of(site.path)
    for host in hosts:
        if before := state.settled(host.name):
            for text in versions.moves(versions.of(before, host.name), versions.of(site, host.name)):
                output.say(f"{host.name}: {text}")
        other_versions(site, host, versions.of(site, host.name))


def other_versions(site: Site, host: Host, there: Mapping[str, str]) -> None:
    """Say in which versions a host differs from its site, where it has those that are `there`."""
    for text in versions.in_words(versions.differences(site, host.name, there)):
        output.say(f"{host.name}: {text}", "yellow")


def addresses(site: Site, hosts: Sequence[Host]) -> None:
    """Show where page and API are, and how to try them."""
    file = site.file
    address, _ = file.api
    elsewhere = site_words(site.path)
    has_page = file.open_webui.enabled and any(host.has("page") for host in site.hosts)
    output.say()
    for host in hosts:
        output.say(f"{host.name}: {', '.join(_services(site, host))}")
    if file.gateway:
        page = f"{file.gateway.url} (chat page), " if has_page else ""
        output.say(f"For others, over TLS: {page}{file.gateway.url}/v1 (with the key)")
        if file.gateway.tls.type == "local-authority":
            output.say(f"Machines that shall trust it are given {SiteState.of(site.path).authority / AUTHORITY}")
            authority_news(site)
    first = (file.door if file.door and file.door in hosts else hosts[0]).name
    if has_page:
        password = SiteState.of(site.path).secret(ADMIN_PASSWORD)
        output.say(f"Log in to the page as {file.open_webui.admin_email} with the password in {password}")
    if address.startswith("127.") and not hosts[0].local:
        what = "All else" if file.gateway else "All of it"
        output.say(f"{what} listens on the server itself only; from here: `r1prov open{elsewhere} --host {first}`")
    output.say(f'Ask: `r1prov ask{elsewhere} --host {first} "How many r are in strawberry?"`')


def _services(site: Site, host: Host) -> Iterator[str]:
    """The services of a host, each with where it listens."""
    file = site.of_group_of(host.name).file
    if host.has("page") and file.open_webui.enabled:
        yield f"{file.page_url} (chat page)"
    if host.has("engine"):
        address, port = file.api
        yield f"{url(address, port)}/v1 ({file.engine})"
    if coordinator := file.coordinator_of(host):
        yield f"lends its devices to {coordinator.name}"
    if file.gateway and file.door == host:
        yield f"{file.gateway.balancer_url}/v1 (all engines)"


def authority_news(site: Site) -> None:
    """Say when the authority that people trust ends, from a year before on, and what comes after it."""
    gateway = site.file.gateway
    if gateway and gateway.tls.type == "local-authority":
        for text in news(SiteState.of(site.path).authority, datetime.now(UTC)):
            output.say(text, "yellow")


def benchmark(report: RunReport, site: Site, *, talk: bool) -> None:
    """Show what was measured, with the published figures beside it."""
    measured = {name: host.benchmark for name, host in report.hosts.items() if host.benchmark}
    if measured:
        output.say()
        rows = benchmark_rows(measured, site.own.profile.published)
        output.table(("tokens per second", "prompt>", "decode>"), rows, talk=talk)
        for name, each in measured.items():
            if each["load"]["foreign"]:
                busy = paths.module_util("host_load").in_words(each["load"])
                output.say(f"{name}: measured while {busy}; alone it may be faster", "yellow")


def first_tokens(report: RunReport, limit: str) -> None:
    """Show how long people wait for the first token, with the plan's seconds beside it, and what the time limit left out."""
    measured = {name: host.benchmark for name, host in report.hosts.items() if host.benchmark}
    if rows := prompts.rows(measured):
        output.say()
        output.table(("first token", "users>", "prompt>", "seconds>", "planned>"), rows)
    for text in prompts.left_out(measured):
        output.say(text)
    if any(point["for_want_of_time"] for each in measured.values() for point in each.get("first_tokens", ())):
        output.say(f"More than {limit} for that: --limit")


def tuning(host: str, found: Tuned) -> None:
    """Show what was measured on a host, and which setting is kept."""
    output.say()
    output.table((host, "first s>", "exchange s>", "prompt/s>", "decode/s>", "outcome"), tuned.rows(found), talk=True)
    if workload := found.subject.workload:
        output.say(
            f"{host}: judged by the mean seconds of an exchange, from what was measured, of {workload.description}"
        )
    output.say(f"{host}: {found.what} kept: {found.reason}")


def lost_disk(name: str, status: dict[str, Any]) -> list[str]:
    """Say that the data disk of a host is away, for then nothing of r1prov is there."""
    away = status.get("data_disk")
    return [] if not away else [f"{name}: {away}. Bring it back; in a container the services start then by themselves"]


def removal(host: str, found: dict[str, Any], *, check: bool, talk: bool) -> None:
    """Show what goes from a host and what stays: all of it after a `check`, and the sum of it otherwise."""
    removed, kept = found["removed"], found["kept"]
    total = sum(path["bytes"] for path in removed["paths"])
    if check:
        # One line each at 80 columns. The files of units are as many again, with long names that say nothing more.
        rows = [(kind, name, "") for kind in ("unit", "user", "group") for name in removed[f"{kind}s"]]
        rows += [
            ("path", path["path"], _in_gib(path["bytes"]))
            for path in removed["paths"]
            if Path(path["path"]).name not in removed["units"]
        ]
        rows += [("line in", path, "") for path in removed["hooks"]]
        (output.say if talk else output.line)(f"{host}:")
        output.table(("", "what would go", "GiB>"), [*rows, ("", "all of it", _in_gib(total))], talk=talk)
        if found["away"]:
            output.say(f"{host}: {found['away']}, so what lies on it would stay", "yellow")
    else:
        output.say(f"{host}: {gib(total)} freed")
    for process in found["in_use"]:
        output.say(f"{host}: {process}, so the disk gets that room back when it ends", "yellow")
    for path in kept:
        why = {"weights": "--keep-weights", "chats": "--keep-chats"}.get(path["why"], path["why"])
        size = "" if path["bytes"] is None else f", {gib(path['bytes'])}"
        output.say(f"{host}: {path['path']} stays ({why}{size})")


def _in_gib(n_bytes: int) -> str:
    """A number of bytes for a column of GiB, where what rounds to nothing is left out."""
    return f"{n_bytes / GIB:,.1f}" if n_bytes >= GIB / 20 else ""


def who_works(name: str, status: dict[str, Any]) -> list[str]:
    """Say which run holds a host. Services may be down meanwhile."""
    lock = status.get("lock")
    if pause := status.get("pause"):
        return [f"{name}: {pause}"]
    if not lock:
        return []
    holder = paths.module_util("lock_holder")
    if lock.get("dead"):
        return [
            f"{name} is still locked: {holder.ended(lock)}. `r1prov up` on this machine takes the lock over, and goes on"
        ]
    since = datetime.fromisoformat(lock["since"]).astimezone() if lock["since"] else None
    when = f" since {since:%H:%M}" if since else ""
    return [f"{name}: {holder.who(lock)} has been at work on it{when} ({lock['command']})"]


def who_waits(name: str, status: dict[str, Any]) -> list[str]:
    """Say how many requests wait at the balancer of a host, which engine it cannot reach, and which is drained."""
    found = status.get("balancer")
    if not found:
        return []
    down = [
        f"{name}: the balancer cannot reach {each}"
        for each, engine in found["engines"].items()
        if engine["state"] == "DOWN" and not engine["drained"]
    ]
    for each, engine in found["engines"].items():
        if engine["drained"]:
            left = engine["answering"] + engine["waiting"]
            of = f", and {left} answer{' is' if left == 1 else 's are'} still in flight" if left else ""
            down.append(f"{name}: {each} is drained, so it gets no new requests{of}")
    if not found["waiting"]:
        return down
    of = "its only slot" if found["slots"] == 1 else f"one of {found['slots']} slots"
    return [*down, f"{name}: {found['waiting']} request{' waits' if found['waiting'] == 1 else 's wait'} for {of}"]


def own_watch(name: str, status: dict[str, Any]) -> tuple[str, bool]:
    """What a host has found when it looked by itself, and whether that is worth a look; nothing where it does not look by itself."""
    watch = status.get("watch")
    if not watch:
        return "", False
    if not watch["looked"]:
        return f"{name} has not looked by itself yet, and does so every {clock(watch['every_s'])}", True
    told = [each["what"] for each in watch["differences"]]
    told += [f"not all could be told: {watch['unknown']}"] if watch["unknown"] else []
    text = f"{name} looked by itself {clock(watch['age_s'])} ago: {'; '.join(told) or 'nothing differs'}"
    if is_late := watch["age_s"] > 2 * watch["every_s"]:
        log = in_words("log", "r1prov-watch", systemd=status.get("systemd", True))
        text += (
            f". That is long ago, because it shall look every {clock(watch['every_s'])}: "
            f"`{log}` there says why, and while a run holds the host it does not look"
        )
    return text, bool(told) or is_late


def liveness(name: str, status: dict[str, Any]) -> tuple[str, bool]:
    """When the engine of a host was seen alive last, how often it was restarted, and whether that is worth a look."""
    seen = status.get("liveness")
    if not seen:
        return "", False
    engine, count = status["engine"], len(seen["restarts"])
    if since := seen["stays_down_since"]:
        when = datetime.fromisoformat(since).astimezone()
        text = f"{name}: {engine} stood still again after {count} restarts in 24 hours, and stays down since {when:%H:%M on %d %B}"
        return f"{text}. Look at its log, and start it by `r1prov up`", True
    alive = (
        f"was seen alive {clock(seen['alive_age_s'])} ago, by {seen['by']}"
        if seen["alive"]
        else "was not seen alive yet"
    )
    told = [f"{name}: {engine} {alive}"]
    if count:
        again = "once" if count == 1 else f"{count} times"
        told.append(f"it stood still, and was restarted {again} in the last 24 hours")
    if is_late := seen["looked_age_s"] > LOOKS_S:
        log = in_words("log", "r1prov-liveness", systemd=status.get("systemd", True))
        told.append(f"nobody has looked for {clock(seen['looked_age_s'])}, and `{log}` there says why")
    elif "cannot be judged" in seen["state"]:
        told.append(f"it {seen['state']}")
    return "; ".join(told), bool(count) or len(told) > 1 or is_late


def weights_read(name: str, status: dict[str, Any]) -> tuple[str, bool]:
    """When the weights of a host were read last, and what was damaged, and whether that is worth a look; nothing where they never were."""
    read = status.get("weights_read")
    if not read:
        return "", False
    by = "by the host itself" if read["by"] == "timer" else "by a run"
    told = [f"{path} is damaged: {why}; `r1prov up` brings it anew" for path, why in read["damaged"].items()]
    return f"{name}: the weights were read on {read['read'][:10]} {by}: {'; '.join(told) or 'whole'}", bool(told)


def restarts_wanted(name: str, status: dict[str, Any]) -> list[str]:
    """Say which services of a host still run something else than what is installed, because a run was cut off between the two."""
    told = []
    for artefact, running in status.get("running", {}).items():
        installed = status["releases"][artefact]
        if set(running) - {installed}:
            other = status.get("differs", {}).get(artefact.translate(str.maketrans(".-", "__")), {})
            is_wanted = other.get("installed") == other.get("wanted")
            remedy = "`r1prov up` finishes it" if is_wanted else "the same `r1prov upgrade` goes on"
            told.append(
                f"{name}: {artefact} {' and '.join(running)} runs, and {installed} is installed. A run was cut off; {remedy}"
            )
    return told


def status_row(name: str, status: dict[str, Any]) -> tuple[str, ...]:
    """The row of one host in the table of `r1prov status`."""
    if status["health"] == "unreachable":
        return (name, "", "", status["health"], *[""] * 5)
    unknown = "" if status["data_disk"] else "not installed"
    props = status["props"] or {}
    artefact = {"llama-server": "llama.cpp"}.get(status["engine"], status["engine"])
    artefact = artefact or "llama.cpp" * bool(status["lends_to"])
    # A door without an engine runs none of these.
    release = (" and ".join(status["running"][artefact]) or status["releases"][artefact]) if artefact else "door"
    context = props.get("default_generation_settings", {}).get("n_ctx")
    alone = (status["benchmark"] or {}).get("sweep", [{}])[0]
    decode = alone.get("decode_tokens_per_second_each")
    return (
        name,
        status["engine"] or (f"lends to {status['lends_to']}" if status["lends_to"] else ""),
        release or unknown,
        status["health"],
        (status["page"] or "") + ("" if status["document_search"] in {"ok", None} else ", no document search"),
        status["gateway"] or "",
        f"{props['total_slots']} x {context:,}" if context else "",
        (status["weights"] or {}).get("state", unknown) if status["engine"] else "",
        f"{decode:.2f}" if decode else "",
    )
