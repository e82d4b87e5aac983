"""Digests of the versions that a site has installed.

Whoever publishes a version is asked for its digest once, by this machine. The digest is kept with the site, and what any host fetches must
have it from then on. So a server that changes a version later, or that shows each host another, is refused. r1prov comes with the digests
of the tested versions, for which nobody is asked.
"""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import uv

from r1prov.common import paths
from r1prov.common.errors import Problem, SiteError
from r1prov.common.files import write_whole
from r1prov.common.network import reason, without_login
from r1prov.site import TESTED_LLAMA_CPP, TESTED_OLLAMA, TESTED_OLLAMA_SHA256, TESTED_OPEN_WEBUI, versions

if TYPE_CHECKING:
    from collections.abc import Callable

    from r1prov.common.network import Network
    from r1prov.site import Site

_TIMEOUT_S = 60


def open_webui(site: Site) -> str:
    """The name of the file with Open-WebUI's pins; empty where the role's own hold."""
    version = site.file.versions.open_webui
    return f"open-webui-{version}.txt" if site.file.open_webui.enabled and version != TESTED_OPEN_WEBUI else ""


def llama_cpp(site: Site) -> str:
    """The name of the file with the sha256 of llama.cpp's source archive, or the commit of its tag; empty where it is known without."""
    source, version = site.file.sources.llama_cpp, site.file.llama_cpp_version
    if source.type == "git":
        return "" if re.fullmatch(r"[0-9a-f]{40}", version) else f"llama.cpp-{version}.commit"
    known = source.type != "pypi" or source.sha256 or version == TESTED_LLAMA_CPP["pypi"]
    return "" if known else f"llama-cpp-python-{version}.sha256"


def ollama(site: Site) -> str:
    """The name of the file with the sha256 of Ollama's archive; empty where the site file names it, or has no Ollama."""
    known = not site.file.ollama.enabled or site.file.sources.ollama.sha256
    return "" if known else f"ollama-{site.file.versions.ollama}.sha256"


def keep(site: Site, folder: Path) -> list[Path]:
    """See that `folder` has all the pins that the site's hosts need. What is missing is asked of the site's sources, from this machine.

    Of a program that a host does not have, nobody is asked: a version may be there from other sources only.

    Returns:
        the files that were made.

    Raises:
        SiteError: a source cannot be asked, or has no such version.
    """
    network = site.file.sources.network()
    made = []
    asks: dict[str, tuple[Callable[[Site], str], Callable[[Site, Network], str]]] = {
        "llama_cpp": (llama_cpp, _commit if site.file.sources.llama_cpp.type == "git" else _sdist_sha256),
        "ollama": (ollama, _ollama_sha256),
        "open_webui": (open_webui, _requirements),
    }
    for host in site.hosts:
        on_host = site.of(host.name)
        for name_of, ask in (asks[program] for program in versions.of(site, host.name)):
            name = name_of(on_host)
            path = folder / name
            if name and not path.is_file():
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                made.append(write_whole(path, ask(on_host, network)))
    return made


def _requirements(site: Site, network: Network) -> str:
    """Open-WebUI and all that it needs except torch, each with its digests, resolved as the role's own file was."""
    index, version = site.file.sources.pypi.index, site.file.versions.open_webui
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
        said = without_login(" ".join(line.strip(" ×╰─▶") for line in done.stderr.splitlines()))  # noqa: RUF001 - as uv draws them
        raise SiteError(
            Problem(f"Open-WebUI {version}", f"cannot be pinned: {said}", "correct the version, or sources.pypi.index")
        )
    return done.stdout


def _sdist_sha256(site: Site, network: Network) -> str:
    """The digest of llama-cpp-python's source archive, as the index's page about the project says."""
    import pypi_simple  # noqa: PLC0415 - half a second that only this needs

    version = site.file.llama_cpp_version
    name, page = f"llama-cpp-python {version}", f"{site.file.sources.pypi.index.rstrip('/')}/llama-cpp-python/"
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


def _ollama_sha256(site: Site, network: Network) -> str:
    """The digest of Ollama's archive: r1prov's own for the tested version, wherever it comes from, else the one in the list beside it."""
    version = site.file.versions.ollama
    if version == TESTED_OLLAMA:
        return TESTED_OLLAMA_SHA256
    folder, _, file = site.file.ollama_archive.rpartition("/")
    address, remedy = (
        f"{folder}/sha256sum.txt",
        "correct the version or sources.ollama.releases, or name sources.ollama.sha256",
    )
    name, shown = f"Ollama {version}", without_login(f"{folder}/sha256sum.txt")
    try:
        with network.client(_TIMEOUT_S) as client:
            text = client.get(address).raise_for_status().text
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        what = f"the list of its digests cannot be read from {shown}: {reason(error)}"
        raise SiteError(Problem(name, what, remedy)) from None
    match = re.search(rf"^([0-9a-f]{{64}}) [ *](?:\./)?{re.escape(file)}$", text, re.MULTILINE)
    if not match:
        raise SiteError(Problem(name, f"{shown} names no {file}", remedy))
    return match[1]


def _commit(site: Site, network: Network) -> str:
    """The commit that a tag of llama.cpp's repository has now."""
    url, tag = site.file.sources.llama_cpp.git_url, site.file.llama_cpp_version
    name, remedy = f"llama.cpp {tag}", "correct versions.llama_cpp or sources.llama_cpp.git_url, or name a full commit"
    with tempfile.TemporaryDirectory() as folder:
        address, variables = paths.module_util("git").remote(url)
        try:
            done = subprocess.run(
                ["git", "ls-remote", "--quiet", "--", address, f"refs/tags/{tag}", f"refs/tags/{tag}^{{}}"],
                env=os.environ | network.environment() | variables | _git_trust(network, Path(folder)),
                capture_output=True,
                text=True,
                check=False,
                timeout=_TIMEOUT_S,
            )
        except FileNotFoundError:
            raise SiteError(
                Problem(name, "git, which asks for the commit of a tag, is not on this machine", remedy)
            ) from None
        except subprocess.TimeoutExpired:
            raise SiteError(
                Problem(name, f"{without_login(url)} does not answer within {_TIMEOUT_S} s", remedy)
            ) from None
    if done.returncode:
        said = without_login(" ".join(done.stderr.split()))
        raise SiteError(Problem(name, f"the repository cannot be asked for its commit: {said}", remedy))
    commits = {name: commit for commit, name in (line.split("\t", 1) for line in done.stdout.splitlines())}
    # An annotated tag is an object of its own, and git names the commit behind it with ^{}.
    commit = commits.get(f"refs/tags/{tag}^{{}}") or commits.get(f"refs/tags/{tag}")
    if not commit:
        raise SiteError(Problem(name, f"{without_login(url)} has no such tag", remedy))
    return commit


def _git_trust(network: Network, folder: Path) -> dict[str, str]:
    """The variables by which git trusts the site's authorities beside the system's, from a file in `folder`."""
    if not network.authorities:
        return {}
    systems = filter(None, (ssl.get_default_verify_paths().cafile, "/etc/ssl/certs/ca-certificates.crt"))
    system = next((file for file in systems if Path(file).is_file()), None)
    bundle = folder / "authorities.pem"
    bundle.write_text("\n".join(Path(file).read_text() for file in filter(None, (system, *network.authorities))))
    return {"GIT_SSL_CAINFO": str(bundle)}


_REMEDY = "correct the version or sources.pypi.index, or name sources.llama_cpp.sha256"
