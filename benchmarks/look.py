"""Measures what it costs to find that nothing differs on a converged host, beside Ansible with one trivial module there.

    python -m benchmarks.look SITE.yml [HOST ...]

It prints a Markdown table: of each command the least seconds of `RUNS` runs, the seconds of the controller's processor in that run, and the
ratio to Ansible's module `ping`. The commands take turns, so that what else the machine does disturbs all alike.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from r1prov.runs.ansible import playbook_command
from r1prov.site.state import SiteState

RUNS = 3
TRIVIAL = "ansible, one module"


class Cost(NamedTuple):
    """What a command takes: seconds, and seconds of this machine's processor."""

    wall_s: float
    cpu_s: float


def measured(argv: list[str], environment: dict[str, str]) -> Cost:
    """What a command takes that must succeed."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(argv, env={**os.environ, **environment}, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    wall_s, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def commands(site: Path, hosts: list[str]) -> dict[str, tuple[list[str], dict[str, str]]]:
    """By what they are called, the commands over these hosts, each with its environment; over all hosts where none is named."""
    inventory = SiteState.of(site).inventory
    playbook = playbook_command("up", inventory, n_hosts=max(len(hosts), 1), limit=hosts)
    ansible = str(Path(sys.executable).with_name("ansible"))
    r1prov = [sys.executable, "-m", "r1prov.cli"]
    return {
        TRIVIAL: ([ansible, "-i", str(inventory), "-m", "ping", ",".join(hosts) or "all"], {}),
        "r1prov drift": ([*r1prov, "drift", "--site", str(site), *hosts], {}),
        "r1prov up": ([*r1prov, "up", "--site", str(site), *hosts], {}),
        "ansible-playbook playbooks/up.yml": (list(playbook.argv), dict(playbook.env)),
        "r1prov up --full": ([*r1prov, "up", "--full", "--site", str(site), *hosts], {}),
    }


def least(wanted: dict[str, tuple[list[str], dict[str, str]]]) -> dict[str, Cost]:
    """The least that each command takes in several rounds, in which all take turns."""
    found: dict[str, list[Cost]] = {name: [] for name in wanted}
    for _ in range(RUNS):
        for name, command in wanted.items():
            found[name].append(measured(*command))
    return {name: min(costs) for name, costs in found.items()}


def main(site: Path, hosts: list[str]) -> None:
    """Measure, and print the table."""
    found = least(commands(site, hosts))
    sys.stdout.write("| command | seconds | controller's processor, s | ratio |\n|---|---|---|---|\n")
    for name, cost in found.items():
        sys.stdout.write(
            f"| {name} | {cost.wall_s:.1f} | {cost.cpu_s:.1f} | {cost.wall_s / found[TRIVIAL].wall_s:.1f} |\n"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
