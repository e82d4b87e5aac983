"""`r1prov bench`: measure what runs, or compare the modes of the guide's experiment."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from r1prov import output
from r1prov.cli import options, running, show
from r1prov.decision import decide
from r1prov.offload.modes import MODES
from r1prov.runs import prompts
from r1prov.site.select import last_applied, made_up, refuse_pools
from r1prov.site.state import SiteState

if TYPE_CHECKING:
    from collections.abc import Sequence

LIMIT = "20m"
PROMPTS_LIMIT = "2m"
ALL = ", ".join(MODES)


def _completed(incomplete: str) -> list[str]:
    """The lists that what is typed may become: each mode that it does not have yet, after what is complete."""
    done, comma, begun = incomplete.rpartition(",")
    given: Sequence[str] = done.lower().split(",")
    return [f"{done}{comma}{mode}" for mode in MODES if mode.startswith(begun.lower()) and mode not in given]


@options.logs_in
def bench(
    hosts: options.Hosts = None,
    *,
    site: options.SiteFile = None,
    modes: Annotated[
        list[str] | None,
        typer.Option(
            "--modes",
            metavar="MODE,...",
            help=f"Compare servers that place the model otherwise, instead: {ALL}. The service pauses meanwhile.",
            autocompletion=_completed,
        ),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(
            "--also",
            metavar="MODE,...",
            help="More modes, after those of --modes.",
            autocompletion=_completed,
        ),
    ] = None,
    limit: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help=f"How long prompts of several lengths may be measured, {PROMPTS_LIMIT} without. With --modes: how long each host may"
            f" measure, {LIMIT} without. Those that are measured share it. 90s, 20m, 1h.",
        ),
    ] = None,
    now: Annotated[
        bool, typer.Option("--now", help="With --modes: do not wait for answers that the service is giving.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            "--dry-run",
            help="With --modes: contact no host; say of each mode whether it fits and what it would take.",
        ),
    ] = False,
    profile: options.Profile = None,
    login_options: options.LoginOptions,
    verbose: options.Verbose = 0,
    json: options.Json = False,
) -> None:
    """Measure the running servers: rates beside the published figures, and the time to the first token beside the plan's.

    Prompts of 512, 2,000 and 8,000 tokens are asked by one user and by as many as there are slots, as far as a slot and the time go. The
    service goes on meanwhile.

    With --modes the same model is served in other ways, one after the other, and compared in rates and memory: on the CPU alone, as
    planned, on the GPUs alone, by the rule of thumb, by Ollama. Each host pauses for that, one after the other, and serves as before
    afterwards, however it ends.

    With --check and --profile it says what each mode would take on any server of that kind, which need not be there. Of a model of your
    own the header is read from its source, once.

    Example: `r1prov bench --modes cpu,hybrid,gpu gpu1`
    """
    asked = _asked(modes, also)
    needing = {"--also": also is not None, "--now": now, "--check": check}
    if modes is None and (lonely := [option for option, given in needing.items() if given]):
        raise typer.BadParameter(f"{', '.join(lonely)} goes with --modes; there are: {ALL}")
    limit = limit or (PROMPTS_LIMIT if modes is None else LIMIT)
    limit_s = options.seconds("--limit", limit)
    if profile and not check:
        raise typer.BadParameter("--profile goes with --modes and --check: only hosts can be measured")
    if asked:
        # Imported late: the plain benchmark does without.
        from r1prov.cli import experiment  # noqa: PLC0415

        order = experiment.Order(asked, limit, limit_s, now=now, verbosity=verbose)
        if profile:
            kind, there = made_up(options.alone(profile, site, hosts or ()))
            experiment.foresee(decide(kind, output.say), there, order, json=json)
            return
        applied, targets = last_applied(site, hosts or (), or_else=options.A_KIND if check else "", duty="engine")
        refuse_pools(applied, targets, "`bench --modes` measures the cards of one host")
        experiment.compare(applied, targets, order, login_options, check=check, json=json)
        return
    applied, targets = last_applied(site, hosts or (), duty="engine")
    decision = running.settle(applied)
    foreseen, _ = decision.with_tuned(SiteState.of(applied.path).all_tuned(targets), {})
    told = {
        "bench_prompts": {host.name: prompts.asked(foreseen, host.name) for host in targets},
        "bench_limit_s": limit_s,
    }
    login = login_options.ask()
    request = running.request(
        "bench", told, verbosity=verbose, needs=f"r1prov-{applied.of(targets[0].name).file.engine}"
    )
    done = running.run(decision, targets, login, request)
    if json:
        output.data(done.report.as_json())
    else:
        show.benchmark(done.report, done.decision.site, talk=False)
        show.first_tokens(done.report, limit)
    if done.error:
        raise done.error


def _asked(modes: Sequence[str] | None, also: Sequence[str] | None) -> tuple[str, ...]:
    """The modes that are asked for, in their order; none where `--modes` is not given.

    Raises:
        BadParameter: a list is empty, names a mode that there is not, or both together name one twice.
    """
    asked: list[str] = []
    for option, lists in (("--modes", modes), ("--also", also)):
        if lists is None:
            continue
        names = [name.strip().lower() for text in lists for name in text.split(",")]
        if not any(names):
            raise typer.BadParameter(f"{option} names no mode; there are: {ALL}")
        if unknown := [name for name in names if name not in MODES]:
            what = ", ".join(f"`{name}`" for name in unknown)
            raise typer.BadParameter(f"{option}: there is no mode {what}; there are: {ALL}")
        asked += names
    if twice := [name for name, count in Counter(asked).items() if count > 1]:
        raise typer.BadParameter(f"--modes and --also name {', '.join(twice)} twice; once is enough")
    return tuple(asked)
