"""The roll-out of an upgrade: some hosts at a time. Hosts that fail are put back, and the rest stay as they are.

A host that is away stops nobody.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from r1prov.common.errors import UnreachableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from r1prov.common.errors import Problem, R1provError
    from r1prov.runs.report import RunReport
    from r1prov.runs.run import Done
    from r1prov.site import Host, Site


class Conductor(Protocol):
    """Runs the playbooks of a roll-out, and tells the operator."""

    def upgrade(self, hosts: Sequence[Host]) -> Done:
        """Bring hosts to what is wanted."""

    def put_back(self, hosts: Sequence[Host], error: R1provError) -> Done:
        """Bring hosts back to what they had, because of `error`."""


@dataclass
class RollOut:
    """What came of a roll-out.

    Attributes:
        runs: their reports, in order.
        failed: the hosts of the batch that went wrong.
        error: why that batch went wrong; None where all hosts were upgraded.
        not_back: why the hosts could not be put back; None where they run as before.
        untouched: the hosts that no run was about.
        away: what is wrong with hosts that could not be reached. They are not upgraded.
    """

    runs: list[RunReport] = field(default_factory=list)
    failed: Sequence[Host] = ()
    error: R1provError | None = None
    not_back: R1provError | None = None
    untouched: Sequence[Host] = ()
    away: list[Problem] = field(default_factory=list)


def roll_out(hosts: Sequence[Host], batch: int, conductor: Conductor) -> RollOut:
    """Upgrade hosts, `batch` of them at once. Stops at the first batch that goes wrong, and puts its hosts back.

    A host that cannot be reached, or is lost in the middle, says nothing about a version. So the roll-out goes on without it.

    Raises:
        R1provError: a run could not begin.
    """
    result = RollOut()
    for start in range(0, len(hosts), batch):
        some = hosts[start : start + batch]
        done = conductor.upgrade(some)
        result.runs.append(done.report)
        if isinstance(done.error, UnreachableError):
            result.away += done.error.problems
        elif done.error:
            away = done.report.with_result("unreachable")
            there = [host for host in some if host.name not in away]
            back = conductor.put_back(there, done.error)
            result.runs.append(back.report)
            result.failed, result.error, result.not_back = there, done.error, back.error
            result.untouched = hosts[start + batch :]
            break
    return result


def needs_new_load(site: Site, versions: dict[str, str]) -> bool:
    """Whether an upgrade to these versions, all of them where none is named, makes the engine load the model again."""
    return not versions or ("ollama" if site.file.engine == "ollama" else "llama_cpp") in versions
