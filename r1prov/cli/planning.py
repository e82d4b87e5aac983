"""The verbs that only calculate, `plan` and `explain`. They need no host and no engine, and the network only for headers of named files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from r1prov import output
from r1prov.cli import complete, options, show_plan
from r1prov.common import documents
from r1prov.common.errors import Problem, SiteError
from r1prov.common.paths import SITE_FILE
from r1prov.common.units import parse_cards, parse_size
from r1prov.machines import profile as machine
from r1prov.machines.workload import load_workload
from r1prov.models import catalogue, latent
from r1prov.models.named import of_catalogue, of_file, smaller
from r1prov.offload import DYNAMIC_QUANTS, best_on_gpus, document, placeable
from r1prov.offload.foresight import at_measured, foresee_arguments, foresee_plan
from r1prov.offload.outcome import Space
from r1prov.offload.setting import UnknownArgumentError
from r1prov.offload.speed import of_machine, with_measured

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic_core import ErrorDetails

    from r1prov.machines.known import MeasuredSpeed
    from r1prov.machines.profile import Profile, Serving
    from r1prov.models.model import Model
    from r1prov.offload.foresight import ForeseenArguments
    from r1prov.offload.speed import Speeds

File = Annotated[
    str | None,
    typer.Option(
        "--gguf",
        metavar="FILE",
        help="A GGUF file or its URL, or any shard of a set, instead of a quant.",
        callback=options.not_empty,
    ),
]
Source = Annotated[
    str | None,
    typer.Option(
        metavar="WHERE",
        help="What has the files of the profile's own model: a hub, a web server, a folder. Without: the hub, then ModelScope.",
        callback=options.not_empty,
    ),
]
Reserve = Annotated[str, typer.Option(help="What stays free on each card, with its unit.")]
Host = Annotated[
    str | None,
    typer.Option(
        "--host",
        help="A host of the site, instead of a profile: with the site's profile, and what is known of that host.",
        callback=options.not_empty,
        autocompletion=complete.hosts,
    ),
]
Measured = Annotated[
    bool, typer.Option("--measured", help="With --host: plan with the speeds that were measured there.")
]
CacheType = Annotated[str | None, typer.Option("--cache-type-k", help="The type of K in the cache, e.g. q4_0.")]
DEFAULT_RESERVE = "1024MiB"
DEFAULT_QUANT = "UD-IQ1_S"
DEFAULT_PROFILE = "4x4090"


def plan(
    *,
    profile: options.Profile = None,
    host: Host = None,
    site: options.SiteFile = None,
    measured: Measured = False,
    quant: options.Quant = None,
    file: File = None,
    source: Source = None,
    ctx_size: options.ContextSize = None,
    parallel: options.Slots = None,
    first_token: options.FirstToken = None,
    cache_type_k: CacheType = None,
    attention: options.Form = None,
    workload: options.Workload = None,
    reserve: Reserve = DEFAULT_RESERVE,
    json: options.Json = False,
) -> None:
    """Say where the model would lie on a kind of server, how long people would wait, and what the rule of thumb would do there.

    Without --profile and --host it is what the site file wants, with its floors, or where there is none the profile `4x4090`. A host of the
    site has told how much RAM it has and how its first card is attached, and what was measured there is shown beside the plan.

    Example: `r1prov plan --profile 4x4090 --quant UD-IQ1_M --ctx-size 4096`
    """
    chosen, speeds, (name, there) = _chosen(profile, host, site, measured=measured)
    kv_type = cache_type_k and cache_type_k.lower()
    flags = {
        "--ctx-size": ctx_size,
        "--parallel": parallel,
        "--first-token": first_token,
        "--cache-type-k": kv_type,
        "--attention": attention,
    }
    serving = _serving(chosen.serving, flags)
    if workload:
        serving = serving.model_copy(update={"workload": load_workload(workload)})
    free = _size("--reserve", reserve)
    _only_one(quant=quant, gguf=file)
    _only_one(source=source, gguf=file)
    serving = serving.model_copy(update={"quant": quant} if quant else {})
    published, n_bytes, quant_reason = (*_of_file(file), "") if file else _of_profile(chosen, serving, quant, source)
    context = serving.context_per_slot
    if file and ctx_size is None and context is not None:  # the profile's context is meant for its own model
        serving = serving.model_copy(update={"context_per_slot": min(context, published.context_length)})
    found = foresee_plan(
        published,
        n_bytes,
        chosen.machine,
        serving,
        speeds,
        reserve=free,
        smaller=lambda: smaller(published),
        quant_reason=quant_reason,
    )
    beside = at_measured(found, name, with_measured(speeds, there)) if there else None
    if json:
        output.data(document.of_plan(found, beside))
        return
    show_plan.plan(found)
    if beside:
        show_plan.measured(found.outcome, beside)


def explain(
    arguments: Annotated[list[str] | None, typer.Argument(help="llama-server's, best after `--`.")] = None,
    *,
    gpus: Annotated[str | None, typer.Option(help="`4x24GiB`, `1x24564MiB,1x48GiB`, or `0`.")] = None,
    ram: Annotated[str | None, typer.Option(help="With its unit.")] = None,
    profile: options.Profile = None,
    host: Host = None,
    site: options.SiteFile = None,
    measured: Measured = False,
    quant: options.Quant = None,
    file: File = None,
    source: Source = None,
    attention: options.Form = None,
    workload: options.Workload = None,
    reserve: Reserve = DEFAULT_RESERVE,
    json: options.Json = False,
) -> None:
    """Say what llama-server would take with these arguments on each card and in RAM, whether that fits, and how long people would wait.

    The machine is --gpus and --ram, or that of --profile or --host, from which model, form, workload and the link of the first card then
    come, too. Without these the model is UD-IQ1_S as published, with PCIe 4.0 x16.

    Example: `r1prov explain --gpus 4x24GiB --ram 480GiB -- -ngl 35 -c 512 --cache-type-k q4_0`
    """
    _only_one(quant=quant, gguf=file)
    _only_one(source=source, gguf=file)
    asked = load_workload(workload) if workload else None
    words, free = arguments or [], _size("--reserve", reserve)
    if profile or host:
        _refuse_sizes(gpus, ram)
        chosen, speeds, _ = _chosen(profile, host, site, measured=measured)
        serving, space = chosen.serving, Space(chosen.machine.cards, chosen.machine.ram, free, speeds)
        published = _of_file(file)[0] if file else _of_profile(chosen, serving, quant, source)[0]
        asked, form = asked or serving.workload, attention or serving.attention
    else:
        space = _described(gpus, ram, free, measured=measured, source=source)
        published, _ = _of_file(file) if file else of_catalogue(quant or DEFAULT_QUANT)
        form = attention or "legacy"
    try:
        found = foresee_arguments(latent.served(published, form), words, space, asked)
    except UnknownArgumentError as error:
        raise typer.BadParameter(str(error)) from None
    _show_explained(found, words, json=json)


def _refuse_sizes(gpus: str | None, ram: str | None) -> None:
    """Refuse a machine in figures beside a profile or a host."""
    if gpus is not None or ram is not None:
        raise typer.BadParameter("--gpus and --ram describe a machine, as --profile and --host do: give one of them")


def _described(gpus: str | None, ram: str | None, reserve: int, *, measured: bool, source: str | None) -> Space:
    """The machine that --gpus and --ram describe."""
    if gpus is None or ram is None:
        raise typer.BadParameter("which machine? Give --gpus and --ram, or --profile, or --host")
    if measured or source:
        raise typer.BadParameter("--measured goes with --host, and --source with --profile or --host")
    return Space(_cards(gpus), _size("--ram", ram), reserve)


def _show_explained(found: ForeseenArguments, words: Sequence[str], *, json: bool) -> None:
    if json:
        output.data(document.of_arguments(found, words))
    elif found.outcome and found.day:
        show_plan.explained(found, found.outcome, found.day)
    else:
        show_plan.refusal(found.refusal, found.alternatives)


def _cards(gpus: str) -> tuple[int, ...]:
    try:
        return parse_cards(gpus)
    except ValueError as error:
        raise SiteError(Problem("--gpus", str(error), "as in `r1prov explain --help`")) from None


def _chosen(
    profile: str | None, host: str | None, site: Path | None, *, measured: bool
) -> tuple[Profile, Speeds, tuple[str, dict[str, MeasuredSpeed]]]:
    """The kind of server that the options name, how fast it is, and the name of its host with the speeds that were measured there."""
    _only_one(profile=profile, host=host)
    file = site or (Path(SITE_FILE) if Path(SITE_FILE).is_file() else None)
    if profile and site:
        options.alone(profile, site, [])
    if host:
        chosen, name, speeds, there = _on_host(site, host)
    elif profile or not file:
        chosen, name, speeds, there = _anywhere(profile or DEFAULT_PROFILE)
        if file:
            output.say(f"--profile is named, so {file} does not count, nor what it asks for")
    else:
        chosen, name, speeds, there = _on_site(file)
    return chosen, _as_measured(host, name, speeds, there) if measured else speeds, (name, there)


def _anywhere(profile: str) -> tuple[Profile, str, Speeds, dict[str, MeasuredSpeed]]:
    """A profile, no host, the speeds that the profile tells of, and no measured ones."""
    chosen = machine.load_profile(profile)
    return chosen, "", of_machine(chosen.machine), {}


def _on_site(path: Path) -> tuple[Profile, str, Speeds, dict[str, MeasuredSpeed]]:
    """The profile of a site as it is wanted, no host, the speeds that the profile tells of, and no measured ones."""
    # Imported late: what asks about a profile does without.
    from r1prov.site.load import load  # noqa: PLC0415

    site = load(path)
    if site.groups:
        group = next(
            (f"the group {name}" for name, each in site.groups.items() if each is site.own), "the hosts in no group"
        )
        output.say(f"This is the plan of {group}. --host shows that of another host.")
    chosen = site.own.profile
    return chosen, "", of_machine(chosen.machine), {}


def _on_host(path: Path | None, named: str) -> tuple[Profile, str, Speeds, dict[str, MeasuredSpeed]]:
    """The profile of a host's site as it is wanted, the host's name, the speeds with which it is planned, and those measured there.

    Raises:
        SiteError: No site is known, or it has no such host.
    """
    # Imported late: what asks about a profile does without.
    from r1prov.site.select import wanted, with_duty  # noqa: PLC0415
    from r1prov.site.state import SiteState  # noqa: PLC0415

    site, named_hosts = wanted(path, [named])
    (target,) = with_duty(site, named_hosts, "engine", is_named=True)
    profile, known = site.of(target.name).profile, SiteState.of(site.path).known(target.name)
    if not known:
        return profile, target.name, of_machine(profile.machine), {}
    there = profile.model_copy(update={"machine": known.machine(profile.machine)})
    return there, target.name, of_machine(profile.machine, known.link), known.measured


def _as_measured(host: str | None, name: str, speeds: Speeds, there: dict[str, MeasuredSpeed]) -> Speeds:
    """The speeds with those that were measured in their place.

    Raises:
        BadParameter: No host is named.
        SiteError: Nothing was measured there.
    """
    if not host:
        raise typer.BadParameter("--measured goes with --host, for speeds are measured on a host")
    if not there:
        remedy = f"`r1prov bench --modes cpu,hybrid {name}` or `r1prov tune {name}` measures"
        raise SiteError(Problem(name, "nothing was measured there that tells its speeds", remedy))
    return with_measured(speeds, there)


def _serving(base: Serving, flags: dict[str, int | str | None]) -> Serving:
    """A profile's serving with what was asked for instead."""
    keys = {
        "--ctx-size": "context_per_slot",
        "--parallel": "slots",
        "--first-token": "first_token",
        "--cache-type-k": "kv_type_k",
    }
    keys["--attention"] = "attention"
    changes = {keys[flag]: value for flag, value in flags.items() if value is not None}
    try:
        return machine.Serving.model_validate(base.model_dump() | changes)
    except ValidationError as error:
        named = {key: flag for flag, key in keys.items()}
        raise SiteError(*(_wrong(named[str(detail["loc"][0])], detail) for detail in error.errors())) from None


def _wrong(flag: str, detail: ErrorDetails) -> Problem:
    """What is wrong with the value of an option, and which values it takes."""
    what, colon, remedy = documents.words(detail).partition(": write ")
    if colon:
        return Problem(flag, what, f"write {remedy}")
    least = detail.get("ctx", {}).get("ge")
    return Problem(
        flag, f"`{detail['input']}` {what}", "write one of these" if least is None else f"write {least} or more"
    )


def _only_one(**options: str | None) -> None:
    if all(options.values()):
        raise typer.BadParameter(f"{' and '.join(f'--{name}' for name in options)} exclude each other")


def _of_file(file: str) -> tuple[Model, int]:
    """The model in a file, here or on a web server, and the bytes of its tensors."""
    model = placeable(of_file(file, output.say), file)
    return model, model.n_bytes


def _of_profile(profile: Profile, serving: Serving, quant: str | None, source: str | None) -> tuple[Model, int, str]:
    """The model that a profile serves, or another published quant, the bytes of its files, and why it is not a better quant."""
    name, own = quant or serving.quant, profile.model
    if own and own.name == name:
        from r1prov.common.network import Network  # noqa: PLC0415 - brings what speaks HTTP
        from r1prov.models import headers  # noqa: PLC0415 - the same

        found = headers.fetch(own, headers.weight_sources(source), Network(), output.say)
        return placeable(found, own.name), own.bytes, ""
    if source:
        raise typer.BadParameter(f"--source: {name} is known without; it is for a model of the profile's own")
    if name != machine.BEST_ON_GPUS:
        return *of_catalogue(name), ""
    best = best_on_gpus([catalogue.quant(each) for each in DYNAMIC_QUANTS], profile.machine, serving)
    return *of_catalogue(best.quant), best.quant_reason


def _size(where: str, text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise SiteError(Problem(where, str(error), "write it with its unit, e.g. `480GiB`")) from None
