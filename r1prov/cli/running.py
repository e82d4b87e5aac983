"""What the verbs that change servers have in common: the options of a run, the run as it happens, its end."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from r1prov import output
from r1prov.cli import show
from r1prov.common.errors import Exit
from r1prov.runs import report, session
from r1prov.runs.session import Options
from r1prov.site.state import SiteState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from r1prov.common.errors import R1provError
    from r1prov.output import LiveRun
    from r1prov.runs.report import RunReport
    from r1prov.runs.session import Login
    from r1prov.site import Host, Site

T = TypeVar("T")
GO_ON = "Run the same command again to go on. What the hosts have begun (a compile, a transfer of weights) they finish by themselves."


def asked(playbook: str, variables: dict[str, Any] | None = None, **options: Any) -> Options:
    """What is asked of a run; the lock and the report call it by this command line."""
    told_as = shlex.join(["r1prov", *(word for word in sys.argv[1:] if word != "--print-command")])
    return Options(playbook=playbook, told_as=told_as, variables=variables or {}, **options)


def announce_pause(chosen: Site, meant: Sequence[Host]) -> None:
    """Say beforehand how long hosts will be silent while their engine loads the model, as far as an earlier start tells."""
    engine, reports = chosen.file.engine, SiteState.of(chosen.path).reports
    for host in meant:
        took_s = report.last_start_s(reports, host.name, f"r1prov-{engine}")
        known = f"; last time that took {took_s:.1f} s" if took_s else ""
        output.say(f"{host.name} will not answer while {engine} loads the model{known}.")


def run(
    chosen: Site, meant: Sequence[Host], login: Login, options: Options
) -> tuple[Site, RunReport, R1provError | None]:
    """Meet the hosts, render, run the playbook. Returns the site as met, the report, and what went wrong."""

    def work(live: LiveRun) -> tuple[Site, RunReport, R1provError | None]:
        met = session.prepare(chosen, meant, login, live)
        return met, *session.converge(met, meant, login, options, live)

    return watched(meant, options, work)


def finish(
    chosen: Site,
    done: RunReport,
    error: R1provError | None,
    meant: Sequence[Host],
    *,
    json: bool,
    check: bool = False,
) -> None:
    """Show what a run did, and where the services are that now run.

    Raises:
        R1provError: what went wrong.
    """
    if json:
        output.data(done.as_json())
    show.summary(done, check=check)
    if error:
        output.say()
        raise error
    if not check:
        show.addresses(chosen, meant)
        show.benchmark(done, chosen, talk=True)


def watched(meant: Sequence[Host], options: Options, work: Callable[[LiveRun], T]) -> T:
    """Show `work` as it happens. Ctrl-C ends it, and says how to go on."""
    try:
        with output.LiveRun([host.name for host in meant], raw=options.verbosity > 0, diffs=options.diff) as live:
            return work(live)
    except KeyboardInterrupt:
        output.say(f"\nStopped. {GO_ON}", "yellow")
        raise typer.Exit(Exit.INTERRUPTED) from None
