"""`r1prov drain` and `undrain`: take engines out of the door of a site whose hosts are one service, and put them back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from r1prov import output
from r1prov.cli import complete, options, running
from r1prov.common.errors import Problem, SiteError, together
from r1prov.site.select import last_applied

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from r1prov.hosts import Login
    from r1prov.site import Host, Site

Engines = Annotated[
    list[str], typer.Argument(help="Hosts of the site that have an engine.", autocompletion=complete.hosts)
]


@options.logs_in
def drain(
    hosts: Engines,
    *,
    limit: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="How long to wait for answers in flight, as `30m`. Default: `drain_limit` of the site.",
        ),
    ] = None,
    site: options.SiteFile = None,
    login_options: options.LoginOptions,
    verbose: options.Verbose = 0,
    json: options.Json = False,
) -> None:
    """Let engines get no new requests, and wait until their answers in flight have ended. This holds until `r1prov undrain`.

    Requests go to the other engines meanwhile. The engine goes on running, and so do its answers where they take longer than the limit.

    Example: `r1prov drain gpu1 --limit 30m`
    """
    where = _behind_a_door(site, hosts)
    limit_s = options.seconds("--limit", limit) if limit else where.site.file.drain_limit
    _at_the_door(where, login_options.ask(), {"limit_s": limit_s}, verbose, json=json)


@options.logs_in
def undrain(
    hosts: Engines,
    *,
    site: options.SiteFile = None,
    login_options: options.LoginOptions,
    verbose: options.Verbose = 0,
    json: options.Json = False,
) -> None:
    """Let engines get requests again, as soon as they answer.

    Example: `r1prov undrain gpu1`
    """
    where = _behind_a_door(site, hosts)
    _at_the_door(where, login_options.ask(), {"undrain": True, "limit_s": _BACK_S}, verbose, json=json)


_BACK_S = 60
"""How long to wait until an engine that shall get requests answers the door."""


class _Where(NamedTuple):
    """A site as last applied, engines of it, and the door before them."""

    site: Site
    engines: tuple[Host, ...]
    door: Host


def _behind_a_door(path: Path | None, named: Sequence[str]) -> _Where:
    """The hosts that are named, and their door.

    Raises:
        SiteError: no site is known, or a host has no engine, or there is no door.
    """
    applied, targets = last_applied(path, named, duty="engine")
    if not (door := applied.file.door):
        what = "its hosts are services of their own, so nobody else would answer while an engine is drained"
        remedy = "give its hosts duties (`does`), and one of them the door"
        raise SiteError(Problem(str(applied.path or "the site"), what, remedy))
    return _Where(applied, targets, door)


def _at_the_door(where: _Where, login: Login, told: Mapping[str, Any], verbosity: int, *, json: bool) -> None:
    """Tell the door what shall become of each engine, one after the other.

    Raises:
        R1provError: what went wrong with some. The others were gone on with.
    """
    said = "gets requests again" if "undrain" in told else "gets no new requests, and none of its answers is in flight"
    decision, ended = running.settle(where.site), []
    for host in where.engines:
        request = running.request("drain", {"engine": host.name, **told}, verbosity=verbosity, needs="r1prov-balancer")
        ended.append(running.run(decision, [where.door], login, request))
        if not ended[-1].error:
            output.say(f"{host.name} {said}.")
    if json:
        output.data({"runs": [done.report.as_json() for done in ended]})
    if error := together([done.error for done in ended if done.error]):
        raise error
