"""`make faults`: each kind of fault at twenty seeds, two at a time.

    python -m tests.faults [--seeds 20] [--only PATTERN]

The result is kept in last-result.json.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.faults import kinds
from tests.tree import commit

KEPT = Path(__file__).parent / "last-result.json"


def main() -> int:
    """Tries all. Returns 1 where a case did not end as it must."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", default="")
    asked = parser.parse_args()
    names, began = [name for name in kinds.KINDS if re.search(asked.only, name)], time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        place = Path(folder)
        served = kinds.publish(place / "served")
        rows = [(name, seed) for name in names for seed in range(asked.seeds)]
        whys = pool.map(lambda row: _try(row[0], row[1], place / f"{names.index(row[0])}-{row[1]}", served), rows)
        failed = {row: why for row, why in zip(rows, whys, strict=True) if why}
    right = {name: asked.seeds - sum(each == name for each, _ in failed) for name in names}
    result = {
        "commit": commit(),
        "kinds": len(names),
        "seeds": asked.seeds,
        "right": sum(right.values()),
        "minutes": round((time.monotonic() - began) / 60),
        "by kind": right,
        "failed": [{"kind": name, "seed": seed, "why": why[-2000:]} for (name, seed), why in failed.items()],
    }
    if not asked.only:
        KEPT.write_text(json.dumps(result, indent=1) + "\n")
    _say(f"{result['right']} of {len(rows)} ended with the right files")
    return 1 if failed else 0


def _try(name: str, seed: int, place: Path, served: kinds.Model) -> str:
    """Runs one case, and returns why it did not end as it must. Empty where it did."""
    try:
        kinds.run(name, seed, place, served)
    except Exception as error:
        _say(f"MISS {name}, seed {seed}")
        return f"{type(error).__name__}: {error}"
    shutil.rmtree(place)
    _say(f"ok   {name}, seed {seed}")
    return ""


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
