"""The verbs that only look: `profiles`, `sources` and `status`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from r1prov import output
from r1prov.cli import complete, options, show
from r1prov.common.errors import Exit, Problem, SiteError, UnreachableError
from r1prov.common.paths import SITE_FILE
from r1prov.hosts import visit
from r1prov.machines import profile as machine
from r1prov.site import versions
from r1prov.site.select import last_applied, wanted
from r1prov.site.sources import PRESETS, Sources


def profiles(
    name: Annotated[
        str | None, typer.Argument(help="Print this one, to start an own one from.", autocompletion=complete.profiles)
    ] = None,
    json: options.Json = False,
) -> None:
    """List the kinds of servers, or print one of them.

    Example: `r1prov profiles 4x4090 > mine.yml`
    """
    if name:
        profile = machine.load_profile(name)
        if json:
            output.data(profile.model_dump())
        else:
            output.write(machine.source(name) if name in machine.names() else machine.as_yaml(profile))
        return
    known = {each: machine.load_profile(each) for each in machine.names()}
    if json:
        output.data({"profiles": {each: profile.model_dump() for each, profile in known.items()}})
        return
    rows = [
        (
            each,
            profile.serving.quant,
            f"{profile.serving.slots or 'auto'} x {_number(profile.serving.context_per_slot)}",
            profile.description,
        )
        for each, profile in known.items()
    ]
    output.table(("profile", "quant", "slots x context>", "what"), rows)


def sources(
    *,
    site: options.SiteFile = None,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="What this preset stands for, instead of a site file: cn.")
    ] = None,
    json: options.Json = False,
) -> None:
    """List every address from which hosts may fetch something, and who says it: the site file, a preset of it, or r1prov.

    Example: `r1prov sources --preset cn`
    """
    found = _sources(site, preset)
    rows = [(key, value, found.said_by(key.partition(".")[0])) for key, value in found.addresses()]
    if json:
        output.data({"sources": [dict(zip(("key", "value", "said_by"), row, strict=True)) for row in rows]})
        return
    output.table(("sources.", "from", "said by"), rows)


def _sources(site: Path | None, preset: str | None) -> Sources:
    """The sources that a preset, the site file or nobody names."""
    if preset is not None:
        if preset not in PRESETS:
            raise typer.BadParameter(f"there is no preset `{preset}`: there is {', '.join(PRESETS)}")
        return Sources.model_validate({"preset": preset})
    if site or Path(SITE_FILE).is_file():
        return wanted(site, ())[0].file.sources
    output.say("No site file is named, and there is none in this folder. These are the defaults.")
    return Sources()


def _number(tokens: int | None) -> str:
    return f"{tokens:,}" if tokens else "auto"


@options.logs_in
def status(
    hosts: options.Hosts = None,
    *,
    site: options.SiteFile = None,
    login_options: options.LoginOptions,
    json: options.Json = False,
) -> None:
    """Read from the hosts what is installed, running and healthy. Exit code 8 where a service does not answer, 4 where a host does not.

    Example: `r1prov status --json`
    """
    login = login_options.ask()
    found = visit.statuses(site, hosts or (), login)
    _compare(site, found)
    if json:
        output.data({"hosts": found})
    else:
        columns = ["host", "engine", "release", "health", "page", "gateway", "slots x context>", "weights", "decode/s>"]
        rows: list[tuple[str, ...]] = [show.status_row(name, each) for name, each in found.items()]
        if any(each.get("differs") for each in found.values()):
            columns.append("differs")
            rows = [
                (*row, versions.in_short(each.get("differs", {})))
                for row, each in zip(rows, found.values(), strict=True)
            ]
        output.table(columns, rows)
        for name, each in found.items():
            for text in (
                *show.lost_disk(name, each),
                *show.who_works(name, each),
                *show.who_waits(name, each),
                *show.restarts_wanted(name, each),
            ):
                output.say(text, "yellow")
            for text, is_news in (
                show.liveness(name, each),
                show.own_watch(name, each),
                show.weights_read(name, each),
            ):
                if text:
                    output.say(text, "yellow" if is_news else "")
            if each["health"] == "model missing":
                output.say(
                    f"{name}: somebody has removed the model from Ollama; `r1prov up` registers it again", "yellow"
                )
            if each.get("engine") == "llama-server" and each["tuned"]:
                output.say(f"{name}: {each['tuned']}")
            for text in versions.in_words(each.get("differs", {})):
                output.say(f"{name}: {text}", "yellow")
    show.authority_news(last_applied(site, ())[0])
    if away := [Problem(**problem) for each in found.values() for problem in each.get("problems", ())]:
        raise UnreachableError(*away)
    others = ("page", "document_search", "gateway")
    if any(each["health"] != "ok" or not {each[name] for name in others} <= {"ok", None} for each in found.values()):
        raise typer.Exit(Exit.UNHEALTHY)


def _compare(path: Path | None, found: dict[str, dict[str, Any]]) -> None:
    """Add to the status of each host as `differs` in which versions it differs from the site as it is wanted now."""
    try:
        site = wanted(path, ())[0]
    except SiteError:  # The file may be wrong just now. What runs is still worth a look.
        site = last_applied(path, ())[0]
    for name, each in found.items():
        if "releases" in each and not each["data_disk"]:
            each["differs"] = versions.differences(site, name, versions.installed(each["releases"]))
