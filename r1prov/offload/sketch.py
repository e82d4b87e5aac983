"""Estimates what placements would come to before one of them is worked out, which takes a thousand times as long.

A sketch counts the cards as one room. It knows how much of the experts lies there, but not which. The compute buffers are worked out for
four micro-batches, and lie on lines between these. They hardly depend on the number of slots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from r1prov.models.model import is_embedding
from r1prov.offload.costs import Costs, Load, costs
from r1prov.offload.engine.schedule import PIPELINE_COPIES
from r1prov.offload.memory import cache_bytes, memory
from r1prov.offload.packing import arranged, deal_evenly, entries_of, fill, less
from r1prov.offload.setting import SMALLEST_MICRO_BATCH, with_slots

if TYPE_CHECKING:
    from r1prov.models.model import Model
    from r1prov.offload.outcome import Space
    from r1prov.offload.packing import Entry
    from r1prov.offload.setting import Setting

_BETWEEN = (1024, 2048)
"""The micro-batches between the smallest and the largest for which compute buffers are worked out. From about 1,024 tokens on a card needs
more for what it computes than for the weights that are copied to it, and from about 2,048 on still more for each token."""


@dataclass(frozen=True, eq=False)
class Sketch:
    """A placement that is not worked out. It equals itself only.

    Attributes:
        setting: The setting, whose placement is missing.
        rooms: The bytes of each card beside its reserve and its compute buffer.
        costs: What it costs.
        in_ram: The bytes that it takes of the RAM.
        whole: Whether everything lies on the cards.
    """

    setting: Setting
    rooms: tuple[int, ...]
    costs: Costs
    in_ram: int
    whole: bool


class Sketcher:
    """Sketches placements of one model on one machine, with slots of so many tokens or fewer.

    With fewer tokens the compute buffers are no larger. With flash attention they are hardly smaller.

    Args:
        model: The model.
        wanted: The setting before the placement.
        space: The cards and the RAM, which it keeps as an attribute.
    """

    def __init__(self, model: Model, wanted: Setting, space: Space) -> None:
        self._model, self._one, self.space = model, with_slots(wanted, 1), space
        self._buffers: dict[tuple[int, bool, bool], list[int] | None] = {}

    @cached_property
    def _entries(self) -> list[Entry]:
        """The entries with the cache of one slot."""
        return entries_of(self._model, self._one)

    @cached_property
    def _always(self) -> int:
        """The bytes that every token reads, with the cache of one slot."""
        return sum(entry.always for entry in self._entries)

    @cached_property
    def _wholes(self) -> list[int]:
        """The bytes of each entry, with the cache of one slot."""
        return [entry.whole for entry in self._entries]

    @cached_property
    def _in_ram(self) -> Costs:
        """The costs of a setting in which all lies in RAM."""
        return costs(self._model, replace(self._one, gpu_layers=0), self.space.cards, self.space.speeds)

    @cached_property
    def _experts_products(self) -> float:
        tensors = (tensor for tensor in self._model.weights.values() if tensor.is_experts)
        used = self._model.experts_used or 1
        return sum(2 * math.prod(tensor.shape) * used / tensor.shape[-1] for tensor in tensors)

    @cached_property
    def _embedding(self) -> int:
        return sum(tensor.n_bytes for name, tensor in self._model.weights.items() if is_embedding(name))

    @cached_property
    def _cache(self) -> int:
        """The bytes of one layer's cache for one slot of the most tokens."""
        return cache_bytes(self._model, self._one)

    def _more_cache(self, setting: Setting) -> int:
        """The bytes by which one layer's cache is larger than that of one slot of the most tokens; negative where it is smaller."""
        return cache_bytes(self._model, setting) - self._cache

    def hybrid(self, setting: Setting) -> Sketch | None:
        """A placement in which the cards take what every token reads, and as many experts as fit beside; None without room."""
        if setting.lent:
            return None  # `arranged` makes no such placement.
        buffers = self._buffers_for(setting, whole=False)
        if not buffers or min(rooms := less(self.space.rooms, buffers[:-1])) < 0:
            return None
        part, share, weights = self._dealt(setting, sum(rooms))
        found = self._costs(setting, part, share, stages=1)
        return Sketch(setting, tuple(rooms), found, round(weights + buffers[-1]), whole=False)

    def may_fit(self, setting: Setting) -> bool:
        """Whether the part in RAM would fit there with some micro-batch, if the cards were filled to the reserve."""
        rooms = self.space.rooms
        return min(rooms) < 0 or self._dealt(setting, sum(rooms))[2] <= self.space.room_in_ram

    def _dealt(self, setting: Setting, room: int) -> tuple[float, float, float]:
        """The parts that cards with so much room hold of what every token reads, and of the experts; and the bytes that are left to RAM."""
        always, experts = self._always + self._more_cache(setting) * self._model.layers, self._in_ram.host.experts
        part = min(room / always, 1.0)
        share = max(min((room - always) / experts, 1.0), 0.0) if experts else 0.0
        return part, share, self._embedding + experts * (1 - share) + always * (1 - part)

    def whole(self, setting: Setting) -> Sketch | None:
        """A placement of everything on the cards, which work as a pipeline; None where it does not fit."""
        buffers = self._whole_base and self._buffers_for(setting, whole=True)
        if (
            not buffers
            or min(rooms := less(self.space.rooms, buffers[:-1])) < 0
            or not fill(self._sizes(setting), [*self._own, *rooms])
        ):
            return None
        stages = 1 if setting.lent else min(len(rooms), PIPELINE_COPIES)
        found = self._costs(setting, 1.0, 1.0, stages=stages)
        return Sketch(setting, tuple(rooms), found, self._embedding + buffers[-1], whole=True)

    def _sizes(self, setting: Setting) -> list[int]:
        """The bytes of each entry with the caches of a setting."""
        more, layers = self._more_cache(setting), self._model.layers
        return [whole + (more if number < layers else 0) for number, whole in enumerate(self._wholes)]

    def _costs(self, setting: Setting, part: float, share: float, *, stages: int) -> Costs:
        """The costs where the cards hold `part` of what every token reads, and `share` of the experts."""
        everything = self._in_ram.host
        dense = everything.products - self._experts_products

        def load(part: float, share: float) -> Load:
            return Load(
                always=round(everything.always * part),
                experts=round(everything.experts * share),
                cache=round(everything.cache * part),
                products=dense * part + self._experts_products * share,
                scores=round(everything.scores * part),
            )

        batch = min(setting.batch, setting.context or setting.batch)
        return replace(
            self._in_ram,
            cards=(load(part, share),),
            host=load(1 - part, 1 - share),
            batch=batch,
            micro_batch=min(setting.micro_batch, batch),
            copies=setting.offload,
            stages=stages,
            layers=self._model.layers * setting.lent // max(len(self._own) + len(self.space.cards), 1),
        )

    def _buffers_for(self, setting: Setting, *, whole: bool) -> list[int] | None:
        """The compute buffers of each card, then of the host; None where nothing can be placed."""
        size = min(setting.micro_batch, setting.batch)
        low = max((each for each in self._steps if each <= size), default=size)
        high = min((each for each in self._steps if each >= size), default=size)
        below, above = (self._worked_out(each, whole=whole, offload=setting.offload) for each in (low, high))
        if below is None or above is None:
            return None
        part = (size - low) / (high - low) if high > low else 0.0
        return [math.ceil(a + (b - a) * part) for a, b in zip(below, above, strict=True)]

    @cached_property
    def _steps(self) -> list[int]:
        """The micro-batches for which the compute buffers are worked out."""
        largest = self._one.micro_batch
        return sorted({min(size, largest) for size in (SMALLEST_MICRO_BATCH, *_BETWEEN, largest)})

    def _worked_out(self, size: int, *, whole: bool, offload: bool) -> list[int] | None:
        key = size, whole, offload
        if key not in self._buffers:
            base = self._whole_base if whole else self._hybrid_base
            if base is None:
                self._buffers[key] = None
            else:
                setting = replace(base, micro_batch=size, batch=max(size, base.batch), offload=offload)
                taken = memory(self._model, setting, self.space.cards)
                self._buffers[key] = [use.compute for use in (*taken.cards, taken.host)]
        return self._buffers[key]

    @cached_property
    def _hybrid_base(self) -> Setting | None:
        return arranged(self._one, self._entries, self.space.rooms)

    @property
    def _own(self) -> list[int]:
        """The room in RAM of the engine's own host, where that takes layers as cards do."""
        return [self.space.room_in_ram] if self.space.is_in_ram else []

    @cached_property
    def _whole_base(self) -> Setting | None:
        dealt = deal_evenly(self._wholes, [*self._own, *self.space.rooms])
        if not dealt:
            return None
        counts = dealt[len(self._own) :]
        return replace(self._one, gpu_layers=sum(counts), split=tuple(map(float, counts)))
