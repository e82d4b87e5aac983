"""The verbs that change one thing of a site and converge: `engine`, `secrets rotate`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from r1prov import output
from r1prov import site as sites
from r1prov.cli import options, running
from r1prov.common.errors import R1provError
from r1prov.runs import session
from r1prov.site.state import API_KEY, SiteState

secrets = typer.Typer(no_args_is_help=True, help="The secrets of a site.")


class Engine(StrEnum):
    """Which engine."""

    LLAMA_SERVER = "llama-server"
    OLLAMA = "ollama"


def engine(
    which: Annotated[Engine, typer.Argument(help="Which engine holds the model from now on.")],
    *,
    site: options.SiteFile = None,
    ask_become_pass: options.AskSudo = False,
    ask_pass: options.AskSsh = False,
    strict_host_keys: options.StrictKeys = False,
    ssh_config: options.SshConfig = None,
    verbose: options.Verbose = 0,
    json: options.Json = False,
) -> None:
    """Let another engine hold the model, on every host of the site; the chat page follows.

    Example: `r1prov engine ollama`
    """
    login = options.login(
        ask_sudo=ask_become_pass, ask_ssh=ask_pass, strict_host_keys=strict_host_keys, ssh_config=ssh_config
    )
    choice = {"engine": which.value}
    chosen, meant = session.rechosen(site, (), choice)
    state = SiteState.of(chosen.path)
    # Before the run: one that is cut off is made good by the next `up`.
    state.choose(sites.merged(state.choices, choice))
    running.announce_pause(chosen, meant)
    running.finish(*running.run(chosen, meant, login, running.asked("up", verbosity=verbose)), meant, json=json)


@secrets.command()
def rotate(
    *,
    site: options.SiteFile = None,
    ask_become_pass: options.AskSudo = False,
    ask_pass: options.AskSsh = False,
    strict_host_keys: options.StrictKeys = False,
    ssh_config: options.SshConfig = None,
    verbose: options.Verbose = 0,
    json: options.Json = False,
) -> None:
    """Make a new API key and give it to every host of the site. The old one is refused from then on.

    Example: `r1prov secrets rotate`
    """
    login = options.login(
        ask_sudo=ask_become_pass, ask_ssh=ask_pass, strict_host_keys=strict_host_keys, ssh_config=ssh_config
    )
    chosen, meant = session.known(site, ())
    state = SiteState.of(chosen.path)
    before = state.secret(API_KEY).read_text() if state.secret(API_KEY).is_file() else None
    state.keep_secret(API_KEY)
    try:
        met, done, error = running.run(chosen, meant, login, running.asked("up", verbosity=verbose))
    except R1provError:  # nobody was met, so nobody has the new one
        state.keep_secret(API_KEY, before)
        raise
    if error and before and not any(host.changes for host in done.hosts.values()):
        state.keep_secret(API_KEY, before)
        output.say("No host was changed; the key is the one it was.", "yellow")
    running.finish(met, done, error, meant, json=json)
    output.say(f"The new key is in {state.secret(API_KEY)}")
