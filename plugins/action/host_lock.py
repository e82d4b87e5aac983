"""The controller's half of the lock. It says who this run is, and whether the holder of a taken lock still lives."""

from __future__ import annotations

import getpass
import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ansible import context
from ansible.plugins.action import ActionBase
from ansible_collections.r1.prov.plugins.module_utils.lock_holder import (
    digest,
    is_dead,
    process_started,
    remedy,
    sentence,
    this_controller_id,
)
from ansible_collections.r1.prov.plugins.module_utils.version import VERSION

OPTIONS = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "break_lock": {"type": "bool", "default": False},
    "new_history": {"type": "bool", "default": False},
}


class ActionModule(ActionBase):  # type: ignore[misc] # Ansible has no types
    """See plugins/modules/host_lock.py for the options and what is returned."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Take or release the lock of one host."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, options = self.validate_argument_spec(OPTIONS)
        me = this_run()

        def ask(replace: str = "") -> dict[str, Any]:
            answer: dict[str, Any] = self._execute_module(
                module_name="r1.prov.host_lock",
                module_args={name: options[name] for name in ("state", "new_history")}
                | {"holder": me, "replace": replace},
                task_vars=task_vars,
            )
            return answer

        result.update({"locked": False, **ask()})
        if result.get("failed") or result["held"] or not result["holder"] or result["holder"]["run"] == me["run"]:
            return result
        if not self._task.check_mode and (options["break_lock"] or is_dead(result["holder"])):
            # The host takes it from this very holder only: of two runs that find it dead, one wins.
            result.update(ask(replace=result["holder"]["run"]))
            if result.get("failed") or result["held"]:
                return result
        if options["state"] == "absent":
            return result
        holder = result["holder"]
        told = f"{(task_vars or {}).get('inventory_hostname', 'the host')} {sentence(holder)}"
        if not self._task.check_mode:
            result.update(failed=True, locked=True, msg=f"{told}. Remedy: {remedy(holder)}.")
        elif not is_dead(holder):
            self._display.warning(f"{told}; what this check shows may not last")
        return result


def this_run() -> dict[str, Any]:
    """Describes the run that asks for the lock: the ansible-playbook process, which is the parent of the fork that runs this task."""
    pid = os.getppid()
    controller_id, started = this_controller_id(), process_started(pid)
    run, since = digest(controller_id, str(pid), started), datetime.now(timezone.utc)
    return {
        "user": getpass.getuser(),
        "controller": platform.node(),
        "controller_id": controller_id,
        "pid": pid,
        "pid_started": started,
        # Who stops ansible-playbook alone keeps r1prov from releasing the host.
        "stop": int(os.environ.get("R1PROV_PROCESS") or pid),
        # Not the process's own words: `-e` may carry a secret.
        "command": os.environ.get("R1PROV_COMMAND") or f"ansible-playbook {Path(context.CLIARGS['args'][0]).name}",
        "since": since.isoformat(timespec="seconds"),
        "r1prov": VERSION,
        "run": run,
        "record": os.environ.get("R1PROV_RUN") or f"{since:%Y%m%dT%H%M%S.%f}-{run[:6]}",
    }
