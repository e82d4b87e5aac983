"""What a run shows of each task: the module and the arguments with which a look asks again.

They are kept with the site for each host, and hold as long as everything that a run is made of is the same.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1prov.common import paths
from r1prov.common.files import write_whole
from r1prov.hosts.looking import STOCK, Expectation

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from r1prov.runs.events import TaskDone
    from r1prov.site.state import SiteState

UNASKED = {"host_lock", "preflight", "measurement"}
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
_PATH = re.compile(r"""(?<![\w.])/[^\s'"`,;{}()\[\]|]+""")


def expectations_of(event: TaskDone) -> Iterator[Expectation]:
    """What a task expects of its host, now that it is done; nothing for tasks that only read, decide or include."""
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
        elif kind in STOCK and not str(arguments.get("path", "")).startswith(_CACHE):
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


def recall(state: SiteState, host: str, made_of: str) -> list[Expectation]:
    """What is expected of a host; nothing where no run has shown it, or where a run would be made of something else now.

    Args:
        state: the site's.
        host: the host's name.
        made_of: what a run is made of now.
    """
    try:
        kept = json.loads(state.look(host).read_text())
        if kept["made_of"] != made_of:
            return []
        return [Expectation(**each) for each in kept["expectations"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return []


def made_of(state: SiteState) -> str:
    """Identifies what a run is made of: the code, the inventory, and all files that the inventory names.

    A file that is named counts by its size and its times, because it may be an archive of some GB.
    """
    versions = " ".join(metadata.version(name) for name in ("ansible-core", "r1prov"))
    digest = hashlib.sha256(versions.encode())
    root = paths.collection()
    code = (path for folder in ("playbooks", "plugins", "roles") for path in (root / folder).rglob("*"))
    for path in sorted(
        path for path in code if path.is_file() and path.suffix != ".pyc" and "molecule" not in path.parts
    ):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    named: set[str] = set()
    for path in sorted(path for path in state.inventory.rglob("*") if path.is_file()):
        text = path.read_text()
        digest.update(f"{path.relative_to(state.inventory)}\n{text}".encode())
        named |= set(_PATH.findall(text))
    named |= {str(path) for folder in (state.secrets, state.authority, state.pins) for path in folder.rglob("*")}
    for path in map(Path, sorted(named)):
        if path.is_file():
            status = path.stat()
            digest.update(f"{path} {status.st_size} {status.st_mtime_ns} {status.st_ino}\n".encode())
    return digest.hexdigest()
