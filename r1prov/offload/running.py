"""How the engine runs beside what lies where: threads, NUMA, how the file is read, repacking, environment. Arithmetic only.

Each choice has its reason in docs/offload.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from r1prov.models.model import is_embedding
from r1prov.offload.memory import placement
from r1prov.offload.outcome import Space

if TYPE_CHECKING:
    from collections.abc import Sequence

    from r1prov.machines.profile import Machine
    from r1prov.models.model import Model
    from r1prov.offload.outcome import Outcome
    from r1prov.offload.setting import Setting

IDLE_THREADS = 8
"""Threads where everything is on cards: the CPU only looks up embeddings, and more threads would wait for one another."""

REPACKED_TYPES = frozenset({"Q4_0", "Q4_K", "Q2_K", "IQ4_NL", "MXFP4"})
"""Types that the engine brings into another form for an x86 CPU (ggml/src/ggml-cpu/repack.cpp); Q2_K only for one with AVX-512."""


def environment(cards: Sequence[int]) -> dict[str, str]:
    """What the engine's process is told beside its arguments."""
    # CUDA's own order is fastest first; nvidia-smi and the plan count along the bus.
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if cards else {}


def threads(machine: Machine, *, idle: bool) -> tuple[str, ...]:
    """How many compute; `idle` where everything is on cards."""
    if not machine.cpu_threads:
        return ()  # the engine counts physical cores itself
    return "--threads", str(min(machine.cpu_threads, IDLE_THREADS) if idle else machine.cpu_threads)


def reading(machine: Machine, n_bytes: int) -> tuple[str, ...]:
    """How the file is read and kept, of a model of which only the size is known, all of it in RAM."""
    room = Space(machine.cards, machine.ram).room_in_ram
    return _reading(machine, room, in_ram=n_bytes, locked=n_bytes, repacked=0, from_ram=True)


def reading_of(model: Model, setting: Setting, machine: Machine, found: Outcome) -> tuple[str, ...]:
    """The same where it is known what lies where.

    Args:
        model: what is served.
        setting: where it lies.
        machine: the server.
        found: what the setting takes there.
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
        # On a machine with cards, weights in RAM stay as they are, for a card may compute with them.
        repacked=0 if machine.cards else sum(t.n_bytes for t in in_ram if t.type in REPACKED_TYPES),
        from_ram=bool(in_ram),
    )


def for_bench(arguments: Sequence[str]) -> tuple[str, ...]:
    """llama-server's arguments in the words of llama-bench, which has switches with values."""
    return tuple(word for one in arguments for word in {"--no-repack": ("--repack", "0")}.get(one, (one,)))


def _reading(
    machine: Machine, room: int, *, in_ram: int, locked: int, repacked: int, from_ram: bool
) -> tuple[str, ...]:
    """Bytes: of RAM without its reserve; of what lies there; of the file, cache and buffers, were all locked; of what the CPU repacks."""
    if in_ram > room:
        return "--load-mode", "mmap", *(("--no-repack",) if repacked else ())
    if machine.numa_nodes > 1 and from_ram:
        return "--load-mode", "mmap", "--numa", "distribute"
    if machine.cards:
        return "--load-mode", "none"
    return "--load-mode", "mmap+mlock" if locked + repacked <= room else "mmap"
