"""`make cuts`: commands of r1prov are cut off, each at another place, and the next command must converge.

    python -m tests.cuts [--release bookworm] [--seed 1] [--only PATTERN]

First an `up` over a fresh host is killed when its first task has ended, the next one when the next has, and so on until one ends by
itself. So each kill comes on top of what all kills before it have left. That asks more of r1prov than a fresh host for each of them,
and takes an hour instead of a day. Tasks that are skipped, or only look at variables, do not count, because nothing happens on the
host in them.

Then 30 kills each of upgrade, switch and removal, and 30 each of the other cuts, at places that the seed draws: half of them when a task
has just changed something, the others somewhere between two such moments. How many there are is known from a run that is not cut.

The result is kept after each cut, in last-result-RELEASE.json, and a run that was interrupted goes on there.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from tests.cuts import torn
from tests.cuts.proof import FIRST, LAST, Kept, Proof, cases, say
from tests.drift.host import server
from tests.e2e.web import web_server
from tests.fixtures import ollama, saying

PORTS = {"bookworm": 8093, "trixie": 8094}


def main() -> int:
    """Tries all. Returns 1 where something did not converge."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--release", choices=["bookworm", "trixie"], default="bookworm")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--name", default="cuts")
    parser.add_argument("--result", type=Path)
    asked = parser.parse_args()
    kept = Kept(asked.result or Path(__file__).parent / f"last-result-{asked.release}.json")
    with server(f"{asked.name}-{asked.release}", asked.release, PORTS[asked.release]) as (operator, host, sources):
        root = operator.folder / "ollama"
        root.mkdir(exist_ok=True)
        for version in (ollama.VERSION, ollama.OTHER_VERSION):
            if not (root / f"v{version}").exists():
                (root / f"v{version}").symlink_to(ollama.release(version, saying.to_stderr).parent)
        with web_server(root) as url:
            operator.site([host], sources={**sources, "ollama": {"releases": url}})
            proof = Proof(operator, host, kept)
            done = {each.name for each in kept.outcomes}
            if re.search(asked.only, FIRST) and LAST not in done:
                proof.first()
            wanted = [name for name in cases() if name not in done and re.search(asked.only, name)]
            if wanted:
                operator.does("up")
                torn.take_note(host)
                proof.files.learn(host)
            for name in wanted:
                proof.attempt(name, asked.seed)
    names = {each.name for each in kept.outcomes}
    kept.write(whole={*cases(), LAST} <= names)
    missed = [each.name for each in kept.outcomes if each.faults]
    say(f"{sum(bool(each.place) for each in kept.outcomes)} cuts, {len(missed)} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
