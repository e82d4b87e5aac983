"""`r1prov upgrade`: other versions, host by host; one that fails is put back, and the rest stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from r1prov import output
from r1prov.cli import options, running, show
from r1prov.common.errors import UnreachableError
from r1prov.runs.rollout import needs_new_load, roll_out
from r1prov.site.select import last_applied, with_choices
from r1prov.site.state import SiteState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from r1prov.common.errors import R1provError
    from r1prov.decision import Decision
    from r1prov.hosts import Login
    from r1prov.runs.run import Done
    from r1prov.site import Host


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
    data with it. A host that cannot be reached is named, not upgraded, and stops nobody. Without a version: to what the site file says.

    Example: `r1prov upgrade --llama-cpp 0.3.37 --open-webui 0.12.5`
    """
    named = {"llama_cpp": llama_cpp, "ollama": ollama, "open_webui": open_webui}
    versions = {key: value for key, value in named.items() if value}
    before, _ = last_applied(site, hosts or ())
    after, targets = with_choices(site, hosts or (), {"versions": versions})
    login = login_options.ask()
    conductor = _Conductor(
        running.settle(before),
        running.settle(after),  # A version that does not exist is said before anything is announced.
        login,
        at_least_percent / 100,
        verbose,
        pauses=needs_new_load(after, versions),
    )
    result = roll_out(targets, batch, conductor)
    if not result.error and any(report.with_result("ok") for report in result.runs):
        SiteState.of(after.path).choose({"versions": versions})
    if json:
        output.data({"schema": 1, "runs": [report.as_json() for report in result.runs]})
    if result.error:
        output.say(
            f"{_names(result.failed)}: {'could not be put back' if result.not_back else 'runs as before'}.", "yellow"
        )
        if result.untouched:
            output.say(f"Not touched: {_names(result.untouched)}", "yellow")
        output.problems(result.away)
        if result.not_back:
            raise result.not_back
        raise typer.Exit(result.error.exit)
    if result.away:
        raise UnreachableError(*result.away)


@dataclass(frozen=True)
class _Conductor:
    """Runs what a roll-out needs, and shows it."""

    before: Decision
    after: Decision
    login: Login
    at_least: float
    verbosity: int
    pauses: bool

    def upgrade(self, hosts: Sequence[Host]) -> Done:
        output.say(f"{_names(hosts)}: upgrading", "bold")
        if self.pauses:
            running.announce_pause(self.after.site, hosts)
        return self._run(self.after, hosts, {"smoke_bench_at_least": self.at_least})

    def put_back(self, hosts: Sequence[Host], error: R1provError) -> Done:
        output.problems(error.problems)
        output.say(f"{_names(hosts)}: putting it back", "bold yellow")
        return self._run(self.before, hosts, {"smoke_bench_force": True})

    def _run(self, decision: Decision, hosts: Sequence[Host], variables: dict[str, Any]) -> Done:
        done = running.run(decision, hosts, self.login, running.request("up", variables, verbosity=self.verbosity))
        show.summary(done.report)
        return done


def _names(hosts: Sequence[Host]) -> str:
    return ", ".join(host.name for host in hosts)
