"""The bytes that a decoded token reads from each device, and how long reading them takes. Here stand the speeds that plans count with.

Decoding is limited by the speed of memory: each token uses every weight that it reads only once.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, cast

from r1prov.common.units import GB
from r1prov.machines.profile import Link
from r1prov.models.model import is_embedding
from r1prov.offload.memory import cache_bytes_per_token, context_per_slot, placement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from r1prov.machines.known import MeasuredSpeed
    from r1prov.machines.profile import Machine, Network
    from r1prov.models.model import Model, Tensor
    from r1prov.offload.setting import Setting


class Origin(StrEnum):
    """Where a speed comes from."""

    DEFAULT = "not measured here"
    PROFILE = "named by the profile"
    ASKED = "asked of the host"
    MEASURED = "measured"


@dataclass(frozen=True)
class Speed:
    """How fast a part of a machine is, as a range.

    Attributes:
        low, high: The ends of the range, per second.
        origin: Where it comes from.
        detail: More about that in a few words, such as `PCIe 3.0 x8` or a date; may be empty.
    """

    low: float
    high: float
    origin: Origin = Origin.DEFAULT
    detail: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise ValueError(f"no range of speeds: {self.low} to {self.high}")

    def at(self, which: int) -> float:
        """The low end for 0, the high one for 1."""
        return self.high if which else self.low


@dataclass(frozen=True)
class Crossing:
    """How the first cards of a machine are reached, which other hosts lend.

    A batch waits for each of these cards, one after the other (ggml-rpc.cpp). Each of the hosts is sent the hidden states and sends them
    back. Each of the cards is sent the mask of attention and the graph of its layers. The graph is sent again where it is another one than
    for the batch before: always at the low speeds, and never at the high ones. Each card and each host costs a round trip.

    Attributes:
        workers: The number of hosts that lend cards.
        lent: The number of their cards.
        bytes_per_second: What the network between them carries in one direction.
        round_trip_s: How long a small message and its answer take, in seconds.
        detail: The network in a few words, such as `10 Gbit/s`.
    """

    workers: int
    lent: int
    bytes_per_second: float
    round_trip_s: float
    detail: str = ""

    def states_seconds(self, elements: float, layers: int, which: int) -> float:
        """The seconds for a batch with so many elements of hidden states, where so many layers lie on these cards."""
        n_bytes = 2 * self.workers * STATE_BYTES * elements + (0 if which else GRAPH_BYTES * layers)
        return n_bytes / self.bytes_per_second + (self.workers + self.lent) * self.round_trip_s

    def mask_seconds(self, pairs: float) -> float:
        """The seconds for the mask of so many pairs of tokens."""
        return MASK_BYTES * pairs * self.lent / self.bytes_per_second


STATE_BYTES, MASK_BYTES = 4, 2
"""The bytes of an element of a hidden state, which is F32, and of the mask of attention for a pair of tokens, which is F16."""

GRAPH_BYTES = 100 * 304
"""The bytes of the graph of a layer, as RPC sends it: some 100 tensors, of which each takes 304 bytes (`rpc_tensor`, and its place)."""


@dataclass(frozen=True)
class Speeds:
    """The speeds of a machine with which plans count.

    Attributes:
        ram_bytes_per_second: At which decoding reads the RAM.
        card_bytes_per_second: At which decoding reads a card. Each layer waits for the one before it, so it is below the data sheet.
        link_bytes_per_second: At which weights go from RAM to the first card, which computes large batches with them.
        card_operations_per_second: At which a card computes matrix products of quantised weights with a batch, experts included.
        cpu_operations_per_second: The same for the CPU.
        crossing: How cards that other hosts lend are reached; None where there are none.
    """

    ram_bytes_per_second: Speed
    card_bytes_per_second: Speed
    link_bytes_per_second: Speed
    card_operations_per_second: Speed
    cpu_operations_per_second: Speed
    crossing: Crossing | None = None


RANGES = tuple(field.name for field in fields(Speeds) if field.name != "crossing")
"""The attributes of `Speeds` that are ranges."""

DEFAULT = Speeds(
    # Others measured 5.78 tokens/s with 35 of 62 entries of UD-IQ1_S on four RTX 4090, where a token reads 6.4 GB from RAM, and 3 to 4
    # without a GPU, where it reads 14.7 GB (docs/guide.md). These servers have two sockets.
    ram_bytes_per_second=Speed(35 * GB, 60 * GB),
    card_bytes_per_second=Speed(400 * GB, 800 * GB),
    # PCIe 4.0 x16, pinned memory.
    link_bytes_per_second=Speed(20 * GB, 25 * GB),
    # Others measured 277 tokens/s of prompt for UD-IQ1_S on two H100 in January 2025 (unslothai/unsloth #1591): 71 GFLOP for each token.
    # They measured 10,026 tokens/s for a mixture with 3 G active weights on an RTX 4090 in 2026, in micro-batches of 2,048 (llama.cpp
    # #22298).
    card_operations_per_second=Speed(19e12, 65e12),
    # Others measured 10 tokens/s of prompt for R1 on 48 older cores (ik_llama.cpp #282), and 65 on 64 cores of an Ice Lake Xeon
    # (ktransformers #527).
    cpu_operations_per_second=Speed(0.7e12, 4.6e12),
)
"""What plans count with where nothing better is known of a machine."""

_CORES = (48, 64)
"""The cores with which the low and the high speed of `DEFAULT` for the CPU were measured. Fewer threads compute as much less."""

_THREAD_RAM_GB_PER_SECOND = (5, 15)
"""At which one thread reads the RAM. A throwaway host with one thread decoded at 5 GB/s; with seven or more the memory is what limits."""

DEFAULT_LINK = Link(generation=4, width=16)
"""The link to which the speed of the table belongs."""

_LANE_GB_PER_SECOND = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}
"""What a lane of each generation of PCIe carries in one direction, after its line code (PCI-SIG)."""


def linked(speeds: Speeds, link: Link, origin: Origin) -> Speeds:
    """The speeds of a machine whose first card is attached by `link`.

    Copies reach the same share of what the lanes carry as they do on the link of the table.
    """
    share = _carried(link) / _carried(DEFAULT_LINK)
    default = DEFAULT.link_bytes_per_second
    told = Speed(default.low * share, default.high * share, origin, str(link))
    return replace(speeds, link_bytes_per_second=told)


def _carried(link: Link) -> float:
    return _LANE_GB_PER_SECOND[link.generation] * link.width


def with_measured(speeds: Speeds, measured: Mapping[str, MeasuredSpeed]) -> Speeds:
    """The speeds with those that were measured on the machine in their place, by the names of the attributes."""
    return with_ranges(
        speeds,
        {
            name: Speed(each.low, each.high, Origin.MEASURED, _told(each))
            for name, each in measured.items()
            if name in RANGES
        },
    )


def with_ranges(speeds: Speeds, ranges: Mapping[str, Speed]) -> Speeds:
    """The speeds with other ranges in the place of some, by the names of the attributes."""
    return replace(speeds, **cast("dict[str, Any]", dict(ranges)))


def _told(speed: MeasuredSpeed) -> str:
    return f"{speed.by.removeprefix('r1prov ')}, {speed.measured[:10]}, {speed.model}"


def is_like(ours: Speeds, theirs: Speeds) -> bool:
    """Whether both are the same speeds, wherever they come from."""

    def ranges(speeds: Speeds) -> list[tuple[float, float]]:
        return [(each.low, each.high) for each in (getattr(speeds, name) for name in RANGES)]

    return ranges(ours) == ranges(theirs) and ours.crossing == theirs.crossing


def of_machine(machine: Machine, asked: Link | None = None) -> Speeds:
    """The speeds of a machine as its profile describes it.

    Args:
        machine: The server.
        asked: The link of its first card as the host told it. It outranks the profile, which may describe many hosts.
    """
    speeds = _threaded(DEFAULT, machine.cpu_threads) if machine.cpu_threads else DEFAULT
    speeds = _pooled(speeds, machine, machine.network) if machine.network else speeds
    if asked:
        return linked(speeds, asked, Origin.ASKED)
    named = machine.gpus.link if machine.gpus else None
    return linked(speeds, named, Origin.PROFILE) if named else speeds


def _pooled(speeds: Speeds, machine: Machine, network: Network) -> Speeds:
    """The speeds of a pool. Where its hosts have no cards, what they lend is their RAM, and their CPUs compute."""
    crossing = Crossing(
        workers=machine.hosts - 1,
        lent=machine.lent,
        bytes_per_second=network.gbit_per_s * GB / 8,
        round_trip_s=network.round_trip_us / 1e6,
        detail=str(network),
    )
    if machine.gpus:
        return replace(speeds, crossing=crossing)
    return replace(
        speeds,
        crossing=crossing,
        card_bytes_per_second=speeds.ram_bytes_per_second,
        card_operations_per_second=speeds.cpu_operations_per_second,
    )


def _threaded(speeds: Speeds, threads: int) -> Speeds:
    """The speeds where so many threads of the CPU compute, if these are too few for the speeds of the table."""
    told = Origin.PROFILE, "1 thread" if threads == 1 else f"{threads} threads"

    def slower(speed: Speed, most: tuple[float, float]) -> Speed:
        low, high = min(speed.low, most[0]), min(speed.high, most[1])
        return speed if (low, high) == (speed.low, speed.high) else Speed(low, high, *told)

    cpu, (few, many), (slow, fast) = speeds.cpu_operations_per_second, _CORES, _THREAD_RAM_GB_PER_SECOND
    return replace(
        speeds,
        ram_bytes_per_second=slower(speeds.ram_bytes_per_second, (slow * GB * threads, fast * GB * threads)),
        cpu_operations_per_second=slower(cpu, (cpu.low * threads / few, cpu.high * threads / many)),
    )


@dataclass(frozen=True)
class Reads:
    """The bytes of weights and of the full cache of one slot that a decoded token reads, from each card and from the host's RAM.

    Attributes:
        cards, host: The bytes.
        width, layers, depth: The elements of a hidden state, the layers on cards of other hosts, and the tokens of the slot.
    """

    cards: tuple[int, ...]
    host: int
    width: int = 0
    layers: int = 0
    depth: int = 0

    def seconds(self, speeds: Speeds, which: int) -> float:
        """Seconds per token. `which` is 0 for the low speeds and 1 for the high ones. The devices work one after the other."""
        from_ram, crossing, across = self.host / speeds.ram_bytes_per_second.at(which), speeds.crossing, 0.0
        if crossing and self.layers:
            across = crossing.states_seconds(self.width, self.layers, which) + crossing.mask_seconds(self.depth)
        return from_ram + sum(self.cards) / speeds.card_bytes_per_second.at(which) + across


def width_of(model: Model) -> int:
    """The elements of a hidden state."""
    return next(tensor.shape[0] for name, tensor in model.weights.items() if is_embedding(name))


def weight_bytes_per_token(model: Model, name: str, tensor: Tensor) -> int:
    """The bytes that one token reads of a tensor.

    A token reads the experts that it is routed to, one row of the embedding, and every other tensor as a whole.

    Args:
        model: The model.
        name: The name under which the graph reads the tensor, see `Model.weights`.
        tensor: The tensor.
    """
    if tensor.is_experts:
        return tensor.n_bytes * model.experts_used // tensor.shape[-1]
    return tensor.n_bytes // tensor.shape[-1] if is_embedding(name) else tensor.n_bytes


def reads(model: Model, setting: Setting, cards: Sequence[int]) -> Reads:
    """The bytes that a decoded token reads from each device with this setting."""
    where = placement(model, setting, cards)
    sums = [0] * (len(cards) + 1)
    for name, tensor in model.weights.items():
        sums[where.tensors[name]] += weight_bytes_per_token(model, name, tensor)
    for device in where.caches:
        sums[device] += context_per_slot(model, setting) * cache_bytes_per_token(model, setting)
    lent = sum(device < setting.lent for device in where.layers)
    return Reads(tuple(sums[:-1]), sums[-1], width_of(model), lent, context_per_slot(model, setting))


def prompt_copies_seconds(model: Model, setting: Setting, cards: Sequence[int], speeds: Speeds) -> float:
    """The seconds that each micro-batch of a prompt waits while weights are copied from RAM to the first card."""
    if len(cards) <= setting.lent or not setting.offload:
        return 0.0
    tensors = placement(model, setting, cards).tensors
    in_ram = sum(
        tensor.n_bytes
        for name, tensor in model.weights.items()
        if tensors[name] == len(cards) and not is_embedding(name)
    )
    return in_ram / speeds.link_bytes_per_second.low
