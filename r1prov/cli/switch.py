"""The verbs that change one thing of a site and converge: `engine`, `secrets rotate`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from r1prov import output
from r1prov.cli import options, running
from r1prov.runs.rotation import rotate_api_key
from r1prov.site.select import last_applied, with_choices
from r1prov.site.state import API_KEY, SiteState

secrets = typer.Typer(no_args_is_help=True, help="The secrets of a site.")


class Engine(StrEnum):
    """Which engine."""

    LLAMA_SERVER = "llama-server"
    OLLAMA = "ollama"


@options.logs_in
def engine(
    which: Annotated[Engine, typer.Argument(help="Which engine holds the model from now on.")],
    *,
    site: options.SiteFile = None,
    login_options: options.LoginOptions,
    verbose: options.Verbose = 0,
    json: options.Json = False,
) -> None:
    """Let another engine hold the model, on every host of the site; the chat page follows.

    Example: `r1prov engine ollama`
    """
    choice = {"engine": which.value}
    wanted, targets = with_choices(site, (), choice)
    decision = running.settle(wanted)
    login = login_options.ask()
    # The choice is kept before the run: the next `up` makes good a run that is cut off.
    SiteState.of(wanted.path).choose(choice)
    running.announce_pause(wanted, targets)
    running.finish(running.run(decision, targets, login, running.request("up", verbosity=verbose)), targets, json=json)


@secrets.command()
@options.logs_in
def rotate(
    *,
    site: options.SiteFile = None,
    login_options: options.LoginOptions,
    verbose: options.Verbose = 0,
    json: options.Json = False,
) -> None:
    """Make a new API key and give it to every host of the site. The old one is refused from then on.

    Example: `r1prov secrets rotate`
    """
    applied, targets = last_applied(site, ())
    decision = running.settle(applied)
    login = login_options.ask()
    request = running.request("up", verbosity=verbose)
    done, changed = rotate_api_key(applied, lambda: running.run(decision, targets, login, request))
    if not changed:
        output.say("No host was changed; the key is the one it was.", "yellow")
    running.finish(done, targets, json=json)
    output.say(f"The new key is in {SiteState.of(applied.path).secret(API_KEY)}")
