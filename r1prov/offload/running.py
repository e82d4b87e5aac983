"""Chooses how the engine runs, apart from the placement: threads, NUMA, load mode, repacking and environment.

It is pure arithmetic. docs/offload.md gives the reason of each choice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from r1prov.models.model import is_embedding
from r1prov.offload.memory import placement
from r1prov.offload.outcome import Space

if TYPE_CHECKING:
    from r1prov.machines.profile import Machine
    from r1prov.models.model import Model
    from r1prov.offload.outcome import Outcome
    from r1prov.offload.setting import Setting

IDLE_THREADS = 8
"""The most threads if everything is on cards. The CPU only looks up embeddings, and more threads would wait for one another."""

REPACKED_TYPES = frozenset({"Q4_0", "Q4_K", "Q2_K", "IQ4_NL", "MXFP4"})
"""Types that the engine repacks for an x86 CPU (ggml/src/ggml-cpu/repack.cpp); it repacks Q2_K only for AVX-512."""


def environment(*, has_gpus: bool) -> dict[str, str]:
    """The environment variables of the engine's process."""
    # CUDA numbers the fastest card first by default. nvidia-smi and the plan number the cards along the bus.
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if has_gpus else {}


def threads(machine: Machine, *, idle: bool) -> tuple[str, ...]:
    """The argument for the number of threads. `idle` means that everything is on cards, so the CPU has little to do."""
    if not machine.cpu_threads:
        return ()  # the engine counts physical cores itself
    return "--threads", str(min(machine.cpu_threads, IDLE_THREADS) if idle else machine.cpu_threads)


def reading(machine: Machine, n_bytes: int) -> tuple[str, ...]:
    """The arguments for loading a model that lies wholly in RAM and of which only the size is known."""
    room = Space(machine.cards, machine.ram).room_in_ram
    return _reading(machine, room, in_ram=n_bytes, locked=n_bytes, repacked=0, from_ram=True)


def reading_of(model: Model, setting: Setting, machine: Machine, found: Outcome) -> tuple[str, ...]:
    """The arguments for loading a model whose tensors and placement are known.

    Args:
        model: The model that is served.
        setting: The setting that places it.
        machine: The server.
        found: The outcome of the setting on the server.
    """
    where = placement(model, setting, machine.cards).tensors
    in_ram = [
        tensor for name, tensor in model.weights.items() if where[name] == len(machine.cards) and not is_embedding(name)
    ]
    return _reading(
        machine,
        found.host.capacity - found.host.reserve,
        in_ram=found.host.taken,
        locked=model.n_bytes + found.host.kv + found.host.compute,
        # On a machine with cards the engine does not repack weights in RAM, because a card may compute with them.
        repacked=0 if machine.cards else sum(t.n_bytes for t in in_ram if t.type in REPACKED_TYPES),
        from_ram=bool(in_ram),
    )


def _reading(
    machine: Machine, room: int, *, in_ram: int, locked: int, repacked: int, from_ram: bool
) -> tuple[str, ...]:
    """The arguments for the load mode, NUMA and repacking.

    Args:
        machine: The server.
        room: The bytes of RAM without the reserve.
        in_ram: The bytes that the engine takes of the RAM.
        locked: The bytes that would be locked in RAM: the whole file, cache and buffers.
        repacked: The bytes that the CPU would repack.
        from_ram: Whether a token reads weights from RAM.
    """
    if in_ram > room:
        return "--load-mode", "mmap", *(("--no-repack",) if repacked else ())
    if machine.numa_nodes > 1 and from_ram:
        return "--load-mode", "mmap", "--numa", "distribute"
    if machine.cards:
        return "--load-mode", "none"
    return "--load-mode", "mmap+mlock" if locked + repacked <= room else "mmap"
