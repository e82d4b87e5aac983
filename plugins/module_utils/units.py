"""Starts, stops and queries units, and knows their processes. Nothing else in these plugins knows who runs the units of a host.

systemd does, where it is there. On a host without it, such as a rented container, a program of r1prov's own knows the same verbs and prints
what systemctl prints. Only this file tells the two apart.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.r1.prov.plugins.module_utils.files import text_of

if TYPE_CHECKING:
    from collections.abc import Sequence

SYSTEMD = Path("/run/systemd/system")
"""The folder is there where systemd runs the host: see sd_booted(3)."""
PROGRAM = Path("/usr/local/bin/r1prov-units")
SYSTEMCTL = ["systemctl"]
JOURNALCTL = ["journalctl", "--output", "cat", "--no-pager"]
OWN = [str(PROGRAM)]
KEPT = Path("/run/r1prov/units")
"""What each keeper tells of its unit, where there is no systemd."""
REMEMBERED = Path("/var/lib/r1prov/service")
"""What each service of ours was started with."""
UNKNOWN = {
    "LoadState": "not-found",
    "ActiveState": "inactive",
    "SubState": "dead",
    "UnitFileState": "",
    "MainPID": "0",
    "NeedDaemonReload": "no",
    "Result": "success",
    "NRestarts": "0",
    "InvocationID": "",
    "DropInPaths": "",
    "FragmentPath": "",
    "ControlGroup": "",
    "FreezerState": "",
}
"""What systemctl says of a unit that it does not know."""

_ahead: dict[str, dict[str, str]] = {}
_ahead_keys: set[str] = set()
_variables: list[str] = []


class UnitError(Exception):
    """A command is refused; the message holds the words of who runs the units."""


def by_systemd() -> bool:
    """Whether systemd runs the units of this host."""
    return SYSTEMD.is_dir()


def anywhere(*words: str) -> list[str]:
    """The command `systemctl WORDS...` for another host, of which it is not known who runs its units."""
    choose = f'if [ -d {SYSTEMD} ]; then exec {" ".join(SYSTEMCTL)} "$@"; else exec {" ".join(OWN)} "$@"; fi'
    return ["sh", "-c", choose, "systemctl", *words]


def started(unit: str) -> Path:
    """The file that remembers what a service was started with."""
    return REMEMBERED / f"{unit.removesuffix('.service')}.started"


def stop(unit: str) -> None:
    """Stops a service, and forgets its start. So the next look does not call it a difference that the service does not run."""
    started(unit).unlink(missing_ok=True)
    systemctl("stop", unit)


def in_words(verb: str, *names: str, systemd: bool | None = None) -> str:
    """The command that a person types, e.g. `systemctl restart r1prov-ollama`. The verb `log` shows the log of a unit.

    Args:
        verb: as systemctl has it, or `log`.
        names: the units.
        systemd: whether systemd runs the units of the host that it is typed on; None for this host.
    """
    if not (by_systemd() if systemd is None else systemd):
        return " ".join([PROGRAM.name, verb, *names])
    return f"journalctl -u {' -u '.join(names)}" if verb == "log" else " ".join(["systemctl", verb, *names])


def _can_ask() -> bool:
    return by_systemd() or PROGRAM.exists()


def _command(verb: str, *words: str) -> list[str]:
    return [*(SYSTEMCTL if by_systemd() else OWN), verb, *words]


def _read(verb: str, *words: str, check: bool = False) -> str:
    """What a verb prints that changes nothing; nothing where nobody runs units."""
    if not _can_ask():
        return ""
    command = _command(verb, *words)
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=check).stdout
    except (OSError, subprocess.CalledProcessError):
        if _works():
            raise
        return ""


def _works() -> bool:
    """Whether who runs the units can be asked at all. r1prov's own program may be damaged until the role `service` has put it right."""
    if by_systemd():
        return True
    try:
        asked = subprocess.run(_command("show", "r1prov", "--property=LoadState"), capture_output=True, check=False)
    except OSError:
        return False
    # Another program in its place may end well, too.
    return asked.returncode == 0 and asked.stdout.startswith(b"LoadState=")


def untold(unit: str) -> str:
    """What to say where nobody can tell how a unit is, because r1prov's own program is damaged or gone; else empty."""
    if unit in _ahead or _works():
        return ""
    return f"{PROGRAM} does not work, so nobody can tell how the services are"


def systemctl(verb: str, *words: str) -> None:
    """Runs systemctl, which returns when the jobs it has started are over.

    Raises:
        UnitError: it failed.
    """
    with job(verb, *words) as running:
        _, complaint = running.communicate()
    if running.returncode:
        if not _works():
            raise UnitError(f"{PROGRAM} is damaged; `r1prov up` puts it right")
        raise UnitError(f"{in_words(verb, *words)}: {complaint.strip()}")


def job(verb: str, *words: str) -> subprocess.Popen[str]:
    """A running systemctl, for a caller that has something to do until it ends. What it complains of is in its stderr.

    Raises:
        UnitError: r1prov's own program cannot be run.
    """
    try:
        return subprocess.Popen(
            _command(verb, *words), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
        )
    except OSError as error:
        raise UnitError(f"{PROGRAM} cannot be run: {error.strerror}; `r1prov up` puts it right") from error


def forget(pattern: str) -> None:
    """Has the unit files read anew after some were removed, and forgets that units failed. Where nobody can be asked, that comes later.

    Raises:
        UnitError: it failed.
    """
    if _can_ask() and _works():
        systemctl("daemon-reload")
        reset_failed(pattern)


def differences() -> list[str]:
    """What somebody has changed of r1prov's own way to run units, in a sentence each. The verb `daemon-reload` puts it right."""
    return [] if by_systemd() else _read("differences").splitlines()


def end() -> None:
    """Ends what runs the units, where that is r1prov's own program. systemd stays.

    Raises:
        UnitError: it failed.
    """
    if not by_systemd() and PROGRAM.exists():
        systemctl("shutdown")


def reset_failed(pattern: str) -> None:
    """Forgets that units failed, so that earlier starts do not count against the limit of starts. A unit that is not there is no error."""
    with suppress(OSError):
        subprocess.run(_command("reset-failed", pattern), check=False, capture_output=True)


def look_ahead(names: Sequence[str], *keys: str) -> None:
    """Asks for these properties of many units at once, for who only looks: until this process ends, `show` answers with them.

    Who asks for another property gets an answer of its own.

    A call of systemctl for each unit takes three times as long as all else that a look does with it.
    """
    _variables[:] = environment_names()
    if not names:
        return
    shown = _read("show", *names, f"--property={','.join(keys)}")
    each = shown.rstrip("\n").split("\n\n")
    if shown and len(each) == len(names):
        _ahead.update(zip(names, map(_properties, each), strict=True))
        _ahead_keys.update(keys)


def show(unit: str, *keys: str) -> dict[str, str]:
    """These properties of a unit. A property that systemd leaves out is missing."""
    if unit in _ahead and _ahead_keys.issuperset(keys):
        return {key: _ahead[unit][key] for key in keys if key in _ahead[unit]}
    shown = _read("show", unit, f"--property={','.join(keys)}", check=True)
    if shown or by_systemd():
        return _properties(shown)
    return {key: UNKNOWN[key] for key in keys if key in UNKNOWN}


def _properties(shown: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in shown.splitlines())


def environment_names() -> list[str]:
    """The names of the variables that systemd gives to every service of this host."""
    if _variables:
        return _variables
    return [line.partition("=")[0] for line in _read("show-environment").splitlines()]


def in_memory(pattern: str) -> list[str]:
    """The units of which something is known now, by a pattern of names."""
    shown = _read("list-units", "--all", "--plain", "--no-legend", "--no-pager", pattern)
    return [line.split()[0] for line in shown.splitlines() if line.split()[2:3] != ["inactive"]]


def processes(unit: str) -> list[str]:
    """The numbers of a unit's processes."""
    if by_systemd():
        group = _group(unit)
        return text_of(group / "cgroup.procs").split() if group else []
    keeper = _keeper(unit)
    return _descendants(keeper) if keeper else []


def cpu_seconds(unit: str) -> float:
    """How much of the processors a unit has used so far. Where that is not known, time itself stands for it."""
    if not by_systemd():
        return sum(map(_cpu_seconds, processes(unit)))
    group = _group(unit)
    used = re.search(r"^usage_usec (\d+)", text_of(group / "cpu.stat") if group else "", re.MULTILINE)
    return int(used[1]) / 1e6 if used else time.monotonic()


def is_frozen(unit: str) -> bool:
    """Whether its processes get no time. systemd does not know of it where somebody has asked the kernel for that."""
    if not by_systemd():
        return False  # Nobody can freeze a unit that has no control group.
    now = show(unit, "FreezerState", "ControlGroup")
    group = _group_of(now)
    return now.get("FreezerState") == "frozen" or bool(group and text_of(group / "cgroup.freeze").strip() == "1")


def thaw(unit: str) -> None:
    """Gives time to the processes of a unit that is frozen.

    Raises:
        UnitError: systemd refuses it.
        OSError: the kernel does.
    """
    now = show(unit, "FreezerState", "ControlGroup")
    group = _group_of(now)
    if now.get("FreezerState") == "frozen":
        systemctl("thaw", unit)
    elif group:
        (group / "cgroup.freeze").write_text("0", encoding="ascii")


def _group(unit: str) -> Path | None:
    return _group_of(show(unit, "ControlGroup"))


def _group_of(properties: dict[str, str]) -> Path | None:
    """The control group of a unit; None where it has none. A kernel with the older groups besides has them one folder deeper."""
    name = properties.get("ControlGroup")
    deeper = Path("/sys/fs/cgroup/unified")
    return Path(f"{deeper if deeper.is_dir() else deeper.parent}{name}") if name else None


def _keeper(unit: str) -> str:
    """The number of the process that keeps a unit; empty where none does. Another process may have the number of one that is gone."""
    try:
        told = json.loads(text_of(KEPT / f"{unit}.json"))
        pid, began = str(told["KeeperPID"]), str(told["KeeperStart"])
    except (ValueError, KeyError, TypeError):
        return ""
    return pid if _stat(pid)[19:20] == [began] else ""


def _descendants(pid: str) -> list[str]:
    """The processes that a process has started, and those that these have started."""
    children: dict[str, list[str]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (fields := _stat(folder.name)):
            children.setdefault(fields[1], []).append(folder.name)
    found = children.get(pid, []).copy()
    for each in found:
        found += children.get(each, [])
    return found


def _cpu_seconds(pid: str) -> float:
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def _stat(pid: str) -> list[str]:
    """What the kernel tells of a process after its name, from the state on; nothing of one that is gone."""
    return text_of(Path("/proc") / pid / "stat").rpartition(")")[2].split()


def last_lines(unit: str, count: int) -> list[str]:
    """The last lines that a unit's latest start wrote, and that were written about it."""
    start = show(unit, "InvocationID").get("InvocationID")
    if by_systemd():
        which = [f"_SYSTEMD_INVOCATION_ID={start}", "+", f"INVOCATION_ID={start}"] if start else ["--unit", unit]
        lines = _output([*JOURNALCTL, "--lines", str(count), *which])
    else:
        lines = _own_log(unit, count, start or "")
    return [line.rstrip("\n") for line in lines if line.strip()]


def last_words(unit: str, invocation: str) -> str:
    """The last line that one start of a unit wrote itself; empty where it wrote none."""
    if not by_systemd():
        return "".join(_own_log(unit, 1, invocation)).strip()
    return "".join(_output([*JOURNALCTL, "--lines", "1", f"_SYSTEMD_INVOCATION_ID={invocation}"])).strip()


def first_lines(unit: str, count: int) -> list[str]:
    """The first lines that the latest start of a unit wrote; none where its log does not reach back to them."""
    start = show(unit, "InvocationID")["InvocationID"]
    if not by_systemd():
        return _own_log(unit, count, start, "--first")
    return _output([*JOURNALCTL, f"_SYSTEMD_INVOCATION_ID={start}"], count)


def _own_log(unit: str, count: int, start: str, *more: str) -> list[str]:
    """Lines of a unit's log where there is no systemd: of one start, where that is known."""
    which = ["--start", start] if start else []
    return _read("log", unit, "--no-times", "--lines", str(count), *which, *more).splitlines(keepends=True)


def _output(command: list[str], count: int | None = None) -> list[str]:
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace"
    ) as log:
        lines = list(itertools.islice(log.stdout or (), count))
        log.kill()
    return lines
