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
author: The r1prov team
attributes:
  check_mode: {support: full, description: It only reads then.}
  diff_mode: {support: none, description: A lock leaves nothing behind that a diff could show.}
options:
  state:
    description: Take the lock or release it. Only the run that holds a lock releases it.
    type: str
    choices: [present, absent]
    default: present
  break_lock:
    description: Take the lock from a holder that cannot be asked whether it still lives, or that shall not go on.
    type: bool
    default: false
  holder:
    description: Who takes it. Set by the action plugin.
    type: dict
  replace:
    description: The C(run) of the holder it may be taken from. Set by the action plugin.
    type: str
    default: ""
notes:
  - A lock comes and goes within one run and leaves nothing behind, so it never counts as a change.
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
held:
  description: Whether this run holds the lock now.
  type: bool
  returned: always
locked:
  description: Whether the task failed because another run, or another process on the host, holds it.
  type: bool
  returned: always
holder:
  description: Who holds the lock now, or last held it before it was released or taken over; empty if nobody did.
  type: dict
  returned: always
  contains:
    user: {description: The operator's name., type: str}
    controller: {description: The host name of the operator's machine., type: str}
    controller_id: {description: Tells controllers of one name apart., type: str}
    pid: {description: The process of ansible-playbook there., type: int}
    pid_started: {description: "When it started, in the kernel's words: a number may be used again.", type: str}
    command: {description: What is being run., type: str}
    since: {description: "When the lock was taken, ISO 8601 in UTC.", type: str}
    run: {description: Names the run., type: str}
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils.files import write_whole
from ansible_collections.r1.prov.plugins.module_utils.locks import LockedError, alone

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

FOLDER = Path("/run/r1prov")
_LIMIT_S = 5.0  # Whoever reads or changes the lock needs milliseconds.


def read(folder: Path) -> dict[str, Any]:
    """The holder of the lock; empty if nobody holds it. A damaged file has a holder without a name."""
    try:
        holder: dict[str, Any] = json.loads((folder / "lock.json").read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        return {"run": "damaged", "user": "somebody", "controller": "", "controller_id": "", "command": "", "since": ""}
    return holder


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


def release(folder: Path, run: str) -> dict[str, Any]:
    """Remove the lock if `run` holds it; the holder as it was."""
    if not folder.is_dir():
        return {}
    with _alone(folder):
        before = read(folder)
        if before.get("run") == run:
            (folder / "lock.json").unlink()
        return before


def _alone(folder: Path) -> AbstractContextManager[None]:
    return alone(folder / ".lock", lambda _: None, _LIMIT_S)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "break_lock": {"type": "bool", "default": False},
            "holder": {"type": "dict"},
            "replace": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
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
            before = release(FOLDER, holder["run"])
    except LockedError as error:
        module.fail_json(msg=f"{error}. Remedy: stop that process on the host, then run again", locked=True)
    module.exit_json(changed=False, held=held, holder=before)


if __name__ == "__main__":
    main()
