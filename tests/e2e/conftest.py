"""Two fresh hosts, Debian 12 and 13, a hub, and `r1prov` as a user runs it: a program with files, not imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from r1prov import lab
from r1prov.common import paths
from r1prov.lab.hosts import LabHost
from tests.fixtures import ollama, shards, surroundings
from tests.fixtures.hub import Hub

from . import offline
from .web import web_server


@dataclass
class Operator:
    """A person with a folder, a site file in it, and a shell."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def site(self, hosts: list[LabHost], **keys: Any) -> Path:
        """Write r1prov.yml for these hosts."""
        entries = [entry(host) for host in hosts]
        path = self.folder / "r1prov.yml"
        path.write_text(yaml.safe_dump({"profile": "demo", "hosts": entries, **keys}, sort_keys=False))
        return path

    def run(self, *arguments: str, stdin: str = "", limit_s: float = 2400) -> subprocess.CompletedProcess[str]:
        """`r1prov ARGUMENTS` in the folder."""
        return subprocess.run(
            [sys.executable, "-m", "r1prov.cli", *arguments],
            cwd=self.folder,
            env={**os.environ, "XDG_STATE_HOME": str(self.folder / "state"), **self.environment},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )

    def report(self) -> dict[str, Any]:
        """What the last `up` reported."""
        return json.loads((self.folder / ".r1prov" / "reports" / "last.json").read_text())


def entry(host: LabHost) -> dict[str, str]:
    """A lab host as a site file names it."""
    return {"name": host.name, "address": host.address, "user": "root", "identity_file": str(host.key)}


@pytest.fixture(scope="session")
def pair() -> Iterator[list[LabHost]]:
    """Debian 12 and 13, fresh."""
    if missing := lab.requirements():
        pytest.skip("hosts cannot be booted here: " + "; ".join(f"{p.where}: {p.what}" for p in missing))
    names = {"e2e-12": "bookworm", "e2e-13": "trixie"}
    for name in names:
        lab.down(name)
    with ThreadPoolExecutor() as pool:
        hosts = list(pool.map(lambda item: lab.up(*item), names.items()))
    yield hosts
    for name in names:
        lab.down(name)


@pytest.fixture(scope="session")
def wheels() -> Iterator[Future[Path]]:
    """The chat page's wheels, half a gigabyte: fetched while the first tests run."""
    with ThreadPoolExecutor() as pool:
        yield pool.submit(offline.fetch_wheels, paths.cache_dir() / "wheels")


@pytest.fixture(scope="session")
def hub(pair: list[LabHost]) -> Iterator[Hub]:
    """The demo's hub on the lab's bridge."""
    root = paths.cache_dir() / "hub"
    shards.demo_shards(root)
    with Hub(root, address=lab.GATEWAY, port=8099) as running:
        yield running


@pytest.fixture(scope="session")
def ollama_releases(pair: list[LabHost], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A web server with releases of Ollama, as its project publishes them: two real ones, and 9.9.9, which starts and ends at once."""
    root = tmp_path_factory.mktemp("releases")
    for version in (ollama.VERSION, ollama.OTHER_VERSION):
        (root / f"v{version}").symlink_to(ollama.release(version, sys.stderr.write).parent)
    program = tmp_path_factory.mktemp("broken") / "bin" / "ollama"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "ollama version is 9.9.9" && exit\nexit 1\n')
    program.chmod(0o755)
    (root / "v9.9.9").mkdir()
    ollama.pack(program.parents[1], root / "v9.9.9" / ollama.archive_name("9.9.9"))
    with web_server(root) as url:
        yield url


@pytest.fixture(scope="session")
def sources(hub: Hub, ollama_releases: str) -> dict[str, Any]:
    """The `sources` of a site behind this machine, with the hub for the weights, and a place with releases of Ollama."""
    return {
        **surroundings.sources(),
        "ollama": {"releases": ollama_releases},
        "weights": [{"type": "hub", "endpoint": hub.url}],
    }


@pytest.fixture(scope="session")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Operator:
    """The person whose site this is."""
    return Operator(tmp_path_factory.mktemp("operator"))
