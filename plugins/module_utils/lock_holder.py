"""Who holds the lock of a host, and whether that run still lives. Only the controller asks.

A holder is what plugins/action/host_lock.py writes into the lock.
"""

from __future__ import annotations

import hashlib
import json
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any


def parsed(text: str) -> dict[str, Any]:
    """The holder that a lock names. A damaged lock has one without a name."""
    try:
        holder = json.loads(text)
    except ValueError:
        holder = None
    if isinstance(holder, dict) and holder.get("run"):
        return holder
    return {"run": "damaged", "user": "somebody", "controller": "", "controller_id": "", "command": "", "since": ""}


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
    return bool(holder.get("controller_id")) and holder["controller_id"] == this_controller_id()


def is_dead(holder: Any) -> bool:
    """Whether the holder certainly runs no more. Of another controller's process nothing is certain, nor of a damaged lock."""
    return (
        isinstance(holder, dict)
        and on_this_controller(holder)
        and process_started(holder["pid"]) != holder["pid_started"]
    )


def who(holder: dict[str, Any]) -> str:
    """Names whoever holds a lock."""
    return f"{holder['user']}@{holder['controller']}" if holder["controller"] else str(holder["user"])


def ended(holder: dict[str, Any]) -> str:
    """Says of a dead holder which run it was, as a sentence."""
    since = datetime.fromisoformat(holder["since"]).astimezone()
    return f"the run of {who(holder)} of {since:%H:%M} ({holder['command']}) was cut off"


def sentence(holder: dict[str, Any]) -> str:
    """Says who changes a host, since when, and with what. The time is in this controller's time zone."""
    if not holder["since"]:
        return f"is locked by {who(holder)}: /run/r1prov/lock.json there is damaged"
    since = datetime.fromisoformat(holder["since"]).astimezone()
    today = datetime.now(timezone.utc).astimezone().date()
    when = f"{since:%H:%M}" if since.date() == today else f"{since:%Y-%m-%d %H:%M}"
    return f"is being changed by {who(holder)} since {when} ({holder['command']}, process {_process(holder)})"


def remedy(holder: dict[str, Any]) -> str:
    """What to do about a living holder, or one that cannot be asked."""
    if on_this_controller(holder):
        return f"wait for it to end, or stop it (`kill {_process(holder)}` on this machine)"
    how = "as `r1prov up --break-lock` does, or plain Ansible with `-e r1prov_break_lock=true`"
    return f"wait for it to end; if you know that it has ended, break the lock, {how}"


def digest(*parts: str) -> str:
    """A short name for `parts` together."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _process(holder: dict[str, Any]) -> int:
    """The process to stop. A lock that an older r1prov has written names only the process of Ansible."""
    return int(holder.get("stop", holder["pid"]))
