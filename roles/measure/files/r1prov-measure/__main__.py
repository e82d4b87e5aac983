"""Measures what a job asks for while the engine pauses.

    python3 /usr/local/lib/r1prov-measure JOB

Runs as r1prov-measure.service. JOB is a JSON file; `measuring/settings.py` and `measuring/modes.py` describe it.
The standard library of Python 3.10 only.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from measuring import modes, settings

RUNS = {"settings": settings.run, "modes": modes.run}

if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.exit(RUNS[job["kind"]](job))
