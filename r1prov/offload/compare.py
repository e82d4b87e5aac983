"""Compares a plan with other ways to place the model, and finds changes that fit where a plan or a setting does not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice, product
from typing import TYPE_CHECKING

from r1prov.common.units import MIB
from r1prov.machines.workload import shortened
from r1prov.offload import search, thumb
from r1prov.offload.memory import cache_bytes, context_of, flash_on_cards, least, memory, v_type
from r1prov.offload.outcome import Outcome, Space, outcome
from r1prov.offload.setting import CACHE_TYPES, EXPERTS, RefusedError, Setting, first_experts, rules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from r1prov.machines.workload import Workload
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


@dataclass(frozen=True)
class Other:
    """Another model that may be served instead: the keys and the values of the change, and the model."""

    changes: tuple[tuple[str, str], ...]
    model: Model


def other_form(model: Model, wanted: Setting, space: Space, workload: Workload) -> Baseline:
    """The placement of the model in its other form (MLA or legacy), which is not the one to be served, as a baseline."""
    setting = _for(model, wanted, space)
    placed = (search.best(model, setting, space, workload) if space.cards else None) or setting
    name = IN_MLA_FORM if model.mla else "as published, legacy attention"
    return Baseline(name, placed, outcome(model, placed, space))


def in_ollama(model: Model, planned: Plan, space: Space) -> Baseline:
    """The outcome of the settings that the plan gives to Ollama, as a baseline."""
    return Baseline("Ollama, whole layers", planned.ollama, outcome(model, planned.ollama, space))


def baselines(model: Model, wanted: Setting, space: Space, n_bytes: int) -> tuple[Baseline, ...]:
    """Three common placements: the rule of thumb by formula and by table, and all experts in RAM. None without cards or in a pool."""
    if not space.cards or space.lent:
        return ()
    ways = {
        "rule of thumb, formula": thumb.layers_on_gpu(sum(space.cards), n_bytes, model.layers),
        "rule of thumb, published": thumb.published(model.name, space.cards),
    }
    settings = {
        f"{name}: {layers} layers": replace(wanted, gpu_layers=thumb.entries(layers, model))
        for name, layers in ways.items()
        if layers is not None
    }
    if model.experts_used:
        settings["all experts in RAM"] = experts_in_ram(model, wanted)
    return tuple(Baseline(name, setting, outcome(model, setting, space)) for name, setting in settings.items())


def experts_in_ram(model: Model, wanted: Setting) -> Setting:
    """The setting with all experts in RAM, and all else on the cards."""
    return replace(wanted, gpu_layers=model.entries, overrides=((EXPERTS, None),))


@dataclass(frozen=True)
class Trial:
    """What proposals are tried with, so that they hold where somebody follows them.

    Attributes:
        workload: What people ask for.
        least_context: The tokens of a slot below which a plan would be refused.
        holds: Whether the plan of a proposal fits, with all that the operator asks for. It makes that plan.
    """

    workload: Workload
    least_context: int
    holds: Callable[[Alternative], bool]

    @property
    def least_steps(self) -> int:
        """The least context in steps."""
        return max(-(-self.least_context // CONTEXT_STEP), 1)

    def fits(self, model: Model, wanted: Setting, space: Space) -> bool:
        """Whether the placement of a requested setting fits."""
        if context_of(model, wanted) < self.least_context * wanted.slots or not _may_fit(model, wanted, space):
            return False
        asked = shortened(self.workload, context_of(model, wanted) // wanted.slots)
        try:
            placed = search.best(model, wanted, space, asked) if space.cards else None
        except RefusedError:
            return False
        return _fits(model, placed or wanted, space)


def plans_that_fit(
    model: Model, wanted: Setting, space: Space, found: Outcome, others: Sequence[Other], *, trial: Trial
) -> Iterator[Alternative]:
    """Changes to a plan that does not fit: for each option that can change, the smallest change that fits.

    Where no change fits by itself, these are the fewest changes that fit together.

    Args:
        model: The model of the plan.
        wanted: The requested setting, before the placement was chosen.
        space: The cards and the RAM.
        found: The outcome of the best placement, which does not fit.
        others: What may be served instead, the best first.
        trial: What the changes are tried with.
    """
    single = [
        each
        for each in _single_changes(model, _for(model, wanted, space), space, found, others, trial=trial)
        if trial.holds(each)
    ]
    yield from single or _together([Other((), model), *others], wanted, space, trial)


def _single_changes(
    model: Model, wanted: Setting, space: Space, found: Outcome, others: Sequence[Other], *, trial: Trial
) -> Iterator[Alternative]:
    def fits(**changes: int | str) -> bool:
        return trial.fits(model, replace(wanted, **changes), space)  # type: ignore[arg-type]

    def another(key: str) -> Iterator[Alternative]:
        ways = (other for other in others if [name for name, _ in other.changes] == [key])
        return islice(
            (
                _joined([_flag(*change) for change in other.changes])
                for other in ways
                if trial.fits(other.model, _for(other.model, wanted, space), space)
            ),
            1,
        )

    yield from another("attention")
    devices = (*found.devices, found.host)
    lacking = sum(max(device.reserve - device.free, 0) for device in devices)
    slot_context = context_of(model, wanted) // wanted.slots
    if lacking <= sum(device.kv + device.compute for device in devices):  # otherwise no smaller cache would suffice
        steps = search.most(
            lambda n: fits(context=n * CONTEXT_STEP * wanted.slots),
            -(-slot_context // CONTEXT_STEP) - 1,
            least=trial.least_steps,
        )
        if steps:
            yield _flag("ctx_size", steps * CONTEXT_STEP)
        slots = search.most(lambda n: fits(context=slot_context * n, slots=n), wanted.slots - 1)
        if slots:
            yield _flag("parallel", slots)
        for kind in SMALLER_TYPES[wanted.type_k]:
            if fits(type_k=kind, type_v=v_type(model, kind)):
                yield _flag("cache_type_k", kind.lower())
                break
    yield from another("quant")
    for reserve in LESS_RESERVE:
        if lacking <= len(space.cards) * (space.reserve - reserve) and trial.fits(
            model, wanted, replace(space, reserve=reserve)
        ):
            yield _less_reserve(reserve)
            break


def _for(model: Model, wanted: Setting, space: Space) -> Setting:
    """The requested setting as a plan completes it for a model."""
    return replace(wanted, type_v=v_type(model, wanted.type_k), flash=flash_on_cards(model) or not space.cards)


def _together(models: Sequence[Other], wanted: Setting, space: Space, trial: Trial) -> list[Alternative]:
    """The fewest changes that fit together: another model, fewer slots, a smaller cache type, a smaller reserve, and a smaller context.

    Of each option the request and its end are tried, and of the context the largest that fits.
    """
    slot_context = context_of(models[0].model, wanted) // wanted.slots
    steps, found = -(-slot_context // CONTEXT_STEP), list[Alternative]()
    ways = product(
        models,
        {wanted.slots: None, 1: None},
        {wanted.type_k: None, (SMALLER_TYPES[wanted.type_k] or (wanted.type_k,))[-1]: None},
        {space.reserve: None, min(space.reserve, LESS_RESERVE[-1]): None} if space.cards else (space.reserve,),
    )
    fewest = 6

    def number(way: tuple[Other, int, str, int]) -> int:
        other, slots, kind, reserve = way
        return len(other.changes) + (slots != wanted.slots) + (kind != wanted.type_k) + (reserve != space.reserve)

    for other, slots, kind, reserve in sorted(ways, key=number):
        changes = [_flag(*change) for change in other.changes]
        changes += [_flag("parallel", slots)] if slots != wanted.slots else []
        changes += [_flag("cache_type_k", kind.lower())] if kind != wanted.type_k else []
        changes += [_less_reserve(reserve)] if reserve != space.reserve else []
        if len(changes) > fewest:
            break
        setting, room = replace(wanted, slots=slots, type_k=kind), replace(space, reserve=reserve)

        def fits(n: int, model: Model = other.model, setting: Setting = setting, room: Space = room) -> bool:
            context = min(n * CONTEXT_STEP, slot_context) * setting.slots
            return trial.fits(model, _for(model, replace(setting, context=context), room), room)

        most = search.most(fits, steps, least=min(trial.least_steps, steps))
        if most < steps:
            changes.append(_flag("ctx_size", most * CONTEXT_STEP))
        if most and len(changes) <= fewest and trial.holds(_joined(changes)):
            found = [*(found if len(changes) == fewest else ()), _joined(changes)]
            fewest = len(changes)
    return found[:_MOST_TOGETHER]


_MOST_TOGETHER = 3
"""The most ways of several changes together that are said."""


def _less_reserve(reserve: int) -> Alternative:
    return Alternative({"reserve_bytes": reserve}, ("--reserve", f"{reserve // MIB}MiB"))


def _joined(changes: Sequence[Alternative]) -> Alternative:
    """Several changes as one."""
    keys = {key: value for each in changes for key, value in each.change.items()}
    return Alternative(keys, tuple(word for each in changes for word in each.arguments))


def settings_that_fit(
    model: Model, setting: Setting, space: Space, found: Outcome, least_context: int = 1
) -> Iterator[Alternative]:
    """Changes to arguments that do not fit. What keeps most of the model on the cards comes first, and the plan's own placement last.

    Of a model with experts the first help is one that places experts. If no small change is of that kind, the plan's placement is it.

    Args:
        model: The model.
        setting: The arguments.
        space: The cards and the RAM.
        found: The outcome of the arguments.
        least_context: The fewest tokens of the whole cache with which the workload that is asked for fits in a slot.
    """
    small = list(_small_changes(model, setting, space, found, least_context))
    planned = [] if small and not space.cards else list(as_planned(model, setting, space, least_context))
    new = [each for each in planned if each.change not in [other.change for other in small]]
    helps = {"cache_ram"} if small and "cache_ram" in small[0].change else {"n_cpu_moe", "tensor_split"}
    if model.experts_used and not any(helps & each.change.keys() for each in small):
        yield from (*new, *small)
    else:
        yield from (*small, *new)


def _small_changes(
    model: Model, setting: Setting, space: Space, found: Outcome, least_context: int
) -> Iterator[Alternative]:
    """For each option the best value that fits. What fits can be a window in each dimension, so each is gone through from its best end."""

    def first(changes: Iterable[tuple[dict[str, object], Alternative]]) -> Iterator[Alternative]:
        """The first change that fits."""
        fitting = (change for keys, change in changes if _fits(model, replace(setting, **keys), space))  # type: ignore[arg-type]
        return islice(fitting, 1)

    def experts_in_ram(
        keys: Mapping[str, object], *more: Alternative
    ) -> Iterator[tuple[dict[str, object], Alternative]]:
        for n in range(1, model.layers + 1):
            overrides = (*setting.overrides, *first_experts(n))
            yield {**keys, "overrides": overrides}, _joined((*more, _flag("n_cpu_moe", n)))

    prompts = setting.prompts - (found.host.reserve - found.host.free)
    if 0 <= prompts < setting.prompts and all(device.free >= device.reserve for device in found.devices):
        yield _flag("cache_ram", prompts // MIB)
    smaller = [n for n in search.micro_batches(setting) if n < setting.micro_batch]
    if space.cards:
        placing = list(first(experts_in_ram({}))) if model.experts_used else []
        placing += first(
            ({"split": split}, _flag("tensor_split", ",".join(f"{share:g}" for share in split)))
            for split in search.splits(model, setting, space, [device.compute for device in found.devices])
        )
        if model.experts_used and not placing:
            both = [({"micro_batch": n}, _flag("ubatch_size", n)) for n in smaller[1:3]]
            if setting.gpu_layers is not None and setting.gpu_layers < model.entries:
                both.insert(0, ({"gpu_layers": model.entries}, _flag("n_gpu_layers", model.entries)))
            placing += first(way for keys, change in both for way in experts_in_ram(keys, change))
        yield from placing
    yield from first(({"micro_batch": n}, _flag("ubatch_size", n)) for n in smaller)
    yield from first(
        ({"type_k": k, "type_v": v}, _cache_types(setting, k, v)) for k, v in _smaller_types(model, setting, space)
    )
    if space.cards:
        yield from first(({"gpu_layers": n}, _flag("n_gpu_layers", n)) for n in range(model.entries, -1, -1))
    steps = search.most(
        lambda n: _fits(model, replace(setting, context=n * CONTEXT_STEP), space),
        -(-context_of(model, setting) // CONTEXT_STEP) - 1,
        least=-(-least_context // CONTEXT_STEP),
    )
    if steps:
        yield _flag("ctx_size", steps * CONTEXT_STEP)


def _smaller_types(model: Model, setting: Setting, space: Space) -> Iterator[tuple[str, str]]:
    """Pairs of smaller cache types for K and V, the most exact first. The engine refuses some of them.

    A V that no card fuses attention for is not made smaller, because its attention would be computed in RAM.
    """
    for kind in SMALLER_TYPES[setting.type_k]:
        if model.mla or not space.cards or flash_on_cards(model, kind):
            yield kind, kind
        if not model.mla and kind != setting.type_v:
            yield kind, setting.type_v


def _cache_types(setting: Setting, k: str, v: str) -> Alternative:
    changed = {"cache_type_k": (k, setting.type_k), "cache_type_v": (v, setting.type_v)}
    return _joined([_flag(key, new.lower()) for key, (new, old) in changed.items() if new != old])


def as_planned(model: Model, setting: Setting, space: Space, least_context: int = 1) -> Iterator[Alternative]:
    """The placement that a plan would choose for these arguments.

    Where none fits, this is a placement with a smaller cache type, or with the largest half of the context that has one.
    """
    context, placed = context_of(model, setting), None
    while placed is None and context >= max(least_context, CONTEXT_STEP):
        for k, v in ((setting.type_k, setting.type_v), *_smaller_types(model, setting, space)):
            wanted = replace(setting, context=context, type_k=k, type_v=v, gpu_layers=0, split=(), overrides=())
            placed = _placed(model, replace(wanted, prompts=0, only=None), space)
            if placed:
                break
        else:
            context = context // 2 // CONTEXT_STEP * CONTEXT_STEP
    if placed:
        yield _placing(model, setting, placed, space)


def _placed(model: Model, wanted: Setting, space: Space) -> Setting | None:
    """A placement that fits, if there is one: the plan's own, or everything in RAM."""
    if not _may_fit(model, wanted, space):
        return None
    try:
        planned = search.best(model, wanted, space) if space.cards else None
    except RefusedError:
        return None
    *_, least_batch = search.micro_batches(wanted)
    in_ram = (wanted, replace(wanted, micro_batch=least_batch), replace(wanted, offload=False, micro_batch=least_batch))
    return next((each for each in (planned, *in_ram) if each and _fits(model, each, space)), None)


def _placing(model: Model, setting: Setting, placed: Setting, space: Space) -> Alternative:
    """The change from `setting` to `placed`, with as many past prompts as then find room."""
    host = outcome(model, placed, space).host
    placed = replace(placed, prompts=min(setting.prompts, (host.free - host.reserve) // MIB * MIB))
    changes: dict[str, int | str] = {}
    if placed.context != context_of(model, setting):
        changes["ctx_size"] = placed.context or 0
    changes |= _cache_types(setting, placed.type_k, placed.type_v).change
    if placed.micro_batch != setting.micro_batch:
        changes["ubatch_size"] = placed.micro_batch
    if placed.prompts != setting.prompts:
        changes["cache_ram"] = placed.prompts // MIB
    if space.cards:
        changes["n_gpu_layers"] = placed.gpu_layers or 0
    if len(space.cards) > 1 and placed.split:
        changes["tensor_split"] = ",".join(f"{share:g}" for share in placed.split)
    if placed.overrides:
        changes["override_tensor"] = rules(placed)
    words = tuple(word for key, value in changes.items() for word in _flag(key, value).arguments)
    words += () if setting.only is None else ("--split-mode", "layer")
    words += () if placed.offload == setting.offload else ("--no-op-offload",)
    # The first pattern that matches decides, so patterns that stand before these may have to go.
    added = replace(placed, overrides=(*setting.overrides, *placed.overrides))
    return Alternative(changes, words, () if _fits(model, added, space) else PLACING_EXPERTS)


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


def _may_fit(model: Model, wanted: Setting, space: Space) -> bool:
    """Whether weights and cache are no more than all devices have. This check is immediate, and a search takes 0.1 s."""
    least_of_all = model.n_bytes + model.layers * cache_bytes(model, wanted)
    return least_of_all <= sum(space.rooms) + space.room_in_ram


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
