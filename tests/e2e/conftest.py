"""Fresh hosts, a hub, and what hosts may fetch from.

The tests run in groups that may run at once, each with hosts of its own (`E2E` in tests/run.py). `pair` is the story of two servers, which
builds from test to test. `engines` is that of two others, which change engine and versions. `alone` is that of one server with a gateway.
`models` is that of one with other models, whose packages later serve one without a network. `container` is that of a rented container.
`fleet` is that of three servers which are one service, and `pool` that of two which hold one model together. `controller`, `tune` and
`lab` have short stories.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from r1prov import lab
from r1prov.common import paths
from r1prov.common.locks import locked
from r1prov.lab.base import Release
from r1prov.lab.hosts import LabHost
from tests.fixtures import ollama, saying, shards, surroundings
from tests.fixtures.hub import Hub

from . import offline
from .people import Operator
from .web import web_server


@pytest.fixture(scope="session")
def bootable() -> None:
    """Skips where no host can be booted."""
    if missing := lab.requirements():
        pytest.skip("hosts cannot be booted here: " + "; ".join(f"{p.where}: {p.what}" for p in missing))


@contextmanager
def fresh(names: dict[str, Release], image: str = "", *, container: bool = False) -> Iterator[list[LabHost]]:
    """Fresh hosts by name, as long as this lasts; from an image, where there is one, and as rented containers if wanted."""
    for name in names:
        lab.down(name)
    try:
        with ThreadPoolExecutor() as pool:
            yield list(pool.map(lambda item: lab.up(*item, image=image, container=container), names.items()))
    finally:
        for name in names:
            lab.down(name)


def _group() -> str:
    """The group of tests that this process runs; hosts have its name, because groups may run at once."""
    return os.environ.get("R1PROV_TEST_GROUP", "main")


@pytest.fixture(scope="session")
def pair(bootable: None) -> Iterator[list[LabHost]]:
    """Debian 12 and 13, fresh."""
    with fresh({f"e2e-{_group()}-12": "bookworm", f"e2e-{_group()}-13": "trixie"}) as hosts:
        yield hosts


@pytest.fixture(scope="session")
def alone(bootable: None) -> Iterator[LabHost]:
    """Debian 12, fresh."""
    with fresh({f"e2e-alone-{_group()}": "bookworm"}) as (host,):
        yield host


@pytest.fixture(scope="session")
def neighbour(bootable: None) -> Iterator[LabHost]:
    """A server with nothing on it, which looks at others from outside. With it comes the lab's bridge, where the fixtures below listen."""
    with fresh({f"e2e-neighbour-{_group()}": "bookworm"}) as (host,):
        yield host


@pytest.fixture(scope="session")
def wheels() -> Iterator[Future[Path]]:
    """The chat page's wheels, half a gigabyte: fetched while the first tests run."""
    with ThreadPoolExecutor() as pool:
        yield pool.submit(offline.fetch_wheels, paths.cache_dir() / "wheels")


HUB_TOKEN = "hf_a-token-that-the-hub-demands"


@pytest.fixture(scope="session")
def hub(neighbour: LabHost) -> Iterator[Hub]:
    """The demo's hub on the lab's bridge. It wants HUB_TOKEN."""
    root = paths.cache_dir() / "hub"
    with locked(root.with_name("hub.lock")):  # another group may want the model at the same time
        shards.demo_shards(root)
    with Hub(root, address=lab.GATEWAY, token=HUB_TOKEN) as running:
        yield running


@pytest.fixture(scope="session")
def ollama_releases(neighbour: LabHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A web server with releases of Ollama, as its project publishes them: two real ones, and 9.9.9, which starts and ends at once."""
    root = tmp_path_factory.mktemp("releases")
    for version in (ollama.VERSION, ollama.OTHER_VERSION):
        (root / f"v{version}").symlink_to(ollama.release(version, saying.to_stderr).parent)
    program = tmp_path_factory.mktemp("broken") / "bin" / "ollama"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "ollama version is 9.9.9" && exit\nexit 1\n')
    program.chmod(0o755)
    (root / "v9.9.9").mkdir()
    ollama.pack(program.parents[1], root / "v9.9.9" / ollama.archive_name("9.9.9"))
    with web_server(root) as url:
        yield url


@pytest.fixture(scope="session")
def sources(hub: Hub, ollama_releases: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The `sources` of a site behind this machine, with the hub for the weights, and a place with releases of Ollama."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.touch(mode=0o600)
    token.write_text(f"{HUB_TOKEN}\n")
    return {
        **surroundings.sources(),
        "ollama": {"releases": ollama_releases},
        "weights": [{"type": "hub", "endpoint": hub.url, "token_file": str(token)}],
    }


@pytest.fixture(scope="session")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Operator:
    """The person whose site the pair is."""
    return Operator(tmp_path_factory.mktemp("operator"))


@pytest.fixture(scope="session")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Operator:
    """The person whose site the server with the gateway is."""
    return Operator(tmp_path_factory.mktemp("owner"))


@pytest.fixture(scope="module")
def gateway(owner: Operator, alone: LabHost, sources: dict[str, Any]) -> LabHost:
    """The server with the gateway, set up."""
    behind_tls = {"server_name": alone.address, "tls": {"type": "local-authority"}}
    owner.site([alone], sources=sources, gateway=behind_tls, watch="1h")
    owner.does("up")
    return alone
