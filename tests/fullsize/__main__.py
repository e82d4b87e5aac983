"""`make fullsize`: the proof, as root. The result is kept in last-result.json."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from r1prov.common import paths, signals
from tests.fullsize.proof import QUANT, prove
from tests.tree import commit

KEPT = Path(__file__).parent / "last-result.json"


def main() -> int:
    """Tries all. A failure ends it with what is not as it must be."""
    signals.heed()  # Nothing may stay mounted.
    began, of = time.monotonic(), commit()
    paths.cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=paths.cache_dir(), prefix="fullsize-") as folder:
        found = prove(Path(folder))
    result = {"commit": of, "quant": QUANT, "seconds": round(time.monotonic() - began), **found}
    KEPT.write_text(json.dumps(result, indent=1) + "\n")
    sys.stderr.write(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
