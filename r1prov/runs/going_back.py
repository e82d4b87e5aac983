"""What hosts go back to: the versions that they served well with before, by what is kept here and by what lies on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from r1prov.common.errors import Problem, SiteError, UnreachableError
from r1prov.hosts import at_once, met, read_releases
from r1prov.site import versions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from r1prov.hosts import Login, Releases
    from r1prov.site import Host, Site


@dataclass(frozen=True)
class StepBack:
    """The way of one host to what it had before.

    Attributes:
        has: its versions now, by keys of `versions`.
        to: those to which it goes back.
        missing: the keys of those whose release does not lie there any more, so that it has to be made again.
    """

    has: dict[str, str]
    to: dict[str, str]
    missing: list[str]

    @property
    def moved(self) -> list[str]:
        """The keys of the versions that change."""
        return [key for key in self.to if self.to[key] != self.has[key]]


def step_back(settled: Mapping[str, str], before: Mapping[str, str], there: Releases) -> StepBack | None:
    """How a host goes back; None where there is nothing before what it has.

    Where other releases are current than the host was brought to, somebody else has brought them, or an upgrade that was cut off. So it
    goes back to what it was brought to.

    Args:
        settled: the versions that it was brought to, and was well with.
        before: those that it had before these; empty where there is nothing before.
        there: the releases that lie there.
    """
    current = {key: version for key, version in versions.installed(there.current).items() if version}
    has = {**settled, **{key: current[key] for key in settled.keys() & current.keys()}}
    to = {key: version if has != settled else before.get(key, version) for key, version in settled.items()}
    if to == has:
        return None
    lying = versions.lying(there.lying)
    return StepBack(has, to, [key for key in to if to[key] != has[key] and to[key] not in lying[key]])


def refuse_several_ways(steps: Mapping[str, StepBack]) -> None:
    """Refuse that hosts go back to different versions at once, as those would of which some were upgraded last, and others earlier.

    Raises:
        SiteError: they would.
    """
    ways = {name: ", ".join(versions.moves(step.has, step.to)) for name, step in steps.items()}
    if len({*ways.values()}) > 1:
        told = "; ".join(f"{name}: {way}" for name, way in ways.items())
        remedy = "name the hosts that shall go back: `r1prov rollback HOST`"
        raise SiteError(Problem("rollback", f"the hosts would go different ways ({told})", remedy))


def releases(
    site: Site, hosts: Sequence[Host], login: Login
) -> tuple[dict[str, Releases], dict[str, UnreachableError]]:
    """The releases on hosts by their names, and why those that could not be asked could not."""
    with met(hosts, site, login) as meeting:
        away = dict(meeting.away)

        def read(name: str) -> Releases | None:
            try:
                return read_releases(meeting.contacts[name].connection)
            except UnreachableError as error:
                away[name] = error
                return None

        found = dict(zip(meeting.contacts, at_once(read, [*meeting.contacts]), strict=True))
    return {name: each for name, each in found.items() if each}, away
