"""Measures what a job asks for while the engine pauses.

    python3 /usr/local/lib/r1prov-measure JOB

Runs as r1prov-measure.service. JOB is a JSON file; `measuring/settings.py` describes it. The standard library of Python 3.10 only.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from measuring import settings

if __name__ == "__main__":
    sys.exit(settings.run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
