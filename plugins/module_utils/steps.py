"""The steps of a playbook, and which of them are due: those that differ from what is on a host, and those that build upon them.

Which these are stands in the playbook, as tags. Only the controller asks.
"""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

ALWAYS = "always"
"""Ansible's name of the tag of what is due in every run."""


class Step(NamedTuple):
    """A step of a run.

    Attributes:
        role: the role that the playbook brings in.
        why: what for, in the words of the playbook, where the role comes more than once; else empty.
        tags: where one of these roles differs, the step is due. `always` says that it is due in every run.
    """

    role: str
    why: str = ""
    tags: tuple[str, ...] = ()

    def is_due(self, due: Collection[str]) -> bool:
        """Whether a run takes the step, given the tags that it is for. Without tags a run is for all."""
        return not due or not {ALWAYS, *due}.isdisjoint(self.tags)


def steps_of(plays: list[Any], due: Collection[str] = ()) -> list[Step]:
    """The steps of a run: the roles that its playbook brings in, in order. A role may come again later.

    Args:
        plays: the playbook, as YAML has it.
        due: only the steps with one of these tags; all without.
    """
    found = [
        next(same) for _, same in groupby(filter(lambda step: step.is_due(due), _roles(plays)), attrgetter("role"))
    ]
    times = Counter(step.role for step in found)
    return [step if times[step.role] > 1 else step._replace(why="") for step in found]


def _roles(node: Any) -> Iterator[Step]:
    if isinstance(node, list):
        for item in node:
            yield from _roles(item)
    elif isinstance(node, dict):
        tags = tuple(node.get("tags", ()))
        for key, value in node.items():
            if key.rpartition(".")[2] in {"import_role", "include_role"}:
                why = node.get("name", "")
                yield Step(value["name"].rpartition(".")[2], why[:1].lower() + why[1:], tags)
            elif key == "roles":
                names = (role if isinstance(role, str) else role["role"] for role in value)
                yield from (Step(name.rpartition(".")[2]) for name in names)
            elif isinstance(value, list):
                yield from _roles(value)
