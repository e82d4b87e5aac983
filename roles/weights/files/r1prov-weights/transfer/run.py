"""One run of the transfer: what is there, what is missing, and what the disk has room for."""

from __future__ import annotations

import contextlib
import errno
import glob
import logging
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.r1.prov.plugins.module_utils import weights_room
from ansible_collections.r1.prov.plugins.module_utils.digest import sha256_of
from ansible_collections.r1.prov.plugins.module_utils.files import free_bytes, sync_folder
from ansible_collections.r1.prov.plugins.module_utils.merged_weights import instead_of, made_of
from ansible_collections.r1.prov.plugins.module_utils.weights_kept import as_kept, seen
from ansible_collections.r1.prov.plugins.module_utils.weights_room import journal_of, room_of
from transfer import straight
from transfer.delivery import Delivery
from transfer.disk import is_file, remove, take_lock
from transfer.errors import DisturbedError, HopelessError, SourceError
from transfer.frontier import Frontier
from transfer.limit import Limit
from transfer.partial import Partial
from transfer.sources import File, Part, as_source
from transfer.straight import aside_of, head_of
from transfer.telling import Progress, Record
from transfer.turns import Supplier

if TYPE_CHECKING:
    import queue
    from collections.abc import Sequence

    from transfer.bringing import Bringing
    from transfer.delivery import Way
    from transfer.frontier import Hashed
    from transfer.heads import Headed

PATIENCE_S = 300  # with sources that refuse a file, where the job names no other time
GIB = 1 << 30
LOCK = "lock"

log = logging.getLogger("fetch")


class Transfer:
    """One run, after which all files are whole and verified. It is itself the way in which files come that lie here as published."""

    most_files, is_shared, remark = 0, False, ""

    def __init__(self, job: dict[str, Any], state: Path, run: Path) -> None:
        self.folder = Path(job["folder"])
        self.incoming = self.folder / ".incoming"
        self.files = [File(**row) for row in job["files"]]
        self.merged, self.attention = job["merged"], job["attention"]
        self.suppliers = [Supplier(as_source(row, job["token"]), number) for number, row in enumerate(job["sources"])]
        self.reserve_bytes, self.patience_s = job["reserve_bytes"], job.get("patience_s", PATIENCE_S)
        self.limit = Limit(job["rate_limit"])
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
        if missing and self.is_straight:
            self.require(self.progress.total - room_of(self.incoming / self.merged))
            straight.bring(self)
        elif missing:
            self.check_room(missing)
            self.deliver(self, missing)
        self.tidy(is_done=True)
        self.record.say("done", damaged=self.damaged)
        self.progress.show("all files are there and verified", state="done")

    def deliver(self, way: Way, files: Sequence[File] = ()) -> None:
        """Brings files, or all of them, in a way."""
        Delivery(
            files or self.files,
            self.suppliers,
            self.incoming,
            way,
            patience_s=self.patience_s,
            limit=self.limit,
            progress=self.progress,
        ).run()

    def partial(self, file: File) -> Partial:
        """What is there of a file that is to lie here as it was published."""
        return Partial(self.incoming / file.sha256, file)

    def reader(self, partial: Partial, events: queue.SimpleQueue[object]) -> Frontier:
        """What reads it."""
        return Frontier(partial, events)

    @property
    def is_straight(self) -> bool:
        """Whether the files come straight into the one that is made of them: where none of them lies here yet, or that has begun."""
        return weights_room.is_straight(self.folder, [vars(file) for file in self.files], self.merged)

    def tidy(self, *, is_done: bool = False) -> None:
        """Removes what does not belong to these files. A file that was being checked when a run was killed gets its name back."""
        own = [self.incoming / file.sha256 for file in self.files]
        final = self.incoming / self.merged if self.merged else None
        for place in (*own, *([final] if final else [])):
            for path in sorted(self.incoming.glob(f"{glob.escape(place.name)}.*")):
                if path.suffix[1:].isdigit() and is_file(path) and room_of(path) >= room_of(place):
                    if place.exists():
                        remove(journal_of(place))  # It is the other one's.
                    path.replace(place)
        if final and self.is_straight:
            beside = [each(self.incoming, file) for each in (head_of, aside_of) for file in self.files]
            own = [] if is_done else [*beside, final]
        kept = {*own, *map(journal_of, own), self.incoming / LOCK}
        for path in sorted(self.incoming.iterdir()):
            if path not in kept or not (is_file(path) or path.name == LOCK):
                remove(path)
        for place in own:
            if not place.exists():
                remove(journal_of(place))

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
        shards = [vars(file) for file in self.files]
        usable = instead_of(made_of(self.folder, shards), self.merged, self.attention)
        return [File(record["name"], record["bytes"], record["sha256"]) for record in usable]

    def is_there(self, file: File) -> bool:
        """Whether the file is in its place. It is read only where nothing is known of it."""
        place = self.folder / file.name
        if not self.record.knows(place, file):
            if not place.is_file():
                return False
            kept = seen(place, file.sha256)
            if why := self.fault(place, file):
                log.warning("%s is damaged: %s", place, why)
                self.damaged = [*(name for name in self.damaged if name != file.name), file.name]
                return False
            self.record.add(place, kept)
        (self.incoming / file.sha256).unlink(missing_ok=True)  # it is needed no more
        journal_of(self.incoming / file.sha256).unlink(missing_ok=True)
        self.progress.done += file.bytes
        return True

    def fault(self, place: Path, file: File) -> str:
        """Why the file that has this name is not the one that it should be; empty where it is. Reads all of it."""
        size = place.stat().st_size
        if size != file.bytes:
            return f"it has {size} bytes, not {file.bytes}"
        try:
            digest = sha256_of(place, lambda done: self.progress.show(f"checking {file.name}", done))
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return "its disk cannot read it"
        return "" if digest == file.sha256 else f"its sha256 is {digest}, not {file.sha256}"

    def check_room(self, missing: list[File]) -> None:
        """Refuses to begin where the disk has too little room. Published files that are damaged go for it, when a source has their like."""
        partials = [self.incoming / file.sha256 for file in missing]
        coming = sum(file.bytes for file in missing) - sum(map(room_of, partials))
        short = coming + self.reserve_bytes - free_bytes(self.folder)
        if coming <= 0 or short <= 0:
            return
        bad = [file for file in missing if file.name in self.damaged]
        if short > sum((self.folder / file.name).stat().st_size for file in bad):
            raise HopelessError(self.too_little(coming))
        self.see_sources(bad)
        for file in bad:
            log.warning("%s is removed, because the disk has no room for its successor beside it", file.name)
            (self.folder / file.name).unlink()
            self.damaged.remove(file.name)
        if coming + self.reserve_bytes > free_bytes(self.folder):
            raise HopelessError(
                f"what was damaged in {self.folder} is removed, but a process that has it open keeps its room:"
                " stop the engine, which is the unit r1prov-llama-server or r1prov-ollama"
            )

    def require(self, coming: int) -> None:
        """Sees that the disk has room for so many bytes.

        Raises:
            HopelessError: it has not.
        """
        if 0 < coming > free_bytes(self.folder) - self.reserve_bytes:
            raise HopelessError(self.too_little(coming))

    def too_little(self, coming: int) -> str:
        """What to say where the disk has too little room."""
        return (
            f"the disk of {self.folder} has {free_bytes(self.folder) / GIB:.1f} GiB free, but {coming / GIB:.1f} GiB are still"
            f" to come and {self.reserve_bytes / GIB:.1f} GiB stay free: make room, or choose a smaller quant"
        )

    def see_sources(self, files: list[File]) -> None:
        """Sees that a source has each of the files, before those that are in their places are given up for them.

        Raises:
            HopelessError: none has.
        """
        for file in files:
            refusals = []
            for source in (supplier.source for supplier in self.suppliers):
                try:
                    source.open(Part(file, 0, file.bytes)).stream.close()
                    break
                except SourceError as error:
                    refusals.append(f"{source} {error}")
            else:
                raise HopelessError(
                    f"the disk of {self.folder} has no room for another {file.name}, and the damaged one is not removed"
                    f" before a source has shown that it has it: {'; '.join(refusals)}"
                )

    def accept(self, bringing: Bringing, _found: Hashed | Headed) -> None:
        """Gives a file that is whole and right its name.

        Raises:
            DisturbedError: another program has changed it meanwhile.
        """
        file, place = bringing.file, self.folder / bringing.file.name
        origins = bringing.origins()
        aside, status = bringing.partial.set_aside()
        kept = as_kept(status, file.sha256)
        try:
            if seen(aside, file.sha256) != kept:
                raise DisturbedError
            aside.replace(place)
        except FileNotFoundError:
            raise DisturbedError from None
        sync_folder(self.folder)
        self.record.came(file, origins)
        self.record.add(place, kept)
        self.progress.done += file.bytes
        bringing.partial.forget_journal()
        log.info("%s is verified", file.name)
