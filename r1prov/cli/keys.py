"""`r1prov keys`: keys of the API by name, for people and programs that ask through the gateway."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from r1prov import output
from r1prov.cli import options, running
from r1prov.cli.command import App
from r1prov.common.errors import Problem, SiteError, UnreachableError
from r1prov.common.units import MIB
from r1prov.hosts import visit
from r1prov.runs.run import Change
from r1prov.site import named_keys
from r1prov.site.select import last_applied
from r1prov.site.state import SiteState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from r1prov.hosts import Login
    from r1prov.runs.run import Done
    from r1prov.site import Host, Site
    from r1prov.site.keys import Gateway

app = App(no_args_is_help=True, help="The keys of the API by name. The gateway's balancer knows them.")
Edit = Callable[[list[named_keys.NamedKey]], list[named_keys.NamedKey]]
Name = Annotated[str, typer.Argument(help="Whose key it is.")]


@app.command()
@options.logs_in
def add(
    name: Name,
    *,
    site: options.SiteFile = None,
    login_options: options.LoginOptions,
    verbose: options.Verbose = 0,
    json: options.Json = False,
) -> None:
    """Make a key, and give its SHA-256 to every host. The key goes to stdout, once: nobody can show it again.

    A host that cannot be reached does not know it, until `r1prov up` reaches it.

    Example: `r1prov keys add ann`
    """
    applied, gateway, targets = _with_gateway(site)
    login = login_options.ask()
    key, new = named_keys.made(name)
    done = _bring(lambda keys: named_keys.with_one(keys, new), applied, targets, login, verbose)
    if done.error and not done.report.changed_hosts:  # No host knows it.
        _edit(applied, lambda keys: [key for key in keys if key != new])
        raise done.error
    if json:
        output.data({"name": name, "key": key, **done.report.as_json()})
    else:
        output.say(f"The key of {name} for {gateway.url}/v1. It is kept nowhere:")
        output.write(f"{key}\n")
    _tell(done, "do not know the key yet")


@app.command()
@options.logs_in
def revoke(
    name: Name,
    *,
    site: options.SiteFile = None,
    login_options: options.LoginOptions,
    verbose: options.Verbose = 0,
    json: options.Json = False,
) -> None:
    """Let a key be refused on every host from now on. Other keys, and answers that flow already, go on.

    A host that cannot be reached accepts it, until `r1prov up` reaches it.

    Example: `r1prov keys revoke ann`
    """
    applied, _, targets = _with_gateway(site)
    login = login_options.ask()
    done = _bring(lambda keys: named_keys.without(keys, name), applied, targets, login, verbose)
    if json:
        output.data({"name": name, **done.report.as_json()})
    _tell(done, f"may still accept the key of {name}")


@app.command("list")
@options.logs_in
def list_(
    *,
    site: options.SiteFile = None,
    login_options: options.LoginOptions,
    json: options.Json = False,
) -> None:
    """List whose keys there are, and what was asked with them since the balancer of each host was started.

    Example: `r1prov keys list --json`
    """
    applied, _, _ = _with_gateway(site)
    login = login_options.ask()
    found = visit.statuses(site, (), login)
    rows = _rows(named_keys.kept(SiteState.of(applied.path)), found)
    if json:
        output.data({"keys": rows})
    else:
        shown = [
            (row["name"], row["added"][:10], f"{row['requests']:,}", str(row["open"]), f"{row['bytes'] / MIB:,.1f}")
            for row in rows
        ]
        output.table(("key", "added", "requests>", "open>", "answers, MiB>"), shown)
    if away := [Problem(**problem) for each in found.values() for problem in each.get("problems", ())]:
        raise UnreachableError(*away)


def _rows(keys: Sequence[named_keys.NamedKey], found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What is known of each key, the site's own first."""
    counted = [(each.get("balancer") or {"keys": {}})["keys"] for each in found.values()]
    return [
        {
            "name": key.name,
            "added": key.added,
            **{
                what: sum(of_host.get(key.name, {}).get(what, 0) for of_host in counted)
                for what in ("requests", "open", "bytes")
            },
        }
        for key in (named_keys.NamedKey(named_keys.OWN, ""), *keys)
    ]


def _with_gateway(path: Path | None) -> tuple[Site, Gateway, tuple[Host, ...]]:
    """The site as last applied, its gateway and its hosts.

    Raises:
        SiteError: no site is known, or it has no gateway.
    """
    applied, targets = last_applied(path, (), duty="door")
    if not (gateway := applied.file.gateway):
        what = "has no gateway, so nobody comes in by a key of their own"
        remedy = "write a `gateway` into the site file, and run `r1prov up`"
        raise SiteError(Problem(str(applied.path or "the site"), what, remedy))
    return applied, gateway, targets


def _bring(edit: Edit, site: Site, targets: Sequence[Host], login: Login, verbosity: int) -> Done:
    """Edit the keys, and let the hosts know what they are then.

    Raises:
        SiteError: the keys cannot be edited so. No host is contacted then.
    """
    edit(named_keys.kept(SiteState.of(site.path)))
    running.tell_not_applied(site)
    change = Change("balancer", lambda: _edit(site, edit))
    return running.run(running.settle(site), targets, login, running.request("up", verbosity=verbosity, change=change))


def _edit(site: Site, edit: Edit) -> None:
    """Edit the keys that are kept here. Those of a site that another controller has set up come from its hosts."""
    state = SiteState.of(site.path)
    named_keys.keep(state, edit(named_keys.kept(state)))


def _tell(done: Done, what: str) -> None:
    """Say which hosts were not brought to what the keys are now.

    Raises:
        R1provError: there are some.
    """
    if behind := done.report.with_result("unreachable", "failed", "unfinished"):
        output.say(f"{', '.join(behind)} {what}, until `r1prov up` ends well there.", "yellow")
    if done.error:
        raise done.error
