"""`r1prov down`: take everything of r1prov off servers."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from r1prov import output
from r1prov.cli import options, running, show
from r1prov.common.errors import Exit
from r1prov.common.units import gib
from r1prov.site.select import last_applied

if TYPE_CHECKING:
    from collections.abc import Sequence

    from r1prov.decision import Decision
    from r1prov.site import Host


@options.logs_in
def down(
    hosts: options.Hosts = None,
    *,
    site: options.SiteFile = None,
    keep_weights: Annotated[bool, typer.Option("--keep-weights", help="Leave the model's files.")] = False,
    keep_chats: Annotated[
        bool, typer.Option("--keep-chats", help="Leave the chat page's accounts, chats and documents.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    login_options: options.LoginOptions,
    break_lock: options.BreakLock = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Change nothing; list what would go, and the GiB that this frees."),
    ] = False,
    verbose: options.Verbose = 0,
    json: options.Json = False,
) -> None:
    """Remove units, users and files of r1prov. Asks before weights and chats go; packages of the distribution stay.

    Example: `r1prov down --keep-weights gpu1`
    """
    applied, targets = last_applied(site, hosts or ())
    decision = running.settle(applied)
    login = login_options.ask()
    if not yes and not check:
        _ask(decision, targets, keep_weights=keep_weights, keep_chats=keep_chats)
    keep = [what for what, kept in (("weights", keep_weights), ("chats", keep_chats)) if kept]
    variables = {"removal_keep": keep, **({"r1prov_break_lock": True} if break_lock else {})}
    done = running.run(decision, targets, login, running.request("down", variables, check=check, verbosity=verbose))
    if json:
        output.data(done.report.as_json())
    for name, host in done.report.hosts.items():
        if host.removal:
            show.removal(name, host.removal, check=check, talk=json)
    if not check:
        show.summary(done.report)
    if done.error:
        raise done.error
    if check:
        output.say("Nothing was removed: this was a check.")
    else:
        output.say("What this site keeps here, its secrets among them, is still there for another `r1prov up`.")


def _ask(decision: Decision, targets: Sequence[Host], *, keep_weights: bool, keep_chats: bool) -> None:
    """Ask whether all that may go."""
    engines, what = [host for host in targets if host.has("engine")], []
    if engines and not keep_weights:
        sizes = " or ".join(sorted({gib(decision.of(host.name).quant.bytes) for host in engines}))
        what.append(f"the weights ({sizes} on each host{' with an engine' if len(engines) < len(targets) else ''})")
    if any(host.has("page") for host in targets) and not keep_chats:
        what.append("the chat page's accounts, chats and documents")
    if not sys.stdin.isatty() and what:
        raise typer.BadParameter("nobody is there to ask: say --yes, or --keep-weights and --keep-chats")
    also = f", with {' and '.join(what)}" if what else ""
    names = ", ".join(host.name for host in targets)
    if not typer.confirm(f"Remove r1prov from {names}{also}?", err=True):
        output.say("Nothing was removed.")
        raise typer.Exit(Exit.INTERRUPTED)
