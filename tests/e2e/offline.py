"""What an operator carries to a place without a network: packages, sources and weights in a folder, and a web server for it."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from r1prov.common import paths
from r1prov.lab.hosts import LabHost
from r1prov.site import TESTED_LLAMA_CPP
from tests.fixtures import ollama, saying, shards, surroundings

from .web import web_server


@contextmanager
def artefacts(folder: Path, like: LabHost, wheels: Path) -> Iterator[dict[str, Any]]:
    """The `sources` of a site that has only the lab's bridge: archives as files, a web server with packages, wheels and weights.

    `like` is a host of the same release that has been provisioned: its apt archive has the packages.
    """
    archive = _sdist()
    packages = folder / "apt"
    _flat_repository(packages, like)
    _index(folder / "simple", wheels)
    quant = shards.demo_shards(paths.cache_dir() / "hub")
    (folder / quant.folder).symlink_to(paths.cache_dir() / "hub" / quant.repo / quant.folder)
    with web_server(folder) as url:
        yield {
            "ca_certificates": surroundings.sources().get("ca_certificates", []),
            "apt": {"mirror": f"deb [trusted=yes] {url}/apt ./"},
            "pypi": {"index": f"{url}/simple"},
            "llama_cpp": {
                "type": "archive",
                "archive": str(archive),
                "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
            },
            "ollama": {"archive": str(ollama.release(ollama.VERSION, saying.to_stderr))},
            "weights": [{"type": "http", "url": url}],
        }


def fetch_wheels(folder: Path) -> Path:
    """Fill a folder with all wheels that the chat page is made of, as `pip download` does it, and uv, which installs them."""
    role = paths.collection() / "roles/open_webui"
    uv = paths.module_util("uv").VERSION
    tags = ("manylinux_2_28", "manylinux_2_17", "manylinux_2_5", "manylinux1")
    platforms = [word for tag in tags for word in ("--platform", f"{tag}_x86_64")]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder), "--no-deps"]
    command += ["--only-binary", ":all:", "--python-version", "3.11", *platforms]
    for wanted in (("--requirement", str(role / "files/requirements.txt")), (f"uv=={uv}",)):
        subprocess.run([*command, *wanted], check=True)
    return folder


def _index(folder: Path, wheels: Path) -> None:
    """A package index as PEP 503 has it, of a folder of wheels."""
    for wheel in wheels.glob("*.whl"):
        project = re.sub(r"[-_.]+", "-", wheel.name.partition("-")[0]).lower()
        (folder / project).mkdir(parents=True, exist_ok=True)
        (folder / project / wheel.name).symlink_to(wheel)
        with (folder / project / "index.html").open("a") as page:
            page.write(f'<a href="{wheel.name}">{wheel.name}</a>\n')


def _sdist() -> Path:
    """The sdist that the earlier runs have downloaded; the lab keeps sources across hosts."""
    return paths.cache_dir() / "sources" / f"llama_cpp_python-{TESTED_LLAMA_CPP['pypi']}.tar.gz"


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
