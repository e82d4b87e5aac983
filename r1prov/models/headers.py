"""Headers of published files, read from where the weights come from, without the data: for models that r1prov does not know by itself.

Only the first bytes of each file are asked for, more of them until the header is whole: megabytes of a set of 140 GB. What was read of
a file whose sha256 is published is kept by it, and asked for once.
"""

from __future__ import annotations

import http.client
import io
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from r1prov.common import paths
from r1prov.common.errors import Problem, SiteError
from r1prov.common.files import write_whole
from r1prov.common.network import Network
from r1prov.models import gguf
from r1prov.models.sources import PUBLIC, Folder, Hub, Mirror, places

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import IO, Any

    from r1prov.models.catalogue import Quant, ShardFile
    from r1prov.models.model import Model
    from r1prov.models.sources import WeightSource

FIRST_BYTES, GROWTH, MOST_BYTES = 256 << 10, 4, 64 << 20
"""How much is asked for at first, how much more each time, and the most: R1's first shard has a header of 5.2 MB, the others 20 kB."""

TIMEOUT_S, LIMIT_S = 20, 120
"""For one answer to begin or go on, and for one file's header to be whole."""

BLOCK_BYTES = 64 << 10


class AnswerError(gguf.RemediedError):
    """A file that is not to be had from where it was asked for."""


@dataclass
class Remote:
    """The beginning of one file, and more of it when asked.

    Attributes:
        address: a URL, or a path.
        network: how to get to a URL.
        token: shown to the server at this address, and to none that it sends on to.
        content: what has been read, from the file's first byte.
        n_bytes: of the whole file, as far as that was told.
    """

    address: str
    network: Network = field(default_factory=Network)
    token: str = ""
    content: bytes = b""
    n_bytes: int | None = None

    def header(self, file: ShardFile | None = None) -> gguf.Header:
        """The header; `content` is then that and no more.

        Args:
            file: what this should be, where that is known.

        Raises:
            AnswerError: it cannot be read.
            ValueError: it is cut short, or something else; one sentence.
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
        """Read on until `wanted` bytes are here, or the file ends. A connection that breaks off is taken up again, if it got on."""
        while len(self.content) < min(wanted, self.n_bytes or wanted):
            before = len(self.content)
            try:
                self._read_once(wanted, deadline)
            except urllib.error.HTTPError as error:
                with error:
                    raise AnswerError(f"it answers {error.code} {error.reason}", _about(error.code)) from None
            except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
                reason = getattr(error, "reason", error)
                if len(self.content) == before:
                    words = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
                    raise AnswerError(f"it cannot be read: {words}", _UNREACHED) from None
            if len(self.content) == before:
                return

    def _read_once(self, wanted: int, deadline: float) -> None:
        start = len(self.content)
        with self._opened(start, wanted) as stream:
            while len(self.content) < wanted and (block := stream.read(min(BLOCK_BYTES, wanted - len(self.content)))):
                self.content += block
                if time.monotonic() > deadline:
                    what = f"it is too slow: {len(self.content):,} bytes of the header in {LIMIT_S} s"
                    raise AnswerError(what, _UNREACHED)

    def _opened(self, start: int, end: int) -> IO[bytes]:
        """The file at `start`, as far as `end` at least. Sets `n_bytes`."""
        if not self.address.startswith(("http://", "https://")):
            file = Path(self.address).open("rb")  # noqa: SIM115 - the caller closes it, as it does an answer
            self.n_bytes = file.seek(0, io.SEEK_END)
            file.seek(start)
            return file
        headers = {"User-Agent": "r1prov", "Accept-Encoding": "identity", "Range": f"bytes={start}-{end - 1}"}
        request = urllib.request.Request(self.address, headers=headers)  # noqa: S310 - http or https, see above
        if self.token:
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        answer = self.network.open(request, TIMEOUT_S)
        if answer.status == http.HTTPStatus.PARTIAL_CONTENT:
            told = answer.headers.get("Content-Range", "").rpartition("/")[2]
        else:  # a server that knows no ranges sends all of it, of which no more is read than is needed
            told = answer.headers.get("Content-Length", "")
            answer.read(start)
        self.n_bytes = int(told) if told.isdigit() else None
        return answer


_UNREACHED = "try again; if that does not help, check the address and the way there: network, proxy, certificates"


def _about(status: int) -> str:
    """What to do about an answer that is none."""
    if status in {401, 403}:
        return "it wants a login: fetch the file and name it here, or an address that needs none"
    if status in {408, 429} or status >= 500:
        return "try again later: the server has trouble of its own"
    return "check the address: it must be that of one GGUF file"


def at(url: str, say: Callable[[str], None]) -> Model:
    """The model in a file on a web server, or in the set of shards that it is one of.

    Args:
        url: of the file; a query is each shard's, a fragment nobody's.
        say: told where the header is read.

    Raises:
        SiteError: it cannot be read, or is no model.
    """
    where = url
    try:
        parts = urllib.parse.urlsplit(url)._replace(fragment="")
        folder, _, last = parts.path.rpartition("/")
        name = urllib.parse.unquote(last)
        say(f"reading the header of {name} from {_shown(parts._replace(path=folder, query='').geturl())}")
        found = []
        for shard in gguf.names(name):
            where = parts._replace(path=f"{folder}/{urllib.parse.quote(shard)}").geturl()
            found.append(Remote(where).header())
        where = url
        return gguf.joined(name, found)
    except ValueError as error:
        raise SiteError(Problem(_shown(where), str(error), _remedy(error))) from None


def _remedy(error: ValueError) -> str:
    """What to do about a file on a web server that is of no use."""
    match error:
        case gguf.RemediedError():
            return error.remedy
        case gguf.NoGgufError():
            return "the address gives something else, perhaps a page about the file: name the file's own, on a hub one with /resolve/ in it"
        case gguf.LfsPointerError():
            return "name the address of the file itself: on a hub it has /resolve/ where this has /raw/"
        case gguf.CutShortError():
            return "the server has only a part of the file: name one that has all of it"
    return "the server's file is damaged, or of another set than the others: name one that has it whole"


def weight_sources(where: str | None) -> Sequence[WeightSource]:
    """The hub and ModelScope, or what is named: a hub or a web server by its address, else a folder here."""
    if where is None:
        return PUBLIC
    if where.startswith(("http://", "https://")):
        return Hub(type="hub", endpoint=where), Mirror(type="http", url=where)
    return (Folder(type="folder", path=str(Path(where).resolve())),)


def kept(quant: Quant) -> Model | None:
    """The model, where the headers of all its files have been read before."""
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
    folders = [(source, _folder(place)) for source in sources for place in places(source, quant)]
    for source, folder in folders:
        say(f"reading the header of {quant.name} from {_shown(folder)}")
        token = Path(source.token_file).read_text().strip() if source.type == "hub" and source.token_file else ""
        remotes = [Remote(f"{folder}/{file.name}", network, token) for file in quant.files]
        try:
            model = gguf.joined(
                quant.name, [remote.header(file) for remote, file in zip(remotes, quant.files, strict=True)]
            )
        except ValueError as error:
            missed = "the plan needs its header: name a source that has these files and can be read from here"
            remedy = error.remedy if isinstance(error, gguf.UnservableError) else missed
            refusals.append(Problem(_shown(folder), f"{quant.name}: {error}", remedy))
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
        return urllib.request.url2pathname(url.removeprefix("file://")) if url.startswith("file://") else url
    prefix = "models/" if place["type"] == "modelscope" else ""
    revision, folder = urllib.parse.quote(place["revision"], safe=""), urllib.parse.quote(place["folder"])
    return f"{place['endpoint']}/{prefix}{place['repo']}/resolve/{revision}/{folder}".rstrip("/")


def _shown(url: str) -> str:
    """An address without a password."""
    return re.sub(r"(?<=://)[^/@]*@", "", url)


def _place(file: ShardFile) -> Path:
    return paths.cache_dir() / "headers" / file.sha256
