#!/usr/bin/python3
"""Brings the files of a model to a folder, and gives each its name only when its sha256 is right.

    fetch.py JOB

Runs as r1prov-weights.service until all files are there, through lost connections, kills and reboots. JOB is a JSON file
that only this program may read: `folder`, `files` (name, bytes, sha256), `merged` (the name of the one file that is made of them, or
empty), `attention` (the form of that file), `sources` in the order of preference, `token` (for those with `login`; empty where none has
it), `environment` (proxies), `reserve_bytes`, `patience_s` (how long sources that refuse a file are asked again).

A file grows as `.incoming/SHA256` beside its final place. When it is whole, it is read back from the disk, and it gets its name if its
sha256 is right. What has been verified is remembered, so that a start with nothing to do takes milliseconds. A damaged file that may be
served stays until what replaces it is whole. One process at a time works on a folder, of whatever host. The standard library of
Python 3.10 only.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import hashlib
import html
import http.client
import json
import logging
import mmap
import os
import random
import re
import shutil
import ssl
import stat
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from email.utils import mktime_tz, parsedate_tz
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from email.message import Message

BLOCK_BYTES = 1 << 20
HEAD_BYTES = 4096  # enough to tell what a wrong file is, with the title of a page
STALL_S = 60
STALL_BYTES = 64 << 10  # less than this in STALL_S: the connection is as good as dead
LONGEST_PAUSE_S = 60
PATIENCE_S = 300  # with sources that refuse a file, where the job names no other time
LONGEST_WAIT_S = 600  # that a server may ask for
PROGRESS_EVERY_S = 0.5
STILL_THERE_S = 30  # progress.json is written so often while nothing happens, because an old one counts as left behind
LOCK_POLL_S = 0.5
MOST_CONFLICTS = 10  # over one file, with a program that the lock does not reach
GIB = 1 << 30
EXIT_HOPELESS = 3  # the unit does not restart after this one: a person has to act
PAGE, LFS, TEXT = "a web page", "a Git LFS pointer", "text"
TEXT_CHARS = 80  # of a wrong file, which say what it is
WEB_SCHEMES = ("http", "https")
LOCK = "lock"
PASSING_ANSWERS = (408, 425, 429)  # and every 5xx: the server may think better of it

log = logging.getLogger("fetch")


class SourceError(Exception):
    """A source does not bring a file. `wait_s` is the pause that it asks for."""

    def __init__(self, what: str, wait_s: float = 0) -> None:
        super().__init__(what)
        self.wait_s = wait_s


class UnreachableError(SourceError):
    """This source does not answer now, or has broken off."""


class RefusedError(SourceError):
    """This source does not have this file, or does not give it. That may pass, but rarely does."""


class WrongError(RefusedError):
    """This source alone has sent the whole file, and it is not the right one."""


class DisturbedError(Exception):
    """The file on its way is not as this program left it, because another program writes to it."""


class HopelessError(Exception):
    """The transfer cannot go on before a person has done something."""


@dataclass(frozen=True)
class File:
    """One file that is wanted."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Answer:
    """What a source sends of a file."""

    stream: IO[bytes]
    start: int  # where in the file it begins
    size: int | None  # of the whole file; None where the source does not say it
    head: bytes = b""  # the bytes that were read of it already


@dataclass(frozen=True)
class Folder:
    """A source that is a folder of this host."""

    path: str

    def __str__(self) -> str:
        return f"the folder {self.path}"

    def open(self, file: File, start: int) -> Answer:
        """Opens the file at `start`."""
        path = Path(self.path, file.name)
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
                raise RefusedError(wrong_file(file, size, kind_of(beginning(stream))))
        stream.seek(start)
        return Answer(stream, start, size)


@dataclass(frozen=True)
class Web:
    """A source that is a web server, which has the files below one address. Only this server is shown `authorization`."""

    url: str
    authorization: str = field(default="", repr=False)

    def __str__(self) -> str:
        return urllib.parse.urlsplit(self.url).netloc

    def open(self, file: File, start: int) -> Answer:
        """Opens the file at `start`, or at 0 where the server knows no ranges."""
        headers = {"User-Agent": "r1prov", "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        url = f"{self.url}/{urllib.parse.quote(file.name)}"
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - http or https, see as_source()
        if self.authorization:
            request.add_unredirected_header("Authorization", self.authorization)
        redirects = Redirects()
        try:
            response = urllib.request.build_opener(redirects).open(request, timeout=STALL_S)
        except urllib.error.HTTPError as error:
            raise self._refusal(error, file) from None
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
            return self._answer(response, file, start)
        except BaseException:
            response.close()
            raise

    def _answer(self, response: http.client.HTTPResponse, file: File, start: int) -> Answer:
        """Judges an answer before anything is done with it. What it says of its size or its kind has to be the file's."""
        headers, whence = response.headers, self._whence(response.url)
        size = response.length
        if response.status == http.HTTPStatus.PARTIAL_CONTENT:
            position = re.fullmatch(r"bytes ([0-9]+)-[0-9]+/([0-9]+|\*)", headers.get("Content-Range", ""))
            if not position or int(position[1]) != start:
                raise RefusedError(f"answers a request for the rest of a file with something else{whence}")
            size = None if position[2] == "*" else int(position[2])
        elif response.status in {http.HTTPStatus.OK, http.HTTPStatus.NON_AUTHORITATIVE_INFORMATION}:
            start = 0
        else:
            raise RefusedError(f"answers {response.status} {plain(response.reason)}{whence} instead of the file")
        codings = ", ".join(headers.get_all("Content-Encoding", []) + headers.get_all("Transfer-Encoding", [])).lower()
        packed = set(re.split(r"[\s,]+", codings)) - {"", "identity", "chunked"}
        if size == file.bytes and not packed:
            return Answer(response, start, size)
        head = b"" if start or packed else beginning(response)
        kind = kind_of(self._without_login(head), headers.get("Content-Type", ""))
        if packed and not kind:
            kind = f"something packed ({', '.join(sorted(packed))})"
        if size is None and not kind:
            return Answer(response, start, size, head)
        raise RefusedError(wrong_file(file, size, kind, whence))

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
            length = re.fullmatch(r"bytes \*/([0-9]+)", error.headers.get("Content-Range", ""))
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and length:
                return RefusedError(wrong_file(file, int(length[1]), whence=whence), wait_s)
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
        following.remove_header(
            "Proxy-authorization"
        )  # The next address may be one without a proxy. Else it is added again.
        authorization = req.unredirected_hdrs.get("Authorization")
        if authorization and origin(newurl) == origin(req.full_url):
            following.add_unredirected_header("Authorization", authorization)
        return following


class Partial:
    """A file on its way, as it stands on the disk.

    A lock may not reach every program that writes to it, such as one on another host. So the disk is looked at before each write.
    """

    def __init__(self, path: Path, whole_bytes: int) -> None:
        self.path = path
        self._stream: IO[bytes] | None = None
        self.bytes = 0
        self.origins: set[object] = set()
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            self.bytes = status.st_size
            self.origins.add("an earlier run")
            # With two names it is somebody else's file, too, and nothing may be added to it.
            if self.bytes > whole_bytes or (self.bytes < whole_bytes and status.st_nlink > 1):
                self.begin_anew()

    def append(self, block: bytes) -> None:
        """Adds bytes at the end. A whole file is never written to, because it may be a link to somebody else's.

        Raises:
            DisturbedError: the file is not as this program left it.
        """
        file, rest = self._checked(), memoryview(block)
        while rest:  # on a disk that is filling up, a write may take less than it was given
            rest = rest[file.write(rest) :]
        self.bytes += len(block)

    def read(self, position: int, most: int) -> bytes:
        """Some of the bytes that are there."""
        self._checked()
        with self.path.open("rb") as stream:
            stream.seek(position)
            return stream.read(most)

    def cut(self, size: int) -> None:
        """Throws away what comes after that many bytes."""
        if size < self.bytes:
            self._checked().truncate(size)
            self.bytes = size

    def begin_anew(self) -> None:
        """Throws away the bytes that have arrived."""
        self.close()
        self.path.unlink(missing_ok=True)
        self.bytes = 0
        self.origins = set()

    def close(self) -> None:
        """Waits until what was written is safely on the disk."""
        if self._stream:
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._stream = None

    def set_aside(self) -> Path:
        """Gives the file a name that no other program writes to, and returns it. Transfer.tidy() finds it there after a kill."""
        self.close()
        aside = self.path.with_name(f"{self.path.name}.{os.uname().nodename}.{os.getpid()}")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            raise DisturbedError from None
        self.bytes = 0
        return aside

    def _checked(self) -> IO[bytes]:
        """The open file, if it is what has this name, and as long as this program left it."""
        if not self._stream:
            self._stream = self.path.open("ab", buffering=0)
        status = os.fstat(self._stream.fileno())
        if status.st_size != self.bytes or not has_name(status, self.path):
            raise DisturbedError
        return self._stream


class Record:
    """The file state.json. It says how this run goes, and which files have been verified, so that they are not read again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.read()

    def read(self) -> None:
        """Reads the file. Another process may have written it while this one waited."""
        try:
            self._content = dict(json.loads(self._path.read_text("utf-8")))
        except (FileNotFoundError, IsADirectoryError, ValueError, TypeError):
            self._content = {}  # After a power failure it may be torn. Then all is read once more.
        self._verified = self._content.setdefault("verified", {})

    def say(self, state: str, message: str = "", damaged: Sequence[str] = ()) -> None:
        """Writes down how the run goes, and what it found damaged. The invocation tells this start of the unit from an earlier one.

        A run by hand has none. What is written of the unit stays then, because others wait for that.
        """
        if invocation := os.environ.get("INVOCATION_ID"):
            self._content |= {"state": state, "message": message, "invocation": invocation, "damaged": list(damaged)}
        replace(self._path, self._content)

    def knows(self, path: Path, file: File) -> bool:
        """Whether this very file was verified and has not been touched since."""
        return path.exists() and self._verified.get(str(path)) == seen(path, file)

    def add(self, path: Path, looks: dict[str, Any]) -> None:
        """Remembers how a verified file looked before it was read."""
        self._verified[str(path)] = looks
        replace(self._path, self._content)


def seen(path: Path, file: File) -> dict[str, Any]:
    """The properties by which a changed file is noticed. plugins/module_utils/merged_weights.py compares the same."""
    status = path.stat()
    return {
        "sha256": file.sha256,
        "bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "inode": status.st_ino,
    }


class Progress:
    """The file progress.json, by which others see how this run goes (ARCHITECTURE.md, "Progress")."""

    def __init__(self, path: Path, total: int) -> None:
        self._path = path
        self._label, self._written_s = "", 0.0
        self.remark = ""  # stands behind every label
        self.total = total
        self.done = 0  # of the files that are whole

    def show(self, label: str, partial_bytes: int = 0, *, state: str = "running") -> None:
        """Writes the file, unless it was written just now and only the bytes have changed since."""
        if (label, state) == (self._label, "running") and time.monotonic() - self._written_s < PROGRESS_EVERY_S:
            return
        content = {
            "step": "weights",
            "label": label + self.remark,
            "done": self.done + partial_bytes,
            "total": self.total,
        }
        content |= {"unit": "bytes", "state": state, "updated": time.time()}
        replace(self._path, content)
        self._label, self._written_s = label, time.monotonic()


@dataclass
class Turn:
    """A source, and how it has answered."""

    source: Folder | Web
    says: str = ""  # why it has not brought the file
    failures: int = 0  # in a row, since a byte came
    again_at: float = 0
    quiet_until: float = 0  # because the server asked for it, and for whatever file
    refused_since: float | None = None
    refused_for: float = -1  # from the first refusal to the last one; negative where the last answer was none
    is_wrong: bool = False  # it has sent the whole file with wrong bytes

    @property
    def ready_at(self) -> float:
        """When it may be asked again."""
        return max(self.again_at, self.quiet_until)

    def begin(self) -> None:
        """Forgets how it answered for another file."""
        self.says, self.failures, self.again_at, self.is_wrong = "", 0, 0, False
        self.refused_since, self.refused_for = None, -1

    def fail(self, error: SourceError, *, gained: bool) -> None:
        """Writes down a failure. `gained` says whether it had brought bytes before."""
        now = time.monotonic()
        self.says = f"{self.source} {error}"
        self.failures = 0 if gained else self.failures + 1
        self.again_at = now + (0 if gained else min(2**self.failures, LONGEST_PAUSE_S))
        self.quiet_until = max(self.quiet_until, now + error.wait_s)
        self.is_wrong |= isinstance(error, WrongError)
        if isinstance(error, RefusedError):
            if self.refused_since is None:
                self.refused_since = now
            self.refused_for = now - self.refused_since
        elif not self.is_wrong:  # Bytes that arrive do not excuse wrong ones before.
            self.refused_since, self.refused_for = None, -1


class Transfer:
    """One run, after which all files are whole and verified."""

    def __init__(self, job: dict[str, Any], state: Path, run: Path) -> None:
        self.folder = Path(job["folder"])
        self.incoming = self.folder / ".incoming"
        self.files = [File(**row) for row in job["files"]]
        self.merged, self.attention = job["merged"], job["attention"]
        self.turns = [Turn(as_source(row, job["token"])) for row in job["sources"]]
        self.reserve_bytes, self.patience_s = job["reserve_bytes"], job.get("patience_s", PATIENCE_S)
        self.damaged: list[str] = []  # what is in its place and is not what it should be
        self.record = Record(state / "state.json")
        self.progress = Progress(run / "progress.json", sum(file.bytes for file in self.files))

    def run(self) -> None:
        """Brings the files that are missing."""
        if any(proxy.startswith("socks") for proxy in urllib.request.getproxies().values()):
            raise HopelessError("a SOCKS proxy is configured, and only http proxies can be used here")
        if not self.folder.is_dir():
            raise HopelessError(f"{self.folder} does not exist: is its disk mounted?")
        self.make_incoming()
        take_lock(self.incoming / LOCK, self.progress.show)
        try:
            self.run_alone()
        finally:
            (self.incoming / LOCK).unlink(missing_ok=True)

    def make_incoming(self) -> None:
        """Makes the folder in which files grow. What else has its name is removed, but never what a link leads to."""
        if self.incoming.is_symlink() or not self.incoming.is_dir():
            with contextlib.suppress(IsADirectoryError):  # Another process has made it meanwhile.
                self.incoming.unlink(missing_ok=True)
        self.incoming.mkdir(exist_ok=True)
        if self.incoming.stat().st_dev != self.folder.stat().st_dev:
            raise HopelessError(
                f"{self.incoming} is another disk, and files cannot be moved from there to {self.folder}: unmount it"
            )

    def run_alone(self) -> None:
        """Does so while no other process works on the folder. Looks at what there is only now, because another may have brought it."""
        self.record.read()
        self.record.say("running")
        for place in (self.folder / file.name for file in self.files):
            if place.is_dir():
                raise HopelessError(f"{place} is a folder, and a file of the model has that name: move it away")
        self.tidy()
        missing = [] if self.is_made() else [file for file in self.files if not self.is_there(file)]
        if missing and self.damaged:
            self.progress.remark = f"; damaged, and kept until then: {', '.join(self.damaged)}"
        self.check_room(missing)
        for file in missing:
            self.bring(file)
        self.record.say("done", damaged=self.damaged)
        self.progress.show("all files are there and verified", state="done")

    def tidy(self) -> None:
        """Removes what does not belong to these files. A file that was being checked when a run was killed gets its name back."""
        wanted = {file.sha256 for file in self.files}
        for path in [path for path in self.incoming.iterdir() if path.name != LOCK]:
            name = path.name.partition(".")[0]
            if name not in wanted or not is_file(path):
                remove(path)
            elif name != path.name and size_of(path) >= size_of(path.with_name(name)):
                path.replace(path.with_name(name))
            elif name != path.name:
                remove(path)

    def is_made(self) -> bool:
        """Whether a file that was made of all these files is in its place. One that went bad stays until it is made anew."""
        total = self.progress.total
        for file in self.made():
            self.progress.total = file.bytes
            if self.is_there(file):
                return True
            self.progress.total = total
        return False

    def made(self) -> list[File]:
        """The file that is wanted of these files, then the file that they were merged into as published, of which it can be made too."""
        found = []
        for path in sorted(self.folder.glob("*.gguf.json")):
            try:
                record = json.loads(path.read_text("utf-8"))
                file, attention = File(record["name"], record["bytes"], record["sha256"]), record["attention"]
                if [row["sha256"] for row in record["shards"]] != [file.sha256 for file in self.files]:
                    continue
            except (ValueError, KeyError, TypeError):
                continue
            if self.merged and (file.name == self.merged or (self.attention, attention) == ("mla", "legacy")):
                found.append(file)
        return sorted(found, key=lambda file: file.name != self.merged)

    def is_there(self, file: File) -> bool:
        """Whether the file is in its place. It is read only where nothing is known of it."""
        place = self.folder / file.name
        if not self.record.knows(place, file):
            if not place.is_file():
                return False
            looks = seen(place, file)
            if why := self.fault(place, file):
                log.warning("%s is damaged: %s", place, why)
                self.damaged = [*(name for name in self.damaged if name != file.name), file.name]
                return False
            self.record.add(place, looks)
        (self.incoming / file.sha256).unlink(missing_ok=True)  # it is needed no more
        self.progress.done += file.bytes
        return True

    def fault(self, place: Path, file: File) -> str:
        """Why the file that has this name is not the one that it should be; empty where it is. Reads all of it."""
        size = place.stat().st_size
        if size != file.bytes:
            return f"it has {size} bytes, not {file.bytes}"
        try:
            digest = sha256_on_disk(place, lambda done: self.progress.show(f"checking {file.name}", done))
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return "its disk cannot read it"
        return "" if digest == file.sha256 else f"its sha256 is {digest}, not {file.sha256}"

    def check_room(self, missing: list[File]) -> None:
        """Refuses to begin where the disk has too little room. Published files that are damaged go for it, when a source has their like."""
        partials = [self.incoming / file.sha256 for file in missing]
        coming = sum(file.bytes for file in missing) - sum(map(size_of, partials))
        short = coming + self.reserve_bytes - self.free_bytes()
        if coming <= 0 or short <= 0:
            return
        bad = [file for file in missing if file.name in self.damaged]
        if short > sum((self.folder / file.name).stat().st_size for file in bad):
            raise HopelessError(
                f"the disk of {self.folder} has {self.free_bytes() / GIB:.1f} GiB free, but {coming / GIB:.1f} GiB are still"
                f" to come and {self.reserve_bytes / GIB:.1f} GiB stay free: make room, or choose a smaller quant"
            )
        self.see_sources(bad)
        for file in bad:
            log.warning("%s is removed, because the disk has no room for its successor beside it", file.name)
            (self.folder / file.name).unlink()
            self.damaged.remove(file.name)
        if coming + self.reserve_bytes > self.free_bytes():
            raise HopelessError(
                f"what was damaged in {self.folder} is removed, but a process that has it open keeps its room:"
                " stop the engine (systemctl stop r1prov-llama-server r1prov-ollama)"
            )

    def free_bytes(self) -> int:
        """What the disk has free."""
        disk = os.statvfs(self.folder)
        return disk.f_bavail * disk.f_frsize

    def see_sources(self, files: list[File]) -> None:
        """Sees that a source has each of the files, before those that are in their places are given up for them.

        Raises:
            HopelessError: none has.
        """
        for file in files:
            refusals = []
            for source in (turn.source for turn in self.turns):
                try:
                    source.open(file, 0).stream.close()
                    break
                except SourceError as error:
                    refusals.append(f"{source} {error}")
            else:
                raise HopelessError(
                    f"the disk of {self.folder} has no room for another {file.name}, and the damaged one is not removed"
                    f" before a source has shown that it has it: {'; '.join(refusals)}"
                )

    def bring(self, file: File) -> None:
        """Brings one file from the first source that gives it.

        Bears with a bad network for as long as it takes. Where all sources refuse the file, or send a wrong one, they are asked again for
        `patience_s`, because even that may pass: a hub that is restarted, a proxy with a page of its own, a flipped bit.
        """
        part, conflicts = Partial(self.incoming / file.sha256, file.bytes), 0
        order, alone = list(self.turns), False  # whether a source has to bring the file by itself
        for turn in order:
            turn.begin()
        while any(turn.refused_for < self.patience_s for turn in order):
            turn = self.next_turn(order, file, part.bytes)
            if alone and part.origins - {turn.source}:
                part.begin_anew()
            before = part.bytes
            try:
                self.pull(turn.source, file, part)
                if self.accept(turn.source, file, part):
                    return
                alone = True
            except SourceError as error:
                gained = part.bytes > before
                turn.fail(error, gained=gained)
                log.warning("%s: %s", file.name, turn.says)
                if gained:  # It was getting on, so the same source is asked again.
                    time.sleep(1)
                else:
                    order.append(order.pop(order.index(turn)))
            except DisturbedError:
                conflicts += 1
                if self.was_brought_by_another(file, part.path, conflicts):
                    return
                part = Partial(part.path, file.bytes)
        raise HopelessError("; ".join([f"no source brings {file.name}", *(turn.says for turn in self.turns)]))

    def next_turn(self, order: list[Turn], file: File, part_bytes: int) -> Turn:
        """The first source that may be asked now. Waits where there is none."""
        turn = min(order, key=lambda turn: max(turn.ready_at, time.monotonic()))
        why = "; ".join(turn.says for turn in self.turns if turn.says)
        if all(turn.refused_since is not None for turn in order):
            ends_at = max(turn.refused_since or 0 for turn in order) + self.patience_s
            why += f"; {file.name} is given up if that is so until {clock(ends_at)}"
        if turn.quiet_until > max(turn.again_at, time.monotonic()):
            why += f"; {turn.source} has asked for a pause until {clock(turn.quiet_until)}"
        self.wait(f"waiting to try again: {why}", turn.ready_at, part_bytes)
        return turn

    def wait(self, label: str, until: float, part_bytes: int = 0) -> None:
        """Waits, and says so all the time."""
        while (left_s := until - time.monotonic()) > 0:
            self.progress.show(label, part_bytes)
            time.sleep(min(left_s, STILL_THERE_S))

    def was_brought_by_another(self, file: File, path: Path, conflicts: int) -> bool:
        """Waits until nobody writes to the file any more. Returns whether it is in its place then."""
        log.warning("%s: another program, which the lock does not reach, writes to %s", file.name, path)
        if conflicts > MOST_CONFLICTS:
            raise HopelessError(
                f"another program keeps writing to {path}, and locks do not keep it off: let one host, and one run, fetch into that folder"
            )
        before, now = -1, size_of(path)
        while before != now:
            # The pauses are random, so that two programs that wait for each other do not go on at the same moment.
            pause_s = random.uniform(1, 4 * conflicts)  # noqa: S311
            self.wait(f"waiting: another program writes to {path}", time.monotonic() + pause_s)
            before, now = now, size_of(path)
        return self.is_there(file)

    def pull(self, source: Folder | Web, file: File, part: Partial) -> None:
        """Takes bytes from a source until the file is whole."""
        if part.bytes == file.bytes:
            return
        stored, answer = part.bytes, source.open(file, part.bytes)
        part.origins.add(source)
        label = f"fetching {file.name} from {source}"
        log.info("%s, %d of %d bytes are here", label, stored, file.bytes)
        position, block = answer.start, answer.head
        window_s, window_bytes = time.monotonic(), position
        with answer.stream:
            while position < file.bytes:
                block = block or receive(answer.stream, file.bytes - position)
                if not block:
                    self.judge_end(answer, file, part, stored, position)
                self.take(source, answer, part, block, position)
                position, block = position + len(block), b""
                self.progress.show(label, part.bytes)
                if time.monotonic() - window_s > STALL_S:
                    if position - window_bytes < STALL_BYTES:
                        raise UnreachableError("sends next to nothing")
                    window_s, window_bytes = time.monotonic(), position

    def take(self, source: Folder | Web, answer: Answer, part: Partial, block: bytes, position: int) -> None:
        """Adds what is new of a block. A server without ranges sends again what is there: that is compared, and not thrown away."""
        known = part.read(position, len(block)) if position < part.bytes else b""
        if not block.startswith(known):
            if answer.size is None:
                raise RefusedError(
                    f"sends other bytes than the {part.bytes} that are here, and not how many: remove {part.path} if those are wrong"
                )
            part.cut(position)
            known = b""
        if len(block) > len(known):
            part.append(block[len(known) :])
            if not answer.start:
                part.origins = {source}

    def judge_end(self, answer: Answer, file: File, part: Partial, stored: int, position: int) -> None:
        """Raises what it means that an answer ends before the file does."""
        if answer.size is None and (getattr(answer.stream, "chunked", False) or part.bytes <= stored):
            part.cut(stored)
            raise RefusedError(wrong_file(file, position))
        raise UnreachableError("ended the connection too early")

    def accept(self, source: Folder | Web, file: File, part: Partial) -> bool:
        """Gives a whole file its name if it stands rightly on the disk. False: its bytes came from several origins and are wrong.

        Raises:
            WrongError: all of it came from this source, and it is wrong.
            DisturbedError: another program has changed it meanwhile.
        """
        origins, place = set(part.origins), self.folder / file.name
        aside = part.set_aside()
        label = f"checking {file.name}"
        try:
            looks = seen(aside, file)
            found = sha256_on_disk(
                aside, lambda done: self.progress.show(f"{label}: {done * 100 // file.bytes} % are read", file.bytes)
            )
            if seen(aside, file) != looks:
                raise DisturbedError
            if found == file.sha256:
                aside.replace(place)
        except FileNotFoundError:
            raise DisturbedError from None
        if found == file.sha256:
            sync_folder(self.folder)
            self.record.add(place, looks)
            self.progress.done += file.bytes
            log.info("%s is verified", file.name)
            return True
        aside.unlink(missing_ok=True)
        part.begin_anew()
        if origins == {source}:
            raise WrongError(f"sends wrong bytes: their sha256 is {found}, not {file.sha256}")
        log.warning("%s: what came from %s does not fit together", file.name, " and ".join(map(str, origins)))
        return False


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


def receive(stream: IO[bytes], most: int) -> bytes:
    """The bytes that have arrived. Waits for at least one. There is none where the answer has ended."""
    try:
        block: bytes = stream.read1(min(most, BLOCK_BYTES))  # type: ignore[attr-defined]
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(f"stopped sending: {words(error)}") from None
    return block


def beginning(stream: IO[bytes]) -> bytes:
    """The first bytes of an answer, which tell what it is."""
    head, until = b"", time.monotonic() + STALL_S
    while len(head) < HEAD_BYTES and time.monotonic() < until:
        try:
            block: bytes = stream.read(HEAD_BYTES - len(head))
        except (OSError, http.client.HTTPException):
            break
        if not block:
            break
        head += block
    return head


def kind_of(head: bytes, content_type: str = "") -> str:
    """What something wrong is, by its first bytes and by what its server calls it. Empty where that cannot be told."""
    text = head.decode("utf-8", "replace").lstrip("\ufeff")
    # Comments and declarations say nothing of what follows.
    text = re.sub(r"\A(\s|<!--.*?-->|<\?.*?\?>)+", "", text, flags=re.DOTALL)
    if text.startswith("version https://git-lfs"):
        return LFS
    if "html" in content_type.lower() or re.match(
        r"<(!doctype html|html|head|body|script|meta)\b", text, re.IGNORECASE
    ):
        title = re.search(r"<title[^>]*>(.*?)</title", text, re.IGNORECASE | re.DOTALL)
        return f'{PAGE} with the title "{plain(html.unescape(title[1]))}"' if title else PAGE
    if head.startswith(b"\x1f\x8b"):
        return "a gzip archive"
    # No model is without these bytes at its beginning.
    if not head or re.search(rb"[\x00-\x08\x0e-\x1a]", head):
        return ""
    first = plain(text)[:TEXT_CHARS]
    return f'{TEXT} that begins with "{first}"' if first else TEXT


def wrong_file(file: File, size: int | None, kind: str = "", whence: str = "") -> str:
    """Why something of that size and kind is refused."""
    if kind == LFS:
        return f"has only {LFS} in its place: fetch the file itself there with `git lfs pull`"
    if kind.startswith(PAGE):
        return f"sends {kind}{whence} instead of the file: a login, a proxy or a filter may stand in between"
    if kind:
        return f"sends {kind}{whence} instead of the file"
    return f"has {size} bytes{whence} where {file.bytes} are wanted: another file, or another revision of it"


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


def clock(monotonic_s: float) -> str:
    """A moment of this run as a time of day."""
    return time.strftime("%H:%M:%S UTC", time.gmtime(time.time() + monotonic_s - time.monotonic()))


def plain(text: str) -> str:
    """The beginning of a text of others, fit for one line of a log."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())[:100]


def words(error: object) -> str:
    """The message of an exception, without its number."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def origin(url: str) -> tuple[str, str]:
    """The scheme, and the host with its port, of an address."""
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.netloc


def sha256_on_disk(path: Path, show: Callable[[int], None]) -> str:
    """The sha256 of a file as it stands on the disk. `show` is called with the number of bytes that are read.

    The kernel may still have in memory what was right, and it keeps what an engine has mapped. So it is passed by, where the file system
    allows that.
    """
    digest, done, block = (
        hashlib.sha256(),
        0,
        mmap.mmap(-1, BLOCK_BYTES),
    )  # It begins with a page, as such reads want it.
    with path.open("rb", buffering=0) as stream:
        flags = fcntl.fcntl(stream, fcntl.F_GETFL)
        with contextlib.suppress(OSError):
            fcntl.fcntl(stream, fcntl.F_SETFL, flags | os.O_DIRECT)
        while True:
            try:
                count = stream.readinto(block)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                fcntl.fcntl(stream, fcntl.F_SETFL, flags)  # The file system cannot, or cannot from here on.
                count = stream.readinto(block)
            if not count:
                return digest.hexdigest()
            digest.update(memoryview(block)[:count])
            done += count
            show(done)


def replace(path: Path, content: object) -> None:
    """Writes a JSON file in one piece.

    Raises:
        HopelessError: a folder has its name.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")  # a run by hand may write the same file
    temporary.write_text(json.dumps(content), "utf-8")
    try:
        temporary.replace(path)
    except IsADirectoryError:
        temporary.unlink()
        raise HopelessError(
            f"{path} is a folder, and this program keeps a file of that name: remove the folder"
        ) from None


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are safely on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def has_name(status: os.stat_result, path: Path) -> bool:
    """Whether an open file has this name."""
    try:
        return os.path.samestat(status, path.lstat())
    except FileNotFoundError:
        return False


def is_file(path: Path) -> bool:
    """Whether this is a file itself, and no link to one."""
    return path.is_file() and not path.is_symlink()


def size_of(path: Path) -> int:
    """The size of a file. It is 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def remove(path: Path) -> None:
    """Removes whatever has this name. What cannot be removed is left, and named in the log."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s does not belong there, and cannot be removed: %s", path, words(error))


def take_lock(path: Path, show: Callable[[str], None]) -> None:
    """Waits until no other process works on this folder, and keeps others off until this process ends, however it ends.

    This is a lock of POSIX, because NFS shows it to all its hosts. A lock of flock() is not shown to the host that has the disk.
    """
    if path.is_symlink() or (path.exists() and not is_file(path)):
        remove(path)
    while True:
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)  # what others may open, they may lock
        except PermissionError:
            raise HopelessError(
                f"{path} cannot be opened by user {os.geteuid()}: run this as the owner of {path.parent}."
                " Hosts that share the folder need the same number for r1prov-weights"
            ) from None
        try:
            while not is_taken(lock):
                holder = plain(os.pread(lock, 200, 0).decode("utf-8", "replace")) or "another process"
                show(f"waiting: {holder} fetches into {path.parent.parent}")
                time.sleep(LOCK_POLL_S)
            if has_name(os.fstat(lock), path):
                break
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
        os.close(lock)  # The process that had it has removed it meanwhile, so it is worth nothing any more.
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)


def is_taken(lock: int) -> bool:
    """Tries to take a lock. Where the disk has none, this process goes on without it."""
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno == errno.ESTALE:
            raise
        log.warning(
            "the disk has no locks (%s): let one host, and one run, fetch into the folder at a time", words(error)
        )
    return True


def act_as_owner(folder: Path) -> None:
    """Makes a run by root act as the owner of the folder. The unit could not write to files that belong to root."""
    if os.geteuid() == 0 and folder.is_dir() and (owner := folder.stat()).st_uid:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


def main() -> int:
    """Runs the job.

    Returns:
        0 when all files are there; EXIT_HOPELESS when a person has to act, and state.json and the journal say how.
    """
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    os.umask(0o022)  # the models are for every service of this host to read
    job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    act_as_owner(Path(job["folder"]))
    os.environ.update(job["environment"])
    transfer = Transfer(job, Path(os.environ["STATE_DIRECTORY"]), Path(os.environ["RUNTIME_DIRECTORY"]))
    try:
        transfer.run()
    except HopelessError as error:
        return give_up(transfer, str(error))
    except OSError as error:  # the network's are dealt with: this is the host's own disk
        where = error.filename or transfer.folder
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return give_up(transfer, f"the disk of {where} is full: make room; what has arrived is kept")
        return give_up(transfer, f"{where}: {error.strerror}")
    return 0


def give_up(transfer: Transfer, why: str) -> int:
    """Tells what a person has to do."""
    if transfer.damaged:
        why = f"{why}. {' and '.join(transfer.damaged)} is damaged, and stays until what replaces it is whole"
    transfer.progress.remark = ""
    log.error("%s", why)
    # A disk may be too full even for this, or the place of one file taken. The journal has it.
    with contextlib.suppress(OSError, HopelessError):
        transfer.progress.show(why, state="failed")
    with contextlib.suppress(OSError, HopelessError):
        transfer.record.say("failed", why)
    return EXIT_HOPELESS


if __name__ == "__main__":
    sys.exit(main())
