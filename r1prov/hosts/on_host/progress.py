"""Runs on a host and prints each change of a step's progress file as one line of JSON, until stdin closes.

It is sent as text, so it needs only Python 3.10 and the standard library. A file that says `running`, but was written more
than two minutes before this program first sees it, was left by a run that died; it is not printed.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from pathlib import Path
from typing import Any

STALE_S = 120

last: dict[Path, dict[str, Any]] = {}
while True:
    for path in sorted(Path("/run/r1prov").glob("*/progress.json")):
        try:
            progress = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        first = path not in last
        if last.get(path) == progress:
            continue
        last[path] = progress
        if first and (progress.get("state") != "running" or time.time() - progress.get("updated", 0) > STALE_S):
            continue
        sys.stdout.write(json.dumps(progress) + "\n")
        sys.stdout.flush()
    if select.select([sys.stdin], [], [], 0.5)[0] and not os.read(0, 4096):
        break
