"""What happens during a run, as values. `ansible.py` makes them, `report.py` counts them, and `output/` shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from r1prov.common import paths

if TYPE_CHECKING:
    from pathlib import Path

    from r1prov.common.errors import Problem
    from r1prov.hosts.looking import Look


@dataclass(frozen=True)
class StepStarted:
    """A host enters a step, the `number`th of `total`, counted from 1. Where its role comes more than once, `why` tells them apart."""

    host: str
    step: str
    number: int
    total: int
    why: str = ""


@dataclass(frozen=True)
class TaskStarted:
    """A host begins a task. `step` is empty outside all steps."""

    host: str
    step: str
    task: str


@dataclass(frozen=True)
class TaskDone:
    """A task went well. `action` is the full name of its module or action plugin, and `result` is what that returned."""

    host: str
    step: str
    task: str
    changed: bool
    result: dict[str, Any]
    action: str = ""

    @property
    def differences(self) -> list[str]:
        """What its module, or a loop over one, says that somebody has changed. Differences that a new wish makes are left out."""
        return _differences(self.result)

    @property
    def built_anew(self) -> bool:
        """Whether its module says that a platform has built the host anew."""
        return bool(self.result.get("built_anew", False))

    @property
    def warnings(self) -> list[str]:
        """What its module warns of."""
        found: list[str] = paths.module_util("looked").warnings(self.result)
        return found


@dataclass(frozen=True)
class HostFailed:
    """A task failed, and with it the host."""

    host: str
    step: str
    task: str
    result: dict[str, Any]

    @property
    def differences(self) -> list[str]:
        """As of a task that went well: a module may have put something right before it failed."""
        return _differences(self.result)


@dataclass(frozen=True)
class HostAway:
    """The first contact could not use a host. The run goes on without it."""

    host: str
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class HostLooked:
    """A host was looked at. Where nothing differs, the run leaves it out."""

    host: str
    look: Look


@dataclass(frozen=True)
class HostUnreachable:
    """The connection to a host is lost."""

    host: str
    step: str
    message: str


@dataclass(frozen=True)
class Tally:
    """How many tasks of one host ended how."""

    ok: int
    changed: int
    failed: int
    unreachable: int
    skipped: int


@dataclass(frozen=True)
class Recap:
    """A playbook has ended. `hosts` has a tally for each host name."""

    hosts: dict[str, Tally]


@dataclass(frozen=True)
class Output:
    """Ansible says something. `is_diff` is true where that shows how a file changes."""

    text: str
    is_diff: bool


@dataclass(frozen=True)
class Finished:
    """Ansible has ended with this exit code. Everything that it said is in `log`."""

    code: int
    log: Path


Event = (
    StepStarted
    | TaskStarted
    | TaskDone
    | HostFailed
    | HostAway
    | HostLooked
    | HostUnreachable
    | Recap
    | Output
    | Finished
)


def _differences(result: dict[str, Any]) -> list[str]:
    results = [each for each in result.get("results", ()) if isinstance(each, dict)] or [result]
    return [str(difference) for each in results for difference in each.get("drift", each.get("differences")) or ()]
