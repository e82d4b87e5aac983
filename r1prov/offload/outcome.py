"""What a setting would do on a machine: what it takes where, whether that fits, what a token reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from r1prov.common.units import GIB, MIB, gib
from r1prov.offload import speed
from r1prov.offload.engine.graphs import known
from r1prov.offload.engine.presumed import MARGIN_BYTES, MARGIN_PERCENT
from r1prov.offload.memory import context_of_stream, memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from r1prov.models.model import Model
    from r1prov.offload.memory import Use
    from r1prov.offload.setting import Setting

RESERVE_BYTES = 1024 * MIB
"""What stays free on each card: the CUDA context and what no formula sees. llama.cpp's own `--fit` leaves as much."""

FIT_RESERVE_BYTES = 1024 * MIB
"""What the engine's own `--fit` leaves free on each card, where nothing else is said."""

SYSTEM_BYTES, SYSTEM_SHARE = 4 * GIB, 8
"""What stays free in RAM for the system, the chat page, its embedding model and the engine's own lists: an eighth, at most this."""


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
    def ram_reserve(self) -> int:
        """What stays free in RAM, beside what the engine may keep of past prompts."""
        return min(SYSTEM_BYTES, self.ram // SYSTEM_SHARE)

    @property
    def room_in_ram(self) -> int:
        """The RAM without its reserve."""
        return self.ram - self.ram_reserve


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
    host = _device("host", space.ram, taken.host, space.ram_reserve + setting.prompts)
    reasons = tuple(reason for device in (*devices, host) if (reason := _reason(device)))
    notes = () if known(model) else (_UNSURE.format(model.architecture),)
    return Outcome(devices, host, speed.reads(model, setting, space.cards), reasons, notes)


_UNSURE = (
    "The graph of `{}` with such tensors is not known. Weights are exact; KV cache and compute buffers are upper"
    " bounds: full attention in every layer, and a graph presumed from the file's tensors,"
    f" with one more weight from RAM, {MARGIN_PERCENT} % and {MARGIN_BYTES // MIB} MiB added. Whether the engine serves it, only it can say"
)


def remarks(model: Model, setting: Setting, found: Outcome) -> Iterator[str]:
    """What the engine would do otherwise at its start than arguments seem to say, one sentence each."""
    each = context_of_stream(model, setting)
    if each > model.context_length:
        yield (
            f"The engine gives a slot the {model.context_length:,} tokens that the model was trained for and no more;"
            f" memory is taken for {each:,}"
        )
    if setting.fit and any(device.free < FIT_RESERVE_BYTES for device in found.devices):
        ways = ["shorten the context"] * (setting.context is None) + ["leave more in RAM"] * (not setting.placed)
        if ways:
            yield (
                f"This is what the arguments say. Without `--fit off` the engine would {' and '.join(ways)} at its start, by its own"
                f" rule, until {FIT_RESERVE_BYTES // MIB:,} MiB are free on each card"
            )


def _device(name: str, capacity: int, use: Use, reserve: int) -> Device:
    return Device(name, capacity, use.weights, use.kv, use.compute, reserve)


def _reason(device: Device) -> str | None:
    if device.free >= device.reserve:
        return None
    parts = f"weights {gib(device.weights)}, KV cache {gib(device.kv)}, compute {gib(device.compute)}"
    if device.free < 0:
        return f"{device.name} runs out of memory: {parts} of {gib(device.capacity)}"
    left = f"{device.free // MIB:,} MiB free, not {device.reserve // MIB:,} MiB"
    return f"{device.name} keeps {left}: {parts} of {gib(device.capacity)}"
