"""The text that says how far a long step is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from r1prov.common.units import GIB, MIB
from r1prov.output.pace import clock

if TYPE_CHECKING:
    from r1prov.output.pace import Pace


def amounts(done: int, total: int, unit: str, pace: Pace) -> str:
    """Say how far a step is, how fast it goes and how long it still takes. Figures that are not known are left out."""
    if unit == "bytes":
        return _bytes(done, total, pace)
    left_s = pace.left_s(total)
    left = f", {clock(left_s)} left" if left_s is not None else ""
    return f"{done} of {total}{left}" if total else str(done or "")


def _bytes(done: int, total: int, pace: Pace) -> str:
    """Format an amount of bytes, e.g. `51.2 of 130.6 GiB, 38.4 MiB/s, 35:12 left`."""
    unit, name = (GIB, "GiB") if max(done, total) >= GIB else (MIB, "MiB")
    of = f" of {total / unit:,.1f}" if total else ""
    rate = f", {pace.per_second / MIB:.1f} MiB/s" if pace.per_second is not None else ""
    left_s = pace.left_s(total)
    left = f", {clock(left_s)} left" if left_s is not None else ""
    return f"{done / unit:,.1f}{of} {name}{rate}{left}"
