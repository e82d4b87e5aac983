"""What `r1prov plan` and `r1prov explain` foresee: a plan or arguments, what they come to, and what would do where they do not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from r1prov.common.errors import Problem, SiteError
from r1prov.models import latent
from r1prov.offload import compare, running
from r1prov.offload.arguments import model_named, parse
from r1prov.offload.outcome import Space, outcome, remarks
from r1prov.offload.plan import plan_model
from r1prov.offload.plan import wanted as wanted_setting
from r1prov.offload.setting import RefusedError, UnknownArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from r1prov.machines.profile import Machine, Serving
    from r1prov.models.model import Model
    from r1prov.offload.compare import Alternative, Baseline
    from r1prov.offload.outcome import Outcome
    from r1prov.offload.plan import Plan


@dataclass(frozen=True)
class ForeseenPlan:
    """A plan, and what stands beside it.

    Attributes:
        model: in the form in which it would be served.
        plan: where it would lie.
        outcome: what that comes to.
        baselines: what other ways to place the model would come to on the same machine.
        alternatives: what would fit instead; none where the plan fits.
    """

    model: Model
    plan: Plan
    outcome: Outcome
    baselines: tuple[Baseline, ...]
    alternatives: tuple[Alternative, ...]


@dataclass(frozen=True)
class ForeseenArguments:
    """What llama-server would do with some arguments.

    Attributes:
        model: what it would serve.
        environment: of its process.
        outcome: what the arguments come to; None where the engine would not start.
        refusal: why the engine would not start; empty where it would.
        alternatives: what would start, or fit, instead.
    """

    model: Model
    environment: dict[str, str]
    outcome: Outcome | None
    refusal: str
    alternatives: tuple[Alternative, ...]


def foresee_plan(
    published: Model, n_bytes: int, machine: Machine, serving: Serving, *, reserve: int, smaller: Sequence[Model]
) -> ForeseenPlan:
    """The plan of a model, with what others would do, and what would fit where the plan does not.

    Args:
        published: the model as its files are published.
        n_bytes: of its files.
        machine: the server.
        serving: how it is to be served.
        reserve: bytes that stay free on each card.
        smaller: other quants of the model, in their published form, largest first.

    Raises:
        SiteError: the engine would not start with these cache types, or a slot is to hold more than the model was trained for.
    """
    forms = [published, latent.in_mla_form(published)] if latent.is_legacy(published) else [published]
    if serving.attention == "mla":
        forms.reverse()

    def planned(model: Model) -> Plan:
        size = n_bytes - published.n_bytes + model.n_bytes
        return plan_model(model, machine, serving, floor=0, n_bytes=size, reserve=reserve)

    model = forms[0]
    try:
        plan = planned(model)
    except RefusedError as refusal:
        raise SiteError(Problem(model.name, str(refusal), "choose another cache type")) from None
    assert plan.outcome  # noqa: S101 - for the type checker: a model whose tensors are known has one
    space, wanted = Space(machine.cards, machine.ram, reserve), wanted_setting(serving, model)
    other_form = [compare.other_form(other, planned(other)) for other in forms[1:]]
    baselines = (
        *other_form,
        *compare.baselines(model, wanted, space, plan.model_bytes),
        *([compare.in_ollama(model, plan, space)] if space.cards else ()),
    )
    alternatives: tuple[Alternative, ...] = ()
    if not plan.outcome.fits:
        others = [latent.served(other, serving.attention) for other in smaller]
        alternatives = (
            *compare.form_that_fits(other_form),
            *compare.plans_that_fit(model, wanted, space, plan.outcome, others),
        )
    return ForeseenPlan(model, plan, plan.outcome, baselines, alternatives)


def foresee_arguments(model: Model, words: Sequence[str], space: Space) -> ForeseenArguments:
    """What llama-server would do with a model and these arguments.

    Raises:
        UnknownArgumentError: an argument is not one of llama-server's, or not understood here.
    """
    environment = running.environment(space.cards)
    setting = None
    try:
        setting = parse(words, cards=len(space.cards))
        result = outcome(model, setting, space)
    except UnknownArgumentError:
        raise
    except RefusedError as refusal:
        starts = tuple(compare.settings_that_start(model, setting, space.cards)) if setting else ()
        return ForeseenArguments(model, environment, None, str(refusal), starts)
    result = replace(result, notes=(*result.notes, *_beside(model, words), *remarks(model, setting, result)))
    fits = () if result.fits else tuple(compare.settings_that_fit(model, setting, space, result))
    return ForeseenArguments(model, environment, result, "", fits)


def _beside(model: Model, words: Sequence[str]) -> Iterator[str]:
    """A note where the arguments name a model, which is not the one that is looked at."""
    if named := model_named(words):
        yield f"These are the figures of {model.name}, whatever `{named}` is: name another by --quant or --gguf"
