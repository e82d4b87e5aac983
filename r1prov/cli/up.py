"""`r1prov up`: from fresh servers to an answer; again at any time, to repair drift."""

from __future__ import annotations

from typing import Annotated

import typer

from r1prov import output
from r1prov.cli import options
from r1prov.site.select import select


@options.logs_in
def up(
    hosts: options.Hosts = None,
    *,
    profile: options.Profile = None,
    site: options.SiteFile = None,
    quant: options.Quant = None,
    ctx_size: options.ContextSize = None,
    parallel: options.Slots = None,
    first_token: options.FirstToken = None,
    override: Annotated[
        list[str] | None,
        typer.Option(metavar="CHECK", help="A preflight check whose refusal you accept; may be repeated."),
    ] = None,
    login_options: options.LoginOptions,
    break_lock: options.BreakLock = False,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; say what would change.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Show how files change.")] = False,
    full: Annotated[
        bool,
        typer.Option("--full", help="Run every step on every server, also where a look finds nothing that differs."),
    ] = False,
    require_all: Annotated[
        bool,
        typer.Option(
            "--require-all", help="Change nothing on any server unless all of them can be reached and logged in to."
        ),
    ] = False,
    verbose: options.Verbose = 0,
    print_command: Annotated[
        bool, typer.Option("--print-command", help="Print the ansible-playbook command instead of running it.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Set up servers, or repair what has drifted. Run it again at any time.

    Example: `r1prov up --profile 4x4090 gpu1.example.com admin@gpu2:2222`
    """
    wanted, targets = select(
        site,
        hosts or (),
        profile=profile,
        quant=quant,
        context_per_slot=ctx_size,
        slots=parallel,
        first_token=first_token,
        override=tuple(override or ()),
    )
    early = None if full or print_command else login_options.begin(wanted, targets)
    # Imported late, because hosts answer meanwhile.
    from r1prov.cli import running, show  # noqa: PLC0415
    from r1prov.runs import run as runs  # noqa: PLC0415

    decision = running.settle(wanted)
    show.versions_to_come(wanted, targets)
    login = login_options.ask()
    request = running.request(
        "up",
        {"r1prov_break_lock": True} if break_lock else {},
        check=check,
        diff=diff,
        verbosity=verbose,
        looks=not full,
        all_or_none=require_all,
    )
    if print_command:
        prompts = ["--ask-become-pass"] * login_options.ask_become_pass + ["--ask-pass"] * login_options.ask_pass
        prepared = running.watched(
            wanted, targets, request, lambda live: runs.prepare(decision, targets, login, live, all_or_none=require_all)
        )
        if prepared.hosts:
            output.write(runs.command(prepared, login, request).shell(*prompts) + "\n")
        prepared.refuse_away()
        return
    running.finish(running.run(decision, targets, login, request, early), targets, json=json, check=check)
