"""A throwaway server for a long proof, with what a site needs around it. It stays for the next call, as does its site."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

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
    """The operator of a server with a gateway that `r1prov up` has brought to its state."""
    with server(f"{NAME}-{release}", release, HUB_PORTS[release]) as (operator, host, sources):
        archive = ollama.release(ollama.VERSION, saying.to_stderr)
        gateway = {"server_name": host.address, "tls": {"type": "local-authority"}}
        operator.site([host], sources={**sources, "ollama": {"archive": str(archive)}}, gateway=gateway)
        operator.does("up")
        yield operator, host


@contextmanager
def server(name: str, release: lab.Release, port: int) -> Iterator[tuple[Operator, LabHost, dict[str, Any]]]:
    """An operator, a server with a compiled engine that nobody has set up yet, and the `sources` of a site. The hub has this port."""
    hub = paths.cache_dir() / "hub"
    shards.demo_shards(hub)
    found = [host for host in lab.hosts() if host.name == name and host.running]
    folder = paths.state_dir() / name
    if not found:  # The site of an earlier host has another address, which its certificates name.
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    host = found[0] if found else lab.up(name, release, image=engine.image(release, saying.to_stderr))
    weights = [{"type": "hub", "endpoint": f"http://{lab.GATEWAY}:{port}"}]
    with Hub(hub, address=lab.GATEWAY, port=port):
        yield Operator(folder), host, {**surroundings.sources(), "weights": weights}
