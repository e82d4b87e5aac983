"""Where files come from: folders of this host, and web servers. What they answer is judged here, before anything is done with it."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.client
import os
import re
import socket
import ssl
import stat
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from email.utils import mktime_tz, parsedate_tz
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from transfer.errors import ChangedError, RefusedError, SourceError, UnreachableError
from transfer.wording import PAGE, TEXT, beginning, kind_of, plain, words, wrong_file

if TYPE_CHECKING:
    from email.message import Message

ANSWER_S = 60  # so long a server may say nothing
LONGEST_WAIT_S = 600  # that a server may ask for
WEB_SCHEMES = ("http", "https")
PASSING_ANSWERS = (408, 425, 429)  # and every 5xx: the server may think better of it


@dataclass(frozen=True)
class File:
    """One file that is wanted."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Part:
    """What is asked of a source: bytes of a file from `start` up to `end`, of the version that `etag` names where that is known."""

    file: File
    start: int
    end: int
    etag: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole file."""
        return (self.start, self.end) == (0, self.file.bytes)


@dataclass(frozen=True)
class Answer:
    """What a source sends of a file."""

    stream: IO[bytes]
    start: int  # where in the file it begins
    end: int  # and where it ends
    size: int | None  # of the whole file; None where the source does not say it
    etag: str = ""  # which version of the file it is; empty where the source does not say that reliably
    takes_ranges: bool = False  # whether the source is known to send parts of files
    head: bytes = b""  # the bytes that were read of it already

    def read(self, most: int) -> bytes:
        """The bytes that have arrived. Waits for at least one. There is none where the answer has ended."""
        try:
            block: bytes = self.stream.read1(most)  # type: ignore[attr-defined]
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise UnreachableError(f"stopped sending: {words(error)}") from None
        return block

    def shut(self) -> None:
        """Ends the answer, also for a thread that waits for its bytes."""
        if not isinstance(self.stream, http.client.HTTPResponse):
            return
        # The thread that reads it may close it at any moment, and a closed one has no number.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            line = socket.socket(fileno=os.dup(self.stream.fileno()))
            with line:
                line.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True)
class Folder:
    """A source that is a folder of this host."""

    path: str
    is_web = False

    def __str__(self) -> str:
        return f"the folder {self.path}"

    def open(self, part: Part) -> Answer:
        """Opens a file at the beginning of a part."""
        path, file = Path(self.path, part.file.name), part.file
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise RefusedError("has something else in its place that is no file")
            stream = path.open("rb")
        except FileNotFoundError:
            raise RefusedError("does not have it; is its disk mounted?") from None
        except PermissionError:
            raise RefusedError("may not be read by the user r1prov-weights: chmod -R a+rX it and its parents") from None
        except OSError as error:
            raise RefusedError(f"cannot be read: {error.strerror}") from None
        size = os.fstat(stream.fileno()).st_size
        if size != file.bytes:
            with stream:
                raise RefusedError(wrong_file(file.bytes, size, kind_of(beginning(stream))))
        stream.seek(part.start)
        return Answer(stream, part.start, part.end, size, takes_ranges=True)


@dataclass(frozen=True)
class Web:
    """A source that is a web server, which has the files below one address. Only this server is shown `authorization`."""

    url: str
    authorization: str = field(default="", repr=False)
    is_web = True

    def __str__(self) -> str:
        return urllib.parse.urlsplit(self.url).netloc

    def open(self, part: Part) -> Answer:
        """Asks for a part of a file. A server that knows no ranges answers with the whole of it."""
        headers = {"User-Agent": "r1prov", "Accept-Encoding": "identity"}
        if not part.is_whole:
            headers["Range"] = f"bytes={part.start}-{'' if part.end == part.file.bytes else part.end - 1}"
            if part.etag:
                headers["If-Range"] = part.etag
        url = f"{self.url}/{urllib.parse.quote(part.file.name)}"
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - http or https, see as_source()
        if self.authorization:
            request.add_unredirected_header("Authorization", self.authorization)
        redirects = Redirects()
        try:
            opener = urllib.request.build_opener(redirects, urllib.request.HTTPSHandler(context=authorities()))
            response = opener.open(request, timeout=ANSWER_S)
        except urllib.error.HTTPError as error:
            raise self._refusal(error, part.file) from None
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            reason, who = getattr(error, "reason", error), self._onward(redirects)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise RefusedError(f"{who}shows a certificate that is not trusted: {reason.verify_message}") from None
            if str(reason).startswith("Tunnel connection failed: 4"):
                raise RefusedError(f"{who}is not let through by the proxy: {plain(str(reason))}") from None
            raise UnreachableError(f"{who}cannot be reached: {words(reason)}") from None
        except ValueError as error:
            raise RefusedError(f"redirects to an address that is none: {plain(str(error))}") from None
        try:
            return self._answer(response, part)
        except BaseException:
            response.close()
            raise

    def _answer(self, response: http.client.HTTPResponse, part: Part) -> Answer:
        """Judges an answer before anything is done with it. What it says of its size, kind and version has to be the file's."""
        headers, whence, file = response.headers, self._whence(response.url), part.file
        start, end, size = 0, file.bytes, response.length
        is_part = response.status == http.HTTPStatus.PARTIAL_CONTENT
        if is_part:
            start, end, size = self._place(response, part, whence)
        elif response.status not in {http.HTTPStatus.OK, http.HTTPStatus.NON_AUTHORITATIVE_INFORMATION}:
            raise RefusedError(f"answers {response.status} {plain(response.reason)}{whence} instead of the file")
        codings = ", ".join(headers.get_all("Content-Encoding", []) + headers.get_all("Transfer-Encoding", [])).lower()
        packed = set(re.split(r"[\s,]+", codings)) - {"", "identity", "chunked"}
        etag = headers.get("ETag", "").strip()
        etag = etag if re.fullmatch('"[\x21\x23-\x7e]*"', etag) else ""  # a weak one does not promise the same bytes
        if size == file.bytes and not packed:
            if part.etag and etag not in ("", part.etag):
                raise ChangedError(etag)
            takes_ranges = is_part or headers.get("Accept-Ranges", "").lower() == "bytes"
            return Answer(cast("IO[bytes]", response), start, end, size, etag, takes_ranges)
        head = b"" if is_part or packed else beginning(cast("IO[bytes]", response))
        kind = kind_of(self._without_login(head), headers.get("Content-Type", ""))
        if packed and not kind:
            kind = f"something packed ({', '.join(sorted(packed))})"
        if size is None and not kind:
            return Answer(cast("IO[bytes]", response), start, end, size, etag, head=head)
        raise RefusedError(wrong_file(file.bytes, size, kind, whence))

    def _place(self, response: http.client.HTTPResponse, part: Part, whence: str) -> tuple[int, int, int | None]:
        """Where in the file an answer with a part of it begins and ends, and the size of the whole."""
        said = response.headers.get("Content-Range", "")
        place = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", said)
        if not place or int(place[1]) != part.start:
            raise RefusedError(f"answers a request for the rest of a file with something else{whence}")
        size = None if place[3] == "*" else int(place[3])
        start, end = int(place[1]), int(place[2]) + 1
        if size not in (None, part.file.bytes):
            return start, end, size  # It is another file, which tells more than the rest of the answer does.
        # A server may send less than it was asked for, but never more, and not another number of bytes than it says.
        if not start < end <= part.end or response.length not in (None, end - start):
            raise RefusedError(f"answers a request for the rest of a file with something else{whence}")
        return start, end, size

    def _whence(self, url: str) -> str:
        """Names the server that has answered, where a redirect led to another one."""
        return "" if origin(url) == origin(self.url) else f" from {plain(urllib.parse.urlsplit(url).hostname or '')}"

    def _onward(self, redirects: Redirects) -> str:
        """Names the server to which redirects led, as the subject of what follows. Empty where they led to no other one."""
        if not redirects.followed or origin(redirects.followed[-1]) == origin(self.url):
            return ""
        netloc = urllib.parse.urlsplit(redirects.followed[-1]).netloc
        return f"sends us on to {plain(netloc.rpartition('@')[2])}, which "

    def _without_login(self, head: bytes) -> bytes:
        """What a server says, of which a part goes to the log. It may say again what it was shown."""
        kind, _, secret = self.authorization.partition(" ")
        secrets = [secret.encode()]
        if kind == "Basic":
            login = base64.b64decode(secret)
            secrets += [login, login.partition(b":")[2]]
        for known in filter(None, secrets):
            head = head.replace(known, b"***")
        return head

    def _refusal(self, error: urllib.error.HTTPError, file: File) -> SourceError:
        with error:
            if (scheme := urllib.parse.urlsplit(error.url).scheme) not in WEB_SCHEMES:
                return RefusedError(f"redirects to a {plain(scheme)}:// address")
            whence = self._whence(error.url)
            what = f"answers {error.code} {plain(error.reason)}{whence}"
            kind = kind_of(self._without_login(beginning(error)), error.headers.get("Content-Type", ""))
            if kind.startswith((PAGE, TEXT)):
                what += f" with {kind}"
            wait_s = wanted_pause_s(error.headers)
            length = re.fullmatch(r"bytes \*/([0-9]{1,18})", error.headers.get("Content-Range", ""))
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and length:
                return RefusedError(wrong_file(file.bytes, int(length[1]), whence=whence), wait_s)
            if error.code in PASSING_ANSWERS or error.code >= 500:
                return UnreachableError(what, wait_s)
            if error.code in (401, 403) and not whence:
                what += "; the token or password is not accepted" if self.authorization else "; it may want a token"
            return RefusedError(what, wait_s)


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects. It shows the token only to the server that it is for, and the proxy's password only to the proxy."""

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302  # unknown to Python 3.10

    def __init__(self) -> None:
        self.followed: list[str] = []  # the addresses to which servers have sent us on

    def redirect_request(  # noqa: PLR0917 - the signature is urllib's
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The request to make next.

        Raises:
            HTTPError: the address is not one of the web. urllib raises the same for all others but ftp.
            RefusedError: there is no end to the redirects.
            ValueError: the address is none.
        """
        target = urllib.parse.urlsplit(newurl)
        if target.scheme not in WEB_SCHEMES:
            raise urllib.error.HTTPError(newurl, code, msg, headers, fp)
        if not target.hostname or target.port == 0:
            raise ValueError("it names no server")
        if self.followed.count(newurl) >= self.max_repeats or len(self.followed) >= self.max_redirections:
            fp.close()
            is_circle = len(set(self.followed)) < len(self.followed)
            raise RefusedError(
                "redirects in a circle" if is_circle else f"redirects more than {self.max_redirections} times"
            )
        self.followed.append(newurl)
        following = super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)
        if following is None:
            return None
        # The next address may be one without a proxy. Otherwise this header is added again.
        following.remove_header("Proxy-authorization")
        authorization = req.unredirected_hdrs.get("Authorization")
        if authorization and origin(newurl) == origin(req.full_url):
            following.add_unredirected_header("Authorization", authorization)
        return following


@functools.cache
def authorities() -> ssl.SSLContext:
    """Whose certificates are trusted. Reading them takes longer than a request, so all connections have the same."""
    return ssl.create_default_context()


def as_source(row: dict[str, Any], token: str) -> Folder | Web:
    """The source that a part of the job describes. Only a hub that wants a login is given the token."""
    kind = row["type"]
    if kind == "folder":
        return Folder(row["path"])
    if kind == "http":
        url = row["url"].rstrip("/")
        return Folder(urllib.request.url2pathname(url[7:])) if url.startswith("file://") else web(url)
    prefix = {"hub": "", "modelscope": "models/"}[kind]
    revision, folder = urllib.parse.quote(row["revision"], safe=""), urllib.parse.quote(row["folder"])
    url = f"{row['endpoint'].rstrip('/')}/{prefix}{row['repo']}/resolve/{revision}/{folder}"
    return web(url.rstrip("/"), token if row.get("login") else "")


def web(url: str, token: str = "") -> Web:
    """The web server at an address. A login that stands in the address becomes a header, as urllib knows it nowhere else."""
    parts = urllib.parse.urlsplit(url)
    login, _, host = parts.netloc.rpartition("@")
    authorization = f"Bearer {token}" if token else ""
    if login and not token:
        authorization = f"Basic {base64.b64encode(urllib.parse.unquote_to_bytes(login)).decode()}"
    return Web(parts._replace(netloc=host).geturl(), authorization)


def wanted_pause_s(headers: Message) -> float:
    """The pause that a server asks for with Retry-After, as a number of seconds or as a date."""
    wanted = headers.get("Retry-After", "").strip()
    if re.fullmatch("[0-9]{1,9}", wanted):
        seconds: float = int(wanted)
    else:  # The host's clock may be wrong, so the date is held against the server's own where it says that.
        now = as_time(headers.get("Date", "")) or time.time()
        seconds = (as_time(wanted) or now) - now
    return min(max(seconds, 0), LONGEST_WAIT_S)


def as_time(date: str) -> float | None:
    """A date as HTTP writes it, in seconds since 1970. None where it is no date."""
    try:
        parsed = parsedate_tz(date)
        return mktime_tz(parsed) if parsed else None
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def origin(url: str) -> tuple[str, str]:
    """The scheme, and the host with its port, of an address."""
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.netloc
