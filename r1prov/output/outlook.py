"""How long a run over one host still takes, in words. Nothing is claimed where nothing is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from r1prov.runs.past import Expected

WORTH_SAYING_S = 60.0
"""What takes less is over before anybody has read of it."""

OVERDUE = 2.0
"""A step that takes so many times what it took before is not like it was before."""


@dataclass(frozen=True)
class Outlook:
    """What is known of the rest of a run.

    Attributes:
        left_s: the seconds until the end; None where that is not known.
        text: what can be said; empty where nothing can.
        because: where that is known from.
    """

    left_s: float | None = None
    text: str = ""
    because: str = ""


def outlook(known: Expected | None, *, step: str, elapsed_s: float, moving: Mapping[str, float]) -> Outlook:
    """The outlook of a run that is in a step.

    Args:
        known: what an earlier run tells.
        step: where the host is.
        elapsed_s: the seconds since it entered that.
        moving: step -> the seconds that its work still takes at its rate. The transfer of the weights runs beside others.
    """
    beside = {name: seconds for name, seconds in moving.items() if name != step and seconds >= WORTH_SAYING_S}
    overdue = known and step not in moving and elapsed_s > max(WORTH_SAYING_S, OVERDUE * known.step_s)
    if known and not overdue:
        here_s = max(0.0, known.step_s - elapsed_s, moving.get(step, 0.0))
        if not beside:
            left_s = here_s + sum(seconds for _, seconds in known.after)
            return Outlook(left_s, f"about {about(left_s)} left", f"as in the run of {known.day}")
        # What goes on beside is waited for later. How long that wait was then tells nothing about now.
        waits_at = next((at for at, (name, _) in enumerate(known.after) if name in beside), len(known.after))
        before_s, after_s = (
            sum(seconds for name, seconds in part if name not in beside)
            for part in (known.after[:waits_at], known.after[waits_at:])
        )
        left_s = max(*beside.values(), here_s + before_s) + after_s
        because = f"{', '.join(beside)} at this rate, the rest as in the run of {known.day}"
        return Outlook(left_s, f"at least {about(left_s)} left", because)
    slowest = max(moving, key=moving.__getitem__, default="")
    if slowest and moving[slowest] >= WORTH_SAYING_S:
        text = f"{slowest}: about {about(moving[slowest])} more at this rate"
        return Outlook(None, text, "no earlier run tells of the rest")
    return Outlook()


def about(seconds: float) -> str:
    """A duration as people say it, e.g. `8 min` or `3.5 h`."""
    if seconds < 60:
        return "1 min" if seconds >= 45 else f"{max(1, round(seconds / 10)) * 10} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours = seconds / 3600
    return f"{hours:.0f} h" if hours >= 10 else f"{hours:.1f} h".replace(".0 ", " ")
