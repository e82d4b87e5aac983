"""`r1prov bench --modes`: the modes of the guide's experiment on each host, one host after the other."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import typer

from r1prov import output
from r1prov.cli import running, show_modes
from r1prov.common.errors import Exit, PreflightError, Problem, R1provError, RunError, SiteError, UnreachableError
from r1prov.runs import modes, speeds
from r1prov.runs import run as runs
from r1prov.runs.events import TaskDone
from r1prov.site.state import SiteState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from r1prov.cli.options import LoginOptions
    from r1prov.decision import Decision
    from r1prov.hosts import Login, Progress
    from r1prov.offload.experiment import Server
    from r1prov.output import LiveRun
    from r1prov.runs.events import Event
    from r1prov.runs.run import Done
    from r1prov.site import Host, Site


LOCKS = "r1.prov.host_lock"
"""The action that takes the lock of a host, and says whether the run holds it then."""


@dataclass(frozen=True)
class Order:
    """What is to be compared.

    Attributes:
        asked: The modes.
        limit: How long each host may measure, as it was written.
        limit_s: The same in seconds.
        now: Answers that the service is giving are not waited for.
        verbosity: How much of Ansible's own output is shown.
    """

    asked: tuple[str, ...]
    limit: str
    limit_s: int
    now: bool
    verbosity: int


def compare(
    site: Site, targets: Sequence[Host], order: Order, login_options: LoginOptions, *, check: bool, json: bool
) -> None:
    """Compare the modes on each host, keep what was measured, and show it.

    Args:
        site: what the operator wants.
        targets: the hosts.
        order: what is to be compared.
        login_options: how to reach the hosts.
        check: nobody is contacted, and what is planned is shown.
        json: it is shown as one document.

    Raises:
        PreflightError: no mode fits on some host.
        SiteError: some host has none of the modes.
        R1provError: what went wrong on a host. The others were measured.
    """
    decision = running.settle(site)
    kept = SiteState.of(site.path).all_tuned(site.hosts)
    foreseen, _ = decision.with_tuned(kept, {})
    if check:
        foresee(foreseen, targets, order, json=json)
        return
    planned = {host.name: modes.servers(foreseen, host.name, order.asked) for host in targets}
    _refuse_nothing(planned)
    login = login_options.ask()
    found, errors = dict[str, dict[str, Any]](), list[R1provError]()
    for host in targets:
        try:
            document, error = _measure(decision, host, login, order)
        except R1provError as refused:  # This host alone: the others are measured.
            document, error = None, refused
        found |= {host.name: document} if document else {}
        errors += [error] if error else []
    problems = [problem for error in errors for problem in error.problems]
    _show(found, problems, json=json)
    if errors:
        kind = type(errors[0]) if len({type(error) for error in errors}) == 1 else RunError
        raise kind(*problems)


def foresee(decision: Decision, targets: Sequence[Host], order: Order, *, json: bool) -> None:
    """Show what each mode would take on each host. Nobody is contacted.

    Raises:
        typer.Exit: no mode fits on some host.
    """
    planned = {host.name: modes.servers(decision, host.name, order.asked) for host in targets}
    found = {name: modes.report(decision, name, each, order.limit_s, None) for name, each in planned.items()}
    _show(found, [], json=json)
    for servers in planned.values():
        known = [server.outcome for server in servers if server.outcome]
        if known and not any(each.fits for each in known):
            raise typer.Exit(Exit.PREFLIGHT)


def _refuse_nothing(planned: dict[str, tuple[Server, ...]]) -> None:
    """Refuse where on some host nothing would be measured.

    Raises:
        PreflightError: there is such a host, and the modes do not fit there.
        SiteError: there is such a host, and it has none of the modes.
    """
    remedy = "name other modes; `r1prov bench --modes ... --check` says of each what it would take"
    problems = [
        Problem(name, f"{server.mode}: {server.left_out}", remedy)
        for name, found in planned.items()
        if all(server.left_out for server in found)
        for server in found
    ]
    if problems:
        known = [server.outcome for found in planned.values() for server in found if server.outcome]
        raise PreflightError(*problems) if any(not each.fits for each in known) else SiteError(*problems)


@dataclass
class _Announcing:
    """Shows a run, and announces what it does as soon as it has the host to itself. Who is refused is told of no pause.

    Attributes:
        live: what shows the run.
        announce: says what is done.
        announced: whether it was said.
    """

    live: LiveRun
    announce: Callable[[], None]
    announced: bool = False

    def note(self, host: str, text: str) -> None:
        self.live.note(host, text)

    def event(self, event: Event) -> None:
        self.live.event(event)
        if isinstance(event, TaskDone) and event.action == LOCKS and event.result.get("held"):
            self.announce()
            self.announced = True

    def progress(self, progress: Progress) -> None:
        self.live.progress(progress)


def _announce(site: Site, host: Host, found: Sequence[Server], order: Order) -> None:
    """Say what will be measured, and for how long the service will be away."""
    measured = [server.mode for server in found if not server.left_out]
    output.say(f"{host.name}: {', '.join(measured)}, within {order.limit}", "bold")
    for server in found:
        if server.left_out:
            output.say(f"  {server.mode} is not measured: {server.left_out}")
    output.say(f"While that is measured, {host.name} will not answer, for up to {order.limit}.")
    running.announce_pause(site, [host])


def _measure(
    decision: Decision, host: Host, login: Login, order: Order
) -> tuple[dict[str, Any] | None, R1provError | None]:
    """Measure a host. What was measured before something went wrong is kept, too."""
    request = running.request("bench", verbosity=order.verbosity)

    def work(live: LiveRun) -> tuple[Done, tuple[Server, ...], bool]:
        prepared = runs.prepare(
            decision, [host], login, live, needs=f"r1prov-{decision.of(host.name).site.file.engine}"
        )
        found = modes.servers(prepared.decision, host.name, order.asked)
        told = modes.variables(prepared.decision, host.name, found, order.limit_s, at_once=order.now)
        watcher = _Announcing(live, lambda: _announce(decision.site, host, found, order))
        return runs.play(prepared, login, replace(request, variables=told), watcher), found, watcher.announced

    done, found, announced = running.watched(decision.site, [host], request, work, running.GO_ON_MEASURING)
    if isinstance(done.error, UnreachableError) and announced:
        output.say(f"{host.name}: what is being measured there ends by itself, and the service comes back then")
    result = done.report.hosts[host.name].modes
    if not result:
        return None, done.error
    document = modes.report(done.decision, host.name, found, order.limit_s, result)
    modes.keep(SiteState.of(decision.site.path).reports, document)
    speeds.of_modes(done.decision, host.name, document)
    return document, done.error or _unmeasured(host, document)


def _unmeasured(host: Host, document: dict[str, Any]) -> R1provError | None:
    """The error about modes that failed without any rate, or that no mode was measured; None where neither is so."""
    remedy = "mend that, give it longer (--limit), or name other modes"
    if not any(mode["measured"] for mode in document["modes"]):
        whys = [f"{mode['mode']}: {mode['failed'] or mode['left_out']}" for mode in document["modes"]]
        return RunError(Problem(host.name, f"no mode was measured: {'; '.join(whys)}", remedy))
    failed = [mode for mode in document["modes"] if mode["failed"] and not mode["measured"]]
    problems = [Problem(host.name, f"{mode['mode']} failed: {mode['failed']}", remedy) for mode in failed]
    return RunError(*problems) if problems else None


def _show(found: dict[str, dict[str, Any]], problems: Sequence[Problem], *, json: bool) -> None:
    if json:
        output.data({"schema": modes.SCHEMA, "hosts": found, "problems": [asdict(problem) for problem in problems]})
        return
    for number, document in enumerate(found.values()):
        if number:
            output.line()
        show_modes.compared(document)
