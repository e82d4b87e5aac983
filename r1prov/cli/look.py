"""The verbs that only look: `profiles` and `status`."""

from __future__ import annotations

from typing import Annotated

import typer

from r1prov import output
from r1prov.cli import complete, options, show
from r1prov.common.errors import Exit, Problem, UnreachableError
from r1prov.hosts import visit
from r1prov.machines import profile as machine
from r1prov.site.select import last_applied


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
        output.data({each: profile.model_dump() for each, profile in known.items()})
        return
    rows = [
        (
            each,
            profile.serving.quant,
            f"{profile.serving.slots} x {profile.serving.context_per_slot:,}",
            profile.description,
        )
        for each, profile in known.items()
    ]
    output.table(("profile", "quant", "slots x context>", "what"), rows)


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
    if json:
        output.data({"schema": 1, "hosts": found})
    else:
        output.table(
            ("host", "engine", "release", "health", "page", "gateway", "slots x context>", "weights", "decode/s>"),
            [show.status_row(name, each) for name, each in found.items()],
        )
        for name, each in found.items():
            if each.get("engine") == "llama-server":
                output.say(f"{name}: {each['tuned']}")
    show.authority_news(last_applied(site, ())[0])
    if away := [Problem(**problem) for each in found.values() for problem in each.get("problems", ())]:
        raise UnreachableError(*away)
    others = ("page", "document_search", "gateway")
    if any(each["health"] != "ok" or not {each[name] for name in others} <= {"ok", None} for each in found.values()):
        raise typer.Exit(Exit.UNHEALTHY)
