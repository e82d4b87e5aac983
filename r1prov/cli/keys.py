"""`r1prov keys`: keys of the API by name, for people and programs that ask through the gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from r1prov import output
from r1prov.cli import options, running
from r1prov.cli.command import App
from r1prov.common.errors import Problem, R1provError, SiteError, UnreachableError
from r1prov.common.units import MIB
from r1prov.hosts import visit
from r1prov.site import named_keys
from r1prov.site.select import last_applied
from r1prov.site.state import SiteState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from r1prov.runs.run import Done
    from r1prov.site import Host, Site

app = App(no_args_is_help=True, help="The keys of the API by name. The gateway's balancer knows them.")
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
    applied, targets = _with_gateway(site)
    state, login = SiteState.of(applied.path), login_options.ask()
    before = named_keys.kept(state)
    key = named_keys.add(state, name)
    try:
        done = _converge(applied, targets, login, verbose)
    except R1provError:  # No host was met, so none knows it.
        named_keys.keep(state, before)
        raise
    if done.error and not done.report.changed_hosts:
        named_keys.keep(state, before)
        raise done.error
    if json:
        output.data({"name": name, "key": key, **done.report.as_json()})
    else:
        output.say(
            f"The key of {name}, which is kept nowhere, for {applied.file.gateway.url if applied.file.gateway else ''}/v1:"
        )
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
    applied, targets = _with_gateway(site)
    login = login_options.ask()
    named_keys.revoke(SiteState.of(applied.path), name)
    done = _converge(applied, targets, login, verbose)
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
    applied, _ = _with_gateway(site)
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


def _with_gateway(path: Path | None) -> tuple[Site, tuple[Host, ...]]:
    """The site as last applied, and its hosts.

    Raises:
        SiteError: no site is known, or it has no gateway.
    """
    applied, targets = last_applied(path, ())
    if not applied.file.gateway:
        remedy = "write a `gateway` into the site file, and run `r1prov up`"
        raise SiteError(
            Problem(str(applied.path or "the site"), "has no gateway, so nobody comes in by a key of their own", remedy)
        )
    return applied, targets


def _converge(site: Site, targets: Sequence[Host], login: Any, verbosity: int) -> Done:
    running.tell_not_applied(site)
    request = running.request("up", verbosity=verbosity, only=("balancer",))
    done = running.run(running.settle(site), targets, login, request)
    for name in _behind(
        done
    ):  # A look does not compare the keys there with those here, so the next `up` takes all steps.
        SiteState.of(site.path).look(name).unlink(missing_ok=True)
    return done


def _behind(done: Done) -> list[str]:
    """The hosts that do not know what the keys are now."""
    return done.report.with_result("unreachable", "failed", "unfinished")


def _tell(done: Done, what: str) -> None:
    """Say which hosts were not brought to what the keys are now.

    Raises:
        R1provError: there are some.
    """
    if behind := _behind(done):
        output.say(f"{', '.join(behind)} {what}, until `r1prov up` ends well there.", "yellow")
    if done.error:
        raise done.error
