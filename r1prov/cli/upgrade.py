"""`r1prov upgrade`: other versions, host by host; one that fails is put back, and the rest stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from r1prov import output
from r1prov.cli import options, running, show
from r1prov.common.errors import SiteError, UnreachableError
from r1prov.runs import rollout
from r1prov.site import versions as versions_of
from r1prov.site.select import wanted, with_versions
from r1prov.site.state import SiteState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from r1prov.common.errors import Problem, R1provError
    from r1prov.decision import Decision
    from r1prov.hosts import Login
    from r1prov.runs.run import Done
    from r1prov.site import Host, Site


@options.logs_in
def upgrade(
    hosts: options.Hosts = None,
    *,
    llama_cpp: Annotated[
        str | None, typer.Option(metavar="V", help="The version of llama-cpp-python, or a tag.")
    ] = None,
    ollama: Annotated[str | None, typer.Option(metavar="V", help="The version of Ollama.")] = None,
    open_webui: Annotated[str | None, typer.Option(metavar="V", help="The version of the chat page.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="So many hosts at once.")] = 1,
    at_least_percent: Annotated[
        int, typer.Option("--at-least", min=0, max=100, metavar="PERCENT", help="Of the decode rate measured before.")
    ] = 70,
    site: options.SiteFile = None,
    login_options: options.LoginOptions,
    verbose: options.Verbose = 0,
    json: options.Json = False,
) -> None:
    """Bring hosts to other versions, one after the other. Builds beside what runs; each host pauses only to load the model again.

    Stops at the first host that does not answer as it should, or decodes much slower than before, and puts it back, the chat page's
    data with it. A host that cannot be reached, or that no run has set up, is named, not upgraded, and stops nobody. What a host has
    come to is remembered for that host. Without a version: to what the site file says, or else to the tested versions.

    Example: `r1prov upgrade --llama-cpp 0.3.37 --open-webui 0.12.5`
    """
    named = {"llama_cpp": llama_cpp, "ollama": ollama, "open_webui": open_webui}
    now, meant = wanted(site, hosts or ())
    settled = {host.name: SiteState.of(now.path).settled(host.name) for host in meant}
    bare, targets = rollout.unsettled(settled), [host for host in meant if settled[host.name]]
    if not targets:
        raise SiteError(*bare)
    after = with_versions(now, targets, {key: value for key, value in named.items() if value})
    before = rollout.put_back_sites(now, {name: there for name, there in settled.items() if there})
    # A version that does not exist is said before anything is announced.
    wanted_decision, decisions = running.settle(after), _settled(before)
    login = login_options.ask()
    conductor = _Conductor(now, wanted_decision, decisions, login, at_least_percent / 100, verbose)
    result = rollout.roll_out(targets, batch, conductor)
    if json:
        output.data({"runs": [report.as_json() for report in result.runs]})
    _tell(result, targets, conductor, bare)


def _settled(sites: Mapping[str, Site]) -> dict[str, Decision]:
    """The decision with which each host is put back. Hosts with the same site share one."""
    made = {id(site): running.settle(site) for site in {id(site): site for site in sites.values()}.values()}
    return {name: made[id(site)] for name, site in sites.items()}


def _tell(result: rollout.RollOut, targets: Sequence[Host], conductor: _Conductor, bare: Sequence[Problem]) -> None:
    """Say what the roll-out did not reach. `bare` says which hosts it left out, because no run has set them up.

    Raises:
        R1provError: hosts could not be put back.
        UnreachableError: hosts could not be reached, and all others are upgraded.
        SiteError: hosts were left out, and all others are upgraded.
        typer.Exit: a host went wrong.
    """
    if result.error:
        output.say(
            f"{_names(result.failed)}: {'could not be put back' if result.not_back else 'runs as before'}.", "yellow"
        )
        if result.untouched:
            output.say(f"Not touched: {_names(result.untouched)}", "yellow")
    if result.error or result.away:
        state = SiteState.of(conductor.now.path)
        for host in targets:
            if there := state.settled(host.name):
                show.other_versions(conductor.now, host, versions_of.of(there, host.name))
    if result.error:
        output.problems([*result.away, *bare])
        if result.not_back:
            raise result.not_back
        raise typer.Exit(result.error.exit)
    if result.away:
        raise UnreachableError(*result.away, *bare)
    if bare:
        raise SiteError(*bare)


@dataclass
class _Conductor:
    """Runs what a roll-out needs, shows it, and remembers the versions of each host as soon as they are its own.

    Attributes:
        now: the site with the versions that its hosts have come to so far.
        after: what the hosts are to come to.
        before: what each host is put back to.
    """

    now: Site
    after: Decision
    before: Mapping[str, Decision]
    login: Login
    at_least: float
    verbosity: int

    def upgrade(self, hosts: Sequence[Host]) -> Done:
        after = self.after.site
        for host in hosts:
            before = self.before[host.name].site
            moves = versions_of.moves(versions_of.of(before, host.name), versions_of.of(after, host.name))
            output.say(f"{host.name}: {', '.join(moves) or 'the versions stay'}", "bold")
            if others := rollout.other_keys(before, after):
                output.say(f"{host.name}: the site file also says something else than before about {', '.join(others)}")
        running.announce_pause(
            after, [host for host in hosts if rollout.needs_new_load(self.before[host.name].site, after, host.name)]
        )
        chosen = {host.name: after.chosen.get(host.name, {}) for host in hosts}
        return self._run(self.after, hosts, chosen, {"smoke_bench_at_least": self.at_least})

    def keep(self, hosts: Sequence[Host]) -> None:
        for host in hosts:
            self._choose(host, self.after.site.chosen.get(host.name, {}))

    def put_back(self, hosts: Sequence[Host], error: R1provError) -> list[Done]:
        output.problems(error.problems)
        output.say(f"{_names(hosts)}: putting it back", "bold yellow")
        ended = []
        for decision in {id(each): each for each in (self.before[host.name] for host in hosts)}.values():
            some = [host for host in hosts if self.before[host.name] is decision]
            chosen = {host.name: decision.site.chosen[host.name] for host in some}
            done = self._run(decision, some, chosen, {"smoke_bench_force": True})
            for host in some:
                if done.report.hosts[host.name].result == "ok":
                    self._choose(host, rollout.kept_versions(self.now, chosen[host.name]))
            ended.append(done)
        return ended

    def _choose(self, host: Host, versions: dict[str, str]) -> None:
        SiteState.of(self.now.path).choose_versions(host.name, versions)
        self.now = self.now.model_copy(update={"chosen": {**self.now.chosen, host.name: versions}})

    def _run(
        self, decision: Decision, hosts: Sequence[Host], chosen: Mapping[str, dict[str, str]], variables: dict[str, Any]
    ) -> Done:
        """Run with these versions on these hosts.

        The others are left out, but whoever converges them next by the same inventory or site must find there what they have.
        """
        state = SiteState.of(self.now.path)
        settled = {host.name: state.settled(host.name) for host in self.now.hosts}
        have = {name: versions_of.of(site, name) for name, site in settled.items() if site}
        decision = decision.with_versions({**self.now.chosen, **have, **chosen})
        done = running.run(decision, hosts, self.login, running.request("up", variables, verbosity=self.verbosity))
        show.summary(done.report)
        return done


def _names(hosts: Sequence[Host]) -> str:
    return ", ".join(host.name for host in hosts)
