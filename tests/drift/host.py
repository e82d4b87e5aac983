"""A converged throwaway server with a gateway, for the whole matrix."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from r1prov import lab
from r1prov.common import paths
from tests.e2e.people import Operator
from tests.fixtures import engine, ollama, saying, shards, surroundings
from tests.fixtures.hub import Hub

if TYPE_CHECKING:
    from collections.abc import Iterator

    from r1prov.lab.hosts import LabHost

NAME = "drift"
HUB_PORTS = {"bookworm": 8091, "trixie": 8092}


@contextmanager
def converged(release: lab.Release) -> Iterator[tuple[Operator, LabHost]]:
    """The operator of a server that `r1prov up` has brought to its state. The server stays for the next call, as does its site."""
    hub = paths.cache_dir() / "hub"
    shards.demo_shards(hub)
    name = f"{NAME}-{release}"
    found = [host for host in lab.hosts() if host.name == name]
    folder = paths.state_dir() / name
    if not found:  # The site of an earlier host has another address, which its certificates name.
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    host = found[0] if found else lab.up(name, release, image=engine.image(release, saying.to_stderr))
    operator = Operator(Path(folder))
    archive = ollama.release(ollama.VERSION, saying.to_stderr)
    weights = [{"type": "hub", "endpoint": f"http://{lab.GATEWAY}:{HUB_PORTS[release]}"}]
    sources = {**surroundings.sources(), "ollama": {"archive": str(archive)}, "weights": weights}
    operator.site([host], sources=sources, gateway={"server_name": host.address, "tls": {"type": "local-authority"}})
    with Hub(hub, address=lab.GATEWAY, port=HUB_PORTS[release]):
        operator.does("up")
        yield operator, host
