"""The verbs that change one thing of a site and converge: `engine`, `secrets rotate`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from r1prov import output
from r1prov.cli import options, running
from r1prov.cli.command import App
from r1prov.common.errors import Problem, SiteError
from r1prov.runs import rotation
from r1prov.site.select import last_applied, with_choices
from r1prov.site.state import ADMIN_PASSWORD, API_KEY, PAGE_KEY, SiteState, secrets_of

secrets = App(no_args_is_help=True, help="The secrets of a site.")


class Engine(StrEnum):
    """Which engine."""

    LLAMA_SERVER = "llama-server"
    OLLAMA = "ollama"


class SecretName(StrEnum):
    """Which secret."""

    API_KEY = API_KEY.name
    ADMIN_PASSWORD = ADMIN_PASSWORD.name
    PAGE_KEY = PAGE_KEY.name


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
    running.tell_not_applied(wanted)
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
    only: Annotated[
        list[SecretName] | None, typer.Option(help="This one alone; may be given more than once. Without: all.")
    ] = None,
    site: options.SiteFile = None,
    login_options: options.LoginOptions,
    verbose: options.Verbose = 0,
    json: options.Json = False,
) -> None:
    """Make the site's secrets anew, and give them to every host. The old ones are refused from then on.

    A host that cannot be reached keeps the old ones, and accepts them, until `r1prov up` reaches it.

    These are the key of the API, the page's signing key, and the password of the page's administrator. Whoever is logged in to the
    page has to log in again.

    Example: `r1prov secrets rotate --only webui-admin-password`
    """
    applied, targets = last_applied(site, ())
    state, known = SiteState.of(applied.path), {secret.name: secret for secret in secrets_of(applied)}
    if missing := sorted(set(only or ()) - known.keys()):
        what = f"the site has no chat page, so it has no {' or '.join(missing)}"
        raise SiteError(Problem("--only", what, f"rotate one of: {', '.join(known)}"))
    running.tell_not_applied(applied)
    chosen = [secret for name, secret in known.items() if not only or name in only]
    encrypted = [secret for secret in chosen if state.is_encrypted(secret)]
    decision = running.settle(applied)
    login = login_options.ask()
    request = running.request("up", verbosity=verbose)
    done, changed = rotation.rotate(applied, chosen, lambda: running.run(decision, targets, login, request))
    if changed:
        output.say("These are new: " + ", ".join(str(state.secret(secret)) for secret in chosen))
        for secret in encrypted:
            output.say(f"{state.secret(secret)} was encrypted with ansible-vault; now it is not.", "yellow")
        if behind := done.report.with_result("unreachable", "failed", "unfinished"):
            output.say(
                f"{', '.join(behind)} may still accept the old ones, until `r1prov up` ends well there.", "yellow"
            )
    else:
        output.say("No host was changed; the secrets are the ones they were.", "yellow")
    running.finish(done, targets, json=json)
