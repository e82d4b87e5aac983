"""What an open connection is asked: progress, status, a secret to take over."""

from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import paramiko

from r1prov.common.errors import Problem, UnreachableError
from r1prov.hosts.connection import HostConnection, connect

if TYPE_CHECKING:
    from collections.abc import Callable

    from r1prov.hosts.ssh import Access
    from r1prov.site import Host

RECONNECT_S = 5.0


@dataclass(frozen=True)
class Progress:
    """A long step's own word on how far it is.

    Attributes:
        host: the host's name.
        step: the role.
        label: what is going on, e.g. `compiling`.
        done: of `total`, in `unit`; `total` 0 where it is not known.
        unit: `steps` or `bytes`.
        state: `running`, `done` or `failed`.
        updated: seconds since 1970 by the host's clock; only differences mean something.
    """

    host: str
    step: str
    label: str
    done: int
    total: int
    unit: str
    state: str
    updated: float


class ProgressWatch:
    """Reports each change of a host's progress files until it is closed.

    A lost connection is opened again and again: watching must not end a run.

    Args:
        host: whose progress.
        access: how to log in; a connection of its own.
        report: called from a thread of the watch.
    """

    def __init__(self, host: Host, access: Access, report: Callable[[Progress], None]) -> None:
        self._host, self._access, self._report = host, access, report
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
                    with contextlib.suppress(ValueError, TypeError):  # half a line of a lost connection
                        self._report(Progress(host=self._host.name, **json.loads(line)))


def read_status(connection: HostConnection, service: dict[str, Any]) -> dict[str, Any]:
    """What is installed, running and healthy on a host; one round trip.

    Args:
        connection: an open one.
        service: `engine` (llama-server, ollama), `url` of its API, `key_file` of it on the host; `page`, `embeddings`, `gateway`, URLs or
            empty.

    Returns:
        keys `engine`, `releases` (llama.cpp, ollama, open-webui -> name), `units` (name -> systemd's properties), `health`,
        `page`, `document_search` and `gateway` (`ok`, `loading`, `down` or what it says), `props` (of llama-server), `weights` and
        `benchmark` (as the host remembers them); None for what is not there.

    Raises:
        UnreachableError: it cannot be read.
    """
    result = connection.run(["python3", "-", json.dumps(service)], _on_host("status.py"), root=True, timeout_s=60)
    if result.code:
        raise UnreachableError(
            Problem(
                connection.host.name,
                f"its status cannot be read: {result.err.strip().splitlines()[-1:]}",
                "try again with --debug",
            )
        )
    status: dict[str, Any] = json.loads(result.out)
    return status


def read_secret(connection: HostConnection, path: str) -> str | None:
    """The content of a file that only root may read; None where there is none.

    Raises:
        UnreachableError: the connection is lost.
    """
    result = connection.run(["cat", path], root=True)
    return result.out.strip() or None if result.code == 0 else None


def _on_host(name: str) -> str:
    return (resources.files("r1prov.hosts") / "on_host" / name).read_text()
