"""`r1prov by-hand`: the guide's command line for a host, ready to paste."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from r1prov import output
from r1prov.cli import complete, options
from r1prov.common.errors import Exit, Problem, SiteError
from r1prov.common.systemctl import in_words
from r1prov.decision import decide
from r1prov.models import catalogue
from r1prov.offload import modes
from r1prov.offload.arguments import parse
from r1prov.offload.fit import fitted
from r1prov.offload.foresight import foresee_arguments
from r1prov.offload.outcome import Space, outcome
from r1prov.site.select import last_applied, made_up, refuse_pools
from r1prov.site.state import SiteState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from r1prov.decision import Decision
    from r1prov.site import Host

PROGRAM = "llama-completion"
SEED = "3407"
PRIORITY = "2"


def by_hand(
    host: Annotated[
        str | None,
        typer.Argument(help="Which of the site's hosts; the first without.", autocompletion=complete.hosts),
    ] = None,
    *,
    mode: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(modes.BY_HAND)}; without: {modes.HYBRID}, or {modes.CPU} where there are no cards.",
            autocompletion=lambda: [*modes.BY_HAND],
        ),
    ] = None,
    profile: options.Profile = None,
    site: options.SiteFile = None,
    json: options.Json = False,
) -> None:
    """Print the guide's command line for a host, in today's spelling. Contacts no host, and runs nothing. Exit code 5: it does not fit.

    With --profile it is the line for any server of that kind, which need not be there. Of a model of your own the header is read from its
    source, once.

    Example: `r1prov by-hand --mode rule gpu1`
    """
    wanted, named = _known(mode), [host] if host else []
    decision, target = _of_kind(options.alone(profile, site, named)) if profile else _on_host(site, named)
    chosen = _mode(wanted, decision)
    serving, plan = decision.arguments(target.name), decision.plan_for(target.name)
    arguments = modes.arguments(chosen, decision.model, plan, serving, decision.machine_of(target.name))
    fits, reasons = _foreseen(chosen, decision, target.name, arguments)
    command = (PROGRAM, "--model", decision.model_file, *arguments, *_asking(decision))
    environment = plan.environment
    line = " ".join([*(f"{name}={value}" for name, value in environment.items()), shlex.join(command)])
    if json:
        output.data(
            {
                "host": target.name,
                "mode": chosen,
                "fits": fits,
                "reasons": reasons,
                "environment": environment,
                "command": list(command),
                "line": line,
            }
        )
    else:
        output.say(f"{target.name}, {chosen}: {modes.BY_HAND[chosen]}.")
        _explain(decision, chosen, reasons, "such a server" if profile else target.name)
        output.write(f"{line}\n")
    if fits is False:
        raise typer.Exit(Exit.PREFLIGHT)


def _explain(decision: Decision, mode: str, reasons: Sequence[str], where: str) -> None:
    """Say why the line does not fit, and who runs it where."""
    for reason in reasons:
        output.say(f"It does not fit: {reason}", "yellow")
    planned = decision.plan.outcome
    if reasons and mode != modes.HYBRID and decision.site.profile.machine.cards and planned and planned.fits:
        output.say("What fits is the plan, --mode hybrid.", "yellow")
    elif reasons:
        output.say("`r1prov plan` says what would fit.", "yellow")
    if mode == modes.FIT:
        output.say("--fit counts what is free at its start: beside the running service it chooses fewer layers.")
    output.say(f"Run it on {where} as a member of the group r1prov-operators.")
    output.say(
        "--prio 2 asks for a real-time policy, too, which root alone gets. llama.cpp warns anybody else at each token and thread."
        " `nice -n -10` in front, in place of --prio 2, raises the priority without these warnings."
    )
    unit = f"r1prov-{decision.site.file.engine}"
    stop = f"sudo {in_words('stop', unit)} (without systemd: sudo {in_words('stop', unit, systemd=False)})"
    output.say(
        f"The service goes on meanwhile. Where a second copy does not fit beside it: {stop}, and start it afterwards."
    )


def _on_host(path: Path | None, named: Sequence[str]) -> tuple[Decision, Host]:
    """What a host of a site is to serve, by what is known of it here, and the host."""
    applied, (target, *_) = last_applied(path, named, or_else=options.A_KIND, duty="engine")
    refuse_pools(applied, [target], "The commands by hand are for one host")
    state = SiteState.of(applied.path)
    decision = decide(applied, output.say).with_machines(state.all_known([target]))
    return decision.with_tuned(state.all_tuned([target]), {})[0].of(target.name), target


def _of_kind(profile: str) -> tuple[Decision, Host]:
    """What a server of a kind would serve, and a made-up host of that kind."""
    site, (target,) = made_up(profile)
    return decide(site, output.say), target


def _known(text: str | None) -> str | None:
    """The mode that an option names, if it is given.

    Raises:
        BadParameter: there is none of that name.
    """
    named = text and text.strip().lower()
    if named is None or named in modes.BY_HAND:
        return named
    others = " `r1prov bench --modes` knows it" if named in modes.MODES else ""
    raise typer.BadParameter(
        f"--mode: there is no mode `{text}` by hand; there are: {', '.join(modes.BY_HAND)}.{others}"
    )


def _mode(named: str | None, decision: Decision) -> str:
    """The mode, or without a name the one that the machine serves in.

    Raises:
        SiteError: the machine has no cards, and the mode wants some.
    """
    there = modes.modes_of(decision.site.profile.machine)
    if named is None:
        return modes.HYBRID if modes.HYBRID in there else modes.CPU
    if named not in there:
        what = f"the profile {decision.site.file.profile} has no cards"
        raise SiteError(Problem("--mode", what, f"what it has: {', '.join(there)}"))
    return named


def _foreseen(mode: str, decision: Decision, host: str, arguments: Sequence[str]) -> tuple[bool | None, list[str]]:
    """Whether the model fits, and why not. That is None where the layers of the model are not known."""
    machine = decision.machine_of(host)
    if decision.model is None:
        return None, []
    # The program answers one user and keeps no past prompts.
    alone = (*arguments, "--parallel", "1", "--cache-ram", "0")
    space = Space(machine.cards, machine.ram)
    if mode == modes.FIT:
        chosen = outcome(
            decision.model, fitted(decision.model, parse(alone, cards=len(machine.cards)), machine.cards), space
        )
        return chosen.fits, list(chosen.reasons)
    found = foresee_arguments(decision.model, alone, space)
    if not found.outcome:
        return False, [found.refusal]
    return found.outcome.fits, list(found.outcome.reasons)


def _asking(decision: Decision) -> tuple[str, ...]:
    """The arguments that ask the question: in R1's own template as the guide does, else in the template that the model's file has."""
    profile = decision.site.profile
    fixed = ("--prio", PRIORITY, "--temp", f"{profile.serving.temperature:g}", "--seed", SEED)
    if not catalogue.is_published(decision.quant):
        return (*fixed, "--single-turn", "--prompt", profile.question.ask)
    before, after = (part.strip() for part in catalogue.R1_TEMPLATE.split("{{ .System }} {{ .Prompt }}"))
    return (*fixed, "-no-cnv", "--prompt", f"{before}{profile.question.ask}{after}")
