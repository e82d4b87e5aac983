"""Artefacts: files from outside that a host needs, each with the sha256 that it must have.

An artefact comes from the Python package index, from a URL, or from a place on the host. It is fetched and checked here, and unpacked
where it is a tar archive.
"""

from __future__ import annotations

import configparser
import errno
import html.parser
import os
import re
import subprocess
import time
import urllib.error
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.r1.prov.plugins.module_utils.digest import sha256_of
from ansible_collections.r1.prov.plugins.module_utils.locks import alone

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ansible_collections.r1.prov.plugins.module_utils.progress import Progress

_ATTEMPTS = 6
_TIMEOUT_S = 60
_BLOCK_BYTES = 1 << 20
_DEFAULT_INDEX = "https://pypi.org/simple"
_INDEX = "pypi:"


class ArtefactError(Exception):
    """A file cannot be had, or it is not the one that was asked for. The message never shows the password of an address."""

    def __init__(self, message: str) -> None:
        super().__init__(without_credentials(message))


@dataclass(frozen=True)
class Artefact:
    """A file from outside.

    Attributes:
        source: `pypi:PROJECT==VERSION`, a URL, or the path of a file on the host.
        sha256: what the file must have, in hex.
        variable: the role's variable that names the source. Messages name it, and `VARIABLE_sha256`.
        suffix: how the file of an index ends. A project has wheels and an sdist of one version.
    """

    source: str
    sha256: str
    variable: str
    suffix: str = ".whl"

    def fetch(self, folder: Path, progress: Progress) -> Path:
        """The verified file. The network is not touched where the file lies on the host already.

        Args:
            folder: keeps what was downloaded.
            progress: is told about every block, in bytes.

        Raises:
            ArtefactError: the file cannot be had, or has another sha256.
        """
        if self.source.startswith(_INDEX):
            for kept in folder.glob(f"{self._begins()}*{self.suffix}"):
                if sha256_of(kept) == self.sha256:
                    return kept
            url = self._address()
        elif "://" in self.source:
            url = self.source
        else:
            return self._checked(Path(self.source))
        file = folder / file_name(url)
        download(url, file, self.sha256, progress)
        return file

    def _begins(self) -> str:
        project, _, version = self.source.removeprefix(_INDEX).partition("==")
        return f"{re.sub(r'[-_.]+', '_', project)}-{version}{'-' if self.suffix == '.whl' else ''}"

    def _address(self) -> str:
        """Where the index has the file: the sdist, or the wheel that fits every Python on Linux on x86-64."""
        index = index_url()
        links = index_links(index, self.source.removeprefix(_INDEX).partition("==")[0])
        ends = r"(any|manylinux\S*_x86_64)\.whl" if self.suffix == ".whl" else re.escape(self.suffix)
        for name, url in links.items():
            if name.startswith(self._begins()) and re.search(f"{ends}$", name):
                return url
        raise ArtefactError(
            f"the package index {index} has no {self._begins()}*{self.suffix}. Another index may have it (PIP_INDEX_URL), "
            f"or correct {self.variable}."
        )

    def _checked(self, file: Path) -> Path:
        if not file.is_file():
            raise ArtefactError(f"{file} is not there, neither here nor on the controller. Correct {self.variable}.")
        found = sha256_of(file)
        if found != self.sha256:
            raise ArtefactError(
                f"{file} has sha256 {found}, expected {self.sha256 or 'none'}: it is not whole, or it is another file. "
                f"Fetch it again, or correct {self.variable}_sha256."
            )
        return file


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a tar archive. GNU tar knows each compression by itself. All files become root's, and the umask holds for their modes.

    Raises:
        ArtefactError: it is not a whole archive.
        OSError: the disk is full.
    """
    owner = ("--no-same-owner", "--no-same-permissions")
    command = ["tar", "--extract", f"--file={archive}", f"--directory={folder}", *owner]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No space left" in done.stderr:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))
    if done.returncode:
        raise ArtefactError(
            f"{archive} is not a whole tar archive: {done.stderr.strip().splitlines()[0]}. Fetch it again."
        )


def without_credentials(text: str) -> str:
    """A text whose addresses have lost `user:password@`."""
    return re.sub(r"(?<=://)[^/\s]*@", "", text)


def file_name(url: str) -> str:
    """The name of the file that a URL names."""
    return urllib.parse.unquote(urllib.parse.urlsplit(url).path).rpartition("/")[2]


def download(url: str, destination: Path, sha256: str, progress: Progress) -> None:
    """Downloads a file unless it is there. A partial download of an earlier run is continued.

    Args:
        url: http, https or file.
        destination: where the complete, verified file appears, atomically.
        sha256: what the file must have, in hex.
        progress: is told about every block, in bytes.

    Raises:
        ArtefactError: the server cannot be reached, says no, or sends something else.
    """
    with alone(destination.parent / ".lock", progress.wait_for):  # two downloads would write into one partial file
        if destination.exists() and sha256_of(destination) == sha256:
            return
        # Another version may have the same name, so the partial file is named after what it becomes.
        partial = destination.with_name(f"{destination.name}.{sha256[:12]}.part")
        _complete(url, partial, progress)
        found = sha256_of(partial)
        if found != sha256:
            partial.unlink()
            raise ArtefactError(
                f"{url} has sha256 {found}, expected {sha256}: it is another file, or was changed since that digest was written down. "
                "What was fetched is deleted. Ask its publisher before you trust the new one."
            )
        partial.replace(destination)


def _complete(url: str, partial: Path, progress: Progress) -> None:
    """Fetches all of a file, in several attempts where the connection breaks."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _attempt(url, partial, progress)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the partial file is longer than the file, so it is not a part of it
                partial.unlink()
            elif error.code < 500 or attempt == _ATTEMPTS:
                raise ArtefactError(f"{url} answers {error.code} {error.reason}.") from error
        except (OSError, EOFError) as error:  # URLError and time-outs are OSErrors
            if attempt == _ATTEMPTS:
                reason = getattr(error, "reason", error)
                raise ArtefactError(f"{url} cannot be downloaded: {reason} ({_ATTEMPTS} attempts).") from error
        else:
            return
        time.sleep(min(2**attempt, 20))
    raise ArtefactError(f"{url} cannot be downloaded ({_ATTEMPTS} attempts).")


def _attempt(url: str, partial: Path, progress: Progress) -> None:
    """One attempt. What arrives is appended to `partial`, so that the next attempt goes on from there."""
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    response = _open(url, headers=headers, decompress=False)
    if have and response.getcode() != 206:  # the server does not know ranges, and sends the whole file
        have = 0
    length = response.headers.get("Content-Length")
    total = have + int(length) if length else 0
    progress.begin("fetching", total, "bytes")
    with partial.open("ab" if have else "wb") as stream:
        while block := response.read(_BLOCK_BYTES):
            stream.write(block)
            have += len(block)
            progress.update(have)
    if have < total:
        raise EOFError(f"the connection ended after {have} of {total} bytes")


def index_url(environ: Mapping[str, str] | None = None, pip_conf: Path = Path("/etc/pip.conf")) -> str:
    """The Python package index that pip would use on this host: PIP_INDEX_URL, else pip's configuration, else PyPI."""
    environ = os.environ if environ is None else environ
    if environ.get("PIP_INDEX_URL"):
        return environ["PIP_INDEX_URL"]
    parser = configparser.RawConfigParser()
    parser.read([pip_conf, environ.get("PIP_CONFIG_FILE") or pip_conf], encoding="utf-8")
    return parser.get("global", "index-url", fallback=_DEFAULT_INDEX)


def index_links(index: str, project: str) -> dict[str, str]:
    """The files of a project with their addresses, from an index's page about it (PEP 503).

    Raises:
        ArtefactError: the index cannot be read.
    """
    page = f"{index.rstrip('/')}/{project}/"
    parser = _Links()
    parser.feed(_read(page, "Check PIP_INDEX_URL and the host's network."))
    addresses = [urllib.parse.urldefrag(urllib.parse.urljoin(page, href)).url for href in parser.hrefs]
    return {file_name(address): address for address in addresses}


def _open(url: str, **options: Any) -> Any:
    # Imported late, because most who ask for an artefact have it, and a look at a host asks often.
    from ansible.module_utils.urls import open_url  # noqa: PLC0415

    return open_url(url, timeout=_TIMEOUT_S, http_agent="r1prov", **options)


def _read(url: str, remedy: str) -> str:
    """The text at an address."""
    try:
        answer = _open(url, headers={"Accept": "text/html, */*;q=0.1"})
        text: str = answer.read().decode("utf-8")
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{url} cannot be read: {getattr(error, 'reason', error)}. {remedy}") from error
    return text


class _Links(html.parser.HTMLParser):
    """Collects the targets of a page's links."""

    def __init__(self) -> None:
        super().__init__()
        self.hrefs: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser for every opening tag."""
        href = dict(attrs).get("href")
        if tag == "a" and href:
            self.hrefs.append(href)
