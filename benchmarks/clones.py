"""Measures what it costs to find that nothing differs on several hosts, beside one of them.

    python -m benchmarks.clones [HOSTS]

One throwaway host is brought to its state and kept as an image, and so many hosts boot from it: ten where no number is given. It takes
half an hour, and a GB of RAM for each host. It prints a Markdown table: of each command the seconds over one host and over all, their
ratio, and by how many seconds of the controller's processor each further host adds. The hosts' own work is on the same processors.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.look import TRIVIAL, commands, least
from r1prov import lab
from r1prov.common import paths
from tests.e2e.people import Operator
from tests.fixtures import engine, ollama, saying, shards, surroundings
from tests.fixtures.hub import Hub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

IMAGE = "converged"
PORT = 8095
QUIET = ("r1prov drift", "r1prov up", "ansible-playbook playbooks/up.yml")


@contextmanager
def booted(count: int) -> Iterator[tuple[list[lab.LabHost], dict[str, Any], Operator]]:
    """So many clones of one host that was brought to its state, the sources of their site, and an operator. All goes at the end."""
    hub, names = paths.cache_dir() / "hub", [f"clone-{number}" for number in range(1, count + 1)]
    shards.demo_shards(hub)
    weights = [{"type": "hub", "endpoint": f"http://{lab.GATEWAY}:{PORT}"}]
    archive = ollama.release(ollama.VERSION, saying.to_stderr)
    sources = {**surroundings.sources(), "weights": weights, "ollama": {"archive": str(archive)}}
    image = engine.image("bookworm", saying.to_stderr)
    first = lab.up("clone", image=image, say=saying.to_stderr)  # The network of the hub is there with the first host.
    try:
        with tempfile.TemporaryDirectory() as folder, Hub(hub, address=lab.GATEWAY, port=PORT):
            before = Operator(Path(tempfile.mkdtemp(dir=folder)))
            before.site([first], sources=sources)
            before.does("up")
            lab.keep(first.name, IMAGE, say=saying.to_stderr)
            hosts = [lab.up(name, image=IMAGE) for name in names]
            yield hosts, sources, Operator(Path(tempfile.mkdtemp(dir=folder)))
    finally:
        for name in (first.name, *names):
            lab.down(name)
        lab.forget(IMAGE, "bookworm")


def table(site: Path, hosts: list[str]) -> str:
    """The table of a site in which nothing differs."""
    groups = {"one": commands(site, hosts[:1]), "all": commands(site, hosts)}
    found = least({f"{name} {group}": each[name] for name in (TRIVIAL, *QUIET) for group, each in groups.items()})
    lines = [
        f"| command | 1 host, s | {len(hosts)} hosts, s | ratio | processor of each further host, s |",
        "|---|---|---|---|---|",
    ]
    for name in (TRIVIAL, *QUIET):
        one, every = found[f"{name} one"], found[f"{name} all"]
        further = (every.cpu_s - one.cpu_s) / max(len(hosts) - 1, 1)
        lines.append(
            f"| {name} | {one.wall_s:.1f} | {every.wall_s:.1f} | {every.wall_s / one.wall_s:.1f} | {further:.2f} |"
        )
    return "\n".join(lines)


def main(count: int) -> None:
    """Makes the hosts, measures, and prints the table."""
    with booted(count) as (hosts, sources, operator):
        site = operator.site(hosts, sources=sources)
        operator.does("up")
        sys.stdout.write(f"{table(site, [host.name for host in hosts])}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
