"""Releases that uv makes of wheels which a requirements file pins by hash: the chat page's environment, and a CUDA toolkit."""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.r1.prov.plugins.module_utils import release
from ansible_collections.r1.prov.plugins.module_utils.release import ReleaseError
from ansible_collections.r1.prov.plugins.module_utils.uv import Uv, kept

if TYPE_CHECKING:
    from ansible_collections.r1.prov.plugins.module_utils.progress import Progress

_IMPORT = "import open_webui.main; from open_webui.env import VERSION; print(VERSION)"


class OpenWebui(release.Build):
    """The chat page in a virtual environment of its own.

    Args:
        wanted: the option `open_webui` of the module `release`.
        version: what the page must say it is.
        cache: the folder for downloads.
    """

    def __init__(self, wanted: dict[str, Any], version: str, cache: Path) -> None:
        self._wanted, self._version, self._cache = wanted, version, cache
        decides = f"{wanted['requirements_sha256']} {wanted['python']}"
        self.shares = kept(cache)
        self.id = f"{version}-{hashlib.sha256(decides.encode()).hexdigest()[:12]}"
        self.record = {"requirements": wanted["requirements_sha256"], "python": wanted["python"]}

    def fill(self, folder: Path, progress: Progress) -> None:
        """Makes the environment, and imports the page as its service will."""
        uv = Uv(self._cache, progress)
        uv.run(["venv", "--quiet", "--relocatable", "--python", self._wanted["python"], str(folder)])
        python = f"{folder}/bin/python"
        uv.install(Path(self._wanted["requirements"]), "--python", python)
        (folder / ".lock").unlink(missing_ok=True)  # uv's, which everybody may write to
        progress.begin("trying it", 0, "steps")
        # The import also leaves the compiled modules, which the service may not write.
        with tempfile.TemporaryDirectory() as scratch:
            environment = {
                "PATH": "/usr/bin:/bin",
                "HOME": scratch,
                "DATA_DIR": scratch,
                "STATIC_DIR": f"{scratch}/static",
                "FROM_INIT_PY": "true",  # as the page's own program does it
                "WEBUI_SECRET_KEY": "unused",
                "HF_HUB_OFFLINE": "1",
                "OFFLINE_MODE": "True",
            }
            said = release.tried([python, "-c", _IMPORT], environment, Path(scratch))
        if (version := said.split()[-1]) != self._version:
            raise ReleaseError(
                f"it says it is {version}, not {self._version}. Correct open_webui_version or open_webui_requirements."
            )


class CudaToolkit(release.Build):
    """A CUDA toolkit out of NVIDIA's wheels, in the form that CMake and nvcc understand.

    Args:
        wanted: the option `cuda_toolkit` of the module `release`.
        version: the toolkit's version, for its name.
        cache: the folder for downloads.
    """

    def __init__(self, wanted: dict[str, Any], version: str, cache: Path) -> None:
        self._wanted, self._cache = wanted, cache
        self.shares = kept(cache)
        self.id = f"{version}-{wanted['requirements_sha256'][:12]}"
        self.record = {"requirements": wanted["requirements_sha256"]}

    def fill(self, folder: Path, progress: Progress) -> None:
        """Installs the wheels, puts what they have below `nvidia/cuNN/` where a toolkit has it, and asks the compiler its version."""
        wheels = folder / "wheels"
        # The wheels fit every Python, but uv wants to know one.
        Uv(self._cache, progress).install(
            Path(self._wanted["requirements"]), "--python", sys.executable, "--target", str(wheels)
        )
        for part in wheels.glob("nvidia/cu*/*"):
            part.rename(folder / part.name)
        shutil.rmtree(wheels)
        link_libraries(folder)
        release.tried([folder / "bin" / "nvcc", "--version"])


def link_libraries(toolkit: Path) -> None:
    """Makes what the wheels leave out and CMake looks for: `lib64`, and library names without a version."""
    (toolkit / "lib64").symlink_to("lib")
    for library in (toolkit / "lib").glob("*.so.*"):
        plain = library.with_name(library.name.partition(".so.")[0] + ".so")
        if not plain.exists():
            plain.symlink_to(library.name)
