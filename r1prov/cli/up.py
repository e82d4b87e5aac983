"""`r1prov up`: from fresh servers to an answer; again at any time, to repair drift."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer

from r1prov import output, session
from r1prov.cli import options, show
from r1prov.errors import Exit
from r1prov.session import Options


def up(
    hosts: options.Hosts = None,
    *,
    profile: options.Profile = None,
    site: options.SiteFile = None,
    quant: options.Quant = None,
    ctx_size: options.ContextSize = None,
    parallel: options.Slots = None,
    override: Annotated[
        list[str] | None,
        typer.Option(metavar="CHECK", help="A preflight check whose refusal you accept; may be repeated."),
    ] = None,
    ask_become_pass: options.AskSudo = False,
    ask_pass: options.AskSsh = False,
    strict_host_keys: options.StrictKeys = False,
    ssh_config: options.SshConfig = None,
    break_lock: Annotated[
        bool, typer.Option("--break-lock", help="Take hosts from another run that has certainly ended.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; say what would change.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Show how files change.")] = False,
    verbose: options.Verbose = 0,
    print_command: Annotated[
        bool, typer.Option("--print-command", help="Print the ansible-playbook command instead of running it.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Set up servers, or repair what has drifted. Run it again at any time.

    Example: `r1prov up --profile 4x4090 gpu1.example.com admin@gpu2:2222`
    """
    chosen, meant = session.choose(
        site,
        hosts or (),
        profile=profile,
        quant=quant,
        context_per_slot=ctx_size,
        slots=parallel,
        override=tuple(override or ()),
    )
    login = options.login(
        ask_sudo=ask_become_pass, ask_ssh=ask_pass, strict_host_keys=strict_host_keys, ssh_config=ssh_config
    )
    asked = Options(
        playbook="up",
        told_as=shlex.join(["r1prov", *(word for word in sys.argv[1:] if word != "--print-command")]),
        variables={"r1prov_break_lock": True} if break_lock else {},
        check=check,
        diff=diff,
        verbosity=verbose,
    )
    try:
        with output.LiveRun([host.name for host in meant], raw=verbose > 0, diffs=diff) as live:
            chosen = session.prepare(chosen, meant, login, live)
            if print_command:
                prompts = ["--ask-become-pass"] * ask_become_pass + ["--ask-pass"] * ask_pass
                output.write(session.command(chosen, meant, login, asked).shell(*prompts) + "\n")
                return
            done, error = session.converge(chosen, meant, login, asked, live)
    except KeyboardInterrupt:
        output.say(
            "\nStopped. Run the same command again to go on. What the hosts have begun (a compile, a transfer) they finish by themselves.",
            "yellow",
        )
        raise typer.Exit(Exit.INTERRUPTED) from None
    if json:
        output.data(done.as_json())
    show.summary(done, check=check)
    if error:
        output.say()
        raise error
    if not check:
        show.addresses(chosen, meant)
        show.benchmark(done, chosen, talk=True)
