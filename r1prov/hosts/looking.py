"""One look at a host: what the tasks of the last run expect there, asked again without Ansible, in one call.

A task expects something of a host by a module and its arguments. A look asks the same module again, in check mode. So it says what a run
would change, by the same code, and nothing has to be declared twice.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from r1prov.common import paths
from r1prov.hosts.asking import ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from r1prov.hosts.connection import HostConnection


@dataclass(frozen=True)
class Expectation:
    """What a task expects of a host.

    Attributes:
        step: the role of the task.
        task: its name.
        module: the full name of its module for Python.
        arguments: the module's arguments, in which digests stand for secrets.
        sha1: of the file at the argument `path`; empty where the content does not matter.
        said: what a command that only reads has answered, by keys of the module `command`.
    """

    step: str
    task: str
    module: str
    arguments: dict[str, Any]
    sha1: str = ""
    said: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """Something on a host that is not as it should be.

    Attributes:
        step: the role that mends it.
        task: the task that does.
        what: what differs, as a predicate of the host or a clause.
    """

    step: str
    task: str
    what: str


@dataclass(frozen=True)
class FileDiff:
    """How one file differs.

    Attributes:
        step: the role that mends it.
        task: the task that does.
        path: the file.
        diff: a unified diff from what should be there to what is there, or why there is none.
    """

    step: str
    task: str
    path: str
    diff: str


@dataclass(frozen=True)
class Look:
    """What came of a look at a host.

    Attributes:
        asked: the number of questions.
        seconds: how long it took.
        differences: what differs.
        unknown: why nothing or not all could be told; empty where all was.
        stays: what is an administrator's own and concerns r1prov: a run warns of it and leaves it.
        built_anew: whether a platform has built the host anew, as a container. Most of what differs was lost then.
        benchmark: the last result of the role smoke_bench; None where it was not asked.
        diffs: how the content of files differs, where that was asked for.
    """

    asked: int
    seconds: float
    differences: tuple[Difference, ...] = ()
    unknown: str = ""
    stays: tuple[str, ...] = ()
    built_anew: bool = False
    benchmark: dict[str, Any] | None = None
    diffs: tuple[FileDiff, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether everything is as it should be, as far as was asked, and all was answered."""
        return not self.differences and not self.unknown


def prepare_looks() -> None:
    """Read what every look sends to its host. The first look does so otherwise."""
    paths.module_util("look_job").modules(paths.collection())


def look(connection: HostConnection, expectations: Sequence[Expectation]) -> Look:
    """Ask a host whether it is still as its last run has left it. Changes nothing that serves.

    Raises:
        UnreachableError: the connection is lost, or the host gives no answer.
    """
    job = paths.module_util("look_job")

    def ask_there(asked: dict[str, Any]) -> dict[str, Any]:
        return ask(connection, job.PROGRAM, asked, "it cannot be looked at", job.LIMIT_S)

    found = job.look(ask_there, paths.collection(), [asdict(each) for each in expectations])
    differences = tuple(Difference(**each) for each in found["differences"])
    return Look(**found | {"differences": differences, "stays": tuple(found["stays"])})
