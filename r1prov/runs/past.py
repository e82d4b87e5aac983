"""What earlier runs of a site tell about one that is under way. A run tells something as long as both have changed the same steps."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LOOKED_AT = 20
"""So many of the newest reports are looked at."""


@dataclass(frozen=True)
class PastRun:
    """An earlier run over one host that went well.

    Attributes:
        day: when it was, e.g. `2026-11-24`.
        steps: each step with its seconds, in the order of the run.
        changed: the names of the steps that changed something.
    """

    day: str
    steps: tuple[tuple[str, float], ...]
    changed: frozenset[str]


@dataclass(frozen=True)
class Expected:
    """What an earlier run tells: its day, the seconds of the step that a host is in now, and the steps after it with theirs."""

    day: str
    step_s: float
    after: tuple[tuple[str, float], ...]


def past_runs(reports: Path, kind: str, host: str, *, check: bool) -> list[PastRun]:
    """The runs over a host that reports tell of, newest first: those of the playbook `kind`, and either checks or real runs."""
    found = []
    for path in sorted(reports.glob(f"{kind}-*.json"), reverse=True)[:LOOKED_AT]:
        kept = json.loads(path.read_text())
        there = kept["hosts"].get(host)
        if there and there["result"] == "ok" and kept.get("check") == check:
            changed = frozenset(change.partition(":")[0] for change in there["changes"])
            steps = tuple((name, seconds) for name, seconds in there["steps"])
            found.append(PastRun(kept["started"][:10], steps, changed))
    return found


def expected(past: Sequence[PastRun], entered: Sequence[str], changed: set[str]) -> Expected | None:
    """What the newest run tells that was like this one so far; None where none was.

    Args:
        past: from `past_runs`.
        entered: the steps that the host has entered, the one that it is in last.
        changed: the names of those that have changed something.
    """
    for run in past:
        names = [name for name, _ in run.steps]
        count = Counter(entered)[entered[-1]]
        places = [place for place, name in enumerate(names) if name == entered[-1]]
        if len(places) < count:
            continue
        at = places[count - 1]
        over = set(entered[:-1]) - {*names[at:]}  # Other steps may still change what they changed then.
        if changed <= run.changed and run.changed & over <= changed:
            return Expected(run.day, run.steps[at][1], run.steps[at + 1 :])
    return None
