"""Plans where a model lies on a machine: `plan(...) -> Plan`. It is pure arithmetic.

Entries are counted as in llama.cpp: first the layers of the model (R1 has 61), then the output as one more entry. `--n-gpu-layers N`
puts the last N entries on the GPUs. `--tensor-split` distributes them over the cards in order. `--override-tensor` keeps some of their
experts in RAM. The token embedding always stays in RAM.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from r1prov.common.errors import Problem, SiteError
from r1prov.common.units import GB, MIB, gib
from r1prov.machines.profile import BEST_ON_GPUS, DEFAULT_CONTEXT
from r1prov.machines.workload import CHAT, TEAM, shortened
from r1prov.models import catalogue, latent, layout
from r1prov.offload import floors, ollama, running, search, thumb
from r1prov.offload.conversation import past_prompts
from r1prov.offload.engine import graphs
from r1prov.offload.memory import CELLS_MULTIPLE, context_per_slot, flash_on_cards, v_type
from r1prov.offload.outcome import RESERVE_BYTES, Device, Outcome, Space, outcome
from r1prov.offload.setting import RefusedError, Setting, batches, rules, with_slots
from r1prov.offload.slots import WANTED, Asked, Pair, Pairs, choose
from r1prov.offload.speed import of_machine
from r1prov.offload.waits import workload_for

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from r1prov.machines.profile import Machine, Serving
    from r1prov.machines.workload import Workload
    from r1prov.models.catalogue import Quant
    from r1prov.models.model import Model
    from r1prov.offload.speed import Speeds

DYNAMIC_QUANTS = ("UD-Q2_K_XL", "UD-IQ2_XXS", "UD-IQ1_M", "UD-IQ1_S")
"""Unsloth's dynamic quants, best first."""

FLOOR_SMALL_BYTES, FLOOR_LARGE_BYTES = 200 * GB, 500 * GB
"""The RAM + VRAM that the publishers of the quants advise for the 1.58 and 1.73 bit files, and for Q4_K_M."""


@dataclass(frozen=True)
class Plan:
    """The placement of a model on a machine, with the arguments for the engines. Sizes are bytes.

    Attributes:
        quant: The name of the model.
        quant_reason: Why it is not a better quant; empty where the operator has named it, or the best is chosen.
        model_bytes: The size of its files in the form in which they are served.
        setting: The setting that `arguments` express.
        gpu_layers: The number of entries on the GPUs, which is 0 to 62 for R1. Some of their experts may lie in RAM.
        whole: Whether everything but the token embedding lies on the cards.
        ollama: The setting for Ollama, which places whole layers.
        thumb_layers: The layers on the GPUs by the rule of thumb; None without GPUs.
        workload: The exchanges for which it is placed.
        context_per_slot: The tokens of each slot.
        context_reason: Why there are so many; empty where the operator has said the number.
        slots: The number of answers at once.
        slots_reason: Why there are so many; empty where the operator has said the number.
        prompts_reason: Why so much RAM is for past prompts (`setting.prompts`).
        outcome: What the setting takes of each device; None for a model whose layers are not known.
        floor: The RAM + VRAM that the machine must have.
        arguments: The arguments of llama-server.
        environment: The variables of its process.
    """

    quant: str
    quant_reason: str
    model_bytes: int
    setting: Setting
    gpu_layers: int
    whole: bool
    ollama: Setting
    thumb_layers: int | None
    workload: Workload
    context_per_slot: int
    context_reason: str
    slots: int
    slots_reason: str
    prompts_reason: str
    outcome: Outcome | None
    floor: int
    arguments: tuple[str, ...]
    environment: dict[str, str]


def plan(
    quant: Quant,
    machine: Machine,
    serving: Serving,
    reserve: int = RESERVE_BYTES,
    *,
    speeds: Speeds | None = None,
    header: Model | None = None,
    propose: bool = True,
) -> Plan:
    """Plans the placement with which an exchange is fastest, with the reserve free on every card.

    Args:
        quant: The files of the model.
        machine: The server.
        serving: The form of the attention, the context per slot, the slots, the type of K, and the largest micro-batch.
        reserve: The bytes that stay free on each card.
        speeds: How fast the server is; None for what the profile tells of it.
        header: The model as the headers of its files describe it, where the catalogue does not.
        propose: Where something is not met, the error says what would be. Otherwise it is the bare UnmetError.

    Raises:
        SiteError: The layers of the model are not known, so it cannot be placed on GPUs; or it was trained for a smaller context.
        RefusedError: The engine would not start with these cache types.
    """
    published = model_of(quant) or header
    if published:
        model = latent.served(placeable(published, quant.name), serving.attention)
        n_bytes = quant.bytes - published.n_bytes + model.n_bytes
        return plan_model(
            model, machine, serving, speeds, floor=_floor(quant), n_bytes=n_bytes, reserve=reserve, propose=propose
        )
    if machine.cards:
        raise SiteError(
            Problem(
                quant.name,
                f"its layers are not known, so it cannot be placed on {'GPUs' if machine.gpus else 'several hosts'}",
                "use a profile of one host without GPUs, or a quant of the catalogue",
            )
        )
    options = (*running.threads(machine, idle=False), *running.reading(machine, quant.bytes))
    left = Space((), machine.ram).room_in_ram - _floor(quant)
    setting = replace(wanted(serving), prompts=min(max(left, 0) // MIB * MIB, Setting.prompts))
    found = _plan(quant.name, quant.bytes, machine, serving, setting, options=options)
    return replace(found, floor=_floor(quant), prompts_reason="so much RAM is left, up to the engine's default")


def plan_model(
    model: Model,
    machine: Machine,
    serving: Serving,
    speeds: Speeds | None = None,
    *,
    floor: int,
    n_bytes: int,
    reserve: int = RESERVE_BYTES,
    propose: bool = True,
) -> Plan:
    """Plans a model whose tensors are known, from the catalogue or from a header.

    Args:
        model: The model in the form (MLA or legacy) in which it is served.
        machine: The server.
        serving: The context per slot, the slots, the type of K, and the largest micro-batch.
        speeds: How fast the server is; None for what the profile tells of it.
        floor: The RAM + VRAM that the machine must have.
        n_bytes: The size of the model's files.
        reserve: The bytes that stay free on each card.
        propose: Where something is not met, the error says what would be. Otherwise it is the bare UnmetError.

    Raises:
        SiteError: A slot would hold more tokens than the model was trained for, or no placement keeps the floors.
        RefusedError: The engine would not start with these cache types.
    """

    def planned(serving: Serving) -> Plan:
        return _planned(model, machine, serving, speeds, floor=floor, n_bytes=n_bytes, reserve=reserve)

    return _proposing(planned, serving) if propose else planned(serving)


def _proposing(planned: Callable[[Serving], Plan], serving: Serving) -> Plan:
    """The plan for what is asked for. Where something is not met, the error says what would be, which is planned before it is said."""

    def holds(**changes: Any) -> bool:
        try:
            result = planned(serving.model_copy(update=changes)).outcome
        except (floors.UnmetError, SiteError, RefusedError):
            return False
        return result is not None and result.fits

    try:
        return planned(serving)
    except floors.UnmetError as unmet:
        raise unmet.refusal(holds) from None


def _planned(
    model: Model,
    machine: Machine,
    serving: Serving,
    speeds: Speeds | None,
    *,
    floor: int,
    n_bytes: int,
    reserve: int,
) -> Plan:
    """Plans a model as `plan_model` does.

    Raises:
        UnmetError: No placement keeps the floors, or the workload that is asked for is longer than the context that is asked for.
        SiteError: A slot would hold more tokens than the model was trained for.
        RefusedError: The engine would not start with these cache types.
    """
    space = Space(machine.cards, machine.ram, reserve, speeds or of_machine(machine))
    # The plan sets this itself. The engine would keep V in the form for flash attention, and transpose it for every batch.
    flash = flash_on_cards(model) or not machine.gpus
    most, context_reason = most_context(model, serving)
    one = replace(wanted(serving, model, lent=machine.lent), flash=flash, slots=1, context=most)
    own = serving.workload
    if own and own.tokens > most:
        raise floors.UnmetError(lambda holds: floors.too_long(own, most, model, holds))
    workload = _workload(model, with_slots(one, serving.fixed_slots or 1), space, serving)
    asked = _asked(serving, most, workload, space)
    pair = choose(model, one, space, workload, asked)
    floored = serving.fixed_slots is None and serving.slots is not None
    if pair is None and space.lent and serving.quant != BEST_ON_GPUS and not search.whole(model, one, space):
        raise SiteError(_too_large_for_pool(model, machine))
    if pair is None and (floored or asked.on_cards):
        least = with_slots(replace(one, context=asked.needed), asked.least)
        named = serving.context_per_slot is not None
        needed = needed_context(own) if own else CELLS_MULTIPLE
        raise floors.SlotsUnmetError(
            lambda holds: floors.too_many_slots(model, least, space, workload, holds, needed=needed, named=named)
        )
    pair = pair or Pair(with_slots(one, asked.slots or 1), "" if asked.slots else "not even one fits", "")
    setting = pair.setting
    placed = (space.cards and search.best(model, setting, space, workload, first_token=asked.first_token)) or setting
    room = _room_in_ram(outcome(model, placed, space).host)
    prompts, prompts_reason = past_prompts(model, placed, space, workload, room)
    finished, result, options = completed(model, placed, machine, space, prompts)
    if result.fits and search.means_of(model, placed, space, workload).longest_first_token > asked.first_token:
        shortest = Pairs(model, one, space, workload, asked).at(asked.needed)
        numbers = [asked.slots] if asked.slots else shortest.numbers()
        raise floors.UnmetError(
            lambda holds: floors.too_late(
                model,
                shortest.wanted,
                space,
                workload,
                holds,
                first_token=int(asked.first_token),
                numbers=numbers or [setting.slots],
                fixed=asked.slots is not None and bool(space.cards),
            )
        )
    return replace(
        _plan(model.name, n_bytes, machine, serving, finished, options=options),
        floor=floor,
        whole=is_whole(model, finished),
        ollama=ollama.best(model, *_of_one_host(finished, space)),
        workload=workload,
        context_reason=pair.context_reason or context_reason,
        slots_reason=pair.slots_reason or _without_cards(serving, space),
        prompts_reason=prompts_reason,
        outcome=result,
        thumb_layers=thumb.layers_on_gpu(machine.vram, n_bytes, model.layers) if space.cards else None,
    )


def _of_one_host(setting: Setting, space: Space) -> tuple[Setting, Space]:
    """A setting and a space without what other hosts lend, which Ollama does not reach."""
    if not setting.lent:
        return setting, space
    own = replace(space, cards=space.cards[setting.lent :], speeds=replace(space.speeds, crossing=None))
    return replace(setting, lent=0, split=(), overrides=()), own


def _asked(serving: Serving, most: int, workload: Workload, space: Space) -> Asked:
    """What the operator says of slots. Without cards there are as many as the operator wants, or one."""
    return Asked(
        needed=most if serving.context_per_slot else min(needed_context(workload), most),
        most=most,
        slots=serving.fixed_slots or (None if space.cards else serving.least_slots),
        least=serving.least_slots,
        first_token=serving.first_token or math.inf,
        on_cards=serving.quant == BEST_ON_GPUS or (space.lent > 0 and not space.is_in_ram),
    )


def _too_large_for_pool(model: Model, machine: Machine) -> Problem:
    where = f"{gib(machine.vram)} of cards" if machine.gpus else f"{gib(machine.ram * machine.hosts)} of RAM"
    what = f"{gib(model.n_bytes)} do not lie in the {where} of {machine.hosts} hosts layer by layer, with a slot beside them"
    remedy = "name a smaller quant, write `quant: best-on-gpus`, or let one host serve it, with a part in its RAM"
    return Problem(model.name, what, remedy)


def _without_cards(serving: Serving, space: Space) -> str:
    """Why there are so many slots where there are no cards; empty where the operator has said the number."""
    if space.cards or serving.fixed_slots:
        return ""
    return WANTED if serving.slots else "without cards the plan takes no more than you want"


def needed_context(workload: Workload) -> int:
    """The tokens of the longest exchange, rounded up as the engine rounds a cache."""
    return workload.tokens + -workload.tokens % CELLS_MULTIPLE


def most_context(model: Model, serving: Serving) -> tuple[int, str]:
    """The most tokens of a slot, and why there are so many in words that go on `because`; no reason where the operator says the number.

    Raises:
        SiteError: The operator asks for more than the model was trained for.
    """
    asked, most = serving.context_per_slot, model.context_length
    if asked is not None:
        if asked > most:
            what = f"a slot of {asked:,} tokens is more than the {most:,} that the model was trained for"
            raise SiteError(Problem(model.name, what, f"lower --ctx-size (context_per_slot) to {most:,} or less"))
        return asked, ""
    needed = needed_context(serving.workload) if serving.workload else 0
    if max(needed, DEFAULT_CONTEXT) >= most:
        return most, "the model was trained for no more"
    if needed > DEFAULT_CONTEXT:
        return needed, "the longest exchange of the workload needs them"
    return DEFAULT_CONTEXT, "nobody named a number" + (f", and the workload needs {needed:,}" if needed else "")


def completed(
    model: Model, setting: Setting, machine: Machine, space: Space, prompts: int
) -> tuple[Setting, Outcome, tuple[str, ...]]:
    """A setting with room in RAM for past prompts, its outcome, and the arguments that do not change its memory.

    Args:
        model: The model.
        setting: The setting.
        machine: The server.
        space: Its cards and its RAM.
        prompts: The bytes of RAM for past prompts, if so much is left.
    """
    setting = replace(setting, prompts=0)
    setting = replace(setting, prompts=min(prompts, _room_in_ram(outcome(model, setting, space).host)))
    result = outcome(model, setting, space)
    idle = is_whole(model, setting)
    return setting, result, (*running.threads(machine, idle=idle), *running.reading_of(model, setting, machine, result))


def is_whole(model: Model, setting: Setting) -> bool:
    """Whether everything but the token embedding lies on the cards."""
    return setting.gpu_layers == model.entries and None not in dict(setting.overrides).values()


def _plan(
    name: str, n_bytes: int, machine: Machine, serving: Serving, setting: Setting, *, options: tuple[str, ...]
) -> Plan:
    """The plan of a setting. `options` are the arguments of llama-server that do not change its memory."""
    return Plan(
        quant=name,
        quant_reason="",
        model_bytes=n_bytes,
        setting=setting,
        gpu_layers=setting.gpu_layers or 0,
        whole=False,
        ollama=setting,
        thumb_layers=thumb.layers_on_gpu(machine.vram, n_bytes) if machine.gpus else None,
        workload=shortened(serving.workload or CHAT, (setting.context or 0) // setting.slots),
        context_per_slot=(setting.context or 0) // setting.slots,
        context_reason="",
        slots=setting.slots,
        slots_reason="",
        prompts_reason="",
        outcome=None,
        floor=0,
        arguments=(*arguments(setting), *options),
        environment=running.environment(has_gpus=machine.gpus is not None),
    )


def best_on_gpus(candidates: Sequence[Quant], machine: Machine, serving: Serving, speeds: Speeds | None = None) -> Plan:
    """Plans the first of `candidates` (best first) that lies wholly on the cards.

    Raises:
        SiteError: No candidate does.
    """

    def first(asked: Serving) -> Plan:
        """The first candidate that lies on the cards, or the quant that is named instead."""
        if asked.quant in (quant.name for quant in candidates):
            named = next(quant for quant in candidates if quant.name == asked.quant)
            return plan(named, machine, asked, speeds=speeds, propose=False)
        unmet: floors.UnmetError | None = None
        better: list[str] = []
        for quant in candidates:
            why = f"{quant.name} does not lie on the cards{_with_slots(asked)}"
            try:
                if quant.bytes <= machine.vram:
                    on_gpus = plan(quant, machine, asked, speeds=speeds, propose=False)
                    if on_gpus.whole:
                        return replace(on_gpus, quant_reason=", and ".join(better))
            except floors.SlotsUnmetError:
                pass
            except floors.UnmetError as error:
                unmet, why = _of_the_last(error), f"{quant.name} keeps no first token of {asked.first_token} s"
            better.append(why)
        raise unmet or floors.UnmetError(lambda holds: _none_on_gpus(candidates[-1], machine, serving, holds))

    return _proposing(first, serving.model_copy(update={"quant": BEST_ON_GPUS}))


def _of_the_last(unmet: floors.UnmetError) -> floors.UnmetError:
    """The refusal of the last of several quants, which says that others are refused, too."""

    def refusal(holds: floors.Holds) -> SiteError:
        found = unmet.refusal(holds)
        others = (
            replace(each, what=f"no quant on the cards does it; of the smallest, {each.what}")
            for each in found.problems
        )
        return type(found)(*others)

    return floors.UnmetError(refusal)


def _with_slots(asked: Serving) -> str:
    """The slots that an operator wants, in words that go on `does not lie on the cards`."""
    number = f"{asked.slots} slot{'s' * (asked.least_slots > 1)}" if asked.slots else ""
    tokens = f"{asked.context_per_slot:,} tokens" if asked.context_per_slot else ""
    return f" with {number or 'slots'}{' of ' * bool(tokens)}{tokens}" if number or tokens else ""


def _none_on_gpus(smallest: Quant, machine: Machine, serving: Serving, holds: floors.Holds) -> SiteError:
    """The error about a machine on whose cards no dynamic quant fits, with what would fit there."""
    slots, model, ways = serving.least_slots, model_of(smallest), []
    context = serving.context_per_slot or min(needed_context(serving.workload or TEAM), DEFAULT_CONTEXT)
    if model:
        model, space = latent.served(model, serving.attention), Space(machine.cards, machine.ram)
        setting = replace(wanted(serving, model, lent=machine.lent), flash=flash_on_cards(model))

        def fits(number: int, tokens: int) -> bool:
            return search.whole(model, replace(setting, slots=number, context=number * tokens), space) is not None

        number = search.most(lambda n: fits(n, context), slots - 1)
        floored = serving.fixed_slots is None
        if number and holds(slots=f"at least {number}" if floored else number):
            ways.append(f"lower --parallel (slots) to `{'at least ' * floored}{number}`")
        steps = search.most(lambda n: fits(slots, n * CELLS_MULTIPLE), (context - 1) // CELLS_MULTIPLE)
        if steps and holds(context_per_slot=steps * CELLS_MULTIPLE):
            ways.append(f"lower --ctx-size (context_per_slot) to {steps * CELLS_MULTIPLE:,}")
    if holds(quant=smallest.name):
        ways.append(f"name the quant {smallest.name}, of which a part then lies in RAM")
    return SiteError(
        Problem(
            BEST_ON_GPUS,
            f"no dynamic quant fits on the cards: the smallest, {smallest.name}, has {gib(smallest.bytes)},"
            f" the cards have {gib(machine.vram)},"
            f" and {slots} slot{'s' * (slots > 1)} of {context:,} tokens need room too",
            ", or ".join(ways) or "use more cards: neither fewer slots, a shorter context nor RAM beside them would do",
        )
    )


def wanted(serving: Serving, model: Model | None = None, *, lent: int = 0) -> Setting:
    """The setting that the operator asks for, before the placement: everything lies in RAM, and no past prompt is kept.

    Without a number of slots there is one, or as many as the floor says.

    Each slot has a cache of its own, so that the buffer of attention scores covers the context of one slot only.
    """
    type_k, slots = serving.kv_type_k.upper(), serving.least_slots
    return Setting(
        context=(serving.context_per_slot or DEFAULT_CONTEXT) * slots,
        slots=slots,
        unified=False,
        type_k=type_k,
        type_v=v_type(model, type_k) if model else "F16",
        micro_batch=serving.micro_batch,
        gpu_layers=0,
        prompts=0,
        fit=False,
        lent=lent,
    )


def _workload(model: Model, setting: Setting, space: Space, serving: Serving) -> Workload:
    """The workload for which the placement is chosen, which is the one that `plan` shows.

    Raises:
        SiteError: An exchange that the operator asks for is longer than a slot.
    """
    if serving.quant == BEST_ON_GPUS and not serving.workload:
        return shortened(TEAM, context_per_slot(model, setting))
    whole = None if serving.workload else search.whole(model, setting, space)
    return workload_for(serving.workload, model, whole or setting, space.cards)


def _room_in_ram(host: Device) -> int:
    """The bytes of RAM that are left above the reserve, in whole MiB."""
    return max(host.free - host.reserve, 0) // MIB * MIB


def model_of(quant: Quant) -> Model | None:
    """The model of a quant of the catalogue, described without reading its files; None for any other quant."""
    return layout.model(quant.name) if catalogue.is_published(quant) else None


def placeable(model: Model, where: str) -> Model:
    """Returns the model if its compute graph is known or can be presumed, since the compute buffers follow from the graph.

    Raises:
        SiteError: The graph is not known and cannot be presumed.
    """
    try:
        graphs.check(model)
    except ValueError as error:
        raise SiteError(Problem(where, str(error), "let llama.cpp's own --fit place it")) from None
    return model


def _floor(quant: Quant) -> int:
    """The RAM + VRAM that a quant needs: the publishers' figure if there is one, or its files and a tenth for cache and system."""
    if quant.name in {"UD-IQ1_S", "UD-IQ1_M"}:
        return FLOOR_SMALL_BYTES
    return FLOOR_LARGE_BYTES if quant.name == "Q4_K_M" else quant.bytes * 11 // 10


def arguments(setting: Setting) -> tuple[str, ...]:
    """The arguments of llama-server that express a setting. `--ctx-size` is the context of all slots together."""
    cache = ("--ctx-size", str(setting.context), "--parallel", str(setting.slots))
    return (
        *cache,
        "--no-kv-unified",
        "--fit",
        "on" if setting.fit else "off",
        *(() if setting.prompts == Setting.prompts else ("--cache-ram", str(setting.prompts // MIB))),
        *(() if setting.offload else ("--no-op-offload",)),
        *("--cache-type-k", setting.type_k.lower()),
        *(("--cache-type-v", setting.type_v.lower()) if setting.type_v != "F16" else ()),
        *batches(setting),
        *(("--n-gpu-layers", str(setting.gpu_layers)) if setting.gpu_layers is not None else ()),
        *(("--tensor-split", ",".join(f"{share:g}" for share in setting.split)) if len(setting.split) > 1 else ()),
        *(("--override-tensor", rules(setting)) if setting.overrides else ()),
        *(("--flash-attn", "on" if setting.flash else "off") if setting.flash is not None else ()),
    )
