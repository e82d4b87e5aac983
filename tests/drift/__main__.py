"""`make drift`: every mutation on a converged host, in batches that do not hide each other. The result is kept in last-result.json.

    python -m tests.drift [--release trixie] [--tree PATH] [--only PATTERN]

With `--tree` the r1prov of another checkout is tried, for a comparison.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path

from tests.drift.host import converged
from tests.drift.matrix import Outcome, apply, batches, matrix, outcomes, said

RESULT = Path(__file__).parent / "last-result.json"


def main() -> int:
    """Try all; returns 1 where something was not named or not healed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--release", choices=["bookworm", "trixie"], default="bookworm")
    parser.add_argument("--tree", default="")
    parser.add_argument("--only", default="")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--batches", type=int, default=0)
    parser.add_argument("--result", type=Path, default=RESULT)
    asked = parser.parse_args()
    mutations = [each for each in matrix() if re.search(asked.only, each.name)]
    random.Random(asked.seed).shuffle(mutations)
    found: list[Outcome] = []
    quiet = True
    with converged(asked.release) as (operator, host):
        if asked.tree:
            operator.environment["PYTHONPATH"] = asked.tree
        for batch in batches(mutations, asked.batch)[: asked.batches or None]:
            began = time.monotonic()
            applied = apply(host, batch)
            done = operator.run("up")
            report = operator.report
            these = outcomes(host, batch, applied, report)
            found += these
            for each in these:
                _say(f"{'ok  ' if each.named and each.healed else 'MISS'} {each.name}: {each}")
            if not all(each.named and each.healed for each in these) or done.returncode:
                _say(f"up ended with {done.returncode} and said:\n{said(report)}")
            operator.run("up")
            if operator.report["hosts"][host.name]["changes"]:
                quiet = False
                _say(f"NOT QUIET\n{said(operator.report)}")
            _say(f"{len(batch)} in {time.monotonic() - began:.0f} s")
    result = {
        "release": asked.release,
        "seed": asked.seed,
        "mutations": len(found),
        "applied": sum(each.applied for each in found),
        "named": sum(each.named for each in found),
        "healed": sum(each.healed for each in found),
        "quiet_after": quiet,
        "outcomes": [asdict(each) for each in found],
    }
    asked.result.write_text(json.dumps(result, indent=1) + "\n")
    _say(f"{len(found)} mutations: {result['named']} named, {result['healed']} healed, quiet after: {quiet}")
    return 0 if quiet and all(each.named and each.healed for each in found) else 1


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
