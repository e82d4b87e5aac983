"""`r1prov weights prune`: remove what nobody needs of models from the hosts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from r1prov import output
from r1prov.cli import options, running
from r1prov.common import paths
from r1prov.common.errors import Exit, Problem, R1provError, UnreachableError, together
from r1prov.common.units import GIB, MIB, gib
from r1prov.hosts import visit
from r1prov.site.select import last_applied

if TYPE_CHECKING:
    from collections.abc import Mapping

    from r1prov.runs.report import RunReport

Surplus = dict[str, list[dict[str, Any]]]


@options.logs_in
def prune(
    hosts: options.Hosts = None,
    *,
    site: options.SiteFile = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    login_options: options.LoginOptions,
    break_lock: options.BreakLock = False,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; list what would go.")] = False,
    verbose: options.Verbose = 0,
    json: options.Json = False,
) -> None:
    """Remove from the hosts other quants, files that belong to nothing, and beginnings that were left over. Says how much, and asks.

    What the site serves or wants stays, and what a process uses.

    Example: `r1prov weights prune --check gpu1`
    """
    applied, targets = last_applied(site, hosts or (), duty="engine")
    login = login_options.ask()
    found = visit.weights(site, hosts or (), login)
    surplus = {name: of_host(each) for name, each in found.items() if of_host(each)}
    away = [Problem(**problem) for each in found.values() for problem in each.get("problems", ())]
    errors: list[R1provError] = [UnreachableError(*away)] if away else []
    report = None
    if not json or (surplus and not yes and not check):
        _show(surplus, talk=json)
    if surplus and not check:
        if not yes:
            _ask(surplus)
        those = {name: [row["path"] for row in rows] for name, rows in surplus.items()}
        variables = {"r1prov_surplus": those, **({"r1prov_break_lock": True} if break_lock else {})}
        chosen = [host for host in targets if host.name in surplus]
        done = running.run(
            running.settle(applied), chosen, login, running.request("prune", variables, verbosity=verbose)
        )
        report = done.report
        if json:
            output.data(document(surplus, report, away))
        _tell(report)
        errors += [done.error] if done.error else []
    elif json:
        output.data(document(surplus, None, away))
    if check and surplus:
        output.say("Nothing was removed: this was a check.")
    if error := together(errors):
        raise error


def of_host(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The files of a host that nobody needs, each with the bytes that its end `frees`."""
    rows = paths.module_util("weights_there").surplus(found)
    return [{key: row[key] for key in ("path", "bytes", "state", "frees")} for row in rows]


def document(surplus: Surplus, report: RunReport | None, away: list[Problem]) -> dict[str, Any]:
    """What nobody needs on the hosts, and what was removed of it, as a JSON document."""
    reports = report.hosts if report else {}
    return {
        "exit": report.exit if report else Exit.UNREACHABLE if away else Exit.OK,
        "hosts": {
            name: {
                "surplus": rows,
                "result": reports[name].result if name in reports else None,
                "removed": (reports[name].pruned or {}).get("removed", []) if name in reports else [],
                "in_use": (reports[name].pruned or {}).get("in_use", []) if name in reports else [],
                "problems": reports[name].problems if name in reports else [],
            }
            for name, rows in surplus.items()
        },
        "problems": [vars(problem) for problem in away],
    }


def _show(surplus: Surplus, *, talk: bool) -> None:
    if not surplus:
        output.say("There is nothing that nobody needs.")
        return
    rows = [
        (name, row["path"], f"{row['bytes'] / GIB:.1f}", row["state"]) for name, rows in surplus.items() for row in rows
    ]
    output.table(("host", "what would go", "GiB>", "what it is"), rows, talk=talk)
    for name, each in surplus.items():
        kept = sum(row["bytes"] for row in each if not row["frees"] and row["bytes"])
        other = f"; {_size(kept)} have another name, as in Ollama's registry, and stay with that" if kept else ""
        output.say(f"{name}: {_size(sum(row['frees'] for row in each))} would be freed{other}")


def _size(n_bytes: int) -> str:
    """A number of bytes with its unit. What is small may be all that there is."""
    return gib(n_bytes) if n_bytes >= GIB else f"{n_bytes / MIB:,.1f} MiB"


def _ask(surplus: Mapping[str, list[dict[str, Any]]]) -> None:
    """Ask whether all that may go."""
    if not sys.stdin.isatty():
        raise typer.BadParameter("nobody is there to ask: say --yes, or --check")
    count = sum(map(len, surplus.values()))
    what = f"this file from {next(iter(surplus))}" if count == 1 else f"these {count} files from {', '.join(surplus)}"
    if not typer.confirm(f"Remove {what}?", err=True):
        output.say("Nothing was removed.")
        raise typer.Exit(Exit.INTERRUPTED)


def _tell(report: RunReport) -> None:
    """Say what each host has got rid of."""
    for name, host in report.hosts.items():
        if host.pruned:
            output.say(f"{name}: {_size(sum(row['frees'] for row in host.pruned['removed']))} freed")
            for text in host.pruned["in_use"]:
                output.say(f"{name}: {text}", "yellow")
