"""Measures what a hundred hosts cost one controller: the first contact, a look at all, and a run that finds nothing to do.

    python -m benchmarks.many [NAMES [HOSTS]]

There is no room for so many hosts here. So a few throwaway hosts, four where no number is given, each have many names, with an sshd for
each name at a port of its own. Each name is met, looked at and told of as a host is. Nothing is changed on them meanwhile. The looking
itself happens on the hosts, which share the processors with the controller: the table has the controller's own.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from benchmarks.clones import booted
from benchmarks.look import TRIVIAL, commands, least
from r1prov import lab
from r1prov.site.state import SiteState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any

FIRST_PORT = 2201
VERBS = ("r1prov drift", "r1prov up")


def entries(hosts: Sequence[lab.LabHost], count: int) -> list[dict[str, Any]]:
    """So many names, shared out among the hosts: the entries of the site file."""
    return [
        {
            "name": f"name-{number}",
            "address": (host := hosts[number % len(hosts)]).address,
            "port": FIRST_PORT + number // len(hosts),
            "user": "root",
            "identity_file": str(host.key),
        }
        for number in range(count)
    ]


def listen(host: lab.LabHost, ports: int) -> None:
    """Runs an sshd for each name of a host."""
    script = "; ".join(f"/usr/sbin/sshd -p {FIRST_PORT + number}" for number in range(ports))
    lab.ssh(host, ["sh", "-ec", script]).check_returncode()


def share(state: SiteState, names: Sequence[str], hosts: int) -> None:
    """Lets each name be known as the first name of its host is, to which a run has brought everything."""
    for number, name in enumerate(names[hosts:], hosts):
        first = names[number % hosts]
        for kind in ("looks", "settled", "machines"):
            told = json.loads((state.root / kind / f"{first}.json").read_text())
            (state.root / kind / f"{name}.json").write_text(json.dumps(told))


def table(site: Path, names: Sequence[str]) -> str:
    """The table of one name, ten, and all."""
    sizes = [size for size in (1, 10, len(names)) if size <= len(names)]
    found = {size: commands(site, [*names[:size]]) for size in sizes}
    costs = least({f"{verb} {size}": found[size][verb] for verb in (TRIVIAL, *VERBS) for size in sizes})
    lines = [
        "| command | hosts | seconds | controller's processor, s | of it for each further host, s |",
        "|---|---|---|---|---|",
    ]
    for verb in (TRIVIAL, *VERBS):
        one = costs[f"{verb} 1"]
        for size in sizes:
            cost = costs[f"{verb} {size}"]
            further = f"{(cost.cpu_s - one.cpu_s) / (size - 1):.3f}" if size > 1 else ""
            lines.append(f"| {verb} | {size} | {cost.wall_s:.1f} | {cost.cpu_s:.1f} | {further} |")
    return "\n".join(lines)


def main(count: int, n_hosts: int) -> None:
    """Makes the hosts, measures, and prints the table."""
    with booted(n_hosts) as (hosts, sources, operator):
        for host in hosts:
            listen(host, -(-count // n_hosts))
        site, asked = operator.site([], sources=sources), entries(hosts, count)
        site.write_text(site.read_text().replace("hosts: []", f"hosts: {json.dumps(asked)}"))
        names = [entry["name"] for entry in asked]
        operator.does("up", *names[:n_hosts])
        share(SiteState.of(site), names, n_hosts)
        sys.stdout.write(f"{table(site, names)}\n")


if __name__ == "__main__":
    main(*(int(each) for each in (*sys.argv[1:], *("100", "4")[len(sys.argv) - 1 :])))
