"""Reads the headers of published files from where the weights come from, without the data.

Models that the catalogue does not describe are planned by their headers. Only the first bytes of each file are requested, and more of them
until the header is whole: megabytes of a set of 140 GB. A header is kept under the sha256 of its file, where that is published, and is
then requested only once.
"""

from __future__ import annotations

import http
import io
import time
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from r1prov.common import paths
from r1prov.common.errors import Problem, SiteError
from r1prov.common.files import write_whole
from r1prov.common.network import Network, reason, without_login
from r1prov.models import gguf
from r1prov.models.sources import PUBLIC, Folder, Hub, Mirror, places

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from r1prov.models.catalogue import Quant, ShardFile
    from r1prov.models.model import Model
    from r1prov.models.sources import WeightSource

FIRST_BYTES, GROWTH, MOST_BYTES = 256 << 10, 4, 64 << 20
"""The bytes of the first request, the factor by which they grow, and the most. R1's first shard has a header of 5.2 MB, others of 20 kB."""

TIMEOUT_S, LIMIT_S = 20, 120
"""How long an answer may take to begin or go on, and how long the header of one file may take."""


class AnswerError(gguf.RemediedError):
    """A server that does not give the file."""


@dataclass
class Remote:
    """The beginning of one file, which is read further on demand.

    Attributes:
        address: a URL, or a path.
        client: what requests a URL.
        token: shown to the server at this address, and to no other that it redirects to.
        content: what has been read, from the file's first byte.
        n_bytes: the size of the whole file, where the server told it.
    """

    address: str
    client: httpx.Client
    token: str = ""
    content: bytes = b""
    n_bytes: int | None = None

    def header(self, file: ShardFile | None = None) -> gguf.Header:
        """The header of the file. Afterwards `content` is the bytes of the header and no more.

        Args:
            file: what the file should be, where that is known.

        Raises:
            AnswerError: the file cannot be read.
            ValueError: the file is cut short, or is another; one sentence.
        """
        deadline, wanted = time.monotonic() + LIMIT_S, FIRST_BYTES
        while True:
            self._read(wanted, deadline)
            stream = io.BytesIO(self.content)
            try:
                header = gguf.header(stream)
            except gguf.CutShortError:
                if len(self.content) < wanted or wanted >= MOST_BYTES:
                    raise
                wanted *= GROWTH
                continue
            n_bytes = self.n_bytes or header.n_bytes
            if file and n_bytes != file.bytes:
                raise ValueError(f"its {file.name} is another, of {n_bytes:,} bytes, not {file.bytes:,}")
            if n_bytes < header.n_bytes:
                raise gguf.CutShortError(f"it is cut short: {n_bytes:,} bytes of {header.n_bytes:,}")
            self.content = self.content[: stream.tell()]
            return header

    def _read(self, wanted: int, deadline: float) -> None:
        """Read on until `content` has `wanted` bytes or the file ends.

        A connection that broke off is opened again, unless it brought nothing.
        """
        while len(self.content) < min(wanted, self.n_bytes or wanted):
            before = len(self.content)
            try:
                for block in self._blocks(before, wanted):
                    self.content += block[: wanted - len(self.content)]
                    if len(self.content) == wanted:
                        break
                    if time.monotonic() > deadline:
                        what = f"it is too slow: {len(self.content):,} bytes of the header in {LIMIT_S} s"
                        raise AnswerError(what, _UNREACHED)
            except OSError as error:
                raise AnswerError(f"it cannot be read: {error.strerror or error}", _UNREACHED) from None
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                if len(self.content) == before:
                    raise AnswerError(f"it cannot be read: {reason(error)}", _UNREACHED) from None
            if len(self.content) == before:
                return

    def _blocks(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes of the file from `start` to `end`, or further. Sets `n_bytes`."""
        if not self.address.startswith(("http://", "https://")):
            with Path(self.address).open("rb") as file:
                self.n_bytes = file.seek(0, io.SEEK_END)
                file.seek(start)
                yield file.read(end - start)
            return
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-{end - 1}"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        with self.client.stream("GET", self.address, headers=headers) as answer:
            try:
                answer.raise_for_status()
            except httpx.HTTPStatusError as error:
                raise AnswerError(reason(error), _remedy_for_status(answer.status_code)) from None
            skipped = 0
            if answer.status_code == http.HTTPStatus.PARTIAL_CONTENT:
                size = answer.headers.get("Content-Range", "").rpartition("/")[2]
            else:  # a server without ranges sends the whole file, of which no more is read than is needed
                size, skipped = answer.headers.get("Content-Length", ""), start
            self.n_bytes = int(size) if size.isdigit() else None
            for block in answer.iter_raw():
                if rest := block[skipped:]:
                    yield rest
                skipped = max(0, skipped - len(block))


_UNREACHED = "try again; if that does not help, check the address and the way there: network, proxy, certificates"


def _remedy_for_status(status: int) -> str:
    """What to do about an answer that does not give the file."""
    if status in {401, 403}:
        return "it wants a login: fetch the file and name it here, or an address that needs none"
    if status in {408, 429} or status >= 500:
        return "try again later: the server has trouble of its own"
    return "check the address: it must be that of one GGUF file"


def at(url: str, say: Callable[[str], None]) -> Model:
    """The model in a file on a web server, or in the set of shards that it is one of.

    Args:
        url: the address of the file. A query is sent for each shard; a fragment is sent for none.
        say: told where the header is read.

    Raises:
        SiteError: the file cannot be read, or is no model.
    """
    where = url
    parts = _parts(url)
    try:
        folder, _, last = parts.path.rpartition("/")
        name = urllib.parse.unquote(last)
        say(f"reading the header of {name} from {without_login(parts._replace(path=folder, query='').geturl())}")
        found = []
        with Network().client(TIMEOUT_S) as client:
            for shard in gguf.names(name):
                where = parts._replace(path=f"{folder}/{urllib.parse.quote(shard)}").geturl()
                found.append(Remote(where, client).header())
        where = url
        return gguf.joined(name, found)
    except ValueError as error:
        raise SiteError(Problem(without_login(where), str(error), _remedy(error))) from None


def _parts(url: str) -> urllib.parse.SplitResult:
    """The parts of an address, without its fragment.

    Raises:
        SiteError: it is none.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        possible = bool(parts.hostname) and parts.port != 0
    except ValueError:
        possible = False
    if not possible:
        shown = url.rpartition("@")[2]  # what comes before may be a password
        raise SiteError(Problem(shown, "it is no address of a web server", "write it as https://HOST/FOLDER/NAME.gguf"))
    return parts._replace(fragment="")


def _remedy(error: ValueError) -> str:
    """What to do about a file on a web server that cannot be used."""
    match error:
        case gguf.RemediedError() | gguf.VersionError():
            return error.remedy
        case gguf.NoGgufError():
            return "the address gives something else, perhaps a page about the file: name the file's own, on a hub one with /resolve/ in it"
        case gguf.LfsPointerError():
            return "name the address of the file itself: on a hub it has /resolve/ where this has /raw/"
        case gguf.BigEndianError():
            return gguf.TURN_BYTES
        case gguf.CutShortError():
            return "the server has only a part of the file: name one that has all of it"
    return "the server's file is damaged, or of another set than the others: name one that has it whole"


def weight_sources(where: str | None) -> Sequence[WeightSource]:
    """The sources that `where` names: a hub or a web server by its address, else a folder here. None names the hub and ModelScope."""
    if where is None:
        return PUBLIC
    if where.startswith(("http://", "https://")):
        return Hub(type="hub", endpoint=where), Mirror(type="http", url=where)
    return (Folder(type="folder", path=str(Path(where).resolve())),)


def kept(quant: Quant) -> Model | None:
    """The model, if the headers of all its files have been read before; else None."""
    try:
        return gguf.joined(quant.name, [gguf.header(io.BytesIO(_place(file).read_bytes())) for file in quant.files])
    except (OSError, ValueError):
        return None


def fetch(quant: Quant, sources: Sequence[WeightSource], network: Network, say: Callable[[str], None]) -> Model:
    """The model, its headers read from the first of `sources` that has its files, if they have not been read before.

    Args:
        quant: the files.
        sources: where they may be.
        network: the way there.
        say: told where a header is read.

    Raises:
        SiteError: no source has them; it says why each has not.
    """
    return kept(quant) or _fetch(quant, sources, network, say)


def _fetch(quant: Quant, sources: Sequence[WeightSource], network: Network, say: Callable[[str], None]) -> Model:
    refusals = []
    if quant.unpublished:  # A public hub would only say that it wants a login, or that there is no such repository.
        sources = [source for source in sources if source not in PUBLIC]
        if not sources:
            remedy = "with a source of your own that has them: `--source` of `r1prov plan`, `sources.weights` in the site file"
            raise SiteError(Problem(quant.name, f"no public hub has it. {quant.unpublished}", remedy))
    folders = [(source, _folder(place)) for source in sources for place in places(source, quant)]
    with network.client(TIMEOUT_S) as client:
        for source, folder in folders:
            say(f"reading the header of {quant.name} from {without_login(folder)}")
            token = source.token() if source.type == "hub" else ""
            remotes = [Remote(f"{folder}/{file.name}", client, token) for file in quant.files]
            try:
                found = [remote.header(file) for remote, file in zip(remotes, quant.files, strict=True)]
                model = gguf.joined(quant.name, found)
            except ValueError as error:
                missed = "the plan needs its header: name a source that has these files and can be read from here"
                remedy = error.remedy if isinstance(error, gguf.UnservableError) else missed
                refusals.append(Problem(without_login(folder), f"{quant.name}: {error}", remedy))
                continue
            for remote, file in zip(remotes, quant.files, strict=True):
                place = _place(file)
                place.parent.mkdir(parents=True, exist_ok=True)
                write_whole(place, remote.content)
            return model
    raise SiteError(*refusals)


def _folder(place: dict[str, Any]) -> str:
    """The address of what holds the files, as role `weights` makes it."""
    if place["type"] == "folder":
        return str(place["path"])
    if place["type"] == "http":
        url = str(place["url"])
        return urllib.parse.unquote(url.removeprefix("file://")) if url.startswith("file://") else url
    prefix = "models/" if place["type"] == "modelscope" else ""
    revision, folder = urllib.parse.quote(place["revision"], safe=""), urllib.parse.quote(place["folder"])
    return f"{place['endpoint']}/{prefix}{place['repo']}/resolve/{revision}/{folder}".rstrip("/")


def _place(file: ShardFile) -> Path:
    return paths.cache_dir() / "headers" / file.sha256
