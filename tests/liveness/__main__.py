"""`make liveness`: the real engine is wedged 20 times, and found and restarted each time; with `--hours`, it is left alone under full load.

The result is kept in last-result.json after each time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from r1prov import lab
from r1prov.common import signals
from tests.fixtures import engine, playing, saying
from tests.tree import commit

KEPT = Path(__file__).parent / "last-result.json"
KINDS = ("stop", "hold", "stop-busy", "hold-busy", "hold-worker-busy")
TIMES = 4
LIMIT_S = 180


def main() -> int:
    """Tries all. Returns 1 where an engine was not found in time, or was restarted without a cause."""
    signals.heed()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=0.0, help="so long of full load comes first")
    parser.add_argument("--times", type=int, default=TIMES, help="how often each kind")
    asked = parser.parse_args()
    result: dict[str, Any] = {"commit": commit(), "limit_s": LIMIT_S, "load": None, "wedged": []}
    name = "liveness"
    host = lab.up(name, image=engine.image("bookworm", saying.to_stderr), say=saying.to_stderr)
    try:
        with tempfile.TemporaryDirectory() as folder:
            play = playing.command(host, Path(__file__).parent / "served.yml", Path(folder))
            subprocess.run(play, cwd=playing.ROOT, env=playing.ENVIRONMENT, check=True)
        if asked.hours:
            result["load"] = _on(host, "load", str(asked.hours * 3600))
            _keep(result)
        for kind in KINDS * asked.times:
            result["wedged"].append(_on(host, kind))
            _keep(result)
    finally:
        lab.down(name)
    in_time = [each for each in result["wedged"] if each["seconds"] < LIMIT_S]
    saying.to_stderr(f"{len(in_time)} of {len(result['wedged'])} within {LIMIT_S} s; load: {result['load']}")
    is_quiet = not result["load"] or result["load"]["restarts"] == 0
    return 0 if is_quiet and len(in_time) == len(result["wedged"]) else 1


def _on(host: lab.LabHost, *words: str) -> dict[str, Any]:
    done = lab.ssh(host, ["/root/wedge.py", *words])
    if done.returncode:
        log = lab.ssh(host, ["journalctl", "--no-pager", "--lines=50", "--unit=r1prov-liveness"]).stdout
        sys.exit(f"{' '.join(words)}: {done.stderr}\n{log}")
    saying.to_stderr(done.stdout.strip())
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def _keep(result: dict[str, Any]) -> None:
    KEPT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    with saying.errors():
        sys.exit(main())
