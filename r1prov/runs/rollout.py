"""The roll-out of other versions, newer or older: some hosts at a time. Hosts that fail are put back, and the rest stay as they are.

A host that is away stops nobody.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

from r1prov.common.errors import Problem, RunError, together
from r1prov.site import SiteFile, versions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from r1prov.common.errors import R1provError
    from r1prov.runs.report import RunReport
    from r1prov.runs.run import Done
    from r1prov.site import Host, Site


class Conductor(Protocol):
    """Runs the playbooks of a roll-out, tells the operator, and remembers what each host has come to."""

    def bring(self, hosts: Sequence[Host]) -> Done:
        """Bring hosts to what is wanted for them, which is one site."""

    def stay_well(self, hosts: Sequence[Host]) -> dict[str, Problem]:
        """See whether hosts that have answered go on doing so. Returns why not, by the name of the host."""

    def keep(self, hosts: Sequence[Host]) -> None:
        """Remember that these hosts have come to it."""

    def put_back(self, hosts: Sequence[Host], error: R1provError) -> Sequence[Done]:
        """Bring hosts back to what they had, because of `error`, and remember that."""


@dataclass
class RollOut:
    """What came of a roll-out.

    Attributes:
        runs: their reports, in order.
        done: the hosts that have come to what is wanted.
        away: what is wrong with hosts that could not be reached. They stay as they are, and the others were gone on with.
        failed: the hosts that went wrong.
        errors: why they went wrong.
        not_back: those of them that could not be put back.
        errors_back: why they could not.
        untouched: the hosts that no run was about.
    """

    runs: list[RunReport] = field(default_factory=list)
    done: list[Host] = field(default_factory=list)
    away: list[Problem] = field(default_factory=list)
    failed: list[Host] = field(default_factory=list)
    errors: list[R1provError] = field(default_factory=list)
    not_back: list[Host] = field(default_factory=list)
    errors_back: list[R1provError] = field(default_factory=list)
    untouched: list[Host] = field(default_factory=list)

    def outcomes(self) -> dict[str, str]:
        """What became of each host, in a word or two."""
        away = {problem.where: "away" for problem in self.away}
        failed = {host.name: "not put back" if host in self.not_back else "put back" for host in self.failed}
        others = {host.name: "done" for host in self.done} | {host.name: "not touched" for host in self.untouched}
        return away | failed | others


def batches(
    hosts: Sequence[Host], size: int, alike: Callable[[Host], object], pool: Callable[[Host], str]
) -> list[list[Host]]:
    """Hosts in their order, `size` of them at once, or as many more as hold one model together.

    Args:
        hosts: the hosts.
        size: how many at once.
        alike: what is the same for the hosts of a batch, because one run is about one site.
        pool: a name that hosts have in common that hold one model together. They speak with the same build only.
    """
    together = {name: [host for host in hosts if pool(host) == name] for name in map(pool, hosts)}
    found: list[list[Host]] = []
    for _, pools in groupby(together.values(), lambda some: alike(some[0])):
        found.append([])
        for some in pools:
            if found[-1] and len(found[-1]) + len(some) > size:
                found.append([])
            found[-1] += some
    return found


def roll_out(
    batches: Sequence[Sequence[Host]], conductor: Conductor, pool: Callable[[Host], str], *, keep_going: bool = False
) -> RollOut:
    """Bring hosts to other versions, a batch at once. Hosts that go wrong are put back, and then the roll-out ends.

    A host goes wrong where its run does, or where its engine does not stay well afterwards.

    Each host is remembered as soon as its trial is over, so whatever ends the roll-out later leaves it what it has.

    A host that cannot be reached, or is lost in the middle, says nothing about a version. So the roll-out goes on without it.

    Args:
        batches: from `batches`.
        conductor: does it.
        pool: as of `batches`. Where a host goes wrong, those that hold the model with it are put back, too.
        keep_going: whether it goes on after hosts that were put back. Where one could not be put back, it ends in any case: each host
            after it could be lost in the same way.

    Raises:
        R1provError: a run could not begin.
    """
    result = RollOut()
    for number, some in enumerate(batches, 1):
        done = conductor.bring(some)
        result.runs.append(done.report)
        of_host = done.report.hosts
        away = [host for host in some if of_host[host.name].result == "unreachable"]
        failed = [host for host in some if host not in away and of_host[host.name].result != "ok"]
        if done.error and not away and not failed:
            failed = list(some)
        answering = [host for host in some if host not in away and host not in failed]
        fallen = conductor.stay_well(answering)
        wrong = {pool(host) for host in some if host in failed or host.name in fallen}
        failed = [host for host in some if host not in away and pool(host) in wrong]
        well = [host for host in some if host not in away and host not in failed]
        error = together([*([done.error] if done.error else []), *([RunError(*fallen.values())] if fallen else [])])
        conductor.keep(well)
        result.done += well
        result.away += [Problem(**problem) for host in away for problem in of_host[host.name].problems]
        if error and failed:
            result.failed += failed
            result.errors.append(error)
            for back in conductor.put_back(failed, error):
                result.runs.append(back.report)
                result.not_back += [host for host in failed if _is_not_back(host, back)]
                result.errors_back += [back.error] if back.error else []
            if result.errors_back or not keep_going:
                result.untouched = [host for rest in batches[number:] for host in rest]
                break
    return result


def _is_not_back(host: Host, back: Done) -> bool:
    """Whether a run that was to put a host back has not. Where it went wrong by itself, no host of it is known to be well."""
    reports = back.report.hosts
    wrong = [name for name, report in reports.items() if report.result != "ok"]
    return bool(back.error) and host.name in (wrong or reports)


def unsettled(hosts: Sequence[Host], settled: Mapping[str, Site]) -> list[Problem]:
    """Why hosts are left out that were never well, so that there is nothing that they could be put back to."""
    what = "no run has set it up to the end yet, so a release that fails could not be put back"
    names = [host.name for host in hosts if host.name not in settled]
    return [Problem(name, what, f"run `r1prov up {name}` first") for name in names]


def put_back_sites(wanted: Site, settled: Mapping[str, Site]) -> dict[str, Site]:
    """The site with which each host is put back, by its name. Hosts that had the same site share one.

    Args:
        wanted: the site as it is wanted now, which knows how hosts are reached.
        settled: by host, the site that it was brought to and was well with.
    """
    bases: list[tuple[Site, dict[str, dict[str, str]]]] = []
    for name, site in settled.items():
        versions_now = wanted.of_group_of(name).file.versions
        file = site.file.model_copy(update={"hosts": wanted.hosts, "versions": versions_now})
        own = site.model_copy(update={"path": wanted.path, "file": file})
        if group := wanted.group_of(name):
            base = wanted.model_copy(update={"groups": {**wanted.groups, group: own}, "chosen": {}})
        else:
            base = own.model_copy(update={"groups": wanted.groups})
        chosen = next((chosen for other, chosen in bases if other == base), None)
        if chosen is None:
            chosen = {}
            bases.append((base, chosen))
        chosen[name] = versions.of(site, name)
    sites = [base.model_copy(update={"chosen": chosen}) for base, chosen in bases]
    return {name: site for site in sites for name in site.chosen}


def other_keys(before: Site, after: Site, host: str) -> list[str]:
    """The keys of the site file, besides hosts and versions, in which a host would come to something else."""
    old, new = before.of(host), after.of(host)
    keys = [key for key in SiteFile.model_fields if key not in {"hosts", "groups", "versions"}]
    changed = [key for key in keys if getattr(old.file, key) != getattr(new.file, key)]
    return changed or ["profile"] * (old.profile != new.profile)


def needs_new_load(before: Site, after: Site, has: Mapping[str, str], host: str) -> bool:
    """Whether the engine of a host, which has these versions, has to load the model again, or may have to."""
    engine = "ollama" if after.of(host).file.engine == "ollama" else "llama_cpp"
    return bool(other_keys(before, after, host)) or has.get(engine) != versions.of(after, host).get(engine)


def kept_versions(wanted: Site, host: str, ran: Mapping[str, str]) -> dict[str, str]:
    """What has to be chosen for a host that was put back, so that the next `up` leaves it the versions that it ran.

    What the site file says cannot be chosen otherwise.
    """
    usual, written = versions.of(wanted.model_copy(update={"chosen": {}}), host), wanted.written_versions(host)
    return {key: version for key, version in ran.items() if key not in written and version != usual.get(key)}


def sites_with(sites: Mapping[str, Site], chosen: Mapping[str, dict[str, str]]) -> dict[str, Site]:
    """These sites of hosts, where each host has the versions that are `chosen` for it. Hosts that had the same site share one."""
    new = {id(site): site.model_copy(update={"chosen": {**site.chosen, **chosen}}) for site in sites.values()}
    return {name: new[id(site)] for name, site in sites.items()}
