"""`make door`: many people at a door with three engines. The result is kept in last-result.json after each part."""

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
DRAIN = playing.ROOT / "playbooks/drain.yml"
PORTS = (8001, 8002, 8003)
PARTS = ("cached", "queue", "flood", "killed", "rolled")


def faults(found: dict[str, Any]) -> list[str]:
    """What is not as it must be, in a sentence each."""
    cached, queue, flood, killed, rolled = (found.get(part) for part in PARTS)
    told = []
    if cached and cached["three_of_one"] < 0.95:
        told.append(f"three engines had {cached['three_of_one']:.0%} of what one had in its cache, and not 95 %")
    if queue and (queue["answered"] < queue["clients"] or queue["most_places_out_of_turn"] > 5):
        told.append(f"of the crowd not all were answered in their turn: {queue}")
    if queue and queue["most_mib"] > 128:
        told.append(f"the balancer took {queue['most_mib']} MiB")
    if flood and flood["times_as_long"] > 2:
        told.append(f"beside a flood the other key waited {flood['times_as_long']} times as long")
    if killed and (killed["lost"] or killed["cut"] > killed["kills"]):
        told.append(f"more was lost than what a killed engine had in hand: {killed}")
    if rolled and (rolled["lost"] or rolled["cut"]):
        told.append(f"somebody has noticed that engines were drained and restarted: {rolled}")
    return told


def restarted(host: lab.LabHost, folder: Path) -> str:
    """Drains each engine, restarts it and puts it back, while clients ask. Returns what these tell."""
    null, pipe = subprocess.DEVNULL, subprocess.PIPE
    # With a terminal ssh would leave that in a state in which Ansible refuses to run.
    crowd = subprocess.Popen(
        [*host.ssh_argv(), "/root/crowd.py", "rolled"], stdin=null, stdout=pipe, stderr=null, text=True
    )
    names = [f"engine-{port}" for port in PORTS]
    told = {"balancer_engines": [{"name": name} for name in names], "ansible_python_interpreter": "/usr/bin/python3"}
    try:
        for name in names:
            for undrain in (False, True):
                play = playing.command(host, DRAIN, folder, engine=name, undrain=undrain, **told)
                subprocess.run(play, cwd=playing.ROOT, env=playing.ENVIRONMENT, check=True)
                if not undrain:
                    lab.ssh(host, ["systemctl", "restart", name])
    finally:
        lab.ssh(host, ["touch", "/root/enough"])
        said = crowd.communicate()[0]
    return said


def main() -> int:
    """Tries all parts, or those that are named. Returns 1 where one is not as it must be."""
    signals.heed()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=PARTS, help="of " + ", ".join(PARTS))
    asked = parser.parse_args()
    result: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    name = "door"
    host = lab.up(name, image=engine.image("bookworm", saying.to_stderr), say=saying.to_stderr)
    try:
        with tempfile.TemporaryDirectory() as folder:
            play = playing.command(host, Path(__file__).parent / "served.yml", Path(folder))
            subprocess.run(play, cwd=playing.ROOT, env=playing.ENVIRONMENT, check=True)
            for part in asked.parts:
                said = restarted(host, Path(folder)) if part == "rolled" else _on(host, part)
                saying.to_stderr(f"{part}: {said.strip()}")
                result |= {"commit": commit(), part: json.loads(said)}
                KEPT.write_text(json.dumps(dict(sorted(result.items())), indent=1) + "\n")
    finally:
        lab.down(name)
    told = faults({part: result[part] for part in asked.parts})
    saying.to_stderr("\n".join(told) or "all is as it must be")
    return 1 if told else 0


def _on(host: lab.LabHost, part: str) -> str:
    done = lab.ssh(host, ["/root/crowd.py", part], timeout_s=1800)
    if done.returncode:
        sys.exit(f"{part}: {done.stderr}")
    return done.stdout


if __name__ == "__main__":
    with saying.errors():
        sys.exit(main())
