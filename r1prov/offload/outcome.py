"""What a setting would do on a machine: what it takes where, whether that fits, what a token reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from r1prov.offload import speed
from r1prov.offload.engine.graphs import known
from r1prov.offload.engine.presumed import MARGIN_BYTES, MARGIN_PERCENT
from r1prov.offload.memory import memory
from r1prov.units import GIB, MIB, gib

if TYPE_CHECKING:
    from r1prov.model import Model
    from r1prov.offload.memory import Use
    from r1prov.offload.setting import Setting

RESERVE_BYTES = 1024 * MIB
"""What stays free on each card: the CUDA context and what no formula sees. llama.cpp's own `--fit` leaves as much."""

HOST_RESERVE_BYTES = 12 * GIB
"""What stays free in RAM: 8 GiB that llama-server keeps of past prompts (`--cache-ram`), and the system, the chat page, its own lists."""


@dataclass(frozen=True)
class Space:
    """What there is to fill. Bytes.

    Attributes:
        cards: each card, as nvidia-smi counts it.
        ram: of the host.
        reserve: what stays free on each card.
    """

    cards: tuple[int, ...]
    ram: int
    reserve: int = RESERVE_BYTES

    @property
    def rooms(self) -> tuple[int, ...]:
        """Each card without its reserve."""
        return tuple(card - self.reserve for card in self.cards)

    @property
    def room_in_ram(self) -> int:
        """The RAM without its reserve."""
        return self.ram - HOST_RESERVE_BYTES


@dataclass(frozen=True)
class Device:
    """One card, or the host. Bytes.

    Attributes:
        capacity: what nvidia-smi shows of a card; the RAM of the host.
        reserve: what is to stay free.
    """

    name: str
    capacity: int
    weights: int
    kv: int
    compute: int
    reserve: int

    @property
    def taken(self) -> int:
        """Weights, cache and compute buffer."""
        return self.weights + self.kv + self.compute

    @property
    def free(self) -> int:
        """What is left beside them; less than nothing when they do not fit."""
        return self.capacity - self.taken


@dataclass(frozen=True)
class Outcome:
    """What a setting would do.

    Attributes:
        devices: the cards.
        host: RAM.
        reads: what a decoded token reads, and from where.
        reasons: why it does not fit, the reserve included; nothing when it does.
        notes: how sure the figures are, where they are not the engine's own.
    """

    devices: tuple[Device, ...]
    host: Device
    reads: speed.Reads
    reasons: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Every device has room for it, and the reserve on top."""
        return not self.reasons

    @property
    def tokens_per_second(self) -> tuple[float, float]:
        """Decoded by one slot: at the low speeds, at the high ones."""
        return 1 / self.reads.seconds(0), 1 / self.reads.seconds(1)


def outcome(model: Model, setting: Setting, space: Space) -> Outcome:
    """What `setting` does with `space`.

    Raises:
        RefusedError: the engine would not start.
    """
    taken = memory(model, setting, space.cards)
    # A card without layers still has a compute buffer: the engine opens every card it sees.
    devices = tuple(
        _device(f"CUDA{i}", card, use, space.reserve)
        for i, (card, use) in enumerate(zip(space.cards, taken.cards, strict=True))
    )
    host = _device("host", space.ram, taken.host, HOST_RESERVE_BYTES)
    reasons = tuple(reason for device in (*devices, host) if (reason := _reason(device)))
    return Outcome(devices, host, speed.reads(model, setting, space.cards), reasons, _notes(model))


def _notes(model: Model) -> tuple[str, ...]:
    if known(model):
        return ()
    note = (
        f"The graph of `{model.architecture}` with such tensors is not known. Weights are exact; KV cache and compute buffers are upper"
        " bounds: full attention in every layer, and a graph presumed from the file's tensors,"
        f" with one more weight from RAM, {MARGIN_PERCENT} % and {MARGIN_BYTES // MIB} MiB added"
    )
    return (note,)


def _device(name: str, capacity: int, use: Use, reserve: int) -> Device:
    return Device(name, capacity, use.weights, use.kv, use.compute, reserve)


def _reason(device: Device) -> str | None:
    if device.free >= device.reserve:
        return None
    parts = f"weights {gib(device.weights)}, KV cache {gib(device.kv)}, compute {gib(device.compute)}"
    if device.free < 0:
        return f"{device.name} runs out of memory: {parts} of {gib(device.capacity)}"
    return f"{device.name} keeps {gib(device.free)} free, not {gib(device.reserve)}: {parts} of {gib(device.capacity)}"
