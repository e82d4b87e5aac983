"""What is known of a unit that a keeper looks after: a small file, which counts as long as that keeper lives."""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import BinaryIO

FOLDER = Path("/run/r1prov/units")


@dataclass
class State:
    """How a unit is. The names are those of systemd's properties, in the words of systemctl.

    Attributes:
        ActiveState: inactive, activating, active, deactivating or failed.
        SubState: more exactly: dead, start, running, exited, auto-restart, failed and others.
        Result: how the last start ended: success, exit-code, signal, timeout, start-limit-hit.
        InvocationID: names one start.
        MainPID: the process of the service; 0 where there is none.
        KeeperPID: the process of its keeper.
        KeeperStart: when the kernel says that this one has begun. Another process may have its number later.
        NRestarts: how often the keeper has started the service again by itself.
        ExecMainStatus: the exit code of the last process, or the number of the signal that ended it.
        ActiveEnterTimestamp: when it became active, for people.
        InactiveExitTimestampMonotonic: when it began to start, in microseconds of the kernel's clock.
    """

    ActiveState: str = "inactive"
    SubState: str = "dead"
    Result: str = "success"
    InvocationID: str = ""
    MainPID: int = 0
    KeeperPID: int = 0
    KeeperStart: str = ""
    NRestarts: int = 0
    ExecMainStatus: int = 0
    ActiveEnterTimestamp: str = ""
    InactiveExitTimestampMonotonic: int = 0

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it runs or will run by itself."""
        return self.ActiveState in ("inactive", "failed")


def read(name: str) -> State:
    """How a unit is now. Where its keeper has died, nothing of it runs. That is a failure, unless the host has started since."""
    try:
        told = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        state = State(**{each.name: told[each.name] for each in fields(State)})
    except (OSError, ValueError, KeyError):
        return State()
    if state.has_ended or (state.KeeperPID and state.KeeperStart == began(state.KeeperPID)):
        return state
    state.MainPID = 0
    if int(state.KeeperStart or 0) < int(began(1) or 0):
        state.ActiveState, state.SubState = "inactive", "dead"
    else:
        state.ActiveState, state.SubState, state.Result = "failed", "failed", "signal"
    return state


def write(name: str, state: State) -> None:
    """Replaces what is known of a unit."""
    prepare()
    replace(FOLDER / f"{name}.json", json.dumps(asdict(state)) + "\n")


def replace(path: Path, text: str) -> None:
    """Replaces a file, which is for root alone."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with _private(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
        file.write(text.encode())
    fresh.replace(path)


def forget(name: str) -> None:
    """Removes what is known of a unit that is no more."""
    for suffix in (".json", ".lock", ".change", ".job"):
        (FOLDER / f"{name}{suffix}").unlink(missing_ok=True)


@contextmanager
def held(name: str, *, patient: bool = True) -> Iterator[bool]:
    """Holds a lock, if it is to be had. Whoever is patient waits for it."""
    with _lock(name) as file:
        if patient:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield patient or _locked(file)


@contextmanager
def kept(name: str, pause: Callable[[], None]) -> Iterator[None]:
    """Holds a unit, for its keeper alone.

    Args:
        name: the unit.
        pause: is called now and then while a keeper before this one still ends its service.
    """
    with _lock(f"{name}.lock") as file:
        while not _locked(file):
            pause()
        yield


def is_kept(name: str) -> bool:
    """Whether a keeper looks after a unit."""
    return _is_held(f"{name}.lock")


@contextmanager
def changed(names: Iterable[str]) -> Iterator[None]:
    """Lets one command after the other change units. The order of their names keeps two commands from waiting for each other."""
    with ExitStack() as locks:
        for name in sorted(set(names)):
            locks.enter_context(held(f"{name}.change"))
        yield


def job(name: str) -> BinaryIO:
    """An open file. As long as a process has it, `waits` says that something is still to be done with the unit."""
    file = _lock(f"{name}.job")
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


def waits(name: str) -> bool:
    """Whether something is still to be done with a unit by a command that nobody waits for."""
    return _is_held(f"{name}.job")


def prepare() -> None:
    """Makes the folder. Only root may enter it, because whoever opens a lock can hold it. The one above is for all of r1prov."""
    FOLDER.mkdir(mode=0o700, parents=True, exist_ok=True)
    FOLDER.chmod(0o700)
    with suppress(PermissionError):
        FOLDER.parent.chmod(0o755)


def began(pid: int) -> str:
    """When a process began, as the kernel tells it; empty where there is no such process, or where it has died."""
    stat = stat_of(pid)
    return stat[19] if stat and stat[0] not in "ZX" else ""


def stat_of(pid: int | str) -> list[str]:
    """The fields of /proc/PID/stat after the name of the process; none where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def stamp() -> str:
    """The time now, as systemctl shows it."""
    return time.strftime("%a %Y-%m-%d %H:%M:%S UTC", time.gmtime())


def _lock(name: str) -> BinaryIO:
    """Opens a file that processes lock."""
    prepare()
    return _private(FOLDER / name, os.O_WRONLY | os.O_CREAT)


def _private(path: Path, flags: int) -> BinaryIO:
    """Opens a file that only root may open, whatever the umask is and whoever could open it before."""
    file = os.fdopen(os.open(path, flags, 0o600), "wb")
    os.fchmod(file.fileno(), 0o600)
    return file


def _is_held(name: str) -> bool:
    try:
        with (FOLDER / name).open("rb") as file:
            return not _locked(file)
    except FileNotFoundError:
        return False


def _locked(file: BinaryIO) -> bool:
    """Whether this process now has the lock of a file."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
