"""The verbs of systemctl that r1prov uses, on a host whose first process is not systemd."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import fields
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from supervised import known, program, supervisor
from supervised.unit_file import FOLDER, UnitFileError, full, load, path_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class RefusedError(Exception):
    """A verb cannot do what it is asked.

    Attributes:
        code: the exit code for that, which is that of systemctl.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def start(*names: str) -> None:
    """Starts units, and returns when they are ready, or have done their work.

    Raises:
        RefusedError: one has failed.
    """
    supervisor.boot()
    for name in map(full, names):
        unit, others = load(name), _exclusive(name)
        for other in (each for each in unit.texts("Requires") if path_of(each).exists()):
            start(other)
        with known.changed([name, *others]):
            before = known.read(name)
            if before.ActiveState == "active":
                continue
            for other in others:
                _stop(other)
            if not known.is_kept(name):
                _begin(name)
        while (ready := _is_ready(known.read(name), before)) is None:
            time.sleep(0.05)
        if not ready:
            raise RefusedError(f"Job for {name} failed. Its log says why: r1prov-units log {name}")


def stop(*names: str) -> None:
    """Stops units, and returns when nothing of them is left. Those that need others are stopped before these."""
    for name in reversed(_in_order([full(name) for name in names])):
        with known.changed([name]):
            _stop(name)


def restart(*names: str) -> None:
    """Stops units and starts them."""
    for name in names:
        stop(name)
        start(name)


def reload(*names: str) -> None:
    """Runs the commands with which units read their configuration again.

    Raises:
        RefusedError: one does not run, or has no such commands.
    """
    for name in map(full, names):
        unit, state = load(name), known.read(name)
        commands = unit.commands("ExecReload")
        if state.ActiveState != "active" or not commands:
            raise RefusedError(f"Unit {name} cannot be reloaded: it is {state.ActiveState}.")
        for command in commands:
            process = program.start(unit, command, {"PATH": program.PATH, "MAINPID": str(state.MainPID)})
            if process.wait(unit.seconds("TimeoutStartSec", 90)) and not command.may_fail:
                raise RefusedError(f"Job for {name} failed.")


def try_reload_or_restart(*names: str) -> None:
    """Lets units that run read their configuration again, or starts them again where they cannot."""
    for name in map(full, names):
        if known.read(name).ActiveState == "active":
            try:
                reload(name)
            except RefusedError:
                restart(name)


def kill(number: str, *names: str) -> None:
    """Sends a signal to all processes of units.

    Raises:
        RefusedError: there is no such signal.
    """
    known_signals = signal.Signals.__members__
    if (wanted := f"SIG{number.removeprefix('SIG')}") not in known_signals:
        raise RefusedError(f"there is no signal {number}")
    for name in map(full, names):
        program.tell(processes_of(name), known_signals[wanted])


def enable(*names: str) -> None:
    """Lets units start with the host."""
    for name, link in _links(*names):
        if not os.path.lexists(link):
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(path_of(name))


def disable(*names: str) -> None:
    """Lets units not start with the host."""
    for _, link in _links(*names):
        link.unlink(missing_ok=True)


def daemon_reload() -> None:
    """Reads the unit files again, and says whether that changes what supervisord goes by. What runs goes on as it was started."""
    supervisor.prepare()
    if supervisor.configure():
        sys.stdout.write("supervisord has another configuration now\n")
    supervisor.boot()
    supervisor.reread()


def reset_failed(*patterns: str) -> None:
    """Forgets that units have failed."""
    for name in supervisor.units():
        if any(fnmatch(name, full(pattern) if "*" not in pattern else pattern) for pattern in patterns):
            state = known.read(name)
            if state.ActiveState == "failed":
                state.ActiveState, state.SubState, state.Result = "inactive", "dead", "success"
                known.write(name, state)


def start_enabled() -> None:
    """Starts all units that start with the host. Each waits itself for those that come before it."""
    for name in _in_order([name for name in supervisor.units() if _is_enabled(name)]):
        with known.changed([name]), suppress(supervisor.SupervisorError, RefusedError):
            if not known.is_kept(name):  # Another command may have started it meanwhile.
                _begin(name)


def show(names: list[str], keys: list[str]) -> str:
    """Properties of units, in the form of systemctl; all that are known where `keys` names none."""
    return "\n\n".join("\n".join(f"{key}={value}" for key, value in _properties(full(name), keys)) for name in names)


def list_units(*patterns: str) -> str:
    """The units of which something runs or has failed, in the form of systemctl."""
    states = {name: known.read(name) for name in supervisor.units()}
    return "\n".join(
        f"{name} loaded {state.ActiveState} {state.SubState}"
        for name, state in states.items()
        if state.ActiveState != "inactive" and (not patterns or any(fnmatch(name, each) for each in patterns))
    )


def status(*names: str) -> str:
    """How these units are, for people; all where none is named."""
    rows = [(name, known.read(name)) for name in supervisor.units() if not names or name in names]
    lines = [
        f"{name:36} {'enabled' if _is_enabled(name) else '-':8} {state.ActiveState} ({state.SubState})"
        for name, state in rows
    ]
    news = "" if supervisor.is_there() else "supervisord does not run: r1prov-units boot starts it"
    return "\n".join(filter(None, [*(lines or ["no unit of r1prov is installed"]), supervisor.away() or news]))


def is_there(name: str) -> bool:
    """Whether a unit has a file, or still runs though its file is gone."""
    return path_of(name).exists() or known.is_kept(name)


def processes_of(name: str) -> list[int]:
    """The processes of a unit, without its keeper."""
    state = known.read(full(name))
    return [] if state.has_ended or not state.KeeperPID else program.descendants(state.KeeperPID)


def _is_ready(now: known.State, before: known.State) -> bool | None:
    """Whether a start has been a success; None as long as that is open."""
    if now.SubState == "auto-restart":
        return False if now.InvocationID != before.InvocationID else None
    if now.ActiveState in ("activating", "deactivating"):
        return None
    return now.ActiveState == "active" or (now.ActiveState == "inactive" and now.Result == "success")


def _begin(name: str) -> None:
    """Lets a keeper begin, and returns when it has the unit."""
    if supervisor.configure():
        supervisor.reread()
    before = known.read(name).KeeperStart
    supervisor.start(name)
    limit = time.monotonic() + 20
    while known.read(name).KeeperStart == before:
        if time.monotonic() > limit:
            raise RefusedError(f"the keeper of {name} does not begin; see {supervisor.LOG / name}.log")
        time.sleep(0.02)


def _stop(name: str) -> None:
    """Stops a unit, and waits until its keeper has gone."""
    with suppress(supervisor.SupervisorError):
        supervisor.stop(name)
    while known.is_kept(name):
        time.sleep(0.05)


def _exclusive(name: str) -> list[str]:
    """The units that cannot run beside this one, whichever of the two says so."""
    others = [each for each in supervisor.units() if each != name]
    own = load(name).texts("Conflicts")
    return [each for each in others if each in own or name in load(each).texts("Conflicts")]


def _in_order(names: list[str]) -> list[str]:
    """Units, each behind those that come before it."""
    ordered: list[str] = []

    def put(name: str, above: tuple[str, ...] = ()) -> None:
        with suppress(UnitFileError):
            for other in load(name).texts("After"):
                if other in names and other not in above:
                    put(other, (*above, name))
        if name not in ordered:
            ordered.append(name)

    for name in names:
        put(name)
    return ordered


def _links(*names: str) -> Iterator[tuple[str, Path]]:
    """The links by which a host starts units."""
    for name in map(full, names):
        for target in load(name).texts("WantedBy"):
            yield name, FOLDER / f"{target}.wants" / name


def _is_enabled(name: str) -> bool:
    with suppress(UnitFileError):
        links = [link for _, link in _links(name)]
        return bool(links) and all(map(os.path.lexists, links))
    return False


def _file_state(name: str) -> str:
    with suppress(UnitFileError):
        return "enabled" if _is_enabled(name) else "disabled" if load(name).texts("WantedBy") else "static"
    return "bad"


def _properties(name: str, keys: list[str]) -> Iterator[tuple[str, str]]:
    state, file = known.read(name), path_of(name)
    more = {
        "LoadState": "loaded" if file.exists() else "not-found",
        "UnitFileState": _file_state(name) if file.exists() else "",
        "FragmentPath": str(file) if file.exists() else "",
        "Job": "1" if known.waits(name) else "",
        "NeedDaemonReload": "no",
        "DropInPaths": "",
        "ControlGroup": "",
        "FreezerState": "running",
    }
    for key in keys or [*more, *(each.name for each in fields(state))]:
        value = more.get(key, getattr(state, key, ""))
        if key != "Job" or value:
            yield key, str(value)


def in_background(verb: str, *names: str) -> None:
    """Lets another process do it, which goes on when this one has ended."""
    with ExitStack() as jobs:
        files = [jobs.enter_context(known.job(full(name))) for name in names]
        program.detach(program.again(verb, *names), [file.fileno() for file in files])


VERBS: dict[str, Callable[..., None]] = {
    "start": start,
    "stop": stop,
    "restart": restart,
    "reload": reload,
    "try-reload-or-restart": try_reload_or_restart,
    "enable": enable,
    "disable": disable,
    "daemon-reload": daemon_reload,
    "reset-failed": reset_failed,
    "start-enabled": start_enabled,
    "boot": supervisor.boot,
    "shutdown": supervisor.shutdown,
    "loop": supervisor.loop,
    "guard": supervisor.guard,
}
