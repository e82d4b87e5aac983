#!/usr/bin/python3
"""Brings the files of a model to a folder, and gives each its name only when its sha256 is right.

    fetch.py JOB

Runs as r1prov-weights.service until all files are there, through lost connections, kills and reboots. JOB is a JSON file
that only this program may read: `folder`, `files` (name, bytes, sha256), `merged` (the name of the one file that is made of them, or
empty), `attention` (the form of that file), `sources` in the order of preference, `token` (for those with `login`; empty where none has
it), `environment` (proxies), `reserve_bytes`.

A file grows as `.incoming/SHA256` beside its final place and gets its name when it is whole and verified. What has been
verified is remembered, so that a start with nothing to do takes milliseconds. A damaged file that may be served stays until what
replaces it is whole. The standard library of Python 3.10 only.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import hashlib
import http.client
import json
import logging
import mmap
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BLOCK_BYTES = 1 << 20
STALL_S = 60
STALL_BYTES = 64 << 10  # less than this in STALL_S: the connection is as good as dead
LONGEST_PAUSE_S = 60
LONGEST_WAIT_S = 600  # that a server may ask for
PROGRESS_EVERY_S = 0.5
GIB = 1 << 30
EXIT_HOPELESS = 3  # the unit does not restart after this one: a person has to act
PASSING_ANSWERS = (408, 425, 429)  # and every 5xx: the server may think better of it

log = logging.getLogger("fetch")


class RefusedError(Exception):
    """This source will never bring this file."""


class UnreachableError(Exception):
    """This source does not answer now, or has broken off."""

    def __init__(self, what: str, wait_s: float = 0) -> None:
        super().__init__(what)
        self.wait_s = wait_s


class HopelessError(Exception):
    """The transfer cannot go on before a person has done something."""


@dataclass(frozen=True)
class File:
    """One file that is wanted."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Folder:
    """A source that is a folder of this host."""

    path: str

    def __str__(self) -> str:
        return f"the folder {self.path}"

    def open(self, file: File, start: int) -> tuple[IO[bytes], int]:
        """Opens the file at `start`. Returns a stream, and where that really starts."""
        try:
            stream = Path(self.path, file.name).open("rb")  # noqa: SIM115 - the caller closes it, as it does a response
            size = os.fstat(stream.fileno()).st_size
        except FileNotFoundError:
            raise RefusedError("does not have it; is its disk mounted?") from None
        except PermissionError:
            raise RefusedError("may not be read by the user r1prov-weights: chmod -R a+rX it and its parents") from None
        except OSError as error:
            raise RefusedError(f"cannot be read: {error.strerror}") from None
        if size != file.bytes:
            raise RefusedError(wrong_size(file, size, stream))
        stream.seek(start)
        return stream, start


@dataclass(frozen=True)
class Web:
    """A source that is a web server, which has the files below one address. Only this server is shown `authorization`."""

    url: str
    authorization: str = field(default="", repr=False)

    def __str__(self) -> str:
        return urllib.parse.urlsplit(self.url).netloc

    def open(self, file: File, start: int) -> tuple[IO[bytes], int]:
        """Opens the file at `start`, or at 0 where the server knows no ranges. Returns a stream, and where that really starts."""
        headers = {"User-Agent": "r1prov", "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        url = f"{self.url}/{urllib.parse.quote(file.name)}"
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - http or https, see as_source()
        if self.authorization:
            request.add_unredirected_header("Authorization", self.authorization)
        try:
            response = urllib.request.build_opener(Redirects).open(request, timeout=STALL_S)
        except urllib.error.HTTPError as error:
            raise self._refusal(error) from None
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise RefusedError(f"its certificate is not trusted: {reason.verify_message}") from None
            raise UnreachableError(f"cannot be reached: {words(reason)}") from None
        size = response.headers.get("Content-Length")
        if response.status == http.HTTPStatus.PARTIAL_CONTENT:
            position = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if not position or int(position[1]) != start:
                raise RefusedError("answers a request for the rest of a file with something else")
            size = position[2]
        else:
            start = 0
        if size and size.isdigit() and int(size) != file.bytes:
            raise RefusedError(wrong_size(file, int(size), response))
        return response, start

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        with error:
            what = f"answers {error.code} {error.reason}"
            if error.code in PASSING_ANSWERS or error.code >= 500:
                wait = error.headers.get("Retry-After", "")
                return UnreachableError(what, min(int(wait), LONGEST_WAIT_S) if wait.isdigit() else 0)
            if error.code in (401, 403):
                what += "; the token or password is not accepted" if self.authorization else "; it may want a token"
            return RefusedError(what)


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects. It shows the token only to the server that it is for, and the proxy's password only to the proxy."""

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302  # unknown to Python 3.10

    def redirect_request(  # noqa: PLR0917 - the signature is urllib's
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The request to make next."""
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
    """A file on its way: the bytes that have arrived, and their digest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: IO[bytes] | None = None
        self._forget()

    def _forget(self) -> None:
        self.bytes = 0
        self.digest = hashlib.sha256()
        self.origins: set[object] = set()

    def take_up(self, show: Callable[[int], None]) -> None:
        """Reads the bytes that are there already. `show` is called with their number."""
        if self.path.exists():
            self.origins.add("an earlier run")
            with self.path.open("rb") as stream:
                while block := stream.read(BLOCK_BYTES):
                    self.digest.update(block)
                    self.bytes += len(block)
                    show(self.bytes)

    def append(self, block: bytes) -> None:
        """Adds bytes at the end. A whole file is never written to, because it may be a link to somebody else's."""
        if not self._stream:
            self._stream = self.path.open("ab", buffering=0)
        rest = memoryview(block)
        while rest:  # on a disk that is filling up, a write may take less than it was given
            rest = rest[self._stream.write(rest) :]
        self.digest.update(block)
        self.bytes += len(block)

    def begin_anew(self) -> None:
        """Throws away the bytes that have arrived."""
        self.close()
        self.path.unlink(missing_ok=True)
        self._forget()

    def close(self) -> None:
        """Waits until what was written is safely on the disk."""
        if self._stream:
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._stream = None


class Record:
    """The file state.json. It says how this run goes, and which files have been verified, so that they are not read again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._verified = json.loads(path.read_text("utf-8"))["verified"]
        except (FileNotFoundError, ValueError, KeyError):  # torn by a power failure: then all is read once more
            self._verified = {}
        self._outcome: dict[str, Any] = {}

    def say(self, state: str, message: str = "", damaged: Sequence[str] = ()) -> None:
        """Writes down how the run goes, and what it found damaged. The invocation tells this start of the unit from an earlier one."""
        self._outcome = {"state": state, "message": message, "invocation": os.environ.get("INVOCATION_ID", "")}
        self._outcome["damaged"] = list(damaged)
        self._save()

    def knows(self, path: Path, file: File) -> bool:
        """Whether this very file was verified and has not been touched since."""
        return path.exists() and self._verified.get(str(path)) == seen(path, file)

    def add(self, path: Path, file: File) -> None:
        """Remembers a file that was verified just now."""
        self._verified[str(path)] = seen(path, file)
        self._save()

    def _save(self) -> None:
        replace(self._path, {**self._outcome, "verified": self._verified})


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


class Transfer:
    """One run, after which all files are whole and verified."""

    def __init__(self, job: dict[str, Any], state: Path, run: Path) -> None:
        self.folder = Path(job["folder"])
        self.incoming = self.folder / ".incoming"
        self.files = [File(**row) for row in job["files"]]
        self.merged, self.attention = job["merged"], job["attention"]
        self.sources = [as_source(row, job["token"]) for row in job["sources"]]
        self.reserve_bytes = job["reserve_bytes"]
        self.damaged: list[str] = []  # what is in its place and is not what it should be
        self.record = Record(state / "state.json")
        self.progress = Progress(run / "progress.json", sum(file.bytes for file in self.files))

    def run(self) -> None:
        """Brings the files that are missing."""
        self.record.say("running")
        if any(proxy.startswith("socks") for proxy in urllib.request.getproxies().values()):
            raise HopelessError("a SOCKS proxy is configured, and only http proxies can be used here")
        if not self.folder.is_dir():
            raise HopelessError(f"{self.folder} does not exist: is its disk mounted?")
        self.incoming.mkdir(exist_ok=True)
        wanted = {file.sha256 for file in self.files}
        for stranger in [path for path in self.incoming.iterdir() if path.name not in wanted]:
            stranger.unlink()
        missing = [] if self.is_made() else [file for file in self.files if not self.is_there(file)]
        if missing and self.damaged:
            self.progress.remark = f"; damaged, and kept until then: {', '.join(self.damaged)}"
        self.check_room(missing)
        for file in missing:
            self.bring(file)
            self.progress.done += file.bytes
        self.record.say("done", damaged=self.damaged)
        self.progress.show("all files are there and verified", state="done")

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
            if why := self.fault(place, file):
                log.warning("%s is damaged: %s", place, why)
                self.damaged.append(file.name)
                return False
            self.record.add(place, file)
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
        coming = sum(file.bytes for file in missing) - sum(path.stat().st_size for path in partials if path.exists())
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
            for source in self.sources:
                try:
                    source.open(file, 0)[0].close()
                    break
                except (RefusedError, UnreachableError) as error:
                    refusals.append(f"{source} {error}")
            else:
                raise HopelessError(
                    f"the disk of {self.folder} has no room for another {file.name}, and the damaged one is not removed"
                    f" before a source has shown that it has it: {'; '.join(refusals)}"
                )

    def bring(self, file: File) -> None:
        """Brings one file from the first source that has it. Bears with a bad network, but not with wrong content."""
        part = Partial(self.incoming / file.sha256)
        part.take_up(lambda done: self.progress.show(f"checking what there is of {file.name}", done))
        sources, refusals = list(self.sources), []
        idle, alone = 0, False  # failures since a byte came; whether a source has to bring the file by itself
        while sources:
            source, before = sources[0], part.bytes
            if alone and part.origins - {source}:
                part.begin_anew()
            try:
                self.pull(source, file, part)
                if self.accept(source, file, part):
                    return
                alone = True
            except RefusedError as refusal:
                refusals.append(f"{source} {refusal}")
                log.warning("%s: %s", file.name, refusals[-1])
                sources.pop(0)
            except UnreachableError as error:
                log.warning("%s: %s %s", file.name, source, error)
                if part.bytes > before:  # it was getting on: the same source again
                    idle = 0
                else:
                    idle += 1
                    sources.append(sources.pop(0))
                if idle % len(sources) == 0:
                    self.progress.show(f"waiting to try again: {source} {error}", part.bytes)
                    time.sleep(max(min(2 ** (idle // len(sources)), LONGEST_PAUSE_S), error.wait_s))
        raise HopelessError("; ".join([f"no source brings {file.name}", *refusals]))

    def pull(self, source: Folder | Web, file: File, part: Partial) -> None:
        """Takes bytes from a source until the file is whole."""
        if part.bytes > file.bytes:
            part.begin_anew()
        if part.bytes == file.bytes:
            return
        stream, start = source.open(file, part.bytes)
        if start != part.bytes:
            part.begin_anew()
        part.origins.add(source)
        label = f"fetching {file.name} from {source}"
        log.info("%s, %d of %d bytes are here", label, part.bytes, file.bytes)
        window_s, window_bytes = time.monotonic(), part.bytes
        with stream:
            while part.bytes < file.bytes:
                part.append(receive(stream, file.bytes - part.bytes))
                self.progress.show(label, part.bytes)
                if time.monotonic() - window_s > STALL_S:
                    if part.bytes - window_bytes < STALL_BYTES:
                        raise UnreachableError("sends next to nothing")
                    window_s, window_bytes = time.monotonic(), part.bytes

    def accept(self, source: Folder | Web, file: File, part: Partial) -> bool:
        """Gives a whole file its name if it is the right one. False: its bytes came from several origins and are wrong.

        Raises:
            RefusedError: all of it came from this source, and it is wrong.
        """
        part.close()
        found = part.digest.hexdigest()
        if found == file.sha256:
            place = self.folder / file.name
            part.path.replace(place)
            sync_folder(self.folder)
            self.record.add(place, file)
            log.info("%s is verified", file.name)
            return True
        origins = set(part.origins)
        part.begin_anew()
        if origins == {source}:
            raise RefusedError(f"sends wrong bytes: their sha256 is {found}, not {file.sha256}")
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
    """The bytes that have arrived. Waits for at least one."""
    try:
        block: bytes = stream.read1(min(most, BLOCK_BYTES))  # type: ignore[attr-defined]
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(f"stopped sending: {words(error)}") from None
    if not block:
        raise UnreachableError("ended the connection too early")
    return block


def words(error: object) -> str:
    """The message of an exception, without its number."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def wrong_size(file: File, size: int, stream: IO[bytes]) -> str:
    """Why a file of that size is refused."""
    with stream:
        if size < 1024 and stream.read(64).startswith(b"version https://git-lfs"):
            return "has only a Git LFS pointer in its place: fetch the file itself there with `git lfs pull`"
    return f"has {size} bytes where {file.bytes} are wanted: another file, or another revision of it"


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
    """Writes a JSON file in one piece."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content), "utf-8")
    temporary.replace(path)


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are safely on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def main() -> int:
    """Runs the job.

    Returns:
        0 when all files are there; EXIT_HOPELESS when a person has to act, and state.json and the journal say how.
    """
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    os.umask(0o022)  # the models are for every service of this host to read
    job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
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
    with contextlib.suppress(OSError):  # a disk may be too full even for this; the journal has it
        transfer.progress.show(why, state="failed")
        transfer.record.say("failed", why)
    return EXIT_HOPELESS


if __name__ == "__main__":
    sys.exit(main())
