"""Calculates the outcome of a setting on a machine: what it takes of each device, whether it fits, and what a token reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from r1prov.common.units import GIB, MIB, gib
from r1prov.offload import speed
from r1prov.offload.engine.graphs import known
from r1prov.offload.engine.presumed import MARGIN_BYTES, MARGIN_PERCENT
from r1prov.offload.memory import context_of_stream, memory
from r1prov.offload.setting import card_name
from r1prov.offload.speed import DEFAULT, Speeds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from r1prov.models.model import Model
    from r1prov.offload.memory import Use
    from r1prov.offload.setting import Setting

RESERVE_BYTES = 1024 * MIB
"""The bytes that stay free on each card, for the CUDA context and for what no formula counts. llama.cpp's `--fit` leaves as much."""

FIT_RESERVE_BYTES = 1024 * MIB
"""The bytes that the engine's own `--fit` leaves free on each card by default."""

SYSTEM_BYTES, SYSTEM_SHARE = 4 * GIB, 8
"""The largest reserve of RAM, and the divisor of the RAM that gives the reserve of a smaller machine.

The reserve is for the system, the chat page, its embedding model and the engine's own lists.
"""


@dataclass(frozen=True)
class Space:
    """The memory of a machine that a model may fill, in bytes, and how fast the machine is.

    Attributes:
        cards: The memory of each card, as nvidia-smi counts it.
        ram: The RAM of the host.
        reserve: The bytes that stay free on each card.
        speeds: How fast the machine reads, copies and computes.
    """

    cards: tuple[int, ...]
    ram: int
    reserve: int = RESERVE_BYTES
    speeds: Speeds = DEFAULT

    @property
    def lent(self) -> int:
        """The number of cards that other hosts lend, which are the first ones."""
        return self.speeds.crossing.lent if self.speeds.crossing else 0

    @property
    def is_in_ram(self) -> bool:
        """Whether all cards are the RAM of other hosts."""
        return 0 < self.lent == len(self.cards)

    @property
    def rooms(self) -> tuple[int, ...]:
        """The bytes of each card without its reserve."""
        return tuple(card - self.reserve for card in self.cards)

    @property
    def ram_reserve(self) -> int:
        """The bytes that stay free in RAM. The caches of past prompts need RAM beside this reserve."""
        return min(SYSTEM_BYTES, self.ram // SYSTEM_SHARE)

    @property
    def room_in_ram(self) -> int:
        """The bytes of RAM without its reserve."""
        return self.ram - self.ram_reserve


@dataclass(frozen=True)
class Device:
    """What a setting takes of one card or of the host's RAM, in bytes.

    Attributes:
        name: `CUDA0` and so on for a card, `RPC0` and so on for one that another host lends, `host` for the RAM.
        capacity: The memory of a card, as nvidia-smi shows it, or the RAM of the host.
        weights: The bytes of the weights.
        kv: The bytes of the KV cache.
        compute: The bytes of the compute buffer.
        reserve: The bytes that must stay free.
    """

    name: str
    capacity: int
    weights: int
    kv: int
    compute: int
    reserve: int

    @property
    def taken(self) -> int:
        """The bytes of weights, KV cache and compute buffer together."""
        return self.weights + self.kv + self.compute

    @property
    def free(self) -> int:
        """The bytes that are left, the reserve included. The number is negative if the capacity is too small."""
        return self.capacity - self.taken


@dataclass(frozen=True)
class Outcome:
    """The outcome of a setting on a machine.

    Attributes:
        devices: What the setting takes of each card.
        host: What it takes of the RAM.
        reads: The bytes that a decoded token reads from each device.
        speeds: How fast the machine is.
        reasons: Why the setting does not fit, one sentence for each device that is too full. There are none if it fits.
        exact: Whether the figures are the engine's own. Otherwise KV caches and compute buffers are upper bounds.
        notes: What a reader must know about the figures, one sentence each, such as that they are upper bounds.
    """

    devices: tuple[Device, ...]
    host: Device
    reads: speed.Reads
    speeds: Speeds
    reasons: tuple[str, ...]
    exact: bool = True
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether every device has room for the setting and for the reserve."""
        return not self.reasons

    @property
    def sure(self) -> bool:
        """Whether `fits` is certain. If only an upper bound does not fit, the engine may still take less."""
        return self.exact or self.fits or any(_too_heavy(device) for device in (*self.devices, self.host))

    @property
    def tokens_per_second(self) -> tuple[float, float]:
        """The tokens per second that one slot decodes, at the low and at the high speeds of the devices."""
        return 1 / self.reads.seconds(self.speeds, 0), 1 / self.reads.seconds(self.speeds, 1)


def outcome(model: Model, setting: Setting, space: Space) -> Outcome:
    """Calculates the outcome of `setting` in `space`.

    Raises:
        RefusedError: The engine would not start.
    """
    taken = memory(model, setting, space.cards)
    # A card without layers has a compute buffer too, because the engine opens every card that it sees.
    devices = tuple(
        _device(card_name(i, setting.lent), card, use, space.reserve)
        for i, (card, use) in enumerate(zip(space.cards, taken.cards, strict=True))
    )
    host = _device("host", space.ram, taken.host, space.ram_reserve + setting.prompts)
    exact = known(model)
    reasons = tuple(reason for device in (*devices, host) if (reason := _reason(device, exact=exact)))
    notes = () if exact else (_UNSURE.format(model.architecture),)
    read = speed.reads(model, setting, space.cards)
    return Outcome(devices, host, read, space.speeds, reasons, exact, notes)


_UNSURE = (
    "r1prov does not know the compute graph of `{}` with these tensors. The weights are exact. The KV cache and the compute buffers are"
    " upper bounds: r1prov presumes a graph from the file's tensors, with full attention in every layer, and adds one more weight from RAM,"
    f" {MARGIN_PERCENT} % and {MARGIN_BYTES // MIB} MiB. Only the engine can tell whether it serves this model"
)


def remarks(model: Model, setting: Setting, found: Outcome) -> Iterator[str]:
    """Where the engine would deviate at its start from what its arguments seem to say, one sentence each."""
    stream_context = context_of_stream(model, setting)
    if stream_context > model.context_length:
        yield (
            f"The engine gives a slot the {model.context_length:,} tokens that the model was trained for and no more;"
            f" memory is taken for {stream_context:,}"
        )
    if setting.fit and any(device.free < FIT_RESERVE_BYTES for device in found.devices):
        ways = ["shorten the context"] * (setting.context is None) + ["leave more in RAM"] * (not setting.placed)
        if ways:
            yield (
                f"These figures follow from the arguments alone. Without `--fit off` the engine would {' and '.join(ways)} at its start,"
                f" until {FIT_RESERVE_BYTES // MIB:,} MiB are free on each card"
            )

    yield from _moving(model, setting)


def _moving(model: Model, setting: Setting) -> Iterator[str]:
    """What comes of arguments that let the engine move a part of the cache to another place."""
    whole_blocks = setting.type_k in {"F32", "F16"} or model.rope_length == model.key_length
    when = "a prompt repeats a piece of the cache" * bool(setting.cache_reuse) or "an answer fills the slot"
    option = "--cache-reuse" if setting.cache_reuse else "--context-shift"
    if not setting.cache_reuse and not setting.context_shift:
        return
    if setting.type_k == "BF16" or not whole_blocks:
        yield (
            f"llama-server would end when {when} elsewhere: it cannot move a cache whose K is"
            f" {setting.type_k.lower()}. Leave out `{option}`, or choose F16 for K"
        )
    elif setting.cache_reuse:
        yield (
            "With `--cache-reuse` an answer is taken over as it was computed, with the thoughts in view that the prompt leaves out. So"
            " further answers differ from those without it"
        )


def _device(name: str, capacity: int, use: Use, reserve: int) -> Device:
    return Device(name, capacity, use.weights, use.kv, use.compute, reserve)


def _too_heavy(device: Device) -> bool:
    """Whether the weights alone, which are always exact, take more than the device has beside its reserve."""
    return device.weights > device.capacity - device.reserve


def _reason(device: Device, *, exact: bool) -> str | None:
    """Why a device is too full; None if it is not. Of upper bounds it says the span in which the engine's figure lies."""
    if device.free >= device.reserve:
        return None
    if not exact and not _too_heavy(device):
        bounds = f"KV cache up to {gib(device.kv)}, compute up to {gib(device.compute)}"
        end = "run out of memory" if device.free < 0 else f"keep less than the {_reserved(device)}"
        span = f"{gib(device.weights)} to {gib(device.taken)} of {gib(device.capacity)}"
        return f"{device.name} may {end}: it takes {span} (weights {gib(device.weights)}, {bounds})"
    parts = f"weights {gib(device.weights)}, KV cache {gib(device.kv)}, compute {gib(device.compute)}"
    if device.free < 0:
        return f"{device.name} runs out of memory: {parts} of {gib(device.capacity)}"
    left = f"{device.free // MIB:,} MiB free, and not the {_reserved(device)}"
    return f"{device.name} keeps {left}: {parts} of {gib(device.capacity)}"


def _reserved(device: Device) -> str:
    whom = "the system and the past prompts" if device.name == "host" else "what the driver and CUDA take by themselves"
    return f"{device.reserve // MIB:,} MiB reserved for {whom}"
