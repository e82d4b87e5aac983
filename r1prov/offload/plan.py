"""Where the model lies: `plan(...) -> Plan`. Arithmetic only.

Layers are counted as llama.cpp does: 61 of the model, then the output as the 62nd entry. `--n-gpu-layers N` puts the last N entries on
the GPUs, and `--tensor-split` deals them out to the cards in order. The token embedding stays in RAM.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from r1prov import layout
from r1prov.errors import Problem, SiteError
from r1prov.machine import BEST_ON_GPUS
from r1prov.offload import memory, thumb
from r1prov.units import GB, gib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from r1prov.catalogue import Quant
    from r1prov.machine import Gpus, Machine, Serving

ENTRIES = layout.LAYERS + 1
DYNAMIC_QUANTS = ("UD-Q2_K_XL", "UD-IQ2_XXS", "UD-IQ1_M", "UD-IQ1_S")
"""Unsloth's dynamic quants, best first."""

FLOOR_SMALL_BYTES, FLOOR_LARGE_BYTES = 200 * GB, 500 * GB
"""RAM + VRAM below which the publishers of the quants advise against the 1.58 and 1.73 bit files, and against Q4_K_M."""


@dataclass(frozen=True)
class Device:
    """One card, bytes. `capacity` is what nvidia-smi shows; weights + kv + compute + reserve never exceed it."""

    name: str
    capacity: int
    weights: int
    kv: int
    compute: int
    reserve: int


@dataclass(frozen=True)
class Plan:
    """What lies where, and llama-server's arguments for it. Bytes.

    Attributes:
        gpu_layers: entries on the GPUs, 0 to 62.
        thumb_layers: what the rule of thumb says; None without GPUs.
        context_per_slot: tokens per slot.
        floor: RAM + VRAM that the machine must have.
        arguments: llama-server's.
        bench_arguments: llama-bench's, for the same placement; it has no slots.
    """

    quant: str
    model_bytes: int
    gpu_layers: int
    thumb_layers: int | None
    context_per_slot: int
    slots: int
    devices: tuple[Device, ...]
    host_weights: int
    host_kv: int
    floor: int
    arguments: tuple[str, ...]
    bench_arguments: tuple[str, ...]


def plan(quant: Quant, machine: Machine, serving: Serving) -> Plan:
    """The rule of thumb, lowered until weights, KV cache and compute buffers fit every card with the reserve free.

    Args:
        quant: the model's files; its layers' bytes are known for the quants in `layout.TYPES`, bounded for the rest of the catalogue.
        machine: the server.
        serving: context per slot, slots, K type, micro-batch.

    Raises:
        SiteError: the model cannot be placed on GPUs because its layers are not known.
    """
    if machine.gpus is None:
        return _plan_for(quant, machine, serving, gpu_layers=0, counts=())
    wanted = thumb.layers_on_gpu(machine.vram, quant.bytes)
    # The rule counts layers, llama.cpp entries: all 61 layers leave room for the output too.
    for gpu_layers in range(ENTRIES if wanted == layout.LAYERS else wanted, 0, -1):
        counts = _deal(quant, machine.gpus, serving, gpu_layers)
        if counts:
            return _plan_for(quant, machine, serving, gpu_layers, counts)
    return _plan_for(quant, machine, serving, gpu_layers=0, counts=(0,) * machine.gpus.count)


def best_on_gpus(candidates: Sequence[Quant], machine: Machine, serving: Serving) -> Plan:
    """The plan of the first of `candidates` (best first) that lies wholly on the cards.

    Raises:
        SiteError: none does.
    """
    for quant in candidates:
        on_gpus = plan(quant, machine, serving)
        if on_gpus.gpu_layers == ENTRIES:
            return on_gpus
    smallest = candidates[-1]
    raise SiteError(
        Problem(
            BEST_ON_GPUS,
            f"no dynamic quant fits on the cards: the smallest, {smallest.name}, has {gib(smallest.bytes)}, the cards {gib(machine.vram)},"
            f" and {serving.slots} slots of {serving.context_per_slot} tokens need room too",
            "name a quant (the rest goes to RAM), or lower slots or context_per_slot",
        )
    )


def entry_bytes(quant: Quant) -> tuple[int, ...]:
    """Weights of the 62 entries: layers 0 to 60, then the output. Exact where the types are known, else a bound 15 % above.

    Raises:
        SiteError: not DeepSeek-R1 of the catalogue.
    """
    known = quant.name in layout.TYPES
    if not known and not quant.repo.endswith("/DeepSeek-R1-GGUF"):
        raise SiteError(
            Problem(
                quant.name,
                "its layers are not known, so it cannot be placed on GPUs",
                "use a profile without GPUs, or a quant of the catalogue",
            )
        )
    # The share of each layer is taken from Q4_K_M, whose mix of types all static quants have.
    tensors = layout.tensors(quant.name if known else "Q4_K_M")
    scale = 1.0 if known else 1.15 * quant.bytes / sum(tensor.n_bytes for tensor in tensors)
    sums = [0] * ENTRIES
    for tensor in tensors:
        if tensor.name != "token_embd.weight":
            sums[layout.LAYERS if tensor.layer is None else tensor.layer] += tensor.n_bytes
    return tuple(int(n_bytes * scale) for n_bytes in sums)


def _deal(quant: Quant, gpus: Gpus, serving: Serving, gpu_layers: int) -> tuple[int, ...] | None:
    """How many of the last `gpu_layers` entries each card takes, in order; None when they do not fit. Cards are filled evenly."""
    weights, kv = _entries(quant, serving)
    sizes = [w + k for w, k in zip(weights, kv, strict=True)][ENTRIES - gpu_layers :]
    rooms = [gpus.memory - memory.RESERVE_BYTES - compute for compute in _compute(gpus, serving, gpu_layers)]
    low, high = 0, max(rooms)  # bytes left free on every card: the most that still works, to the MiB
    best = _fill(sizes, rooms)
    while best and high - low > 2**20:
        middle = (low + high) // 2
        counts = _fill(sizes, [room - middle for room in rooms])
        best, low, high = (counts, middle, high) if counts else (best, low, middle)
    return best


def _fill(sizes: Sequence[int], rooms: Sequence[int]) -> tuple[int, ...] | None:
    """Fill cards in order, each as far as it goes; None when something is left over."""
    counts, position = [], 0
    for room in rooms:
        start = position
        while position < len(sizes) and (room := room - sizes[position]) >= 0:
            position += 1
        counts.append(position - start)
    return tuple(counts) if position == len(sizes) else None


def _entries(quant: Quant, serving: Serving) -> tuple[tuple[int, ...], tuple[int, ...]]:
    kv = serving.context_per_slot * serving.slots * memory.kv_bytes_per_token(serving.kv_type_k)
    return entry_bytes(quant), (*(kv for _ in range(layout.LAYERS)), 0)


def _compute(gpus: Gpus, serving: Serving, gpu_layers: int) -> tuple[int, ...]:
    each = memory.compute_bytes(serving.context_per_slot, serving.slots, serving.micro_batch)
    extra = (
        memory.first_card_extra_bytes(serving.context_per_slot, serving.slots, serving.kv_type_k)
        if gpu_layers < ENTRIES
        else 0
    )
    return (each + extra, *(each for _ in range(gpus.count - 1)))


def _plan_for(quant: Quant, machine: Machine, serving: Serving, gpu_layers: int, counts: tuple[int, ...]) -> Plan:
    devices: tuple[Device, ...] = ()
    host_weights, host_kv = quant.bytes, 0
    if machine.gpus:
        weights, kv = _entries(quant, serving)
        compute = _compute(machine.gpus, serving, gpu_layers)
        ends = [ENTRIES - gpu_layers + end for end in accumulate(counts)]
        devices = tuple(
            Device(
                f"CUDA{i}",
                machine.gpus.memory,
                sum(weights[end - n : end]),
                sum(kv[end - n : end]),
                compute[i] if n else 0,
                memory.RESERVE_BYTES,
            )
            for i, (n, end) in enumerate(zip(counts, ends, strict=True))
        )
        host_weights -= sum(device.weights for device in devices)
    if quant.name in layout.TYPES:
        host_kv = (layout.LAYERS - min(gpu_layers, layout.LAYERS)) * serving.context_per_slot * serving.slots
        host_kv *= memory.kv_bytes_per_token(serving.kv_type_k)
    return Plan(
        quant=quant.name,
        model_bytes=quant.bytes,
        gpu_layers=gpu_layers,
        thumb_layers=thumb.layers_on_gpu(machine.vram, quant.bytes) if machine.gpus else None,
        context_per_slot=serving.context_per_slot,
        slots=serving.slots,
        devices=devices,
        host_weights=host_weights,
        host_kv=host_kv,
        floor=_floor(quant),
        arguments=_arguments(machine, serving, gpu_layers, counts),
        bench_arguments=_placement(machine, serving, gpu_layers, counts, between="/"),
    )


def _floor(quant: Quant) -> int:
    """RAM + VRAM wanted: the publishers' figures where there are some, else the file and a tenth for cache and system."""
    if quant.name in {"UD-IQ1_S", "UD-IQ1_M"}:
        return FLOOR_SMALL_BYTES
    return FLOOR_LARGE_BYTES if quant.name == "Q4_K_M" else quant.bytes * 11 // 10


def _arguments(machine: Machine, serving: Serving, gpu_layers: int, counts: tuple[int, ...]) -> tuple[str, ...]:
    """llama-server's arguments. `--ctx-size` is the whole cache; separate slots keep the score buffer at one slot's context."""
    cache = ("--ctx-size", str(serving.context_per_slot * serving.slots), "--parallel", str(serving.slots))
    return (*cache, "--no-kv-unified", "--fit", "off", *_placement(machine, serving, gpu_layers, counts, between=","))


def _placement(
    machine: Machine, serving: Serving, gpu_layers: int, counts: tuple[int, ...], *, between: str
) -> tuple[str, ...]:
    """What llama-server and llama-bench are told alike, but for the sign `between` the parts of a split."""
    split = bool(machine.gpus) and len(counts) > 1 and gpu_layers > 0
    return (
        *("--cache-type-k", serving.kv_type_k),
        *("--ubatch-size", str(serving.micro_batch)),
        *("--n-gpu-layers", str(gpu_layers)),
        *(("--tensor-split", between.join(map(str, counts))) if split else ()),
        *(("--threads", str(machine.cpu_threads)) if machine.cpu_threads else ()),
    )
