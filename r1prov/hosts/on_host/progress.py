# ruff: noqa: PTH123, PTH207 - the host's Python may be 3.8
"""Runs on a host: prints each change of a step's progress file as one line of JSON, until stdin closes.

Python 3.8 or newer, standard library only. A step that says `running` but has not written for two minutes when it is
first seen is a leftover of a run that died.
"""

from __future__ import annotations

import glob
import json
import os
import select
import sys
import time
from typing import Any

STALE_S = 120

last: dict[str, dict[str, Any]] = {}
while True:
    for path in sorted(glob.glob("/run/r1prov/*/progress.json")):
        try:
            with open(path) as file:
                progress = json.load(file)
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
