"""Files from the network: resumed after a lost connection, believed only when their sha256 is right."""

from __future__ import annotations

import configparser
import hashlib
import html.parser
import os
import re
import time
import urllib.error
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

from ansible.module_utils.urls import open_url
from ansible_collections.r1.prov.plugins.module_utils.files import alone

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from ansible_collections.r1.prov.plugins.module_utils.progress import Progress

_ATTEMPTS = 6
_TIMEOUT_S = 60
_BLOCK_BYTES = 1 << 20
_DEFAULT_INDEX = "https://pypi.org/simple"


class DownloadError(Exception):
    """A file could not be had, or is not the one that was asked for. The message shows no password of an address."""

    def __init__(self, message: str) -> None:
        super().__init__(without_credentials(message))


def without_credentials(text: str) -> str:
    """A text whose addresses have lost `user:password@`."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)


def sha256_of(file: Path) -> str:
    """The sha256 of a file, in hex."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def download(url: str, destination: Path, sha256: Collection[str], progress: Progress) -> None:
    """Downloads a file; a partial download of an earlier run is continued.

    Args:
        url: http, https or file.
        destination: where the complete, verified file appears, atomically.
        sha256: the file must have one of these, in hex.
        progress: told about every block, in bytes.

    Raises:
        DownloadError: the server cannot be reached, says no, or sends something else.
    """
    with alone(destination.parent):  # two downloads would write into one partial file
        if not (destination.exists() and sha256_of(destination) in sha256):
            _download(url, destination, sha256, progress)


def _download(url: str, destination: Path, sha256: Collection[str], progress: Progress) -> None:
    partial = destination.with_name(destination.name + ".part")
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _attempt(url, partial, progress)
            break
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the partial file is longer than the file: not a part of it
                partial.unlink()
            elif error.code < 500 or attempt == _ATTEMPTS:
                raise DownloadError(f"{url} answers {error.code} {error.reason}") from error
        except (OSError, EOFError) as error:  # URLError and time-outs are OSErrors
            if attempt == _ATTEMPTS:
                reason = getattr(error, "reason", error)
                raise DownloadError(f"{url} cannot be downloaded: {reason} ({_ATTEMPTS} attempts)") from error
        time.sleep(min(2**attempt, 20))
    else:
        raise DownloadError(f"{url} cannot be downloaded ({_ATTEMPTS} attempts)")
    found = sha256_of(partial)
    if found not in sha256:
        partial.unlink()
        raise DownloadError(f"{url} has sha256 {found}, expected {' or '.join(sha256)}; it was deleted")
    partial.replace(destination)


def _attempt(url: str, partial: Path, progress: Progress) -> None:
    """One attempt; what arrives is appended to `partial`, so that the next attempt goes on from there."""
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    response = open_url(url, headers=headers, timeout=_TIMEOUT_S, http_agent="r1prov", decompress=False)
    if have and response.getcode() != 206:  # the server does not know ranges, and sends all of it
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
    """The Python package index that pip would use on this host: PIP_INDEX_URL, pip's configuration, PyPI."""
    environ = os.environ if environ is None else environ
    if environ.get("PIP_INDEX_URL"):
        return environ["PIP_INDEX_URL"]
    parser = configparser.RawConfigParser()
    parser.read([pip_conf, environ.get("PIP_CONFIG_FILE") or pip_conf], encoding="utf-8")
    return parser.get("global", "index-url", fallback=_DEFAULT_INDEX)


def index_links(index: str, project: str) -> dict[str, str]:
    """The files of a project with their addresses, from an index's page about it (PEP 503).

    Raises:
        DownloadError: the index cannot be read.
    """
    page = f"{index.rstrip('/')}/{project}/"
    try:
        response = open_url(page, headers={"Accept": "text/html"}, timeout=_TIMEOUT_S, http_agent="r1prov")
        text = response.read().decode("utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise DownloadError(
            f"the package index page {page} cannot be read: {reason}. Check PIP_INDEX_URL and the host's network."
        ) from error
    parser = _Links()
    parser.feed(text)
    links = {}
    for href in parser.hrefs:
        address = urllib.parse.urldefrag(urllib.parse.urljoin(page, href)).url
        links[urllib.parse.unquote(urllib.parse.urlsplit(address).path).rpartition("/")[2]] = address
    return links


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
