#!/usr/bin/python
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The host's half of the lock: reads, takes and releases /run/r1prov/lock.json. The controller decides who gets it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_lock
short_description: One run at a time changes a host
description:
  - Stock Ansible cannot do it, because it has no lock that knows whether its holder still lives.
  - Takes or releases the lock of a host, C(/run/r1prov/lock.json), which names its holder.
  - A lock whose process is dead on this controller is taken over. A lock of another controller, or of a living process,
    makes the task fail with the holder's name, unless O(break_lock=true).
  - Taken twice by one run it is still one lock. It is gone after a reboot of the host.
  - In check mode nothing is taken; a lock that another run holds is warned of.
  - Who takes the lock has begun a run, and who releases it has ended one. Both are kept in C(/var/lib/r1prov/history), a file for each run,
    which only root reads. A host whose disk cannot be written to is warned of, and locked all the same.
attributes:
  check_mode: {support: full, description: It only reads then.}
  diff_mode: {support: none, description: A lock leaves nothing behind that a diff could show.}
author: The r1prov team
notes:
- A lock comes and goes within one run and leaves nothing behind, so it never counts as a change.
options: {
  "state": {"type": "str", "default": "present", "choices": ["present", "absent"], "description": "Take the lock or release it. Only the
      run that holds a lock releases it, or any run of the same controller where that run is dead."},
  "break_lock": {"type": "bool", "default": false, "description": "Take the lock from a holder that cannot be asked whether it still
      lives, or that shall not go on."},
  "new_history": {"type": "bool", "default": false, "description": "Begin the history of a host that has none. Without this such a host,
      which r1prov has not set up or has been removed from, gets no record."},
  "holder": {"type": "dict", "description": "Who takes it. Set by the action plugin."},
  "replace": {"type": "str", "default": "", "description": "The C(run) of a dead holder, whose place this run takes. Set by
      the action plugin."}
  }
"""

EXAMPLES = r"""
- name: Take the host
  r1.prov.host_lock:
    break_lock: "{{ r1prov_break_lock | default(false) }}"

- name: Release the host
  r1.prov.host_lock:
    state: absent
"""

RETURN = r"""
held: {type: bool, returned: always, description: Whether this run holds the lock now.}
locked:
  type: bool
  returned: always
  description: "Whether the task failed because another run, or another process on the host, holds it."
holder:
  type: dict
  returned: always
  description: "Who holds the lock now, or last held it before it was released or taken over; empty if nobody did."
  contains:
    user: {type: str, description: "The operator's name."}
    controller: {type: str, description: "The host name of the operator's machine."}
    controller_id: {type: str, description: Tells controllers of one name apart.}
    pid: {type: int, description: The process of ansible-playbook there.}
    pid_started: {type: str, description: "When it started, in the kernel's words: a number may be used again."}
    stop: {type: int, description: "The process to stop there, which is r1prov if that has started ansible-playbook."}
    command: {type: str, description: What is being run.}
    since: {type: str, description: "When the lock was taken, ISO 8601 in UTC."}
    r1prov: {type: str, description: The version of r1prov there.}
    run: {type: str, description: Names the process that holds the lock.}
    record: {type: str, description: Names the run in the host's history.}
"""

import json
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils import run_history
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments
from ansible_collections.r1.prov.plugins.module_utils.files import write_whole
from ansible_collections.r1.prov.plugins.module_utils.lock_holder import parsed
from ansible_collections.r1.prov.plugins.module_utils.locks import LockedError, alone

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

FOLDER = Path("/run/r1prov")
_GUARD = ".lock"
_LIMIT_S = 5.0  # Whoever reads or changes the lock needs milliseconds.


def read(folder: Path) -> dict[str, Any]:
    """The holder of the lock; empty if nobody holds it. A damaged file has a holder without a name."""
    try:
        return parsed((folder / "lock.json").read_text())
    except FileNotFoundError:
        return {}


def take(folder: Path, holder: dict[str, Any], replace: str = "") -> tuple[bool, dict[str, Any]]:
    """Take the lock if it is free, already this run's, or held by the run named `replace`.

    Returns:
        Whether this run holds it now, and who held it before.

    Raises:
        LockedError: another process keeps the file from being changed.
    """
    with _alone(folder):
        before = read(folder)
        if before and before["run"] not in (holder["run"], replace):
            return False, before
        if before.get("run") != holder["run"]:
            # In one step: whoever reads it without asking for the lock, such as `r1prov status`, sees a whole file.
            write_whole(folder / "lock.json", json.dumps(holder, indent=1) + "\n")
        return True, before


def release(folder: Path, *runs: str) -> dict[str, Any]:
    """Remove the lock if one of `runs` holds it, and the folder if nothing else is left in it; the holder as it was."""
    if not folder.is_dir():
        return {}
    with _alone(folder):
        before = read(folder)
        if before.get("run") in runs:
            (folder / "lock.json").unlink()
        if [each.name for each in folder.iterdir()] == [_GUARD]:
            (folder / _GUARD).unlink()
            with suppress(OSError):  # Somebody may have put something there meanwhile.
                folder.rmdir()
        return before


def remember(history: Path, holder: dict[str, Any], *, new: bool) -> None:
    """Keep the beginning of a run in the history of its host; where the host has none, only if `new`.

    Raises:
        OSError: the disk cannot be written to.
    """
    if new or history.is_dir():
        told = {name: holder[name] for name in ("user", "controller", "command", "r1prov")}
        run_history.begin(history, {"run": holder["record"], **told, "begun": holder["since"]})


def _alone(folder: Path) -> AbstractContextManager[None]:
    return alone(folder / _GUARD, lambda _: None, _LIMIT_S)


def main() -> None:
    module = AnsibleModule(argument_spec=arguments(DOCUMENTATION), supports_check_mode=True)
    holder = module.params["holder"]
    if not holder:
        module.fail_json(msg="host_lock works through its action plugin: call it as r1.prov.host_lock from a playbook")
    held = False
    try:
        if module.check_mode:
            before = read(FOLDER)
        elif module.params["state"] == "present":
            held, before = take(FOLDER, holder, module.params["replace"])
        else:
            before = release(FOLDER, holder["run"], module.params["replace"])
    except LockedError as error:
        module.fail_json(msg=f"{error}. Remedy: stop that process on the host, then run again", locked=True)
    try:
        if held:
            remember(run_history.FOLDER, holder, new=module.params["new_history"])
        elif module.params["state"] == "absent" and not module.check_mode and before.get("run") == holder["run"]:
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            run_history.end(run_history.FOLDER, before.get("record", ""), {"ended": now})
    except OSError as error:
        module.warn(f"this run will be missing in {run_history.FOLDER}: {error.strerror}")
    module.exit_json(changed=False, held=held, holder=before)


if __name__ == "__main__":
    main()
