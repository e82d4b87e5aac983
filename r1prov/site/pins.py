"""What exactly a version is that r1prov does not come with: asked of the package index once, kept with the site, checked from then on."""

from __future__ import annotations

import os
import re
import subprocess
import urllib.request
from typing import TYPE_CHECKING

import uv

from r1prov.common import paths
from r1prov.common.errors import Problem, SiteError
from r1prov.common.files import write_whole
from r1prov.site import TESTED_LLAMA_CPP, TESTED_OPEN_WEBUI

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from r1prov.site import Site

_TIMEOUT_S = 60


def open_webui(site: Site) -> str:
    """The name of the file with Open-WebUI's pins; empty where the role's own hold."""
    version = site.file.versions.open_webui
    return f"open-webui-{version}.txt" if site.file.open_webui.enabled and version != TESTED_OPEN_WEBUI else ""


def llama_cpp(site: Site) -> str:
    """The name of the file with the sha256 of llama.cpp's source archive; empty where it is known without."""
    source, version = site.file.sources.llama_cpp, site.file.llama_cpp_version
    known = source.type != "pypi" or source.sha256 or version == TESTED_LLAMA_CPP["pypi"]
    return "" if known else f"llama-cpp-python-{version}.sha256"


def keep(site: Site, folder: Path) -> list[Path]:
    """See that all pins that the site needs lie in `folder`.

    Returns:
        the files that were made, by what the site's package index said, asked from this machine.

    Raises:
        SiteError: the index cannot be asked, or has no such version.
    """
    index = site.file.sources.pypi.index
    wanted: dict[str, Callable[[], str]] = {
        llama_cpp(site): lambda: _sdist_sha256(index, site.file.llama_cpp_version),
        open_webui(site): lambda: _requirements(index, site.file.versions.open_webui),
    }
    made = []
    for name, ask in wanted.items():
        path = folder / name
        if name and not path.is_file():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            made.append(write_whole(path, ask()))
    return made


def _requirements(index: str, version: str) -> str:
    """Open-WebUI and all that it needs, each with its digests, without torch: as the role's own file was made."""
    files = paths.collection() / "roles" / "open_webui" / "files"
    command = [uv.find_uv_bin(), "pip", "compile", "--quiet", "--generate-hashes", "--no-annotate", "--no-header"]
    command += ["--override", str(files / "overrides.txt")]
    command += ["--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28", "-"]
    done = subprocess.run(
        command,
        input=f"open-webui=={version}\n",
        env=os.environ | {"UV_DEFAULT_INDEX": index, "UV_SYSTEM_CERTS": "1", "UV_NO_CONFIG": "1", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = " ".join(line.strip(" ×╰─▶") for line in done.stderr.splitlines())  # noqa: RUF001 - as uv draws them
        raise SiteError(
            Problem(f"Open-WebUI {version}", f"cannot be pinned: {said}", "correct the version, or sources.pypi.index")
        )
    return done.stdout


def _sdist_sha256(index: str, version: str) -> str:
    """The digest of llama-cpp-python's source archive, as the index's page about it says (PEP 503)."""
    page, archive = f"{index.rstrip('/')}/llama-cpp-python/", f"llama_cpp_python-{version}.tar.gz"
    # An index is a web address: the site's keys see to that.
    request = urllib.request.Request(page, headers={"Accept": "text/html", "User-Agent": "r1prov"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            text = answer.read().decode()
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise SiteError(
            Problem(
                f"llama-cpp-python {version}", f"the package index cannot be asked for its sha256: {reason}", _REMEDY
            )
        ) from None
    match = re.search(rf'/{re.escape(archive)}#sha256=([0-9a-f]{{64}})"', text)
    if not match:
        raise SiteError(Problem(f"llama-cpp-python {version}", f"the package index has no {archive}", _REMEDY))
    return match[1]


_REMEDY = "correct the version or sources.pypi.index, or name sources.llama_cpp.sha256"
