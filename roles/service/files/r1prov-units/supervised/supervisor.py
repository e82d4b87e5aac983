"""supervisord: its configuration, its start, and what is asked of it."""

from __future__ import annotations

import contextlib
import http.client
import re
import shutil
import signal
import socket
import stat
import subprocess
import time
import xmlrpc.client
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.r1.prov.plugins.module_utils import disk_away

from supervised import known, program
from supervised.unit_file import FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator

STATE = Path("/var/lib/r1prov/units")
LOG = STATE / "log"
_SOCKET = STATE / "supervisor.sock"
_LIMIT_S = 20.0
_MAIN = f"""\
; Written by r1prov; changes made here are undone by its next run.
[unix_http_server]
file={_SOCKET}
chmod=0700
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisord]
logfile={LOG}/supervisord.log
logfile_maxbytes=1MB
logfile_backups=1
pidfile=/run/r1prov/units/supervisord.pid
childlogdir={LOG}
[include]
files={STATE}/*.conf
[program:boot]
command={" ".join(program.again("start-enabled"))}
autorestart=false
startsecs=0
redirect_stderr=true
stdout_logfile={LOG}/boot.log
stdout_logfile_maxbytes=1MB
stdout_logfile_backups=1
[program:guard]
command={" ".join(program.again("guard"))}
redirect_stderr=true
stdout_logfile={LOG}/guard.log
stdout_logfile_maxbytes=1MB
stdout_logfile_backups=1
"""
_LOCK = "supervisord.lock"
_UNIT = re.compile(r"r1prov.*\.(service|timer)")


class SupervisorError(Exception):
    """supervisord does not do what it is asked."""


class _Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_LIMIT_S)
        self.sock.connect(str(_SOCKET))


class _Transport(xmlrpc.client.Transport):
    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        return _Connection("localhost")


def is_there() -> bool:
    """Whether supervisord answers."""
    try:
        _ask("getPID")
    except SupervisorError:
        return False
    return True


def boot() -> None:
    """Sees that supervisord runs. It starts what is enabled, and this returns when the keepers of that have begun.

    A unit that is enabled later is left to whoever enables it. Otherwise an engine would load its model twice.

    Raises:
        SupervisorError: it does not answer, or the data disk is away. It is started when that comes.
    """
    if is_there():
        return
    _down().unlink(missing_ok=True)
    if missing := away():
        program.detach(program.again("loop"))
        raise SupervisorError(f"{missing}. The services start when it comes")
    prepare()
    configure()
    program.detach(program.again("loop"))
    limit = time.monotonic() + _LIMIT_S
    while not is_there():
        if time.monotonic() > limit:
            raise SupervisorError(f"supervisord does not answer within {_LIMIT_S:.0f} s; see {LOG}/supervisord.log")
        time.sleep(0.1)
    while _starts_enabled() and time.monotonic() < limit:
        time.sleep(0.1)


def away() -> str:
    """What to say where this host's data disk is not there, on which the folder for units lies; else empty."""
    return disk_away.away(STATE.parent)


def prepare() -> None:
    """Makes all folders that are needed, and gives each the mode that it should have. Only root reads the logs.

    Raises:
        SupervisorError: the data disk is away.
    """
    if missing := away():
        raise SupervisorError(missing)
    known.prepare()
    program.make_credentials()
    LOG.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path, mode in ((STATE, 0o700), (LOG, 0o700), *_modes()):
        with contextlib.suppress(FileNotFoundError):  # supervisord begins a new log now and then.
            path.chmod(mode)


def _modes() -> Iterator[tuple[Path, int]]:
    """What lies in supervisord's folders and what the mode of each should be. The role looks at the folders themselves."""
    if _SOCKET.is_socket():
        yield _SOCKET, 0o700
    for path in (*LOG.glob("*"), *STATE.glob("*.conf")):
        if path.is_file() and not path.is_symlink():
            yield path, 0o600


def _starts_enabled() -> bool:
    """Whether the program with which supervisord starts what is enabled has not ended yet."""
    return _ask("getProcessInfo", "boot")["statename"] not in ("EXITED", "FATAL")


def loop() -> None:
    """Starts supervisord whenever it does not run, until `shutdown`. Only one process does so. It waits for a data disk that is away."""
    with known.held(_LOCK, patient=False) as mine:
        has_waited = False
        while mine and not _down().exists():
            if away():
                has_waited = True
            elif not is_there():
                if has_waited:
                    prepare()
                    configure()
                    has_waited = False
                command = ["supervisord", "--nodaemon", "--configuration", str(STATE / "supervisord.conf")]
                # supervisord heeds a umask of its configuration only where it goes to the background by itself.
                subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    check=False,
                    umask=0o077,
                )
            time.sleep(1)


def shutdown() -> None:
    """Stops all units, and what would start them again. Returns when nothing of it is left."""
    known.prepare()
    _down().touch()
    with contextlib.suppress(SupervisorError):
        _ask("shutdown")
    with known.held(_LOCK):  # It waits for the loop, which waits for supervisord.
        pass
    with contextlib.suppress(OSError):  # Somebody else may have a folder in there.
        program.CREDENTIALS.rmdir()


def guard() -> None:
    """Starts the loop that starts supervisord whenever that loop does not run. supervisord itself runs this."""
    program.die_with_parent(signal.SIGKILL)
    while True:
        with known.held(_LOCK):
            pass
        program.detach(program.again("loop"))
        time.sleep(2)


def _down() -> Path:
    """The file that keeps supervisord from being started again."""
    return known.FOLDER / "down"


def configure() -> bool:
    """Writes the configuration of supervisord: a keeper for each unit of r1prov, and nothing else. Returns whether it was another one."""
    wanted = {STATE / "supervisord.conf": _MAIN} | {STATE / f"{name}.conf": _keeper(name) for name in units()}
    others = [path for path, text in wanted.items() if not _holds(path, text)]
    strays = _files() - wanted.keys()
    for path in (*others, *strays):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for path in others:
        known.replace(path, wanted[path])
    return bool(others or strays)


def differences() -> list[str]:
    """What somebody has changed of what supervisord goes by, in a sentence each. `daemon-reload` puts it right.

    A unit that came or went is no difference: whoever writes its file lets that be read.
    """
    if missing := away():
        return [missing]
    found = []
    for path in sorted(_files() | {STATE / "supervisord.conf"}):
        is_keepers = _UNIT.fullmatch(path.name.removesuffix(".conf")) and path.suffix == ".conf"
        if path.name != "supervisord.conf" and not is_keepers:
            found.append(f"{path} is in the folder of supervisord's configuration, and no part of r1prov has made it")
        elif not _holds(path, _keeper(path.stem) if is_keepers else _MAIN):
            found.append(f"{path} {'has other content than r1prov gave it' if path.exists() else 'is gone'}")
    for path, mode in _modes():
        with contextlib.suppress(FileNotFoundError):
            if (has := stat.S_IMODE(path.stat().st_mode)) != mode:
                found.append(f"{path} has mode {has:04o}, and should have {mode:04o}")
    with contextlib.suppress(SupervisorError):
        names = {each["group"] for each in _ask("getAllProcessInfo")} - {"boot", "guard"}
        found += [
            f"supervisord runs {name}, and no part of r1prov has made that"
            for name in sorted(names)
            if not _UNIT.fullmatch(name)
        ]
    return found


def _files() -> set[Path]:
    """What lies in supervisord's folder beside its socket and the logs. It does not read what is hidden, as a new file is."""
    return {path for path in STATE.glob("[!.]*") if path != LOG and not path.name.startswith(_SOCKET.name)}


def _holds(path: Path, text: str) -> bool:
    """Whether a path is a file with this text."""
    is_file = path.is_file() and not path.is_symlink()
    return is_file and path.read_text(encoding="utf-8", errors="replace") == text


def units() -> list[str]:
    """The units of r1prov that have a file."""
    return sorted(path.name for path in FOLDER.glob("r1prov*") if _UNIT.fullmatch(path.name))


def reread() -> None:
    """Lets supervisord know the units that have a file, and forget the others. Those that run go on."""
    added, changed, removed = _ask("reloadConfig")[0]
    # What it runs for a unit is no keeper where somebody has given it another command.
    changed = [name for name in changed if _UNIT.fullmatch(name) and not known.is_kept(name)]
    for name in (*removed, *changed):
        _ask("stopProcessGroup", name)
        _ask("removeProcessGroup", name)
    for name in removed:
        known.forget(name)
    for name in (*added, *changed):
        _ask("addProcessGroup", name)


def start(name: str) -> None:
    """Starts the keeper of a unit, where there is none. supervisord refuses that as long as it has not noticed the end of the last one."""
    while _is_up(name) and not known.is_kept(name):
        time.sleep(0.02)
    if not known.is_kept(name):
        _ask("startProcess", name, False)


def stop(name: str) -> None:
    """Tells the keeper of a unit to stop, and returns when supervisord knows that it has ended."""
    while _is_up(name):
        # It refuses where the keeper has just ended, and may start another one then.
        with contextlib.suppress(SupervisorError):
            _ask("stopProcess", name, False)
        time.sleep(0.05)


def _is_up(name: str) -> bool:
    """Whether supervisord counts the keeper of a unit as running, or starts it again in a moment because it has not ended by itself."""
    found = _ask("getProcessInfo", name)
    restarts = found["statename"] == "EXITED" and found["exitstatus"] != 0
    return restarts or found["statename"] in ("STARTING", "RUNNING", "BACKOFF", "STOPPING")


def _keeper(name: str) -> str:
    """The configuration of a unit's keeper. It is the same whatever the unit does, so that a changed unit needs no other keeper."""
    return f"""\
[program:{name}]
command={" ".join(program.again("keep", name))}
autostart=false
autorestart=unexpected
exitcodes=0
startsecs=0
; The keeper knows how long its unit may take to stop.
stopwaitsecs=86400
redirect_stderr=true
stdout_logfile={LOG}/{name}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=2
"""


def _ask(what: str, *words: Any) -> Any:
    """Asks supervisord.

    Raises:
        SupervisorError: it does not answer, or refuses.
    """
    server = xmlrpc.client.ServerProxy("http://localhost", transport=_Transport())
    try:
        return getattr(server.supervisor, what)(*words)
    except (OSError, http.client.HTTPException, xmlrpc.client.Error) as error:
        raise SupervisorError(f"supervisord: {what}: {error}") from error
