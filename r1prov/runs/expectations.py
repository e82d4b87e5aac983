"""What a run shows of each task: the module and the arguments with which a look asks again.

They are kept with the site for each host, and hold as long as everything that a run is made of is the same.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1prov.common import paths
from r1prov.common.files import write_whole
from r1prov.hosts.looking import Expectation

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from r1prov.runs.events import TaskDone
    from r1prov.site.state import SiteState

UNASKED = {"host_lock", "preflight", "measurement", "unit_run"}
"""Our modules that ask a host for something else than how it was left."""

_OURS = "r1.prov."
_BUILTIN = "ansible.builtin."
_COPIES = {"copy", "template"}
"""Their action plugins compare the content. For the rest they call a module, whose arguments these keys are."""
_OF_COPIES = ("owner", "group", "mode")
_READING: dict[str, dict[str, Any]] = {"find": {"stdout": ""}, "nft": {"rc": 0}}
"""Programs with which roles only read, and the answer upon which a role has nothing to do."""
_CACHE = "/var/cache/"
"""What lies there may be deleted at any time, so nothing is expected of it."""


def expectations_of(event: TaskDone) -> Iterator[Expectation]:
    """What a task expects of its host, now that it is done; nothing for tasks that only read, decide or include."""
    if "_ansible_delegated_vars" in event.result:
        return  # Another host was asked.
    kind = event.action.removeprefix(_OURS).removeprefix(_BUILTIN)
    for result in event.result.get("results") or [event.result]:
        invocation = result.get("invocation") if isinstance(result, dict) else None
        arguments = invocation["module_args"] if invocation else None
        if not arguments:
            continue
        if event.action.startswith(_OURS) and kind not in UNASKED:
            module = f"ansible_collections.r1.prov.plugins.modules.{kind}"
            yield Expectation(event.step, event.task, module, _given(result.get("look_arguments") or arguments))
        elif kind in _COPIES:
            # A check of a copy that would be made has no checksum.
            if "checksum" in result and not result["dest"].startswith(_CACHE):
                given = _given({key: arguments.get(key) for key in _OF_COPIES})
                given |= {"path": result["dest"], "state": "file"}
                yield Expectation(event.step, event.task, "ansible.modules.file", given, result["checksum"])
        elif kind == "command" and not arguments["creates"]:
            if said := _READING.get(Path(result["cmd"][0]).name):
                yield Expectation(event.step, event.task, "ansible.modules.command", _given(arguments), said=said)
        elif kind in paths.module_util("look_job").STOCK and not str(arguments.get("path", "")).startswith(_CACHE):
            yield Expectation(event.step, event.task, f"ansible.modules.{kind}", _given(arguments))


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def once(expectations: Sequence[Expectation]) -> list[Expectation]:
    """The expectations, each question once: the last of those with the same module and arguments."""
    return list({_question(each): each for each in expectations}.values())


def merged(earlier: Sequence[Expectation], found: Sequence[Expectation], steps: Collection[str]) -> list[Expectation]:
    """What is expected of a host after a run of some steps.

    Args:
        earlier: what was expected before, in the order of a run of all steps.
        found: what these steps expect.
        steps: their roles.

    Returns:
        Each question once, in the order of a run of all steps, and at the end what was not asked before. A question
        keeps its step and task, because a step may bring in the role of another, and asks then what that one asks.
    """
    new = {_question(each): each for each in found}
    kept = []
    for each in earlier:
        again = new.pop(_question(each), None)
        if again or each.step not in steps:
            kept.append(replace(again or each, step=each.step, task=each.task))
    return [*kept, *new.values()]


def _question(expectation: Expectation) -> str:
    return json.dumps([expectation.module, expectation.arguments], sort_keys=True)


def keep(state: SiteState, host: str, made_of: str, expectations: Sequence[Expectation]) -> None:
    """Keep what the run over a host that has just ended expects of it. `made_of` says what that run was made of."""
    kept = {"made_of": made_of, "expectations": [asdict(each) for each in expectations]}
    state.looks.mkdir(mode=0o700, exist_ok=True)
    write_whole(state.look(host), json.dumps(kept, indent=1) + "\n")


@dataclass(frozen=True)
class Kept:
    """What is kept of the run over a host that last went well.

    Attributes:
        made_of: what that run was made of; empty where nothing is kept.
        expectations: what it expects of the host.
    """

    made_of: str
    expectations: list[Expectation]

    def where(self, made_of: str) -> list[Expectation]:
        """The expectations; none where a run would be made of something else now."""
        return self.expectations if self.made_of == made_of else []


def recall(state: SiteState, host: str) -> Kept:
    """What is kept of the run over a host that last went well."""
    made_of, expectations = paths.module_util("look_job").recall(state.look(host))
    return Kept(made_of, [Expectation(**each) for each in expectations])


def made_of(state: SiteState) -> str:
    """Identifies what a run is made of: the code, the inventory, and all files that the inventory names."""
    found: str = paths.module_util("look_job").made_of(paths.collection(), [state.inventory], state.root)
    return found
