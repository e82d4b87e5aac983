"""What the verbs that change servers have in common: the request of a run, the run as it happens, its end."""

from __future__ import annotations

import contextlib
import shlex
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from r1prov import output
from r1prov.cli import show
from r1prov.common.errors import Exit
from r1prov.runs import report
from r1prov.runs import run as runs
from r1prov.runs.past import past_runs
from r1prov.runs.run import Request
from r1prov.site.select import not_applied
from r1prov.site.state import SiteState

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from r1prov.decision import Decision
    from r1prov.hosts import Login
    from r1prov.output import LiveRun
    from r1prov.runs.early import Early
    from r1prov.runs.run import Done
    from r1prov.site import Host, Site

T = TypeVar("T")
GO_ON = "Run the same command again to go on. What the hosts have begun (a compile, a transfer of weights) they finish by themselves."
GO_ON_MEASURING = "A service that was paused comes back by itself. What was measured is kept on its host; the same command goes on there."


def request(playbook: str, variables: Mapping[str, Any] | None = None, **options: Any) -> Request:
    """The request of a run. The lock and the report call it by this command line."""
    told_as = shlex.join(["r1prov", *(word for word in sys.argv[1:] if word != "--print-command")])
    return Request(playbook=playbook, told_as=told_as, variables=variables or {}, **options)


def announce_pause(site: Site, targets: Sequence[Host]) -> None:
    """Say beforehand that hosts will be silent while their engine loads the model, and for how long as far as an earlier start tells."""
    reports = SiteState.of(site.path).reports
    for host in targets:
        engine = site.of(host.name).file.engine
        took_s = report.last_start_s(reports, host.name, f"r1prov-{engine}")
        known = f"; last time that took {took_s:.1f} s" if took_s else ""
        output.say(f"While {engine} loads the model, {host.name} will not answer{known}.")


def tell_not_applied(site: Site) -> None:
    """Say which keys of the site's file this run does not apply, because it changes one thing of the site as it was last applied."""
    if keys := not_applied(site.path):
        what = f"{site.path} says something else of {', '.join(f'`{key}`' for key in keys)} than what was last applied."
        output.say(f"{what} That is left as it is until `r1prov up`.", "yellow")


def settle(site: Site) -> Decision:
    """Decide what the hosts shall serve, and see that this machine has what that takes."""
    with _stoppable():
        return runs.settle(site, output.say)


def run(
    decision: Decision, targets: Sequence[Host], login: Login, request: Request, early: Early | None = None
) -> Done:
    """Meet the hosts, render, and run the playbook, and show all that as it happens."""
    go_on = GO_ON_MEASURING if request.playbook == "tune" else GO_ON
    return watched(
        decision.site,
        targets,
        request,
        lambda live: runs.run(decision, targets, login, request, live, early=early),
        go_on,
    )


def finish(done: Done, targets: Sequence[Host], *, json: bool, check: bool = False) -> None:
    """Show what a run did, and where the services are that now run, on those hosts where all went well.

    Raises:
        R1provError: what went wrong.
    """
    if json:
        output.data(done.report.as_json())
    show.summary(done.report, check=check)
    well = [host for host in targets if host.name in done.report.with_result("ok")]
    if well and not check:
        show.addresses(done.decision.site, well)
        show.benchmark(done.report, done.decision.site, talk=True)
    if done.error:
        output.say()
        raise done.error


def watched(
    site: Site, targets: Sequence[Host], request: Request, work: Callable[[LiveRun], T], go_on: str = GO_ON
) -> T:
    """Show `work` as it happens. Whoever stops it is told how to go on."""
    names, reports = [host.name for host in targets], SiteState.of(site.path).reports
    past = {name: past_runs(reports, request.playbook, name, check=request.check) for name in names}
    live = output.LiveRun(names, raw=request.verbosity > 0, diffs=request.diff, past=past)
    with _stoppable(go_on), live:
        return work(live)


@contextlib.contextmanager
def _stoppable(go_on: str = GO_ON) -> Generator[None, None, None]:
    """Ctrl-C ends what is done meanwhile, and says how to go on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        output.say("\nStopped.", "yellow")
        for name, place in stop.hosts.items() if isinstance(stop, runs.Stopped) else ():
            output.say(f"{name} {place}.", "yellow")
        output.say(go_on, "yellow")
        raise typer.Exit(Exit.INTERRUPTED) from None
