"""uv, the installer of Python packages: how it is brought to a host, and how it installs wheels that a requirements file pins by hash."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import zipfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.r1.prov.plugins.module_utils.artefact import Artefact, index_url, without_credentials
from ansible_collections.r1.prov.plugins.module_utils.release import ReleaseError

if TYPE_CHECKING:
    from ansible_collections.r1.prov.plugins.module_utils.progress import Progress

# As in requirements.lock. The sha256 is that of the wheel for Linux on x86-64.
VERSION = "0.13.9"
SHA256 = "d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19"
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_LOG_LINES = 8


def kept(cache: Path) -> Path:
    """The folder in a cache with what uv keeps. uv links files out of it, and never compares them with what they were."""
    return cache / "uv"


class Uv:
    """uv on this host. Its program is fetched when it is first needed.

    Args:
        cache: holds uv, what uv keeps, and in `sources/wheels` the wheels that make the network needless.
        progress: is told what uv downloads.
    """

    def __init__(self, cache: Path, progress: Progress) -> None:
        self._cache, self._progress = cache, progress
        self._wheels = cache / "sources" / "wheels"

    def install(self, requirements: Path, *where: str) -> None:
        """Installs pinned wheels. The network is not touched where all of them lie on the host.

        Args:
            requirements: a requirements file with hashes. It names every package that is to be there.
            where: arguments that say where to install, such as `--target FOLDER`.

        Raises:
            ReleaseError: uv says no. The message holds its last words.
            ArtefactError: uv itself cannot be had.
        """
        pins = pinned(requirements.read_text(encoding="utf-8"))
        command = ["pip", "install", "--no-deps", "--require-hashes", "--only-binary", ":all:", *where]
        here = {tuple(file.name.lower().split("-")[:2]) for file in self._wheels.glob("*.whl")}
        if here.issuperset(pins.items()):
            command += ["--offline", "--no-index", "--find-links", str(self._wheels)]
        self.run([*command, "--requirements", str(requirements)])

    def run(self, arguments: list[str]) -> None:
        """Runs uv. What it says it downloads becomes the progress.

        Raises:
            ReleaseError, ArtefactError: see `install`.
        """
        # uv makes lock files that everybody may write to: in its cache, in the folder for temporary files, and where it installs.
        own = kept(self._cache)
        temporary = own / "tmp"
        for folder in (own, temporary):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
        environment = {
            **os.environ,
            "TMPDIR": str(temporary),
            "UV_CACHE_DIR": str(own),
            "UV_DEFAULT_INDEX": index_url(),
            "UV_NO_CONFIG": "1",
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_SYSTEM_CERTS": "1",
            "UV_HTTP_TIMEOUT": "60",
            "NO_COLOR": "1",
        }
        if "PIP_CERT" in environment:
            environment.setdefault("SSL_CERT_FILE", environment["PIP_CERT"])
        command = ["nice", "-n", "10", self._program, *arguments]  # whatever serves on this host goes first
        lines: list[str] = []
        sizes: dict[str, int] = {}
        done: set[str] = set()
        self._progress.begin("installing", 0, "bytes")
        with subprocess.Popen(
            command,
            env=environment,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            for line in process.stdout or ():
                lines.append(line.rstrip())
                if found := fetched_bytes(line):
                    project, size = found
                    if size:
                        sizes[project] = size
                    else:
                        done.add(project)
                    self._progress.update(sum(sizes.get(name, 0) for name in done), sum(sizes.values()))
        if process.returncode:
            said = without_credentials("\n".join(lines[-_LOG_LINES:]))
            raise ReleaseError(f"{said}\n{advice(said)}")

    @cached_property
    def _program(self) -> str:
        """The program, out of its verified wheel."""
        program = self._cache / f"uv-{VERSION}"
        wheel = Artefact(f"pypi:uv=={VERSION}", SHA256, "PIP_INDEX_URL").fetch(self._wheels, self._progress)
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(f"uv-{VERSION}.data/scripts/uv") as packed,
            tempfile.NamedTemporaryFile(dir=program.parent, delete=False) as new,
        ):
            shutil.copyfileobj(packed, new, 1 << 20)
        Path(new.name).chmod(0o755)
        Path(new.name).replace(program)
        return str(program)


def pinned(requirements: str) -> dict[str, str]:
    """The version of each project in the text of a requirements file. Projects are spelt as wheels spell them."""
    pins = re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==([^\s;\\]+)", requirements, re.MULTILINE)
    return {re.sub(r"[-_.]+", "_", name).lower(): version for name, version in pins}


def fetched_bytes(line: str) -> tuple[str, int] | None:
    """What a line of uv says of a large download: the project, and its bytes or 0 when it is there. None for any other line."""
    if begun := re.match(r"Downloading (\S+) \(([\d.]+)(B|KiB|MiB|GiB)\)", line):
        return begun[1], int(float(begun[2]) * _UNITS[begun[3]])
    if ended := re.match(r" Downloaded (\S+)", line):
        return ended[1], 0
    return None


def advice(said: str) -> str:
    """What to do about what uv complains of."""
    if "No space left" in said:
        return "The disk is full: free some space and run again."
    if "hash mismatch" in said.lower():
        return "The package index sends other files than the pinned ones; another index may be right (PIP_INDEX_URL)."
    if "not found in the package registry" in said or "no versions of" in said or "no version of" in said:
        return "The package index lacks it: another may have it (PIP_INDEX_URL), or correct the requirements."
    if re.search(r"error sending request|dns error|timed out|connect|certificate", said, re.IGNORECASE):
        return "Check PIP_INDEX_URL, the proxy and the host's network, then run again: it goes on where it was."
    return "Run again; what was fetched is kept."
