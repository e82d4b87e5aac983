"""Where the model lies: `plan(...) -> Plan`. Arithmetic only.

Layers are counted as llama.cpp does: those of the model, 61 of R1, then the output as one more entry. `--n-gpu-layers N` puts the
last N entries on the GPUs, and `--tensor-split` deals them out to the cards in order; `--override-tensor` keeps experts of theirs in
RAM. The token embedding stays in RAM.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from r1prov.common.errors import Problem, SiteError
from r1prov.common.units import GB, MIB, gib
from r1prov.machines.profile import BEST_ON_GPUS
from r1prov.models import catalogue, latent, layout
from r1prov.offload import ollama, running, search, thumb
from r1prov.offload.engine import graphs
from r1prov.offload.memory import flash_on_cards, v_type
from r1prov.offload.outcome import RESERVE_BYTES, Device, Outcome, Space, outcome
from r1prov.offload.setting import Setting, rules

if TYPE_CHECKING:
    from collections.abc import Sequence

    from r1prov.machines.profile import Machine, Serving
    from r1prov.models.catalogue import Quant
    from r1prov.models.model import Model

DYNAMIC_QUANTS = ("UD-Q2_K_XL", "UD-IQ2_XXS", "UD-IQ1_M", "UD-IQ1_S")
"""Unsloth's dynamic quants, best first."""

FLOOR_SMALL_BYTES, FLOOR_LARGE_BYTES = 200 * GB, 500 * GB
"""RAM + VRAM below which the publishers of the quants advise against the 1.58 and 1.73 bit files, and against Q4_K_M."""


@dataclass(frozen=True)
class Plan:
    """What lies where, and llama-server's arguments for it. Bytes.

    Attributes:
        quant: the model's name.
        model_bytes: of its files, as they are served.
        setting: what the arguments say.
        gpu_layers: entries on the GPUs, of R1 0 to 62; experts of theirs may be in RAM.
        whole: nothing but the token embedding is in RAM.
        ollama: how Ollama is told to place it: whole layers.
        thumb_layers: what the rule of thumb says; None without GPUs.
        context_per_slot: tokens per slot.
        outcome: what lies where; None for a model whose layers are not known.
        floor: RAM + VRAM that the machine must have.
        arguments: llama-server's.
        environment: of its process.
        bench_arguments: llama-bench's, for the same placement; it has no slots.
    """

    quant: str
    model_bytes: int
    setting: Setting
    gpu_layers: int
    whole: bool
    ollama: Setting
    thumb_layers: int | None
    context_per_slot: int
    slots: int
    outcome: Outcome | None
    floor: int
    arguments: tuple[str, ...]
    environment: dict[str, str]
    bench_arguments: tuple[str, ...]


def plan(
    quant: Quant, machine: Machine, serving: Serving, reserve: int = RESERVE_BYTES, *, header: Model | None = None
) -> Plan:
    """The placement with which a token reads least from RAM, with the reserve free on every card.

    Args:
        quant: the model's files.
        machine: the server.
        serving: the form of the attention, context per slot, slots, K type, the largest micro-batch.
        reserve: bytes that stay free on each card.
        header: what the files' headers say, where the catalogue does not describe them.

    Raises:
        SiteError: the model cannot be placed on GPUs because its layers are not known, or was trained for a smaller context.
        RefusedError: the engine would not start with these cache types.
    """
    published = model_of(quant) or header
    if published:
        model = latent.served(placeable(published, quant.name), serving.attention)
        n_bytes = quant.bytes - published.n_bytes + model.n_bytes
        return plan_model(model, machine, serving, floor=_floor(quant), n_bytes=n_bytes, reserve=reserve)
    if machine.gpus:
        raise SiteError(
            Problem(
                quant.name,
                "its layers are not known, so it cannot be placed on GPUs",
                "use a profile without GPUs, or a quant of the catalogue",
            )
        )
    how = (*running.threads(machine, idle=False), *running.reading(machine, quant.bytes))
    setting = replace(wanted(serving), prompts=Setting.prompts)  # what else it takes of the RAM is not known
    return replace(_plan(quant.name, quant.bytes, machine, serving, setting, how=how), floor=_floor(quant))


def plan_model(
    model: Model, machine: Machine, serving: Serving, *, floor: int, n_bytes: int, reserve: int = RESERVE_BYTES
) -> Plan:
    """The same for a model whose tensors are known, from wherever.

    Args:
        model: what is served, in the form in which it is.
        machine: the server.
        serving: context per slot, slots, K type, the largest micro-batch.
        floor: RAM + VRAM that the machine must have.
        n_bytes: of its files.
        reserve: bytes that stay free on each card.

    Raises:
        SiteError: a slot is to hold more than the model was trained for.
        RefusedError: the engine would not start with these cache types.
    """
    if serving.context_per_slot > model.context_length:
        what = f"{serving.context_per_slot:,} tokens per slot are more than the {model.context_length:,} that it was trained for"
        raise SiteError(Problem(model.name, what, "lower --ctx-size (context_per_slot)"))
    space = Space(machine.cards, machine.ram, reserve)
    # Said, not left to the engine, which would leave V as flash attention wants it and turn it around for every batch.
    flash = flash_on_cards(model) or not machine.cards
    setting = replace(wanted(serving, model), flash=flash)
    if space.cards:
        setting = search.best(model, setting, space) or setting
    setting = replace(setting, prompts=_room_for_prompts(outcome(model, setting, space).host))
    found = outcome(model, setting, space)
    whole = setting.gpu_layers == model.entries and None not in dict(setting.overrides).values()
    how = (*running.threads(machine, idle=whole), *running.reading_of(model, setting, machine, found))
    return replace(
        _plan(model.name, n_bytes, machine, serving, setting, how=how),
        floor=floor,
        whole=whole,
        ollama=ollama.best(model, setting, space),
        outcome=found,
        thumb_layers=thumb.layers_on_gpu(machine.vram, n_bytes, model.layers) if space.cards else None,
    )


def _plan(
    name: str, n_bytes: int, machine: Machine, serving: Serving, setting: Setting, *, how: tuple[str, ...]
) -> Plan:
    """`how`: arguments for llama-server on which no memory depends."""
    return Plan(
        quant=name,
        model_bytes=n_bytes,
        setting=setting,
        gpu_layers=setting.gpu_layers or 0,
        whole=False,
        ollama=setting,
        thumb_layers=thumb.layers_on_gpu(machine.vram, n_bytes) if machine.gpus else None,
        context_per_slot=serving.context_per_slot,
        slots=serving.slots,
        outcome=None,
        floor=0,
        arguments=(*_arguments(setting), *how),
        environment=running.environment(machine.cards),
        bench_arguments=(
            *(() if setting.offload else ("--no-op-offload", "1")),
            *_placement(setting, between="/", rules_between=";"),
            *running.for_bench(how),
        ),
    )


def best_on_gpus(candidates: Sequence[Quant], machine: Machine, serving: Serving) -> Plan:
    """The plan of the first of `candidates` (best first) that lies wholly on the cards.

    Raises:
        SiteError: none does.
    """
    for quant in candidates:
        if quant.bytes > machine.vram:
            continue
        on_gpus = plan(quant, machine, serving)
        if on_gpus.whole:
            return on_gpus
    smallest = candidates[-1]
    raise SiteError(
        Problem(
            BEST_ON_GPUS,
            f"no dynamic quant fits on the cards: the smallest, {smallest.name}, has {gib(smallest.bytes)}, the cards {gib(machine.vram)},"
            f" and {serving.slots} slot{'s' * (serving.slots > 1)} of {serving.context_per_slot:,} tokens need room too",
            "name a quant (the rest goes to RAM), or lower slots or context_per_slot",
        )
    )


def wanted(serving: Serving, model: Model | None = None) -> Setting:
    """Everything in RAM, as the operator wants it served, and no past prompt kept.

    Separate slots keep the score buffer at one slot's context.
    """
    type_k = serving.kv_type_k.upper()
    return Setting(
        context=serving.context_per_slot * serving.slots,
        slots=serving.slots,
        unified=False,
        type_k=type_k,
        type_v=v_type(model, type_k) if model else "F16",
        micro_batch=serving.micro_batch,
        gpu_layers=0,
        prompts=0,
        fit=False,
    )


def _room_for_prompts(host: Device) -> int:
    """Bytes of RAM, whole MiB, for past prompts: what else is left, up to the engine's own default."""
    return min(max(host.free - host.reserve, 0) // MIB * MIB, Setting.prompts)


def model_of(quant: Quant) -> Model | None:
    """The model in published files, as far as it is known without reading them: R1 in all quants of the catalogue."""
    return layout.model(quant.name) if catalogue.is_published(quant) else None


def placeable(model: Model, where: str) -> Model:
    """The model, where the graph that its compute buffers follow from is known, or can be presumed.

    Raises:
        SiteError: neither.
    """
    try:
        graphs.check(model)
    except ValueError as error:
        raise SiteError(Problem(where, str(error), "let llama.cpp's own --fit place it")) from None
    return model


def _floor(quant: Quant) -> int:
    """RAM + VRAM wanted: the publishers' figures where there are some, else the file and a tenth for cache and system."""
    if quant.name in {"UD-IQ1_S", "UD-IQ1_M"}:
        return FLOOR_SMALL_BYTES
    return FLOOR_LARGE_BYTES if quant.name == "Q4_K_M" else quant.bytes * 11 // 10


def _arguments(setting: Setting) -> tuple[str, ...]:
    """llama-server's arguments. `--ctx-size` is the whole cache."""
    cache = ("--ctx-size", str(setting.context), "--parallel", str(setting.slots))
    return (
        *cache,
        "--no-kv-unified",
        "--fit",
        "off",
        *(() if setting.prompts == Setting.prompts else ("--cache-ram", str(setting.prompts // MIB))),
        *(() if setting.offload else ("--no-op-offload",)),
        *_placement(setting, between=",", rules_between=","),
    )


def _placement(setting: Setting, *, between: str, rules_between: str) -> tuple[str, ...]:
    """What llama-server and llama-bench are told alike, but for the signs between the parts of a split and between rules."""
    return (
        *("--cache-type-k", setting.type_k.lower()),
        *(("--cache-type-v", setting.type_v.lower()) if setting.type_v != "F16" else ()),
        *("--ubatch-size", str(setting.micro_batch)),
        *("--n-gpu-layers", str(setting.gpu_layers)),
        *(("--tensor-split", between.join(f"{share:g}" for share in setting.split)) if len(setting.split) > 1 else ()),
        *(("--override-tensor", rules(setting, rules_between)) if setting.overrides else ()),
        *(("--flash-attn", "on" if setting.flash else "off") if setting.flash is not None else ()),
    )
