"""Reads progress, status and secrets from a host over an open connection."""

from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from importlib import resources
from typing import TYPE_CHECKING, Any

import paramiko

from r1prov.common import paths
from r1prov.common.errors import UnreachableError
from r1prov.common.systemctl import sign_of_systemd, systemctl
from r1prov.hosts.asking import ask
from r1prov.hosts.connection import HostConnection, connect

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from r1prov.hosts.ssh import Access
    from r1prov.site import Host

RECONNECT_S = 5.0


@dataclass(frozen=True)
class Progress:
    """How far a long step is, as the step itself reports it.

    Attributes:
        host: the host's name.
        step: the role.
        label: what is going on, e.g. `compiling`.
        done: how many of `total` are done.
        total: how many there are, or 0 where that is not known.
        unit: what `done` and `total` count: `steps` or `bytes`.
        state: `running`, `done` or `failed`.
        sources: of a transfer, those that bring something.
        verifying: of a transfer, which files are being verified, and how far.
        updated: seconds since 1970 by the host's clock, which may be wrong, so that only differences mean something.
    """

    host: str
    step: str
    label: str
    done: int
    total: int
    unit: str
    state: str
    updated: float
    sources: Sequence[str] = ()
    verifying: str = ""


@dataclass(frozen=True)
class Pause:
    """A measurement that keeps the engine of a host from answering.

    Attributes:
        by: who measures, as `user@controller`; empty where the host does not tell.
        command: with what.
        since: when the pause began, by this machine's clock.
        until: when the measurement is over at the latest. Then the engine loads the model again. None where that is not known.
    """

    by: str
    command: str
    since: datetime
    until: datetime | None

    def in_words(self, engine: str) -> str:
        """Say it as a sentence without its end."""
        whose = f" of {self.by} ({self.command})" if self.by else ""
        ends = (
            f"; it ends at {self.until.astimezone():%H:%M} at the latest, and then the model is loaded again"
            if self.until
            else ""
        )
        return f"a measurement{whose} has paused {engine} since {self.since.astimezone():%H:%M}{ends}"


class ProgressWatch:
    """Reports each change of a host's progress files until it is closed.

    The watch has a connection of its own. It opens a lost one again and raises nothing, since a run must not end because of it.

    Args:
        host: the host to watch.
        access: how to log in.
        report: is called with each change, from a thread of the watch.
    """

    def __init__(self, host: Host, access: Access, report: Callable[[Progress], None]) -> None:
        # The first contact was before: whoever has another key now is a stranger.
        self._host, self._access, self._report = host, replace(access, host_keys="strict", confirm=None), report
        self._closed = threading.Event()
        self._connection: HostConnection | None = None
        threading.Thread(target=self._watch, name=f"progress of {host.name}", daemon=True).start()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        if self._connection:
            self._connection.close()

    def _watch(self) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(UnreachableError, paramiko.SSHException, OSError, EOFError):
                self._follow()
            self._closed.wait(RECONNECT_S)

    def _follow(self) -> None:
        with contextlib.closing(connect(self._host, self._access)) as self._connection:
            lines = self._connection.follow(["python3", "-c", _on_host("progress.py")])
            with contextlib.closing(lines):
                for line in lines:
                    if self._closed.is_set():
                        return
                    with contextlib.suppress(ValueError, TypeError):  # a connection that is lost may leave half a line
                        self._report(Progress(host=self._host.name, **json.loads(line)))


def read_status(connection: HostConnection, service: dict[str, Any]) -> dict[str, Any]:
    """Read what is installed, running and healthy on a host, in one round trip.

    Args:
        connection: an open connection to the host.
        service: what on_host/status.py is asked, which describes the keys, without `systemctl` and `systemd`.

    Returns:
        A value of None says that there is no such thing on the host.

        engine: the engine that `service` names.
        releases: llama.cpp, ollama, open-webui -> the name of the current release.
        running: the same -> the names of the releases that services run. Other ones than the current release run where a run was cut
            off before it restarted them.
        units: unit name -> some of its systemd properties.
        systemd: whether systemd runs the units. On a host without it a program of r1prov's own does, and says the same of them.
        health, page, document_search, gateway: `ok`, `loading`, `down`, or the http status that it answers. `health` is `model missing`
            where Ollama answers and does not have the model any more.
        balancer: what `figures` of plugins/module_utils/balancer_figures.py returns.
        props: what llama-server says of itself.
        data_disk: a sentence where the data disk is away, on which r1prov's folders lie; else empty.
        lock: the run that holds the host, as it describes itself. `dead` says whether it has certainly ended without releasing the host.
        liveness: what the watcher of the engine has seen last: `state`, in words; `alive` and `alive_age_s`, when the engine was seen
            alive last and how long ago, and `by` what; `looked_age_s`; `restarts`, when the engine was restarted in the last 24 hours, and
            `stays_down_since`.
        watch: what the host's own watch has found last: `looked` (when), `age_s` (how long ago), `seconds`, `asked`, `every_s`,
            `differences`, each with `step`, `task` and `what`, `unknown` and `stays`.
        weights_read: when all weights were read last: `read` (when), `by` (`run` or `timer`), and `damaged`, which has the paths of files
            that are damaged still, and why.
        weights, benchmark: the JSON documents that the host keeps about them.

    Raises:
        UnreachableError: the connection is lost, or the status cannot be read.
    """
    asked = service | {"systemctl": systemctl(), "systemd": str(sign_of_systemd())}
    program = paths.module_util("carried").alone(_on_host("status.py"))
    status = ask(connection, program, asked, "its status cannot be read", 60)
    if isinstance(lock := status["lock"], dict):
        lock["dead"] = paths.module_util("lock_holder").is_dead(lock)
    return status


@dataclass(frozen=True)
class Releases:
    """The releases on a host, by their folders.

    Attributes:
        current: the name of the one that serves, or is being tried.
        lying: the names of all, the current one among them.
    """

    current: dict[str, str]
    lying: dict[str, list[str]]


_RELEASES = """cd /opt/r1prov 2>/dev/null || exit 0
for each in */current; do [ -L "$each" ] && echo "$each $(readlink "$each")"; done
for each in */releases/*; do [ -d "$each" ] && echo "$each"; done
exit 0
"""


def read_releases(connection: HostConnection) -> Releases:
    """Which releases lie on a host, and which of them are current.

    Raises:
        UnreachableError: the connection is lost.
    """
    found = Releases({}, {})
    for line in connection.run(["sh"], _RELEASES).out.splitlines():
        path, _, target = line.partition(" ")
        folder, _, rest = path.partition("/")
        if rest == "current":
            found.current[folder] = target.rpartition("/")[2]
        elif rest:
            found.lying.setdefault(folder, []).append(rest.rpartition("/")[2])
    return found


def read_pause(connection: HostConnection) -> Pause | None:
    """The measurement that pauses the engine of a host; None where there is none, or nothing can be told."""
    try:
        result = connection.run(["python3", "-", *systemctl()], _on_host("pause.py"), root=True)
        told = json.loads(result.out)
    except (UnreachableError, ValueError):
        return None
    if not told:
        return None
    lock = told["lock"] or {}
    since = datetime.now(UTC) - timedelta(seconds=told["elapsed_s"])
    return Pause(
        by=paths.module_util("lock_holder").who(lock) if lock.get("user") else "",
        command=lock.get("command", ""),
        since=since,
        until=since + timedelta(seconds=told["limit_s"]) if told["limit_s"] else None,
    )


def read_lock(connection: HostConnection) -> dict[str, Any]:
    """The run that holds a host, as it describes itself; empty where none does, or where it has certainly ended.

    Raises:
        UnreachableError: the connection is lost.
    """
    result = connection.run(["cat", str(paths.module_util("run_history").LOCK)])
    lock = paths.module_util("lock_holder")
    holder: dict[str, Any] = lock.parsed(result.out) if result.code == 0 else {}
    return {} if lock.is_dead(holder) else holder


def read_secret(connection: HostConnection, path: str) -> str | None:
    """Read a file that only root may read; None where it does not exist or is empty.

    Raises:
        UnreachableError: the connection is lost.
    """
    result = connection.run(["cat", path], root=True)
    return result.out.strip() or None if result.code == 0 else None


def _on_host(name: str) -> str:
    return (resources.files("r1prov.hosts") / "on_host" / name).read_text()
