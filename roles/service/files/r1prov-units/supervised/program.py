"""Starts the programs of a unit with the rights that it gives them, and finds and ends what they leave."""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from supervised import known
from supervised.unit_file import PROGRAM, Command, Unit, environment_file, expanded

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

PATH = f"{PROGRAM.parent}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CREDENTIALS = Path("/run/credentials")
"""systemd has the same folder, so a configuration may name a file in it."""
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36
_SETPCAP = 1 << 8
_LIMITS = {
    "LimitCORE": resource.RLIMIT_CORE,
    "LimitMEMLOCK": resource.RLIMIT_MEMLOCK,
    "LimitNOFILE": resource.RLIMIT_NOFILE,
}
_OWN = ["-I", str(PROGRAM)]
"""What Python is told so that it runs this program. A verb comes next."""
_prctl = ctypes.CDLL(None, use_errno=True).prctl


def again(verb: str, *units: str) -> list[str]:
    """The command with which this program is started again, for another verb."""
    return [sys.executable, *_OWN, verb, *units]


def detach(command: list[str], keep_open: Collection[int] = ()) -> None:
    """Starts a command that goes on when this process has ended.

    Args:
        command: the program and its arguments.
        keep_open: open files that it has, too.
    """
    subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
        pass_fds=keep_open,
    )


def adopt_orphans() -> None:
    """Makes this process the parent of all that its children leave behind."""
    _prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(number: int) -> None:
    """Lets the kernel send this process a signal when its parent dies."""
    _prctl(_SET_PDEATHSIG, number, 0, 0, 0)


def own_output(unit: Unit) -> None:
    """Lets the unit's user open the output of this process by its name, as nginx does with an access log."""
    account = pwd.getpwnam(unit.text("User", "root"))
    os.fchown(sys.stdout.fileno(), account.pw_uid, account.pw_gid)


def start(unit: Unit, command: Command, variables: dict[str, str]) -> subprocess.Popen[bytes]:
    """Starts one command of a unit.

    Raises:
        OSError: the program cannot be run.
    """
    environment = variables if command.as_root else variables | environment_of(unit)
    argv = [expanded(word, environment) for word in command.argv]
    prefix = [] if command.as_root else rights(unit)
    return subprocess.Popen(
        [*prefix, *argv],
        env=environment,
        stdin=subprocess.DEVNULL,
        cwd="/",
        preexec_fn=_prepared(unit),  # noqa: PLW1509 - the other thread of a keeper holds no lock while it waits
    )


def rights(unit: Unit) -> list[str]:
    """The beginning of a command line that gives up all rights that the unit does not give."""
    user = unit.text("User", "root")
    account = pwd.getpwnam(user)
    groups = [str(account.pw_gid), *(str(grp.getgrnam(name).gr_gid) for name in unit.texts("SupplementaryGroups"))]
    words = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", f"--groups={','.join(groups)}"]
    if unit.is_true("NoNewPrivileges"):
        words.append("--no-new-privs")
    if "CapabilityBoundingSet" in unit.settings or user != "root":
        kept = [f"+{name.removeprefix('CAP_').lower()}" for name in unit.texts("AmbientCapabilities")]
        words += [f"--inh-caps={','.join(['-all', *kept])}"]
        words += [f"--ambient-caps={','.join(['-all', *kept])}"] if kept else []
        # A container may keep from root the capability to give up capabilities for good. Another user has none to give up.
        if user != "root" and _has_setpcap():
            words.append(f"--bounding-set={','.join(['-all', *kept])}")
    return [*words, "--pdeathsig=KILL", "--"]


def environment_of(unit: Unit) -> dict[str, str]:
    """The variables that the unit's program gets beside those that each start has."""
    user = unit.text("User", "root")
    account = pwd.getpwnam(user)
    own = {"USER": user, "LOGNAME": user, "HOME": account.pw_dir, "SHELL": account.pw_shell}
    for path in unit.texts("EnvironmentFile"):
        own |= environment_file(Path(path).read_text(encoding="utf-8"))
    return own | unit.environment


def folders(unit: Unit) -> dict[str, str]:
    """Makes the folders that a unit's user owns. Returns the variables that name them."""
    account, made = pwd.getpwnam(unit.text("User", "root")), {}
    for key, base, mode in (("StateDirectory", "/var/lib", 0o700), ("RuntimeDirectory", "/run", 0o755)):
        if name := unit.text(key):
            folder = Path(base) / name
            folder.mkdir(parents=True, exist_ok=True)
            for parent in list(folder.parents)[: len(Path(name).parts) - 1]:
                parent.chmod(0o755)
            os.chown(folder, account.pw_uid, account.pw_gid)
            folder.chmod(mode)
            made[f"{key.removesuffix('Directory').upper()}_DIRECTORY"] = str(folder)
    return made


def credentials(unit: Unit) -> dict[str, str]:
    """Gives a unit's user copies of its credentials, in a folder that nobody else may read. Returns the variable that names it."""
    remove_credentials(unit)
    pairs = [each.split(":", 1) for each in unit.texts("LoadCredential")]
    if not pairs:
        return {}
    account, folder = pwd.getpwnam(unit.text("User", "root")), CREDENTIALS / unit.name
    make_credentials()
    folder.mkdir(mode=0o700)
    for name, source in pairs:
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
        with os.fdopen(descriptor, "wb") as file:
            file.write(Path(source).read_bytes())
        os.chown(folder / name, account.pw_uid, account.pw_gid)
    os.chown(folder, account.pw_uid, account.pw_gid)
    folder.chmod(0o500)
    return {"CREDENTIALS_DIRECTORY": str(folder)}


def make_credentials() -> None:
    """Makes the folder in which the folders of credentials are. A unit's user has to get through it to its own."""
    CREDENTIALS.mkdir(mode=0o711, parents=True, exist_ok=True)
    CREDENTIALS.chmod(0o711)


def remove_credentials(unit: Unit) -> None:
    """Removes the copies of a unit's credentials."""
    folder = CREDENTIALS / unit.name
    for path in folder.glob("*") if folder.is_dir() else ():
        path.unlink()
    with suppress(FileNotFoundError):
        folder.rmdir()


def descendants(pid: int) -> list[int]:
    """All processes below one, without those that it has told to change units in the background, because they go on."""
    children: dict[str, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        if (stat := known.stat_of(path.name)) and stat[0] not in "ZX":
            children.setdefault(stat[1], []).append(int(path.name))
    found, new = [], [pid]
    while new:
        new = [child for each in new for child in children.get(str(each), []) if not _is_detached(child)]
        found += new
    return found


def _is_detached(pid: int) -> bool:
    """Whether root runs a verb of this program there. A service cannot claim that, because it has another user."""
    process = Path("/proc") / str(pid)
    with suppress(OSError):
        is_roots = "\nUid:\t0\t" in process.joinpath("status").read_text(errors="replace")
        words = process.joinpath("cmdline").read_text(errors="replace").split("\0")
        return is_roots and words[1:3] == _OWN
    return False


def end_all(pid: int, patience_s: float) -> bool:
    """Ends all processes below one: asks them, and kills those that are still there later. Returns whether asking was enough."""
    told: set[int] = set()
    limit = time.monotonic() + patience_s
    while left := descendants(pid):
        tell(set(left) - told, signal.SIGTERM)  # One may have been started meanwhile.
        told.update(left)
        if time.monotonic() > limit:
            tell(left, signal.SIGKILL)
        time.sleep(0.05)
    return time.monotonic() <= limit


def bury(own: Collection[int]) -> None:
    """Takes note of the end of orphans, so that they vanish from the table of processes, but for those of whose end somebody else does."""
    with suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid not in own:
            os.waitpid(ended.si_pid, 0)


def tell(pids: Iterable[int], number: int) -> None:
    """Sends processes a signal. One that is gone is no error."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _has_setpcap() -> bool:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return bool(int(status.partition("CapEff:")[2].split()[0], 16) & _SETPCAP)


def _prepared(unit: Unit) -> Callable[[], None]:
    """What the new process does before it becomes the program."""
    umask = int(unit.text("UMask", "0022"), 8)
    limits = {number: unit.text(key) for key, number in _LIMITS.items() if key in unit.settings}
    score, nice = unit.text("OOMScoreAdjust"), int(unit.text("Nice", "0"))

    def prepare() -> None:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        die_with_parent(signal.SIGKILL)
        os.umask(umask)
        for number, text in limits.items():
            _limit(number, resource.RLIM_INFINITY if text == "infinity" else int(text))
        if nice:
            os.nice(nice)
        if score:
            # A container may not let a process become less likely to be ended.
            with suppress(PermissionError):
                Path("/proc/self/oom_score_adj").write_text(score, encoding="ascii")

    return prepare


def _limit(number: int, value: int) -> None:
    """Sets a limit, or as much of it as the container allows."""
    try:
        resource.setrlimit(number, (value, value))
    except (ValueError, OSError):
        hard = resource.getrlimit(number)[1]
        resource.setrlimit(number, (hard, hard))
