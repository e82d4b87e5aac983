"""Starts, stops and queries systemd units. Nothing else in these plugins calls systemctl or journalctl.

A host without systemd, such as a rented container, would need another implementation of this file.
"""

from __future__ import annotations

import itertools
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


_ahead: dict[str, dict[str, str]] = {}
_variables: list[str] = []


class UnitError(Exception):
    """systemd refuses a command; the message holds its words."""


def systemctl(verb: str, *words: str) -> None:
    """Runs systemctl, which returns when the jobs it has started are over.

    Raises:
        UnitError: it failed.
    """
    with job(verb, *words) as running:
        _, complaint = running.communicate()
    if running.returncode:
        raise UnitError(f"systemctl {' '.join([verb, *words])}: {complaint.strip()}")


def job(verb: str, *words: str) -> subprocess.Popen[str]:
    """A running systemctl, for a caller that has something to do until it ends. What systemd complains of is in its stderr."""
    return subprocess.Popen(
        ["systemctl", verb, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
    )


def reset_failed(pattern: str) -> None:
    """Forgets that units failed, so that earlier starts do not count against the limit of starts. A unit that is not there is no error."""
    subprocess.run(["systemctl", "reset-failed", pattern], check=False, capture_output=True)


def look_ahead(names: Sequence[str], *keys: str) -> None:
    """Asks for these properties of many units at once, for who only looks: until this process ends, `show` answers with them.

    A call of systemctl for each unit takes three times as long as all else that a look does with it.
    """
    _variables[:] = environment_names()
    if not names:
        return
    command = ["systemctl", "show", *names, f"--property={','.join(keys)}"]
    shown = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False).stdout
    each = shown.rstrip("\n").split("\n\n")
    if len(each) == len(names):
        _ahead.update(zip(names, map(_properties, each), strict=True))


def show(unit: str, *keys: str) -> dict[str, str]:
    """These properties of a unit. A property that systemd leaves out is missing."""
    if unit in _ahead:
        return {key: _ahead[unit][key] for key in keys if key in _ahead[unit]}
    command = ["systemctl", "show", unit, f"--property={','.join(keys)}"]
    return _properties(subprocess.run(command, capture_output=True, text=True, errors="replace", check=True).stdout)


def _properties(shown: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in shown.splitlines())


def environment_names() -> list[str]:
    """The names of the variables that systemd gives to every service of this host."""
    if _variables:
        return _variables
    command = ["systemctl", "show-environment"]
    shown = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False).stdout
    return [line.partition("=")[0] for line in shown.splitlines()]


def in_memory(pattern: str) -> list[str]:
    """The units of which systemd knows something now, by a pattern of names."""
    command = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "--no-pager", pattern]
    shown = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False).stdout
    return [line.split()[0] for line in shown.splitlines() if line.split()[2:3] != ["inactive"]]


def last_lines(unit: str, count: int) -> list[str]:
    """The last lines that a unit's latest start wrote, and that systemd wrote about it."""
    start = show(unit, "InvocationID").get("InvocationID")
    which = [f"_SYSTEMD_INVOCATION_ID={start}", "+", f"INVOCATION_ID={start}"] if start else ["--unit", unit]
    lines = _journal("--lines", str(count), *which)
    return [line.rstrip("\n") for line in lines if line.strip()]


def last_words(invocation: str) -> str:
    """The last line that one start of a unit wrote itself; empty where it wrote none."""
    return "".join(_journal("--lines", "1", f"_SYSTEMD_INVOCATION_ID={invocation}")).strip()


def first_lines(unit: str, count: int) -> list[str]:
    """The first lines that the latest start of a unit wrote; none where the journal does not reach back to them."""
    start = show(unit, "InvocationID")["InvocationID"]
    return _journal(f"_SYSTEMD_INVOCATION_ID={start}", count=count)


def _journal(*words: str, count: int | None = None) -> list[str]:
    command = ["journalctl", "--output", "cat", "--no-pager", *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace"
    ) as log:
        lines = list(itertools.islice(log.stdout or (), count))
        log.kill()
    return lines
