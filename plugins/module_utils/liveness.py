"""What the watcher of the engine leaves on a host: what it has seen last, and how often it has restarted the engine."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ansible_collections.r1.prov.plugins.module_utils.files import read_json

SEEN = Path("/run/r1prov/liveness/last.json")
KEPT = Path("/var/lib/r1prov/liveness/kept.json")
DAY_S = 86400


def last_seen() -> dict[str, Any] | None:
    """What the watcher has seen last, and what it has done; None where it has not looked."""
    seen, kept = read_json(SEEN), read_json(KEPT)
    if "looked_s" not in seen:
        return None
    # Its clock is the one that nobody sets. It begins when the host does, as the file.
    now_s, clock_s = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
    alive_s, down_s = seen["alive_s"], kept.get("stays_down_since")
    return {
        "state": seen["state"],
        "by": seen["by"],
        "looked_age_s": round(clock_s - seen["looked_s"]),
        "alive_age_s": None if alive_s is None else round(clock_s - alive_s),
        "alive": None if alive_s is None else _stamp(now_s - clock_s + alive_s),
        "restarts": [_stamp(each) for each in kept.get("restarts", ()) if abs(now_s - each) < DAY_S],
        "stays_down_since": None if down_s is None else _stamp(down_s),
    }


def has_given_up() -> bool:
    """Whether the watcher has stopped the engine for good."""
    return read_json(KEPT).get("stays_down_since") is not None


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
