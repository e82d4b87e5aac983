"""`r1prov upgrade`: other versions, host by host; one that fails is put back, and the rest stay as they are."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from r1prov import output
from r1prov import site as sites
from r1prov.cli import options, running, show
from r1prov.runs import session
from r1prov.site import pins
from r1prov.site.state import SiteState


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
    ask_become_pass: options.AskSudo = False,
    ask_pass: options.AskSsh = False,
    strict_host_keys: options.StrictKeys = False,
    ssh_config: options.SshConfig = None,
    verbose: options.Verbose = 0,
    json: options.Json = False,
) -> None:
    """Bring hosts to other versions, one after the other. Builds beside what runs; each host pauses only to load the model again.

    Stops at the first host that does not answer as it should, or decodes much slower than before, and puts it back, the chat page's
    data with it. Without a version: to what the site file says.

    Example: `r1prov upgrade --llama-cpp 0.3.37 --open-webui 0.12.5`
    """
    login = options.login(
        ask_sudo=ask_become_pass, ask_ssh=ask_pass, strict_host_keys=strict_host_keys, ssh_config=ssh_config
    )
    asked_for = {"llama_cpp": llama_cpp, "ollama": ollama, "open_webui": open_webui}
    choice: dict[str, Any] = {"versions": {key: value for key, value in asked_for.items() if value}}
    before, _ = session.known(site, hosts or ())
    after, meant = session.rechosen(site, hosts or (), choice)
    asked = running.asked("up", {"smoke_bench_at_least": at_least_percent / 100}, verbosity=verbose)
    again = running.asked("up", {"smoke_bench_force": True}, verbosity=verbose)
    # A version that does not exist is said before anything is announced.
    pins.keep(after, SiteState.of(after.path).pins)
    loads_again = not any(asked_for.values()) or asked_for["ollama" if after.file.engine == "ollama" else "llama_cpp"]
    reports = []
    for start in range(0, len(meant), batch):
        some = meant[start : start + batch]
        names = ", ".join(host.name for host in some)
        output.say(f"{names}: upgrading", "bold")
        if loads_again:
            running.announce_pause(after, some)
        _, done, error = running.run(after, some, login, asked)
        reports.append(done.as_json())
        show.summary(done)
        if error:
            output.problems(error.problems)
            output.say(f"{names}: putting it back", "bold yellow")
            _, back, failed = running.run(before, some, login, again)
            reports.append(back.as_json())
            show.summary(back)
            left = [host.name for host in meant[start + batch :]]
            output.say(f"{names}: {'could not be put back' if failed else 'runs as before'}.", "yellow")
            if left:
                output.say(f"Not touched: {', '.join(left)}", "yellow")
            if json:
                output.data({"schema": 1, "runs": reports})
            if failed:
                raise failed
            raise typer.Exit(error.exit)
    state = SiteState.of(after.path)
    state.choose(sites.merged(state.choices, choice))
    if json:
        output.data({"schema": 1, "runs": reports})
