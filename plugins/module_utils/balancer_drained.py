"""Which engines get no new request: what the balancer does now, and what it reads when it is started or reloaded.

The latter is a file in the form of HAProxy's `server-state-file`. A drained engine has a line there, in which its weight is 0. HAProxy
passes over lines that begin with `#`. Such a line names each engine that a run has drained, for a run puts back these and no others.
"""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.r1.prov.plugins.module_utils.balancer_figures import SOCKET, ask, figures, workers
from ansible_collections.r1.prov.plugins.module_utils.files import text_of, write_whole
from ansible_collections.r1.prov.plugins.module_utils.locks import alone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import AbstractContextManager

FILE = Path("/var/lib/r1prov/balancer/drained")
_LOCK = Path("/run/r1prov/balancer-drained.lock")
_LINE = re.compile(r"^\d+ engines \d+ (\S+) ", re.MULTILINE)
_BY_RUN = re.compile(r"^# by a run: (\S+)$", re.MULTILINE)
_PORT = re.compile(r":(\d+)$")
_POLL_S = 0.5
SURE_S = 3.0
"""An engine that is gone is found by three checks, of which the first comes within a second."""


class DrainError(Exception):
    """An engine cannot be drained or put back, for the reason in the message."""


def recorded(path: Path) -> list[str]:
    """The engines that are drained when the balancer is started."""
    return _LINE.findall(text_of(path))


def by_run(path: Path) -> list[str]:
    """Those of them that a run has drained, and no person."""
    return _BY_RUN.findall(text_of(path))


def record(names: Iterable[str], of_run: Iterable[str], addresses: Mapping[str, str]) -> str:
    """The text of the file.

    Args:
        names: the engines that are drained. Those that the balancer does not have are left out.
        of_run: those of them that a run has drained.
        addresses: the address of each engine that it has.
    """
    ports = {name: (_PORT.search(addresses[name]) or ["", "0"])[1] for name in sorted(names) if name in addresses}
    # HAProxy knows a server by the names in its line, and takes the weight and the port from there. The rest is what each begins with.
    lines = [f"0 engines 0 {name} - 2 0 0 1 0 1 0 3 6 0 0 0 - {port} - 0 0 - - 0\n" for name, port in ports.items()]
    return "".join(["1\n", *(f"# by a run: {name}\n" for name in sorted(of_run) if name in ports), *lines])


class Balancer:
    """The balancer of this host.

    Args:
        socket: where its master listens.
        file: where is kept who is drained.
        lock: a file that only one process may hold.
    """

    def __init__(self, socket: Path = SOCKET, file: Path = FILE, lock: Path = _LOCK) -> None:
        self._socket, self._file, self._lock = socket, file, lock

    def engine(self, name: str) -> dict[str, Any]:
        """What the balancer tells of an engine.

        Raises:
            DrainError: it does not know the engine, or does not answer.
        """
        found = self._engines()
        if name not in found:
            raise DrainError(f"the balancer has no engine {name}. Remedy: it has {', '.join(found)}")
        return found[name]

    def _engines(self) -> dict[str, dict[str, Any]]:
        found = figures(self._socket)
        if not found:
            raise DrainError("no balancer answers on this host. Remedy: look whether r1prov-balancer runs")
        engines: dict[str, dict[str, Any]] = found["engines"]
        return engines

    def is_so(self, name: str, *, drained: bool) -> bool:
        """Whether an engine is drained, or is not, now and after the next start."""
        return (self.engine(name)["drained"], name in recorded(self._file)) == (drained, drained)

    def drain(self, name: str) -> None:
        """Gives an engine no new request, because a person wants that."""
        with self._alone():
            self._set(name, {*by_run(self._file)} - {name}, drained=True)

    def drain_for_run(self, name: str, *, in_turn: bool = True) -> bool:
        """Gives an engine no new request, because a run is about to stop it. It comes back with the run, unless a person had drained it.

        Args:
            name: the engine.
            in_turn: whether it is left as it is while no other engine gets requests, and one that a run has drained is about to come back.

        Returns:
            Whether it was drained.
        """
        with self._alone():
            engine, of_run = self.engine(name), {*by_run(self._file)}
            others = {other: each for other, each in self._engines().items() if other != name}
            is_last = not any(each["state"] == "UP" and not each["drained"] for each in others.values())
            if in_turn and is_last and engine["state"] == "UP" and others.keys() & of_run:
                return False
            self._set(name, of_run if name in recorded(self._file) else {*of_run, name}, drained=True)
        return True

    def put_back(self, name: str) -> None:
        """Gives an engine requests again."""
        with self._alone():
            self._set(name, {*by_run(self._file)} - {name}, drained=False)

    def in_flight(self, name: str) -> int:
        """How many answers of an engine are not at their end, those that began before a reload among them."""
        engine = self.engine(name)
        return int(engine["answering"] + engine["waiting"])

    def is_well(self, name: str) -> bool:
        """Whether an engine answers the balancer's checks."""
        return bool(self.engine(name)["state"] == "UP")

    def _alone(self) -> AbstractContextManager[None]:
        return alone(self._lock, lambda _: None)

    def _set(self, name: str, of_run: set[str], *, drained: bool) -> None:
        """Keeps and tells what becomes of an engine. Nobody else may do so meanwhile, or two could be drained of which one was to wait."""
        self.engine(name)
        names = {*recorded(self._file), name} if drained else {*recorded(self._file)} - {name}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        # What is read at the start comes first: a worker that begins now is then told in either way.
        write_whole(self._file, record(names, of_run, self._addresses()), 0o644)
        weight = "0" if drained else "100%"
        said = [
            ask(f"{worker} set server engines/{name} weight {weight}", self._socket) for worker in workers(self._socket)
        ]
        if said[0].strip():  # The others may have ended just now.
            raise DrainError(f"the balancer says of {name}: {said[0].strip()}")

    def _addresses(self) -> dict[str, str]:
        rows = ask(f"{workers(self._socket)[0]} show servers state engines", self._socket).splitlines()
        fields = [row.split() for row in rows if " engines " in row and not row.startswith("#")]
        return {each[3]: f"{each[4]}:{each[18]}" for each in fields}


def within(limit_s: float, true: Callable[[], bool], lasting_s: float = 0.0) -> bool:
    """Waits until something is true and has been for so long, and returns whether it became true in time.

    While HAProxy reads its configuration it tells nothing, which is not true.
    """
    now_s = since_s = time.monotonic()
    end_s = now_s + limit_s
    while True:
        now_s = time.monotonic()
        is_so = False
        with contextlib.suppress(DrainError):
            is_so = true()
        if not is_so:
            since_s = now_s + _POLL_S
            if now_s > end_s:
                return False
        elif now_s - since_s >= lasting_s:
            return True
        time.sleep(_POLL_S)
