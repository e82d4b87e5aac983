"""Predicts for `r1prov plan` and `r1prov explain` what a plan or arguments do on a machine, with alternatives if they do not fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from r1prov.common.errors import Problem, SiteError
from r1prov.machines.workload import check_length
from r1prov.models import latent
from r1prov.offload import compare, running, waits
from r1prov.offload.arguments import mended, model_named, parse
from r1prov.offload.conversation import conversation
from r1prov.offload.floors import UnmetError
from r1prov.offload.memory import context_per_slot
from r1prov.offload.outcome import Space, outcome, remarks
from r1prov.offload.plan import plan_model
from r1prov.offload.plan import wanted as wanted_setting
from r1prov.offload.setting import RefusedError, Setting, UnknownArgumentError, with_slots
from r1prov.offload.speed import of_machine
from r1prov.offload.trade import trade

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from r1prov.machines.profile import Machine, Serving
    from r1prov.machines.workload import Workload
    from r1prov.models.model import Model
    from r1prov.offload.compare import Alternative, Baseline
    from r1prov.offload.conversation import Conversation
    from r1prov.offload.outcome import Outcome
    from r1prov.offload.plan import Plan
    from r1prov.offload.speed import Speeds
    from r1prov.offload.trade import Choice
    from r1prov.offload.waits import Day, Range


_KEYS = {"ctx_size": "context_per_slot", "parallel": "slots", "cache_type_k": "kv_type_k", "attention": "attention"}
"""What the keys of an alternative are called in a profile."""


@dataclass(frozen=True)
class ForeseenPlan:
    """A plan with its outcome, its baselines and its alternatives.

    Attributes:
        model: The model in the form (MLA or legacy) in which it would be served.
        plan: The plan of that model.
        outcome: What the plan takes of each device, and whether it fits.
        day: What the exchanges of the workload wait for.
        trade: The placements among which the plan chose; none where it does not fit or has no cards.
        talk: What a conversation of such exchanges costs. It is None where it is not known how the model's cache is reused.
        baselines: The outcomes of other ways to place the model on the same machine.
        alone: What the exchanges wait for on one host of a pool by itself. It is None where there is no pool, or no room for the model.
        alternatives: Changes with which the model would fit. There are none where the plan fits.
    """

    model: Model
    plan: Plan
    outcome: Outcome
    day: Day
    trade: tuple[Choice, ...]
    talk: Conversation | None
    baselines: tuple[Baseline, ...]
    alternatives: tuple[Alternative, ...]
    alone: Day | None = None


@dataclass(frozen=True)
class Measured:
    """What a plan comes to at the speeds that were measured on a host.

    Attributes:
        host: The name of the host.
        speeds: Its speeds. Those that were not measured are as in the plan.
        tokens_per_second: What one person gets, whose slot is full.
        day: What the exchanges of the workload wait for.
    """

    host: str
    speeds: Speeds
    tokens_per_second: Range
    day: Day


@dataclass(frozen=True)
class ForeseenArguments:
    """What llama-server would do with some arguments.

    Attributes:
        model: The model that llama-server would serve.
        environment: The variables of its process.
        outcome: What the arguments take of each device. It is None where the engine would not start.
        day: What the exchanges of the workload wait for. It is None where the engine would not start.
        talk: What a conversation of such exchanges costs. It is None where that is not known, or the engine would not start.
        refusal: Why the engine would not start. It is empty where the engine would start.
        alternatives: Changes with which the engine would start, or with which the model would fit.
        fits_in_mla_form: Whether a model with legacy attention, for which there is no alternative, has one in MLA form.
        setting: What the arguments say. It is None where the engine would not start.
    """

    model: Model
    environment: dict[str, str]
    outcome: Outcome | None
    day: Day | None
    refusal: str
    alternatives: tuple[Alternative, ...]
    talk: Conversation | None = None
    fits_in_mla_form: bool = False
    setting: Setting | None = None


def foresee_plan(
    published: Model,
    n_bytes: int,
    machine: Machine,
    serving: Serving,
    speeds: Speeds | None = None,
    *,
    reserve: int,
    smaller: Callable[[], Sequence[Model]],
    quant_reason: str = "",
) -> ForeseenPlan:
    """Plans a model, compares the plan with baselines, and finds alternatives if it does not fit.

    Args:
        published: The model as its files are published.
        n_bytes: The size of its files.
        machine: The server.
        serving: How the model is to be served.
        speeds: How fast the server is; None for what the profile tells of it.
        reserve: The bytes that stay free on each card.
        smaller: Returns other quants of the model, in their published form, largest first. It is called where the plan does not fit.
        quant_reason: Why it is not a better quant, where somebody has chosen it.

    Raises:
        SiteError: The engine would not start with these cache types, a slot would hold more tokens than the model was trained for, or
            the workload that is asked for has longer exchanges.
    """
    forms = [published, latent.in_mla_form(published)] if latent.is_legacy(published) else [published]
    if serving.attention == "mla":
        forms.reverse()

    def planned(model: Model) -> Plan:
        size = n_bytes - published.n_bytes + model.n_bytes
        found = plan_model(model, machine, serving, speeds, floor=0, n_bytes=size, reserve=reserve)
        return replace(found, quant_reason=quant_reason)

    model = forms[0]
    try:
        plan = planned(model)
    except RefusedError as refusal:
        raise SiteError(Problem(model.name, str(refusal), "choose another cache type")) from None
    assert plan.outcome  # noqa: S101 - for the type checker: a model whose tensors are known has one
    space = Space(machine.cards, machine.ram, reserve, speeds or of_machine(machine))
    requested = replace(wanted_setting(serving, model, lent=machine.lent), slots=1, context=plan.context_per_slot)
    requested = replace(with_slots(requested, plan.slots), flash=plan.setting.flash)
    day = waits.day(model, plan.setting, space.cards, plan.workload, space.speeds)
    choices: tuple[Choice, ...] = ()
    if plan.outcome.fits and space.cards:
        choices = trade(model, plan.setting, with_slots(requested, 1), space, day.workload)
    as_the_engine = replace(requested, micro_batch=Setting.micro_batch)
    other_form = [compare.other_form(other, requested, space, day.workload) for other in forms[1:]]
    baselines = (
        *other_form,
        *compare.baselines(model, as_the_engine, space, plan.model_bytes),
        *([compare.in_ollama(model, plan, space)] if space.cards and not space.lent else ()),
    )
    alternatives: tuple[Alternative, ...] = ()
    if not plan.outcome.fits:
        in_mla_form, quants = (("attention", "mla"),), smaller()
        others = [compare.Other(in_mla_form, other) for other in forms[1:] if other.mla]
        others += [compare.Other((("quant", other.name),), latent.served(other, serving.attention)) for other in quants]
        if not model.mla:
            others += [
                compare.Other((*in_mla_form, ("quant", other.name)), latent.in_mla_form(other))
                for other in quants
                if latent.is_legacy(other)
            ]
        needed = serving.workload.tokens if serving.workload else 1
        served = {frozenset(other.changes): other.model for other in (compare.Other((), model), *others)}

        def holds(proposal: Alternative) -> bool:
            change = proposal.change
            new = serving.model_copy(update={_KEYS[key]: value for key, value in change.items() if key in _KEYS})
            which = frozenset((key, str(change[key])) for key in ("attention", "quant") if key in change)
            free = int(change.get("reserve_bytes", reserve))
            other = served[which]
            try:
                found = plan_model(other, machine, new, speeds, floor=0, n_bytes=other.n_bytes, reserve=free).outcome
            except (SiteError, RefusedError):
                return False
            return found is not None and found.fits

        trial = compare.Trial(day.workload, needed, holds)
        alternatives = tuple(compare.plans_that_fit(model, requested, space, plan.outcome, others, trial=trial))
    talk = conversation(model, plan.setting, space.cards, day.workload, space.speeds) if plan.outcome.exact else None
    alone = _alone(model, machine, serving, day.workload, reserve) if space.lent else None
    return ForeseenPlan(model, plan, plan.outcome, day, choices, talk, baselines, alternatives, alone)


def _alone(model: Model, machine: Machine, serving: Serving, workload: Workload, reserve: int) -> Day | None:
    """What the exchanges wait for on one host of a pool by itself; None where the model does not fit there."""
    own, named = machine.alone, serving.model_copy(update={"quant": model.name})
    try:
        plan = plan_model(model, own, named, floor=0, n_bytes=model.n_bytes, reserve=reserve, propose=False)
    except (SiteError, RefusedError, UnmetError):
        return None
    if not plan.outcome or not plan.outcome.fits:
        return None
    return waits.day(model, plan.setting, own.cards, workload, of_machine(own))


def at_measured(found: ForeseenPlan, host: str, speeds: Speeds) -> Measured:
    """What a plan comes to at measured speeds. The placement stays as it is.

    Args:
        found: The plan.
        host: The host on which the speeds were measured.
        speeds: The speeds.
    """
    cards = tuple(device.capacity for device in found.outcome.devices)
    day = waits.day(found.model, found.plan.setting, cards, found.plan.workload, speeds)
    return Measured(host, speeds, replace(found.outcome, speeds=speeds).tokens_per_second, day)


def foresee_arguments(
    model: Model, words: Sequence[str], space: Space, asked: Workload | None = None
) -> ForeseenArguments:
    """Predicts what llama-server would do with a model and these arguments.

    Args:
        model: The model.
        words: The arguments.
        space: The cards and the RAM.
        asked: The workload that the operator asks for, if any.

    Raises:
        UnknownArgumentError: r1prov does not know an argument, or not its effect on memory.
        SiteError: The workload that is asked for has longer exchanges than a slot.
    """
    environment = running.environment(has_gpus=len(space.cards) > space.lent)
    setting = None
    try:
        setting = parse(words, cards=len(space.cards), lent=space.lent)
        result = outcome(model, setting, space)
    except UnknownArgumentError:
        raise
    except RefusedError as refusal:
        starts = (
            tuple(compare.settings_that_start(model, setting, space.cards)) if setting else _rewritten(words, space)
        )
        return ForeseenArguments(model, environment, None, None, str(refusal), starts)
    shared, needed = 1 if setting.unified else setting.slots, 1
    if asked:

        def room_for(tokens: int) -> bool:
            try:
                return outcome(model, replace(setting, context=tokens * shared), space).fits
            except RefusedError:
                return False

        context, most = context_per_slot(model, setting), model.context_length
        check_length(asked, context, most, slots=shared, fits=room_for, where="with these arguments")
        needed = asked.tokens * shared
    result = replace(result, notes=(*result.notes, *_ignored_model(model, words), *remarks(model, setting, result)))
    fits = () if result.fits else tuple(compare.settings_that_fit(model, setting, space, result, needed))
    in_mla_form = False
    if not result.fits and not fits and latent.is_legacy(model):
        in_mla_form = any(compare.as_planned(latent.in_mla_form(model), replace(setting, type_v=setting.type_k), space))
        note = "With legacy attention it fits in no placement, and in MLA form it would fit: ask with --attention mla"
        result = replace(result, notes=(*result.notes, *([note] if in_mla_form else ())))
    day = waits.day(model, setting, space.cards, asked, space.speeds)
    talk = conversation(model, setting, space.cards, day.workload, space.speeds) if result.exact else None
    return ForeseenArguments(model, environment, result, day, "", fits, talk, in_mla_form, setting)


def _rewritten(words: Sequence[str], space: Space) -> tuple[Alternative, ...]:
    """The change of words that the engine does not take any more into words that it takes, if there are such words."""
    _, out, put = mended(words, cards=len(space.cards))
    names = {name.lstrip("-").replace("-", "_"): value for name, value in pairwise(put) if name.startswith("-")}
    change: dict[str, int | str] = {"flash_attn" if name == "fa" else name: value for name, value in names.items()}
    return (compare.Alternative(change, tuple(put), tuple(out)),) if out else ()


def _ignored_model(model: Model, words: Sequence[str]) -> Iterator[str]:
    """A note that the figures are those of `model`, if the arguments name a model of their own."""
    if named := model_named(words):
        yield f"These are the figures of {model.name}; `{named}` was not read. Name another model with --quant or --gguf"
