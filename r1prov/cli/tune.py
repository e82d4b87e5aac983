"""`r1prov tune`: measure what arithmetic cannot decide, on the host itself, and keep the best."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from r1prov import output
from r1prov.cli import options, running, show
from r1prov.common.errors import Exit, UnreachableError
from r1prov.decision import decide
from r1prov.machines.tuned import in_words
from r1prov.machines.workload import load_workload
from r1prov.runs import tuning
from r1prov.site.select import last_applied, made_up, refuse_pools

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from r1prov.common.errors import R1provError
    from r1prov.decision import Decision
    from r1prov.hosts import Login
    from r1prov.offload.tuning import Trial
    from r1prov.runs.run import Done
    from r1prov.site import Host, Site


@options.logs_in
def tune(
    hosts: options.Hosts = None,
    *,
    site: options.SiteFile = None,
    limit: Annotated[str, typer.Option(metavar="TIME", help="How long each host may measure: 90s, 20m, 1h.")] = "20m",
    force: Annotated[bool, typer.Option("--force", help="Measure again what was measured.")] = False,
    now: Annotated[bool, typer.Option("--now", help="Do not wait for answers that the service is giving.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    check: Annotated[
        bool, typer.Option("--check", "--dry-run", help="Change nothing; say what would be measured.")
    ] = False,
    profile: options.Profile = None,
    workload: options.Workload = None,
    login_options: options.LoginOptions,
    break_lock: options.BreakLock = False,
    verbose: options.Verbose = 0,
    json: options.Json = False,
) -> None:
    """Try threads, batches, slots, a tensor more or less and repacking around the plan, and serve with the best for the workload.

    The service of a host pauses meanwhile, one host after the other, and comes back however it ends. What was found is kept until
    hardware, engine, model or plan change. A host that cannot be reached is named, and the others are tuned.

    With --check and --profile it says what would be tried on a server of that kind, which need not be there, for --workload or for what
    suits the kind.

    Example: `r1prov tune gpu1 --limit 30m`
    """
    limit_s = options.seconds("--limit", limit)
    if profile and not check:
        raise typer.BadParameter("--profile goes with --check: only hosts can be measured")
    if workload and not profile:
        raise typer.BadParameter("--workload goes with --profile: what a site's hosts are asked for stands in its file")
    if profile:
        _foresee(options.alone(profile, site, hosts or ()), workload, limit, json=json)
        return
    applied, targets = last_applied(site, hosts or (), or_else=options.A_KIND if check else "", duty="engine")
    tuning.require_llama_server(applied, targets)
    refuse_pools(applied, targets, "`tune` measures the cards of one host")
    decision = running.settle(applied)
    login = login_options.ask()
    tuned, trials, away = tuning.look(decision, targets, login, force=force)
    for unmet in away.values():
        output.problems(unmet.problems)
    for name, kept in tuned.items():
        output.say(f"{name}: {in_words(kept)}; --force measures again")
    for line in _lines(trials, limit):
        output.say(line)
    waiting = [host for host in targets if host.name in trials]
    if waiting and not check:
        _announce(applied, waiting, limit, yes=yes)
        told = {"measure_now": now, **({"r1prov_break_lock": True} if break_lock else {})}
        conductor = _Conductor(decision, login, told, verbose)
        for host in waiting:
            try:
                found = tuning.tune(decision, host, trials[host.name], conductor, limit_s=limit_s, force=force)
            except UnreachableError as error:
                away[host.name] = error
                continue
            tuned[host.name] = found
            show.tuning(host.name, found)
    problems = [problem for unmet in away.values() for problem in unmet.problems]
    if json:
        output.data(
            {
                "hosts": {name: each.model_dump(mode="json") for name, each in tuned.items()},
                "to_measure": _described(trials) if check else {},
                "problems": [asdict(problem) for problem in problems],
            }
        )
    if problems:
        raise UnreachableError(*problems)


def _foresee(profile: str, workload: str | None, limit: str, *, json: bool) -> None:
    """Say what would be tried on a server of a kind. Nobody is contacted."""
    asked = {"workload": load_workload(workload)} if workload else {}
    kind, (there,) = made_up(profile, **asked)
    trials = {there.name: tuning.foresee(decide(kind, output.say), there.name)}
    if json:
        output.data({"hosts": {}, "to_measure": _described(trials), "problems": []})
        return
    for line in _lines(trials, limit):
        output.line(line)
    output.say("Nobody was asked: a host tells its own threads and RAM, and how its first card is attached.")


def _described(trials: Mapping[str, Trial]) -> dict[str, list[str]]:
    return {name: tuning.describe(trial) for name, trial in trials.items()}


def _lines(trials: Mapping[str, Trial], limit: str) -> Iterator[str]:
    """What is to be measured, for people."""
    for name, trial in trials.items():
        yield f"{name}: {trial.settings} settings to measure, within {limit}"
        yield from (f"  {line}" for line in tuning.describe(trial))


@dataclass(frozen=True)
class _Conductor:
    """Runs what tuning needs, and shows it."""

    decision: Decision
    login: Login
    told: Mapping[str, Any]
    verbosity: int

    def measure(self, host: Host, variables: Mapping[str, Any]) -> Done:
        return self._run("tune", host, {**variables, **self.told})

    def serve(self, host: Host) -> Done:
        return self._run("up", host, {})

    def fell_back(self, host: Host, error: R1provError) -> None:
        output.problems(error.problems)
        output.say(f"{host.name}: back to the plan's own setting", "bold yellow")

    def _run(self, playbook: str, host: Host, variables: Mapping[str, Any]) -> Done:
        request = running.request(playbook, variables, verbosity=self.verbosity)
        return running.run(self.decision, [host], self.login, request)


def _announce(applied: Site, waiting: Sequence[Host], limit: str, *, yes: bool) -> None:
    """Say that the service pauses, and ask."""
    for host in waiting:
        output.say(f"While that is measured, {host.name} will not answer, for up to {limit}.")
    running.announce_pause(applied, waiting)
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("nobody is there to ask: say --yes")
    if not typer.confirm(f"Tune {', '.join(host.name for host in waiting)}?", err=True):
        output.say("Nothing was measured.")
        raise typer.Exit(Exit.INTERRUPTED)
