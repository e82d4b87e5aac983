"""Compares a plan with other ways to place the model, and finds changes that fit where a plan or a setting does not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from r1prov.common.units import MIB
from r1prov.offload import search, thumb
from r1prov.offload.memory import cache_bytes, context_of, least, memory, v_type
from r1prov.offload.outcome import Outcome, Space, outcome
from r1prov.offload.setting import CACHE_TYPES, EXPERTS, RefusedError, Setting, first_experts, rules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from r1prov.models.model import Model
    from r1prov.offload.plan import Plan

CONTEXT_STEP = 256
"""The step, in tokens, between the contexts that are tried: the engine rounds its cache up to a multiple of it."""

LESS_RESERVE = (1024 * MIB, 768 * MIB, 512 * MIB)
"""Smaller reserves of a card to try, in bytes. Below the last one the CUDA context would not find room."""

IN_MLA_FORM = "in MLA form"

SMALLER_TYPES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(CACHE_TYPES, ("Q4_0",)),
    **dict.fromkeys(("F32", "F16", "BF16"), ("Q8_0", "Q4_0")),
    **dict.fromkeys(("Q4_0", "IQ4_NL"), ()),
}
"""For each cache type, the types that need less memory, the most exact first."""


PLACING_EXPERTS = ("--override-tensor", "--n-cpu-moe", "--cpu-moe")
"""The options whose patterns add up."""


@dataclass(frozen=True)
class Baseline:
    """A way to place the model that people use."""

    name: str
    setting: Setting
    outcome: Outcome


@dataclass(frozen=True)
class Alternative:
    """A change to a plan or to arguments, with which the model would fit or the engine would start.

    Attributes:
        change: The changed keys with their new values. The values of `ctx_size`, `parallel`, `n_gpu_layers`, `n_cpu_moe`,
            `ubatch_size`, `reserve_bytes` and `cache_ram` (MiB) are numbers; those of other keys are texts.
        arguments: The same change as arguments. Put at the end of a command, they override the same options before them.
        without: The options that must be taken out of the command first, because nothing overrides them.
    """

    change: dict[str, int | str]
    arguments: tuple[str, ...]
    without: tuple[str, ...] = ()


def other_form(model: Model, planned: Plan) -> Baseline:
    """The plan of the model in its other form (MLA or legacy), which is not the one to be served, as a baseline."""
    assert planned.outcome  # noqa: S101 - for the type checker: a model whose tensors are known has one
    return Baseline(IN_MLA_FORM if model.mla else "as published, legacy attention", planned.setting, planned.outcome)


def form_that_fits(other: Iterable[Baseline]) -> Iterator[Alternative]:
    """The change to MLA form, if MLA is the other form and its plan fits."""
    return (_flag("attention", "mla") for form in other if form.name == IN_MLA_FORM and form.outcome.fits)


def in_ollama(model: Model, planned: Plan, space: Space) -> Baseline:
    """The outcome of the settings that the plan gives to Ollama, as a baseline."""
    return Baseline("Ollama, whole layers", planned.ollama, outcome(model, planned.ollama, space))


def baselines(model: Model, wanted: Setting, space: Space, n_bytes: int) -> tuple[Baseline, ...]:
    """Three common placements: the rule of thumb by its formula and by its table, and all experts in RAM. None without cards."""
    if not space.cards:
        return ()
    ways = {
        "rule of thumb, formula": thumb.layers_on_gpu(sum(space.cards), n_bytes, model.layers),
        "rule of thumb, published": thumb.published(model.name, space.cards),
    }
    # The rule counts layers and the engine counts entries. All layers of the rule include the output, which is one more entry.
    settings = {
        f"{name}: {layers} layers": replace(wanted, gpu_layers=model.entries if layers == model.layers else layers)
        for name, layers in ways.items()
        if layers is not None
    }
    if model.experts_used:
        settings["all experts in RAM"] = replace(wanted, gpu_layers=model.entries, overrides=((EXPERTS, None),))
    return tuple(Baseline(name, setting, outcome(model, setting, space)) for name, setting in settings.items())


def plans_that_fit(
    model: Model, wanted: Setting, space: Space, found: Outcome, smaller: Iterable[Model]
) -> Iterator[Alternative]:
    """Changes to a plan that does not fit: for each option that can change, the smallest change that fits.

    Args:
        model: The model of the plan.
        wanted: The requested setting, before the placement was chosen.
        space: The cards and the RAM.
        found: The outcome of the best placement, which does not fit.
        smaller: Other quants of the model, largest first.
    """

    def fits(**changes: int | str) -> bool:
        return _plan_fits(model, replace(wanted, **changes), space)  # type: ignore[arg-type]

    devices = (*found.devices, found.host)
    lacking = sum(max(device.reserve - device.free, 0) for device in devices)
    slot_context = context_of(model, wanted) // wanted.slots
    if lacking <= sum(device.kv + device.compute for device in devices):  # otherwise no smaller cache would suffice
        steps = _most(lambda n: fits(context=n * CONTEXT_STEP * wanted.slots), -(-slot_context // CONTEXT_STEP))
        if steps:
            yield _flag("ctx_size", steps * CONTEXT_STEP)
        slots = _most(lambda n: fits(context=slot_context * n, slots=n), wanted.slots)
        if slots:
            yield _flag("parallel", slots)
        for kind in SMALLER_TYPES[wanted.type_k]:
            if fits(type_k=kind, type_v=v_type(model, kind)):
                yield _flag("cache_type_k", kind.lower())
                break
    room = sum(space.cards) + space.ram
    other = next((other for other in smaller if other.n_bytes < room and _plan_fits(other, wanted, space)), None)
    if other:
        yield _flag("quant", other.name)
    for reserve in LESS_RESERVE:
        if lacking <= len(space.cards) * (space.reserve - reserve) and _plan_fits(
            model, wanted, replace(space, reserve=reserve)
        ):
            yield Alternative({"reserve_bytes": reserve}, ("--reserve", f"{reserve // MIB}MiB"))
            break


def settings_that_fit(model: Model, setting: Setting, space: Space, found: Outcome) -> Iterator[Alternative]:
    """Changes to arguments that do not fit. What keeps most of the model on the cards comes first, and the plan's own placement last.

    What fits can be a window in each dimension, so each is gone through from its best end.
    """

    def first(changes: Iterable[tuple[dict[str, object], Alternative]]) -> Iterator[Alternative]:
        """The first change that fits."""
        fitting = (change for keys, change in changes if _fits(model, replace(setting, **keys), space))  # type: ignore[arg-type]
        return islice(fitting, 1)

    prompts = setting.prompts - (found.host.reserve - found.host.free)
    if 0 <= prompts < setting.prompts and all(device.free >= device.reserve for device in found.devices):
        yield _flag("cache_ram", prompts // MIB)
    if space.cards:
        if model.experts_used:
            in_ram = [first_experts(layers) for layers in range(model.layers + 1)]
            yield from first(
                ({"overrides": (*setting.overrides, *in_ram[n])}, _flag("n_cpu_moe", n)) for n in range(1, len(in_ram))
            )
        yield from first(
            ({"split": split}, _flag("tensor_split", ",".join(f"{share:g}" for share in split)))
            for split in search.splits(model, setting, space, [device.compute for device in found.devices])
        )
        yield from first(({"gpu_layers": n}, _flag("n_gpu_layers", n)) for n in range(model.entries, 0, -1))
        yield from first(
            ({"micro_batch": n}, _flag("ubatch_size", n))
            for n in search.micro_batches(setting)
            if n < setting.micro_batch
        )
    steps = _most(
        lambda n: _fits(model, replace(setting, context=n * CONTEXT_STEP), space),
        context_of(model, setting) // CONTEXT_STEP,
    )
    if steps:
        yield _flag("ctx_size", steps * CONTEXT_STEP)
    if space.cards:
        yield from as_planned(model, setting, space)


def as_planned(model: Model, setting: Setting, space: Space) -> Iterator[Alternative]:
    """The placement that a plan would choose for these arguments; where none fits, with the largest half of the context that has one."""
    context = context_of(model, setting)
    while context >= CONTEXT_STEP:
        wanted = replace(setting, context=context, gpu_layers=0, split=(), overrides=(), prompts=0, only=None)
        planned = search.best(model, wanted, space) if _may_fit(model, wanted, space) else None
        if planned and _fits(model, planned, space):
            break
        context = context // 2 // CONTEXT_STEP * CONTEXT_STEP
    else:
        return
    host = outcome(model, planned, space).host
    planned = replace(planned, prompts=min(setting.prompts, (host.free - host.reserve) // MIB * MIB))
    changes: dict[str, int | str] = {}
    if context != context_of(model, setting):
        changes["ctx_size"] = context
    if planned.micro_batch != setting.micro_batch:
        changes["ubatch_size"] = planned.micro_batch
    if planned.prompts != setting.prompts:
        changes["cache_ram"] = planned.prompts // MIB
    changes["n_gpu_layers"] = planned.gpu_layers or 0
    if len(space.cards) > 1:
        changes["tensor_split"] = ",".join(f"{share:g}" for share in planned.split)
    if planned.overrides:
        changes["override_tensor"] = rules(planned, ",")
    words = tuple(word for key, value in changes.items() for word in _flag(key, value).arguments)
    words += () if setting.only is None else ("--split-mode", "layer")
    words += () if planned.offload == setting.offload else ("--no-op-offload",)
    # The first pattern that matches decides, so patterns that stand before these may have to go.
    added = replace(planned, overrides=(*setting.overrides, *planned.overrides))
    without = () if _fits(model, added, space) else PLACING_EXPERTS
    yield Alternative(changes, words, without)


def settings_that_start(model: Model, setting: Setting, cards: Sequence[int]) -> Iterator[Alternative]:
    """Changes with which the engine would start, where it refuses the arguments of `setting`."""
    k, v = setting.type_k, setting.type_v
    tries = (
        (replace(setting, type_v=k), _flag("cache_type_v", k.lower())),
        (replace(setting, type_k=v), _flag("cache_type_k", v.lower())),
        (replace(setting, type_v="F16"), _flag("cache_type_v", "f16")),
        (replace(setting, flash=None), _flag("flash_attn", "auto")),
    )
    seen: list[Setting] = [setting]
    for changed, alternative in tries:
        if changed not in seen and _starts(model, changed, cards):
            yield alternative
        seen.append(changed)


def _flag(key: str, value: int | str) -> Alternative:
    return Alternative({key: value}, (f"--{key.replace('_', '-')}", str(value)))


def _most(fits: Callable[[int], bool], too_many: int) -> int:
    """The largest number below `too_many` that fits, or 0. The bisection assumes that below a number that fits, all numbers fit."""
    if too_many < 2 or not fits(1):  # in most cases no number fits, and one attempt shows it
        return 0
    low, high = 1, too_many
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _may_fit(model: Model, wanted: Setting, space: Space) -> bool:
    """Whether weights and cache are no more than all devices have. This check is immediate, and a search takes 0.1 s."""
    least_of_all = model.n_bytes + model.layers * cache_bytes(model, wanted)
    return least_of_all <= sum(space.rooms) + space.room_in_ram


def _plan_fits(model: Model, wanted: Setting, space: Space) -> bool:
    if not _may_fit(model, wanted, space):
        return False
    try:
        placed = search.best(model, wanted, space) if space.cards else None
    except RefusedError:
        return False
    return _fits(model, placed or wanted, space)


def _fits(model: Model, setting: Setting, space: Space) -> bool:
    rooms = (*space.rooms, space.room_in_ram - setting.prompts)
    if any(taken > room for taken, room in zip(least(model, setting, space.cards), rooms, strict=True)):
        return False
    try:
        return outcome(model, setting, space).fits
    except RefusedError:
        return False


def _starts(model: Model, setting: Setting, cards: Sequence[int]) -> bool:
    try:
        memory(model, setting, cards)
    except RefusedError:
        return False
    return True
