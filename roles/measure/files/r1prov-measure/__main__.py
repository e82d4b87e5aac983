"""Measures what a job asks for while the engine pauses.

    python3 /usr/local/lib/r1prov-measure JOB

Runs as r1prov-measure.service. JOB is a JSON file; `measuring/settings.py` and `measuring/modes.py` describe it.
The standard library of Python 3.10 only.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from measuring import modes, settings, work

RUNS = {"settings": settings.run, "modes": modes.run}


def stopped(*_: object) -> None:
    """Ends at once, since systemd ends what is measured. A unit that somebody has stopped has not failed."""
    work.replace(work.PROGRESS, work.progress("stopped", 0, 0, "failed"))
    sys.stderr.write("the measurement was stopped\n")
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stopped)
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.exit(RUNS[job["kind"]](job))
