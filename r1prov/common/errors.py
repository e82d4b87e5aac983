"""The kinds of failure. Each kind has one exit code, and each failure says where it is, what it is and what to do next.

`EXIT_CODES` is the only table of exit codes. docs/trouble.md shows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Exit(IntEnum):
    """The exit codes of `r1prov`. 2 means wrong usage, as it does for other command line tools."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    SITE = 3
    UNREACHABLE = 4
    PREFLIGHT = 5
    RUN_FAILED = 6
    LOCKED = 7
    UNHEALTHY = 8
    LAB = 9
    DAMAGED = 10
    DRIFTED = 11
    UNTOLD = 12
    INTERRUPTED = 130
    UNREAD = 141


EXIT_CODES: dict[Exit, str] = {
    Exit.OK: "everything asked for was done",
    Exit.INTERNAL: "a defect in r1prov; `--debug` shows the traceback",
    Exit.USAGE: "a wrong command, option or argument",
    Exit.SITE: "the site file, a profile or a source is wrong; nothing was contacted",
    Exit.UNREACHABLE: "a host could not be reached or logged in to, or lacks what a first contact needs; the other hosts were done",
    Exit.PREFLIGHT: "a host does not fit what was asked for; nothing was changed",
    Exit.RUN_FAILED: "a step failed on a host; run the same command again to go on",
    Exit.LOCKED: "another run holds the host",
    Exit.UNHEALTHY: "the service does not answer as it should",
    Exit.LAB: "a throwaway host could not be made here",
    Exit.DAMAGED: "weights on a host are damaged; `r1prov up` replaces them",
    Exit.DRIFTED: "a host differs from what is wanted; `r1prov up` mends it",
    Exit.UNTOLD: "whether a host differs from what is wanted could not be told",
    Exit.INTERRUPTED: "stopped by Ctrl-C, `kill` or a closed terminal; run the same command again to go on",
    Exit.UNREAD: "whoever read the output went away before its end, as `head` does",
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        where: the host, file or option that is concerned, e.g. `gpu1` or `r1prov.yml:12`.
        what: what is wrong, in plain words and with the figures. It follows `where`, and may be its predicate.
        remedy: what to do next, as an instruction.
    """

    where: str
    what: str
    remedy: str


class R1provError(Exception):
    """A failure that is not a defect of r1prov. It has one or more problems and one exit code."""

    exit = Exit.INTERNAL

    def __init__(self, *problems: Problem) -> None:
        super().__init__("; ".join(f"{p.where}: {p.what}" for p in problems))
        self.problems = problems


class SiteError(R1provError):
    """What the operator asked for is wrong or contradictory."""

    exit = Exit.SITE


class UnreachableError(R1provError):
    """Hosts cannot be reached, or lack what the first contact needs. What was asked for was done on the others."""

    exit = Exit.UNREACHABLE


class PreflightError(R1provError):
    """A host does not fit what was asked for."""

    exit = Exit.PREFLIGHT


class RunError(R1provError):
    """A step failed on a host."""

    exit = Exit.RUN_FAILED


class LockedError(R1provError):
    """Another run holds the host."""

    exit = Exit.LOCKED


class UnhealthyError(R1provError):
    """A service does not answer as it should."""

    exit = Exit.UNHEALTHY


class DamagedError(R1provError):
    """Files of a model on a host are not what they should be."""

    exit = Exit.DAMAGED


class LabError(R1provError):
    """A throwaway host cannot be made or reached on this machine."""

    exit = Exit.LAB


def together(errors: Iterable[R1provError]) -> R1provError | None:
    """Several errors as one; None where there are none.

    Errors of different kinds become a RunError, and a DamagedError where one of them is: damage is what was looked for.
    """
    errors = list(errors)
    if not errors:
        return None
    kinds = {type(error) for error in errors}
    kind = kinds.pop() if len(kinds) == 1 else DamagedError if DamagedError in kinds else RunError
    return kind(*(problem for error in errors for problem in error.problems))
