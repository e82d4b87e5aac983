"""The roll-out of an upgrade: some hosts at a time. Hosts that fail are put back, and the rest stay as they are.

A host that is away stops nobody.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from r1prov.common.errors import Problem
from r1prov.site import SiteFile, versions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from r1prov.common.errors import R1provError
    from r1prov.runs.report import RunReport
    from r1prov.runs.run import Done
    from r1prov.site import Host, Site


class Conductor(Protocol):
    """Runs the playbooks of a roll-out, tells the operator, and remembers what each host has come to."""

    def upgrade(self, hosts: Sequence[Host]) -> Done:
        """Bring hosts to what is wanted."""

    def keep(self, hosts: Sequence[Host]) -> None:
        """Remember that these hosts are upgraded."""

    def put_back(self, hosts: Sequence[Host], error: R1provError) -> Sequence[Done]:
        """Bring hosts back to what they had, because of `error`, and remember that."""


@dataclass
class RollOut:
    """What came of a roll-out.

    Attributes:
        runs: their reports, in order.
        away: what is wrong with hosts that could not be reached. They are not upgraded, and the others were gone on with.
        failed: the hosts that went wrong.
        error: why they went wrong; None where all hosts that could be reached were upgraded.
        not_back: why hosts could not be put back; None where they run as before.
        untouched: the hosts that no run was about.
    """

    runs: list[RunReport] = field(default_factory=list)
    failed: Sequence[Host] = ()
    error: R1provError | None = None
    not_back: R1provError | None = None
    untouched: Sequence[Host] = ()
    away: list[Problem] = field(default_factory=list)


def roll_out(hosts: Sequence[Host], batch: int, conductor: Conductor) -> RollOut:
    """Upgrade hosts, `batch` of them at once. Stops at the first batch in which a host goes wrong, and puts that host back.

    Each host is remembered as soon as its run has ended, so whatever ends the roll-out later leaves it what it has.

    A host that cannot be reached, or is lost in the middle, says nothing about a version. So the roll-out goes on without it.

    Raises:
        R1provError: a run could not begin.
    """
    result = RollOut()
    for start in range(0, len(hosts), batch):
        some = hosts[start : start + batch]
        done = conductor.upgrade(some)
        result.runs.append(done.report)
        of_host = done.report.hosts
        away = [host for host in some if of_host[host.name].result == "unreachable"]
        failed = [host for host in some if host not in away and of_host[host.name].result != "ok"]
        if done.error and not away and not failed:
            failed = list(some)
        conductor.keep([host for host in some if host not in away and host not in failed])
        if done.error and failed:
            result.failed, result.error, result.untouched = failed, done.error, hosts[start + batch :]
            for back in conductor.put_back(failed, done.error):
                result.runs.append(back.report)
                result.not_back = result.not_back or back.error
            break
        result.away += [Problem(**problem) for host in away for problem in of_host[host.name].problems]
    return result


def unsettled(settled: Mapping[str, Site | None]) -> list[Problem]:
    """Why hosts are not upgraded that were never well, so that there is nothing that they could be put back to."""
    what = "no run has set it up to the end yet, so a failed upgrade could not be put back"
    return [Problem(name, what, f"run `r1prov up {name}` first") for name, site in settled.items() if not site]


def put_back_sites(wanted: Site, settled: Mapping[str, Site]) -> dict[str, Site]:
    """The site with which each host is put back, by its name. Hosts that had the same site share one.

    Args:
        wanted: the site as it is wanted now, which knows how hosts are reached.
        settled: by host, the site that it was brought to and was well with.
    """
    sites: list[tuple[Site, dict[str, dict[str, str]]]] = []
    for name, site in settled.items():
        file = site.file.model_copy(update={"hosts": wanted.hosts, "versions": wanted.file.versions})
        base = site.model_copy(update={"path": wanted.path, "file": file})
        chosen = next((chosen for other, chosen in sites if other == base), None)
        if chosen is None:
            chosen = {}
            sites.append((base, chosen))
        chosen[name] = versions.of(site, name)
    return {name: site.model_copy(update={"chosen": chosen}) for site, chosen in sites for name in chosen}


def other_keys(before: Site, after: Site) -> list[str]:
    """The keys of the site file, besides hosts and versions, in which a host would come to something else."""
    keys = [key for key in SiteFile.model_fields if key not in {"hosts", "versions"}]
    changed = [key for key in keys if getattr(before.file, key) != getattr(after.file, key)]
    return changed or ["profile"] * (before.profile != after.profile)


def needs_new_load(before: Site, after: Site, host: str) -> bool:
    """Whether the engine of a host has to load the model again, or may have to."""
    engine = "ollama" if after.file.engine == "ollama" else "llama_cpp"
    old, new = versions.of(before, host), versions.of(after, host)
    return bool(other_keys(before, after)) or old.get(engine) != new[engine]


def kept_versions(wanted: Site, ran: Mapping[str, str]) -> dict[str, str]:
    """What has to be chosen for a host that was put back, so that the next `up` leaves it the versions that it ran.

    What the site file says cannot be chosen otherwise.
    """
    usual = versions.of(wanted.model_copy(update={"chosen": {}}), "")
    return {
        key: version for key, version in ran.items() if key not in wanted.written_versions and version != usual.get(key)
    }
