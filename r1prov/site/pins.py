"""Digests of the versions that r1prov does not come with.

The package index is asked for them once. They are kept with the site, and what a host fetches must have them from then on.
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import httpx
import uv

from r1prov.common import paths
from r1prov.common.errors import Problem, SiteError
from r1prov.common.files import write_whole
from r1prov.common.network import reason
from r1prov.site import TESTED_LLAMA_CPP, TESTED_OPEN_WEBUI

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from r1prov.common.network import Network
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
    """See that `folder` has all the pins that the site needs. What is missing is asked of the site's package index, from this machine.

    Returns:
        the files that were made.

    Raises:
        SiteError: the index cannot be asked, or has no such version.
    """
    index, network = site.file.sources.pypi.index, site.file.sources.network()
    wanted: dict[str, Callable[[], str]] = {
        llama_cpp(site): lambda: _sdist_sha256(index, site.file.llama_cpp_version, network),
        open_webui(site): lambda: _requirements(index, site.file.versions.open_webui, network),
    }
    made = []
    for name, ask in wanted.items():
        path = folder / name
        if name and not path.is_file():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            made.append(write_whole(path, ask()))
    return made


def _requirements(index: str, version: str, network: Network) -> str:
    """Open-WebUI and all that it needs except torch, each with its digests, resolved as the role's own file was."""
    files = paths.collection() / "roles" / "open_webui" / "files"
    command = [uv.find_uv_bin(), "pip", "compile", "--quiet", "--generate-hashes", "--no-annotate", "--no-header"]
    command += ["--override", str(files / "overrides.txt")]
    command += ["--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28", "-"]
    settings = {"UV_DEFAULT_INDEX": index, "UV_SYSTEM_CERTS": "1", "UV_NO_CONFIG": "1", "NO_COLOR": "1"}
    done = subprocess.run(
        command,
        input=f"open-webui=={version}\n",
        env=os.environ | settings | network.environment(),
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


def _sdist_sha256(index: str, version: str, network: Network) -> str:
    """The digest of llama-cpp-python's source archive, as the index's page about the project says."""
    import pypi_simple  # noqa: PLC0415 - half a second that only this needs

    name, page = f"llama-cpp-python {version}", f"{index.rstrip('/')}/llama-cpp-python/"
    try:
        with network.client(_TIMEOUT_S) as client:
            answer = client.get(page, headers={"Accept": pypi_simple.ACCEPT_ANY}).raise_for_status()
        if "json" in answer.headers.get("Content-Type", ""):
            project = pypi_simple.ProjectPage.from_json_data(answer.json(), str(answer.url))
        else:
            project = pypi_simple.ProjectPage.from_html("llama-cpp-python", answer.content, str(answer.url))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        what = f"the package index cannot be asked for its sha256: {reason(error)}"
        raise SiteError(Problem(name, what, _REMEDY)) from None
    except (ValueError, pypi_simple.UnsupportedRepoVersionError) as error:
        raise SiteError(Problem(name, f"the package index's page about it cannot be read: {error}", _REMEDY)) from None
    for package in project.packages:
        if package.package_type == "sdist" and package.version == version:
            if sha256 := package.digests.get("sha256"):
                return sha256
            raise SiteError(Problem(name, f"the package index has no sha256 of {package.filename}", _REMEDY))
    raise SiteError(Problem(name, "the package index has no source archive of it", _REMEDY))


_REMEDY = "correct the version or sources.pypi.index, or name sources.llama_cpp.sha256"
