"""What an operator carries to a place without a network: packages, sources and weights in a folder, and a web server for it."""

from __future__ import annotations

import hashlib
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from r1prov import lab, paths
from r1prov.lab import shards, surroundings
from r1prov.lab.hosts import LabHost


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def artefacts(folder: Path, like: LabHost) -> Iterator[dict[str, Any]]:
    """The `sources` of a site that has only the lab's bridge: an apt mirror, the sdist as a file, a web server with the weights.

    `like` is a host of the same release that has been provisioned: its apt archive has the packages.
    """
    archive = _sdist()
    packages = folder / "apt"
    _flat_repository(packages, like)
    quant = shards.demo_shards(paths.cache_dir() / "hub")
    (folder / quant.folder).symlink_to(paths.cache_dir() / "hub" / quant.repo / quant.folder)
    server = ThreadingHTTPServer((lab.GATEWAY, 0), partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://{lab.GATEWAY}:{server.server_port}"
    try:
        yield {
            "ca_certificates": surroundings.sources().get("ca_certificates", []),
            "apt": {"mirror": f"deb [trusted=yes] {url}/apt ./"},
            "llama_cpp": {
                "type": "archive",
                "archive": str(archive),
                "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
            },
            "weights": [{"type": "http", "url": url}],
        }
    finally:
        server.shutdown()


def _sdist() -> Path:
    """The sdist that the earlier runs have downloaded; the lab keeps sources across hosts."""
    (archive,) = (paths.cache_dir() / "sources").glob("llama_cpp_python-*.tar.gz")
    return archive


def _flat_repository(folder: Path, like: LabHost) -> None:
    """A repository as apt's `./` form has it: packages beside an index of them."""
    folder.mkdir(parents=True)
    entries = []
    for package in sorted((like.directory / "upper/var/cache/apt/archives").glob("*.deb")):
        (folder / package.name).hardlink_to(package)
        control = subprocess.run(["dpkg-deb", "-f", package], capture_output=True, text=True, check=True).stdout
        digest = hashlib.sha256(package.read_bytes()).hexdigest()
        entries.append(f"{control}Filename: ./{package.name}\nSize: {package.stat().st_size}\nSHA256: {digest}\n")
    (folder / "Packages").write_text("\n".join(entries))
