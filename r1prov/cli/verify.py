"""`r1prov weights verify`: read all weights on the hosts, and name what is damaged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from r1prov import output
from r1prov.cli import options, running
from r1prov.common.units import GIB, MIB
from r1prov.site.select import last_applied

if TYPE_CHECKING:
    from r1prov.runs.report import HostReport, RunReport


@options.logs_in
def verify(
    hosts: options.Hosts = None,
    *,
    site: options.SiteFile = None,
    mend: Annotated[
        bool,
        typer.Option("--mend", help="Bring damaged pieces anew, from where the model came from, and nothing else."),
    ] = False,
    login_options: options.LoginOptions,
    break_lock: options.BreakLock = False,
    verbose: options.Verbose = 0,
    json: options.Json = False,
) -> None:
    """Read all weights on the hosts while they serve, and name what is damaged. Exit code 10 where something is.

    A bit that changes on a disk keeps a file's size and times, so `up` does not notice it by itself. After this it does: the next `up`
    replaces what is damaged; with `--mend` only the damaged pieces come anew, now.

    Example: `r1prov weights verify gpu1`
    """
    applied, targets = last_applied(site, hosts or (), duty="engine")
    decision = running.settle(applied)
    login = login_options.ask()
    told = {"weights_mend": True} if mend else {}
    told |= {"r1prov_break_lock": True} if break_lock else {}
    request = running.request("verify", told, verbosity=verbose, needs="r1prov-weights")
    done = running.run(decision, targets, login, request)
    if json:
        output.data(document(done.report))
    else:
        output.table(("host", "file", "GiB>", "state"), _rows(done.report))
        for name, host in done.report.hosts.items():
            if host.verified and host.verified["fetched_bytes"] is not None:
                came = host.verified["fetched_bytes"] / MIB
                output.say(f"{name}: {came:,.1f} MiB were fetched to mend what was damaged")
    if done.error:
        raise done.error


def document(report: RunReport) -> dict[str, Any]:
    """What was found, as a JSON document. `result` is `whole` or `damaged`, or else how the run ended on that host."""
    return {
        "exit": report.exit,
        "hosts": {
            name: {
                "result": _result(host),
                "files": host.verified["files"] if host.verified else [],
                "seconds": host.verified["seconds"] if host.verified else None,
                "fetched_bytes": host.verified["fetched_bytes"] if host.verified else None,
                "problems": host.problems,
            }
            for name, host in report.hosts.items()
        },
    }


def _result(host: HostReport) -> str:
    if not host.verified:
        return host.result
    return "damaged" if any(file["why"] for file in host.verified["files"]) else "whole"


def _rows(report: RunReport) -> list[tuple[str, ...]]:
    """A row for each file that was read, and for each host on which none was."""
    rows: list[tuple[str, ...]] = []
    for name, host in report.hosts.items():
        files = host.verified["files"] if host.verified else []
        rows += [
            (name, file["path"], f"{file['bytes'] / GIB:.1f}", "mended" if file["mended"] else file["state"])
            for file in files
        ]
        rows += [] if files else [(name, "", "", host.result)]
    return rows
