"""The controller's half of the lock. It says who this run is, and whether the holder of a taken lock still lives."""

from __future__ import annotations

import getpass
import hashlib
import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ansible import context
from ansible.plugins.action import ActionBase

OPTIONS = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "break_lock": {"type": "bool", "default": False},
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
                module_args={"state": options["state"], "holder": me, "replace": replace},
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
        "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "run": digest(controller_id, str(pid), started),
    }


def this_controller_id() -> str:
    """A name that tells controllers apart. It depends on the name space of processes too, because containers may share a machine id."""
    machine_id, processes = Path("/etc/machine-id"), Path("/proc/self/ns/pid")
    return digest(
        platform.node(),
        machine_id.read_text().strip() if machine_id.is_file() else "",
        str(processes.readlink()) if processes.is_symlink() else "",
    )


def process_started(pid: int) -> str:
    """When a living process started, as boot and clock ticks; empty if there is none. A number alone may belong to a later process."""
    try:
        # The fields after the program's name, which is in brackets and may hold blanks: state first, start as the 20th.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    if fields[0] in "ZX":  # dead, and only not yet reaped by its parent
        return ""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{fields[19]}"


def on_this_controller(holder: dict[str, Any]) -> bool:
    """Whether the holder's process can be looked up here."""
    return bool(holder["controller_id"]) and holder["controller_id"] == this_controller_id()


def is_dead(holder: dict[str, Any]) -> bool:
    """Whether the holder certainly runs no more. Of another controller's process nothing is certain."""
    return on_this_controller(holder) and process_started(holder["pid"]) != holder["pid_started"]


def sentence(holder: dict[str, Any]) -> str:
    """Says who changes a host, since when, and with what. The time is in this controller's time zone."""
    who = f"{holder['user']}@{holder['controller']}" if holder["controller"] else holder["user"]
    if not holder["since"]:
        return f"is locked by {who}: /run/r1prov/lock.json there is damaged"
    since = datetime.fromisoformat(holder["since"]).astimezone()
    today = datetime.now(timezone.utc).astimezone().date()
    when = f"{since:%H:%M}" if since.date() == today else f"{since:%Y-%m-%d %H:%M}"
    return f"is being changed by {who} since {when} ({holder['command']}, process {_process(holder)})"


def remedy(holder: dict[str, Any]) -> str:
    """What to do about a living holder, or one that cannot be asked."""
    if on_this_controller(holder):
        return f"wait for it to end, or stop it (`kill {_process(holder)}` on this machine)"
    return "wait for it to end; if you know that it has ended, break the lock: --break-lock, or plain Ansible's `-e r1prov_break_lock=true`"


def digest(*parts: str) -> str:
    """A short name for `parts` together."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _process(holder: dict[str, Any]) -> int:
    """The process to stop. A lock that an older r1prov has written names only the process of Ansible."""
    return int(holder.get("stop", holder["pid"]))
