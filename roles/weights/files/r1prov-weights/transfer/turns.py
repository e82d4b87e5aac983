"""How each source has answered when it was asked for a file, and when it may be asked again."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transfer.errors import RefusedError, SourceError, WrongError

if TYPE_CHECKING:
    from transfer.sources import Folder, Web

LONGEST_PAUSE_S = 60
PAUSE_AFTER_GAIN_S = 1.0
MOST_VERSIONS = 3  # ETags that change so often tell nothing: several servers do not agree on them.


@dataclass
class Supplier:
    """A source, whatever file it is asked for."""

    source: Folder | Web
    number: int  # its place in the order of preference
    quiet_until: float = 0  # because the server asked for it
    has_lied: bool = False  # it has sent a whole file with wrong bytes, so it is asked last for the next files

    @property
    def most(self) -> int:
        """How many connections it may have. A folder is one disk, which reads one place after the other fastest."""
        return 1000 if self.source.is_web else 1


@dataclass
class Turn:
    """A source, and how it has answered for one file."""

    supplier: Supplier
    says: str = ""  # why it has not brought the file
    failures: int = 0  # in a row, since a byte came
    failed_s: float = -1  # when the last one was
    again_at: float = 0
    refused_since: float | None = None
    refused_for: float = -1  # from the first refusal to the last one; negative where the last answer was none
    is_wrong: bool = False  # it has sent the whole file with wrong bytes
    is_proven: bool = False  # it brings bytes of this file, and in parts
    sends_whole: bool = False  # it sends whole files only
    etag: str = ""  # which version of the file it has
    versions: int = 0  # how often that has changed
    is_announced: bool = False  # whether the log says that it brings the file

    @property
    def source(self) -> Folder | Web:
        """The source."""
        return self.supplier.source

    @property
    def ready_at(self) -> float:
        """When it may be asked again."""
        return max(self.again_at, self.supplier.quiet_until)

    def answered(self, etag: str, *, takes_ranges: bool) -> None:
        """Writes down that it brings bytes."""
        self.failures = 0
        self.is_proven = takes_ranges
        if not self.is_wrong:  # Bytes that arrive do not excuse wrong ones before.
            self.refused_since, self.refused_for = None, -1
        if self.versions < MOST_VERSIONS:
            self.etag = self.etag or etag

    def changed(self, etag: str) -> None:
        """Writes down that it has another version of the file than before."""
        self.versions += 1
        self.etag = etag if self.versions < MOST_VERSIONS else ""

    def fail(self, error: SourceError, *, gained: bool, asked_s: float) -> None:
        """Writes down a failure.

        Args:
            error: what it says.
            gained: whether it had brought bytes before.
            asked_s: when it was asked. Several connections that fail together are one failure.
        """
        now = time.monotonic()
        if asked_s < self.failed_s and not isinstance(error, WrongError):
            self.supplier.quiet_until = max(self.supplier.quiet_until, now + error.wait_s)
            return
        self.failed_s = now
        self.says, self.is_announced = f"{self.source} {error}", False
        self.failures = 0 if gained else self.failures + 1
        self.is_proven = self.is_proven and gained
        self.again_at = now + (PAUSE_AFTER_GAIN_S if gained else min(2**self.failures, LONGEST_PAUSE_S))
        self.supplier.quiet_until = max(self.supplier.quiet_until, now + error.wait_s)
        if isinstance(error, WrongError):
            self.is_wrong = self.supplier.has_lied = True
        if isinstance(error, RefusedError):
            if self.refused_since is None:
                self.refused_since = now
            self.refused_for = now - self.refused_since
        elif not self.is_wrong:
            self.refused_since, self.refused_for = None, -1
