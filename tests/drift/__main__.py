"""`make drift`: every mutation on a converged host, in batches that do not hide each other.

    python -m tests.drift [--release trixie] [--tree PATH] [--only PATTERN]

The result is kept after each batch, in last-result-RELEASE.json, and a run that was interrupted goes on there. With `--tree` the r1prov of
another checkout is tried, for a comparison.
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
from typing import TYPE_CHECKING, Any

from r1prov import lab
from tests.drift.host import converged
from tests.drift.matrix import Outcome, apply, batches, drifted, matrix, outcomes, said, surprises
from tests.tree import commit

if TYPE_CHECKING:
    from r1prov.lab.hosts import LabHost
    from tests.drift.matrix import Mutation
    from tests.e2e.people import Operator

COUNTS = ("applied", "found", "named", "foretold", "healed", "quiet")


def main() -> int:
    """Try all; returns 1 where something was not found, named, foretold or healed, or where something was left."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--release", choices=["bookworm", "trixie"], default="bookworm")
    parser.add_argument("--tree", default="")
    parser.add_argument("--only", default="")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--result", type=Path)
    asked = parser.parse_args()
    kept: Path = asked.result or Path(__file__).parent / f"last-result-{asked.release}.json"
    mutations = [each for each in matrix() if re.search(asked.only, each.name)]
    random.Random(asked.seed).shuffle(mutations)
    found = _begun(kept)
    done = {each.name for each in found}
    waiting = [each for each in mutations if each.name not in done]
    with converged(asked.release) as (operator, host):
        if asked.tree:
            operator.environment["PYTHONPATH"] = asked.tree
        first = 1 + max((each.batch for each in found), default=0)
        for number, batch in enumerate(batches(waiting, asked.batch), first):
            began = time.monotonic()
            found += _try(operator, host, batch, number)
            _keep(kept, asked.release, found, whole=len(found) == len(mutations))
            _say(f"{len(found)} of {len(mutations)}; {len(batch)} in {time.monotonic() - began:.0f} s")
    missed = [each for each in found if not each.well]
    counts = ", ".join(f"{sum(getattr(each, name) for each in found)} {name}" for name in COUNTS)
    _say(f"{len(found)} mutations: {counts}")
    return 1 if missed else 0


def _try(operator: Operator, host: LabHost, batch: list[Mutation], number: int) -> list[Outcome]:
    applied = apply(host, batch)
    told = drifted(operator, host)
    ended = operator.run("up")
    report = operator.report
    for each in batch:
        if each.remedy and ended.returncode:
            lab.ssh(host, ["sh", "-c", each.remedy], timeout_s=120)
            ended = operator.run("up")
    quiet = drifted(operator, host)
    found = outcomes(host, batch, applied, told, report, quiet, number, commit())
    for outcome in found:
        _say(f"{'ok  ' if outcome.well else 'MISS'} {outcome}")
    if not all(outcome.well for outcome in found) or ended.returncode:
        _say(f"drift said:\n{told.text}\nup ended with {ended.returncode} and said:\n{said(report)}")
        _say(f"not foretold: {sorted(surprises(host, told, report))}")
        _say(f"drift said afterwards:\n{quiet.text}")
    if ended.returncode or not quiet.clean:  # The next batch shall begin on a host that is well.
        operator.run("up", "--full")
    return found


def _begun(kept: Path) -> list[Outcome]:
    """What an interrupted run has found so far."""
    result: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {"whole": True}
    return [] if result["whole"] else [Outcome(**each) for each in result["outcomes"]]


def _keep(kept: Path, release: str, found: list[Outcome], *, whole: bool) -> None:
    counts = {name: sum(getattr(each, name) for each in found) for name in COUNTS}
    rows = [asdict(each) for each in found]
    kept.write_text(
        json.dumps({"release": release, "whole": whole, "mutations": len(found), **counts, "outcomes": rows}, indent=1)
        + "\n"
    )


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
