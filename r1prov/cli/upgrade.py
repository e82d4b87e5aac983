"""`r1prov upgrade`: other versions, host by host; one that fails is put back, and the rest stay as they are."""

from __future__ import annotations

from typing import Annotated

import typer

from r1prov.cli import options, rolling, running
from r1prov.runs import rollout
from r1prov.site import versions as versions_of
from r1prov.site.select import with_versions
from r1prov.site.state import SiteState


@options.logs_in
def upgrade(
    hosts: options.Hosts = None,
    *,
    llama_cpp: Annotated[
        str | None, typer.Option(metavar="V", help="The version of llama-cpp-python, or a tag.")
    ] = None,
    ollama: Annotated[str | None, typer.Option(metavar="V", help="The version of Ollama.")] = None,
    open_webui: Annotated[str | None, typer.Option(metavar="V", help="The version of the chat page.")] = None,
    batch: rolling.Batch = "1",
    keep_going: rolling.KeepGoing = False,
    at_least_percent: Annotated[
        int, typer.Option("--at-least", min=0, max=100, metavar="PERCENT", help="Of the decode rate measured before.")
    ] = 70,
    on_trial: Annotated[
        str,
        typer.Option("--trial", metavar="TIME", help="How long an engine must stay well before the next hosts come."),
    ] = "3m",
    site: options.SiteFile = None,
    login_options: options.LoginOptions,
    verbose: options.Verbose = 0,
    json: options.Json = False,
) -> None:
    """Bring hosts to other versions, one after the other. Builds beside what runs; each host pauses only to load the model again.

    Stops at the first host that does not answer as it should, decodes much slower than before, or does not stay well for the time of
    the trial, and puts it back, the chat page's data with it. With --keep-going the others come next nevertheless, and the exit code
    still tells that one has failed. A host that cannot be reached, or that no run has set up, is named, not upgraded, and stops nobody.
    What a host has come to is remembered for that host. Without a version: to what the site file says, or else to the tested versions.

    `r1prov rollback` takes back what an upgrade has brought.

    Example: `r1prov upgrade --llama-cpp 0.3.37 --open-webui 0.12.5`
    """
    trial_s = options.seconds("--trial", on_trial)
    named = {"llama_cpp": llama_cpp, "ollama": ollama, "open_webui": open_webui}
    now, settled, targets, bare = rolling.among(site, hosts or ())
    state = SiteState.of(now.path)
    after = with_versions(now, targets, {key: value for key, value in named.items() if value})
    # A version that does not exist is said before anything is announced.
    decision = running.settle(after)
    has = {name: versions_of.of(there, name) for name, there in settled.items()}
    conductor = rolling.Conductor(
        now,
        after=dict.fromkeys(settled, decision),
        before=rolling.settle_each(rollout.put_back_sites(now, settled)),
        has=has,
        keeps={name: after.chosen.get(name, {}) for name in settled},
        variables={"smoke_bench_at_least": at_least_percent / 100},
        login=login_options.ask(),
        verbosity=verbose,
        trial_s=trial_s,
    )
    # A rollback takes this roll-out back. Where it is not well in the end there is nothing to take back, and where it has nothing to do,
    # as on hosts that an earlier half of it has done, that stays what it was.
    for name, versions in has.items():
        if versions_of.differ(versions, versions_of.of(after, name)):
            state.keep_before(name, versions)
    result = conductor.roll_out(targets, batch, keep_going=keep_going)
    rolling.finish(result, targets, conductor, bare, json=json)
