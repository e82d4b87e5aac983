"""The decision which CUDA toolkit a host is to use. It is made on values: nothing is read or run here."""

from __future__ import annotations

from dataclasses import dataclass

Version = tuple[int, int]

# The oldest toolkit that knows a compute capability.
_KNOWN_SINCE: dict[int, Version] = {
    70: (9, 0), 75: (10, 0), 80: (11, 0), 86: (11, 1), 87: (11, 4), 89: (11, 8), 90: (11, 8), 100: (12, 8), 120: (12, 8),
}  # fmt: skip
_OLDEST_OF_13 = 75  # CUDA 13 does not know the capabilities below it any more
# The oldest driver that runs what a toolkit of a major version compiled. Minor versions are compatible with each other.
_DRIVER_SINCE = {11: 450, 12: 525, 13: 580}
WHEELS_VERSION: Version = (13, 0)


@dataclass(frozen=True)
class Candidate:
    """One toolkit that could be used.

    Attributes:
        way: `system`, `pypi`, `nvidia` or `distribution`.
        root: its folder, where it lies or would lie.
        version: None where it cannot be had.
        problem: why it cannot be had or does not work; empty where nothing is known against it.
        architectures: what its compiler says it knows; empty where it is not installed.
    """

    way: str
    root: str
    version: Version | None
    problem: str = ""
    architectures: tuple[str, ...] = ()


def unfit(candidate: Candidate, architectures: list[str], driver: int | None) -> str:
    """Why a candidate cannot be used; empty where it can.

    Args:
        candidate: the toolkit.
        architectures: wanted compute capabilities without the dot, e.g. `89`.
        driver: major version of the NVIDIA driver; None on a host without one, which allows every toolkit.
    """
    if candidate.problem or candidate.version is None:
        return candidate.problem or "cannot be had"
    needed = _DRIVER_SINCE.get(candidate.version[0])
    if driver is not None and needed is not None and driver < needed:
        return f"CUDA {text(candidate.version)} needs a driver of {needed} or newer, this host has {driver}"
    unknown = [a for a in architectures if not _knows(candidate, a)]
    if unknown:
        return f"CUDA {text(candidate.version)} does not know {', '.join('sm_' + a for a in unknown)}"
    return ""


def choose(
    candidates: list[Candidate], source: str, architectures: list[str], driver: int | None
) -> tuple[Candidate | None, list[str]]:
    """The first candidate that fits, and one sentence about each that was looked at before it.

    Args:
        candidates: in the order in which they are preferred.
        source: `auto`, or the only way that is allowed.
        architectures: see `unfit`.
        driver: see `unfit`.
    """
    considered: list[str] = []
    for candidate in candidates:
        if source not in ("auto", candidate.way):
            continue
        reason = unfit(candidate, architectures, driver)
        if not reason:
            return candidate, considered
        considered.append(f"{candidate.way} ({candidate.root}): {reason}")
    return None, considered


def text(version: Version) -> str:
    """As people write it: `12.4`."""
    return f"{version[0]}.{version[1]}"


def _knows(candidate: Candidate, architecture: str) -> bool:
    if candidate.architectures:
        return architecture in candidate.architectures
    number, version = int(architecture.rstrip("af")), candidate.version or (0, 0)
    if version[0] >= 13 and number < _OLDEST_OF_13:
        return False
    return version >= _KNOWN_SINCE.get(number, (13, 0))
