"""What is known of the machine of a host beyond its profile: its RAM, how its first card is attached, and the speeds measured there."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from r1prov.common.units import GIB
from r1prov.machines.profile import Link
from r1prov.machines.tuned import Hardware

if TYPE_CHECKING:
    from r1prov.machines.profile import Machine


class MeasuredSpeed(BaseModel):
    """A speed that follows from rates which were measured on a host, as a range.

    Attributes:
        low, high: the ends of the range, per second.
        by: what measured the rates, such as `r1prov tune`.
        model: the model that was served.
        measured: when, ISO 8601 in UTC.
    """

    model_config = ConfigDict(frozen=True)

    low: float
    high: float
    by: str
    model: str
    measured: str

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if not 0 < self.low <= self.high:
            raise ValueError("no range")
        return self

    def and_also(self, other: MeasuredSpeed) -> MeasuredSpeed:
        """Both together: what the two ranges share, or the later one where they share nothing, for then something has changed."""
        low, high, later = max(self.low, other.low), min(self.high, other.high), max(self, other, key=_when)
        return later.model_copy(update={"low": low, "high": high}) if low <= high else later


def _when(speed: MeasuredSpeed) -> datetime:
    return datetime.fromisoformat(speed.measured)


class Known(BaseModel):
    """What is known of a machine.

    Attributes:
        hardware: which machine that is. All else is forgotten when a host is another machine.
        link: the link of its first card; None where the host cannot tell it.
        measured: the speeds that were measured, by the names of the attributes of `offload.speed.Speeds`.
    """

    model_config = ConfigDict(frozen=True)

    hardware: Hardware
    link: Link | None = None
    measured: dict[str, MeasuredSpeed] = {}

    def machine(self, profile: Machine) -> Machine:
        """The machine of a profile with the RAM of this host, where that is less.

        It is rounded down to whole GiB. Another kernel leaves some MiB more or less, and that shall change no plan.
        """
        ram = self.hardware.ram // GIB * GIB
        return profile.model_copy(update={"ram": ram}) if self.hardware.ram < profile.ram else profile

    def with_measured(self, found: dict[str, MeasuredSpeed]) -> Known:
        """The same with newly measured speeds."""
        kept = self.measured
        both = {name: kept[name].and_also(each) if name in kept else each for name, each in found.items()}
        return self.model_copy(update={"measured": kept | both})


def met(before: Known | None, facts: dict[str, Any]) -> Known | None:
    """What is known of a host now that first contact has found `facts`; None where it shows too little of itself.

    A host whose cards are there and not shown, because the driver is in trouble, remains what it was. So does a link that the host has
    told before and does not tell now.

    Args:
        before: what was known before, if anything.
        facts: of plugins/module_utils/host_probe.py.
    """
    gpu = facts["gpu"]
    if gpu.get("on_bus") and not gpu["cards"]:
        return before
    hardware = Hardware.of(facts)
    try:
        link = Link.model_validate(gpu.get("link")) if gpu.get("link") else None
    except ValidationError:
        link = None
    if before and before.hardware.like(hardware):
        return before.model_copy(update={"hardware": hardware, "link": link or before.link})
    return Known(hardware=hardware, link=link)
