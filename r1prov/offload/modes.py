"""The guide's experiment: the same model on the CPU alone, on both, on the cards alone, and by the rule of thumb."""

from __future__ import annotations

from typing import TYPE_CHECKING

from r1prov.offload import thumb
from r1prov.offload.memory import v_type

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from r1prov.machines.profile import Machine
    from r1prov.models.model import Model
    from r1prov.offload.plan import Plan

CPU, HYBRID, GPU, RULE = "cpu", "hybrid", "gpu", "rule"
EXPERTS_IN_RAM, FIT, LEGACY, OLLAMA = "experts-in-ram", "fit", "legacy", "ollama"
MODES = {
    CPU: "no layer on the cards",
    HYBRID: "the plan",
    GPU: "all layers on the cards",
    RULE: "as many layers as the rule of thumb says",
    EXPERTS_IN_RAM: "all experts in RAM, and all else on the cards",
    FIT: "what the engine's own --fit chooses at its start",
    LEGACY: "the published files, where they still lie there, with legacy attention",
    OLLAMA: "Ollama, which places whole layers",
}

BY_HAND = {mode: MODES[mode] for mode in (CPU, HYBRID, GPU, RULE, FIT)}
"""The modes that have a command line by hand: those of the guide, and what today's engine does where nobody tells it."""

CONTEXT = 512
CACHE_TYPE = "Q4_0"
"""What the guide's command line gives to the engine."""

_OF_THE_SERVER = {"--parallel": 2, "--cache-ram": 2, "--no-kv-unified": 1, "--kv-unified": 1, "--ctx-size": 2}
"""Arguments of llama-server that other programs do not take, or that mean all slots together; with the number of their words."""


def modes_of(machine: Machine) -> tuple[str, ...]:
    """The modes by hand that a machine has. Without cards there is one."""
    return tuple(BY_HAND) if machine.cards else (CPU,)


def arguments(mode: str, model: Model | None, plan: Plan, serving: Sequence[str], machine: Machine) -> tuple[str, ...]:
    """The arguments with which a program that answers one user places a model, and reads it, in a mode.

    Args:
        mode: One of BY_HAND.
        model: The model in the form that is served; None where its layers are not known, which only a machine without cards allows.
        plan: Its plan.
        serving: The arguments with which llama-server serves it there, which are those of the plan, or what the host was tuned to.
        machine: The server.
    """
    if mode == HYBRID:
        return ("--ctx-size", str(plan.context_per_slot), *_without_server(serving))
    type_v = v_type(model, CACHE_TYPE) if model else "F16"
    placed = (
        ("--fit", "on")
        if mode == FIT
        else ("--n-gpu-layers", str(whole_layers(mode, model, plan.model_bytes, machine)))
    )
    return (
        *("--cache-type-k", CACHE_TYPE.lower()),
        # A V cache of such a type needs flash attention.
        *(("--cache-type-v", type_v.lower(), "--flash-attn", "on") if type_v != "F16" else ()),
        *(("--threads", str(machine.cpu_threads)) if machine.cpu_threads else ()),
        *("--ctx-size", str(CONTEXT)),
        *placed,
    )


def whole_layers(mode: str, model: Model | None, n_bytes: int, machine: Machine) -> int:
    """The value of `--n-gpu-layers` in one of the modes that place whole layers: CPU, GPU and RULE."""
    if mode == CPU or not model:
        return 0
    if mode == GPU:
        return model.entries
    return thumb.entries(thumb.layers_on_gpu(machine.vram, n_bytes, model.layers), model)


def _without_server(words: Sequence[str]) -> Iterator[str]:
    left = iter(words)
    for word in left:
        for _ in range(_OF_THE_SERVER.get(word, 1) - 1):
            next(left)
        if word not in _OF_THE_SERVER:
            yield word
