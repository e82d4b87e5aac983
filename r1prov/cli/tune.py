"""`r1prov tune`: measure what arithmetic cannot decide, on the host itself, and keep the best."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from r1prov import output
from r1prov.cli import options, running, show
from r1prov.common.errors import Exit, Problem, SiteError, UnhealthyError
from r1prov.common.units import parse_duration
from r1prov.machines import tuned
from r1prov.runs import session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from r1prov.hosts import Contact
    from r1prov.offload.tuning import Trial, Tuned
    from r1prov.runs.session import Login, Options
    from r1prov.site import Host, Site

UNIT = "r1prov-llama-server.service"


def tune(
    hosts: options.Hosts = None,
    *,
    site: options.SiteFile = None,
    limit: Annotated[str, typer.Option(metavar="TIME", help="How long each host may measure: 90s, 20m, 1h.")] = "20m",
    force: Annotated[bool, typer.Option("--force", help="Measure again what was measured.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    check: Annotated[
        bool, typer.Option("--check", "--dry-run", help="Change nothing; say what would be measured.")
    ] = False,
    ask_become_pass: options.AskSudo = False,
    ask_pass: options.AskSsh = False,
    strict_host_keys: options.StrictKeys = False,
    ssh_config: options.SshConfig = None,
    break_lock: options.BreakLock = False,
    verbose: options.Verbose = 0,
    json: options.Json = False,
) -> None:
    """Try threads, micro-batch, a tensor more or less and repacking around the plan with llama-bench, and serve with the best.

    The service of a host pauses meanwhile, one host after the other, and comes back however it ends. What was found is kept until
    hardware, engine, model or plan change.

    Example: `r1prov tune gpu1 --limit 30m`
    """
    try:
        limit_s = parse_duration(limit)
    except ValueError as error:
        raise typer.BadParameter(f"--limit: {error}") from None
    chosen, meant = session.known(site, hosts or ())
    if chosen.file.engine != "llama-server":
        raise SiteError(
            Problem(chosen.name, "the engine is ollama, which sets itself", "`r1prov engine llama-server` switches")
        )
    login = options.login(
        ask_sudo=ask_become_pass, ask_ssh=ask_pass, strict_host_keys=strict_host_keys, ssh_config=ssh_config
    )
    found, todo = _look(chosen, meant, login, force=force)
    for name, what in todo.items():
        output.say(f"{name}: {what.settings} settings to measure, within {limit}", "bold")
        for line in tuned.describe(what):
            output.say(f"  {line}")
    waiting = [host for host in meant if host.name in todo]
    if todo and not check:
        _announce(chosen, waiting, limit, yes=yes)
        variables = {"r1prov_break_lock": True} if break_lock else {}
        for host in waiting:
            what = todo[host.name]
            asked = running.asked("tune", tuned.variables(what, limit_s, force=force) | variables, verbosity=verbose)
            found[host.name] = _tune(chosen, host, login, asked, what)
            show.tuning(host.name, found[host.name])
    if json:
        output.data(
            {
                "schema": 1,
                "hosts": {name: each.model_dump(mode="json") for name, each in found.items()},
                "to_measure": {name: tuned.describe(what) for name, what in todo.items()} if check else {},
            }
        )


def _look(
    chosen: Site, meant: Sequence[Host], login: Login, *, force: bool
) -> tuple[dict[str, Tuned], dict[str, Trial]]:
    """What the hosts are tuned to already, and what is to be measured on the others.

    Raises:
        UnhealthyError: a host has no service that could pause.
    """
    found, todo = {}, {}
    with session.met(meant, chosen, login) as contacts:
        _refuse_bare(contacts)
        for name, contact in contacts.items():
            kept = tuned.kept(chosen, name)
            if kept and kept.served and not force and not tuned.lapsed(chosen, kept, contact.facts):
                output.say(f"{name}: {tuned.state(chosen, name, contact.facts)}; --force measures again")
                found[name] = kept
            else:
                todo[name] = tuned.trial(chosen, contact.facts)
    return found, todo


def _refuse_bare(contacts: dict[str, Contact]) -> None:
    bare = [name for name, contact in contacts.items() if contact.connection.run(["systemctl", "cat", UNIT]).code]
    if bare:
        raise UnhealthyError(
            *(Problem(name, "llama-server is not set up there yet", "run `r1prov up` first") for name in bare)
        )


def _announce(chosen: Site, waiting: Sequence[Host], limit: str, *, yes: bool) -> None:
    """Say that the service pauses, and ask."""
    for host in waiting:
        output.say(f"{host.name} will not answer while that is measured, for up to {limit}.")
    running.announce_pause(chosen, waiting)
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("nobody is there to ask: say --yes")
    if not typer.confirm(f"Tune {', '.join(host.name for host in waiting)}?", err=True):
        output.say("Nothing was measured.")
        raise typer.Exit(Exit.INTERRUPTED)


def _tune(chosen: Site, host: Host, login: Login, asked: Options, what: Trial) -> Tuned:
    """Measure one host, keep the best, and serve with it; with the plan's own setting where that does not serve.

    Raises:
        R1provError: what went wrong. The service runs, with what it had before or with the plan's own setting.
    """
    _, done, error = running.run(chosen, [host], login, asked)
    if error:
        raise error
    found = tuned.outcome(what, done.hosts[host.name].tuning or {})
    tuned.keep(chosen, host.name, found)
    serve = running.asked("up", verbosity=asked.verbosity)
    _, done, error = running.run(chosen, [host], login, serve)
    if error and found.arguments != what.subject.plan:
        tuned.forget(chosen, host.name)
        output.problems(error.problems)
        output.say(f"{host.name}: back to the plan's own setting", "bold yellow")
        _, done, failed = running.run(chosen, [host], login, serve)
        raise failed or error
    if error:
        raise error
    found = found.model_copy(update={"served": True})
    tuned.keep(chosen, host.name, found)
    return found
