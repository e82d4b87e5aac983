"""What `upgrade` and `rollback` have in common: how they run over some hosts at a time, and how they end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from r1prov import output
from r1prov.cli import running, show
from r1prov.common.errors import SiteError, UnreachableError, together
from r1prov.common.units import share_of
from r1prov.output.pace import clock
from r1prov.runs import rollout, trial
from r1prov.site import versions as versions_of
from r1prov.site.select import refuse_parts, wanted
from r1prov.site.state import SiteState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from r1prov.common.errors import Problem, R1provError
    from r1prov.decision import Decision
    from r1prov.hosts import Login
    from r1prov.runs.run import Done
    from r1prov.site import Host, Site


def _is_share(text: str) -> str:
    """Refuse what is neither a number nor a percentage.

    Raises:
        BadParameter: it is neither.
    """
    try:
        share_of(100, text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return text


Batch = Annotated[
    str,
    typer.Option(
        metavar="N|N%",
        callback=_is_share,
        help="So many hosts at once, as `3`, or such a share of those meant, as `25%`; one at least.",
    ),
]
KeepGoing = Annotated[
    bool,
    typer.Option(
        "--keep-going", help="Go on with other hosts after those that failed, as long as these could be put back."
    ),
]


def among(path: Path | None, named: Sequence[str]) -> tuple[Site, dict[str, Site], list[Host], list[Problem]]:
    """The hosts that a roll-out is about.

    Returns:
        the site as it is wanted now; by host, the site that it was brought to and was well with; the hosts that have one; and why
        the others are left out.

    Raises:
        SiteError: no site is known, or none of its hosts that are meant was ever well.
    """
    now, meant = wanted(path, named)
    refuse_parts(now, meant)
    state = SiteState.of(now.path)
    settled = {host.name: there for host in meant if (there := state.settled(host.name))}
    bare = rollout.unsettled(meant, settled)
    if not settled:
        raise SiteError(*bare)
    return now, settled, [host for host in meant if host.name in settled], bare


def settle_each(sites: Mapping[str, Site]) -> dict[str, Decision]:
    """The decision for each host. Hosts with the same site share one."""
    made = {id(site): running.settle(site) for site in {id(site): site for site in sites.values()}.values()}
    return {name: made[id(site)] for name, site in sites.items()}


@dataclass
class Conductor:
    """Runs what a roll-out needs, shows it, and remembers the versions of each host as soon as they are its own.

    Attributes:
        now: the site with the versions that its hosts have come to so far.
        after: what each host is to come to.
        before: what each host is put back to.
        has: the versions of each host as long as nothing was changed.
        keeps: what is then chosen for each host.
        variables: for Ansible, in the runs that bring hosts to what is wanted.
        trial_s: how long an engine with another version must stay well before the next hosts come.
    """

    now: Site
    after: Mapping[str, Decision]
    before: Mapping[str, Decision]
    has: Mapping[str, Mapping[str, str]]
    keeps: Mapping[str, dict[str, str]]
    variables: Mapping[str, Any]
    login: Login
    verbosity: int
    trial_s: int = 0

    def roll_out(self, hosts: Sequence[Host], batch: str, *, keep_going: bool) -> rollout.RollOut:
        """Bring hosts to what is wanted for them, so many or such a share at once."""
        size = share_of(len(hosts), batch)
        batches = rollout.batches(hosts, size, lambda host: id(self.after[host.name]), self._pool)
        return rollout.roll_out(batches, self, self._pool, keep_going=keep_going)

    def _pool(self, host: Host) -> str:
        return self.now.builds_as(host.name)

    def bring(self, hosts: Sequence[Host]) -> Done:
        """See `rollout.Conductor`. Says beforehand what becomes of each host."""
        decision = self.after[hosts[0].name]
        for host in hosts:
            self._announce(host.name)
        running.announce_pause(
            decision.site,
            [
                host
                for host in hosts
                if host.has("engine")
                and rollout.needs_new_load(self.before[host.name].site, decision.site, self.has[host.name], host.name)
            ],
        )
        return self._run(decision, hosts, self.variables)

    def _announce(self, name: str) -> None:
        before, after, has = self.before[name].site, self.after[name].site, self.has[name]
        wanted = versions_of.of(after, name)
        output.say(f"{name}: {', '.join(versions_of.moves(has, wanted)) or 'the versions stay'}", "bold")
        if others := rollout.other_keys(before, after, name):
            output.say(f"{name}: the site file also says something else than before about {', '.join(others)}")
        if text := _of_the_data(has, wanted, versions_of.of(before, name)):
            output.say(f"{name}: {text}")

    def stay_well(self, hosts: Sequence[Host]) -> dict[str, Problem]:
        """See `rollout.Conductor`."""
        changed = [host for host in hosts if host.has("engine") and self._is_new(host.name)]
        if not changed or not self.trial_s:
            return {}
        output.say(f"{_names(changed)}: on trial for {clock(self.trial_s)}, with everybody's requests")
        with output.Meter("on trial", "steps") as meter:
            return trial.stay_well(changed, self.after[changed[0].name].site, self.login, self.trial_s, meter.update)

    def _is_new(self, name: str) -> bool:
        """Whether the engine of a host has been brought to another version."""
        after = self.after[name].site
        engine = "ollama" if after.of(name).file.engine == "ollama" else "llama_cpp"
        return self.has[name].get(engine) != versions_of.of(after, name).get(engine)

    def keep(self, hosts: Sequence[Host]) -> None:
        """See `rollout.Conductor`."""
        for host in hosts:
            self._choose(host, self.keeps[host.name])

    def put_back(self, hosts: Sequence[Host], error: R1provError) -> list[Done]:
        """See `rollout.Conductor`."""
        output.problems(error.problems)
        output.say(f"{_names(hosts)}: putting it back", "bold yellow")
        ended = []
        for decision in {id(each): each for each in (self.before[host.name] for host in hosts)}.values():
            some = [host for host in hosts if self.before[host.name] is decision]
            done = self._run(decision, some, {"smoke_bench_force": True})
            for host in some:
                if done.report.hosts[host.name].result == "ok":
                    self._choose(host, rollout.kept_versions(self.now, host.name, decision.site.chosen[host.name]))
            ended.append(done)
        return ended

    def _choose(self, host: Host, versions: dict[str, str]) -> None:
        SiteState.of(self.now.path).choose_versions(host.name, versions)
        self.now = self.now.model_copy(update={"chosen": {**self.now.chosen, host.name: versions}})

    def _run(self, decision: Decision, hosts: Sequence[Host], variables: Mapping[str, Any]) -> Done:
        """Run over these hosts.

        The others are left out, but whoever converges them next by the same inventory or site must find there what they have.
        """
        state = SiteState.of(self.now.path)
        settled = {host.name: state.settled(host.name) for host in self.now.hosts}
        have = {name: versions_of.of(site, name) for name, site in settled.items() if site}
        chosen = {host.name: decision.site.chosen.get(host.name, {}) for host in hosts}
        decision = decision.with_versions({**self.now.chosen, **have, **chosen})
        done = running.run(decision, hosts, self.login, running.request("up", variables, verbosity=self.verbosity))
        show.summary(done.report)
        return done


def finish(
    result: rollout.RollOut,
    targets: Sequence[Host],
    conductor: Conductor,
    bare: Sequence[Problem],
    *,
    json: bool,
) -> None:
    """Say what came of a roll-out. `bare` says which hosts it left out, because no run has set them up.

    Raises:
        R1provError: hosts could not be put back.
        UnreachableError: hosts could not be reached, and all others have come to what was wanted.
        SiteError: hosts were left out, and all others have come to what was wanted.
        typer.Exit: a host went wrong.
    """
    error, error_back = together(result.errors), together(result.errors_back)
    if json:
        output.data({"runs": [report.as_json() for report in result.runs], "hosts": result.outcomes()})
    if error:
        said = {
            "Could not be put back": result.not_back,
            "Put back, and as before": [host for host in result.failed if host not in result.not_back],
            "Done": result.done,
            "Not touched": result.untouched,
        }
        for what, hosts in said.items():
            if hosts:
                output.say(f"{what}: {_names(hosts)}", "yellow")
    if error or result.away:
        state = SiteState.of(conductor.now.path)
        for host in targets:
            if there := state.settled(host.name):
                show.other_versions(conductor.now, host, versions_of.of(there, host.name))
    if error:
        output.problems([*result.away, *bare])
        if error_back:
            raise error_back
        raise typer.Exit(error.exit)
    if result.away:
        raise UnreachableError(*result.away, *bare)
    if bare:
        raise SiteError(*bare)


def _of_the_data(has: Mapping[str, str], wanted: Mapping[str, str], settled: Mapping[str, str]) -> str:
    """What becomes of the chat page's data before a release starts on it that is not newer; empty where none does."""
    page = "open_webui"
    if page not in has or page not in wanted or not versions_of.may_be_older(has[page], wanted[page]):
        return ""
    if has[page] != settled[page]:  # The module open_webui_data knows on the host whether that release was an attempt.
        return f"the chat page's data comes back as it was before Open-WebUI {has[page]}, unless that has served well there"
    return (
        f"the chat page keeps the data that it has now, of which a copy is made first. If Open-WebUI {wanted[page]} cannot use it, "
        f"{has[page]} comes back"
    )


def _names(hosts: Sequence[Host]) -> str:
    return ", ".join(host.name for host in hosts)
