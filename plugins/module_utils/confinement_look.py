"""Looks at how a process is kept apart from the rest of its host: by what the kernel says of it, held against the file of its unit.

A process that was started while a drop-in took a restriction away lacks it still when the drop-in is gone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from ansible_collections.r1.prov.plugins.module_utils import units
from ansible_collections.r1.prov.plugins.module_utils.files import text_of

_CAPABILITIES = {"CAP_NET_BIND_SERVICE": 1 << 10}
_SETS = ("CapBnd", "CapPrm", "CapEff", "CapAmb")


class Lacking(NamedTuple):
    """A restriction that a process lacks: what it is about, what is declared, what is so, and the end of a sentence."""

    kind: str
    expected: str
    found: str
    said: str


def look(pid: str, text: str, status: dict[str, str], group: str = "") -> list[Lacking]:
    """The restrictions that a unit declares and that its process does not have.

    Args:
        pid: the process.
        text: the unit's file. One without NoNewPrivileges restricts nothing.
        status: of the process, from /proc.
        group: the control group of the unit; empty where that is not known.

    Raises:
        OSError: the process is gone.
    """
    if _setting(text, "NoNewPrivileges") != "yes":
        return []
    sandbox = [*_seccomp(status), *_spaces(pid, text)] if units.by_systemd() else []
    return [
        *_privileges(status),
        *_capabilities(text, status),
        *sandbox,
        *_rank(pid, text),
        *_umask(text, status),
        *_group(pid, group),
    ]


def _setting(text: str, name: str) -> str | None:
    """The last value that a unit's file gives a setting; None where it does not name it."""
    values: list[str] = re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)
    return values[-1] if values else None


def _privileges(status: dict[str, str]) -> list[Lacking]:
    may = status.get("NoNewPrivs") == "0"
    return [Lacking("confinement", "1", "0", "may gain new privileges, and should not")] if may else []


def _seccomp(status: dict[str, str]) -> list[Lacking]:
    may = status.get("Seccomp") == "0"
    return [Lacking("confinement", "2", "0", "may make any system call, and should not")] if may else []


def _capabilities(text: str, status: dict[str, str]) -> list[Lacking]:
    names = _setting(text, "CapabilityBoundingSet")
    if names is None:
        return []
    may = sum(_CAPABILITIES[name] for name in names.split())
    has = 0
    # Without systemd a container may keep root from giving up capabilities for good. Nobody has them because of that.
    for name in _SETS if units.by_systemd() else _SETS[1:]:
        has |= int(status.get(name, "0"), 16)
    if not has & ~may:
        return []
    said = f"has capabilities that its unit does not give it ({has & ~may:016x})"
    return [Lacking("capabilities", f"{may:016x}", f"{has:016x}", said)]


def _spaces(pid: str, text: str) -> list[Lacking]:
    if _is_hosts(pid, "mnt"):
        return [Lacking("confinement", "", "", "may write wherever its user may, and should not")]
    found = []
    roots = [
        fields[5].split(",")
        for fields in map(str.split, Path(f"/proc/{pid}/mountinfo").read_text(errors="replace").splitlines())
        if fields[4] == "/"
    ]
    if _setting(text, "ProtectSystem") == "strict" and roots and "ro" not in roots[-1]:
        found.append(Lacking("confinement", "ro", "rw", "may write to the system, and should not"))
    if _setting(text, "PrivateUsers") == "yes" and _is_hosts(pid, "user"):
        found.append(Lacking("confinement", "", "", "is a user of the host, and should have users of its own"))
    return found


def _is_hosts(pid: str, kind: str) -> bool:
    return Path(f"/proc/{pid}/ns/{kind}").stat().st_ino == Path(f"/proc/self/ns/{kind}").stat().st_ino


def _rank(pid: str, text: str) -> list[Lacking]:
    found = []
    wanted = _setting(text, "OOMScoreAdjust")
    oom, least = (text_of(Path(f"/proc/{each}/oom_score_adj")).strip() for each in (pid, "1"))
    # In a container systemd may not protect a process better than itself.
    if wanted and oom and int(oom) > max(int(wanted), int(least or 0)):
        said = f"is ended for want of memory at {oom}, and should be at {wanted}"
        found.append(Lacking("oom", wanted, oom, said))
    fields = text_of(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    # A program may ask for more of the processor than others have. No unit of ours asks for less.
    if fields and int(fields[16]) > 0:
        found.append(Lacking("rank", "0", fields[16], f"gives way to all others, with the nice value {fields[16]}"))
    return found


def _umask(text: str, status: dict[str, str]) -> list[Lacking]:
    wanted = _setting(text, "UMask")
    has = status.get("Umask", wanted)
    if not wanted or not has or int(has, 8) == int(wanted, 8):
        return []
    return [Lacking("umask", wanted, has, f"has the umask {has}, and should have {wanted}")]


def _group(pid: str, group: str) -> list[Lacking]:
    has = "".join(re.findall(r"^0::(.*)$", text_of(Path(f"/proc/{pid}/cgroup")), re.MULTILINE))
    # In a container the kernel may tell the whole path.
    if not group or not has or f"{group}/" in f"{has}/":
        return []
    said = f"is in the control group {has}, where the limits of its unit do not hold"
    return [Lacking("group of control", group, has, said)]
