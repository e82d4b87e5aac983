"""What can go wrong, by what is done about it."""

from __future__ import annotations


class SourceError(Exception):
    """A source does not bring a file. `wait_s` is the pause that it asks for."""

    def __init__(self, what: str, wait_s: float = 0) -> None:
        super().__init__(what)
        self.wait_s = wait_s


class UnreachableError(SourceError):
    """This source does not answer now, or has broken off."""


class RefusedError(SourceError):
    """This source does not have this file, or does not give it. That may pass, but rarely does."""


class ChangedError(RefusedError):
    """This source has another version of the file than it had before. `etag` names the new one."""

    def __init__(self, etag: str) -> None:
        super().__init__("has put another version of the file in its place (its ETag has changed)")
        self.etag = etag


class WrongError(RefusedError):
    """This source alone has sent the whole file, and it is not the right one."""


class NoRangesError(Exception):
    """This source sends whole files only, and was asked for a part beside others. It has done nothing wrong."""


class CancelledError(Exception):
    """Nobody wants any more what this connection brings."""


class DisturbedError(Exception):
    """The file on its way is not as this program left it, because another program writes to it."""


class HopelessError(Exception):
    """The transfer cannot go on before a person has done something."""
