"""Keeps one unit: starts its program, waits until it is ready, starts it again when it dies, and leaves nothing of it when told to stop."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import traceback
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from supervised import known, program
from supervised.stamped import stamped
from supervised.unit_file import UnitFileError, load, path_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from supervised.unit_file import Command, Unit

MARK = "-- r1prov-units: start "
"""Begins the line of the log that stands before what one start of the unit has written. The `InvocationID` comes next."""
_HEARD = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
_TICK_S, _IDLE_S = 0.1, 60.0


class StoppedError(Exception):
    """The keeper is told to stop its unit."""


class StartError(Exception):
    """A start has failed; the message is the `Result`."""


def keep(name: str) -> None:
    """Keeps a unit until it has ended for good, or until this process is told to stop."""
    program.adopt_orphans()
    program.die_with_parent(signal.SIGTERM)
    with suppress(StoppedError), known.kept(name, _pause):
        keeper = Keeper(name)
        keeper.now("activating", "start")
        try:
            unit = load(name)
            if unit.is_timer:
                keeper.ticks(unit)
            else:
                keeper.keeps(unit)
        except UnitFileError as error:
            say(str(error))
            keeper.now("failed", "failed", Result="resources")


class Keeper:
    """What has become of a unit so far."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = known.State(KeeperPID=os.getpid(), KeeperStart=known.began(os.getpid()))
        self.main: subprocess.Popen[bytes] | None = None
        self.starts: list[float] = []
        self.variables: dict[str, str] = {}

    def now(self, active: str, sub: str, **more: str | int) -> None:
        """Writes down how the unit is."""
        if active == "active" and self.state.ActiveState != "active":
            self.state.ActiveEnterTimestamp = known.stamp()
        for key, value in {"ActiveState": active, "SubState": sub, **more}.items():
            setattr(self.state, key, value)
        known.write(self.name, self.state)

    def keeps(self, unit: Unit) -> None:
        """Runs a service until it has ended for good."""
        while True:
            result = "success"
            try:
                self._await_others(unit)
                self._starts(unit)
                self._lives(unit)
            except StartError as error:
                result = str(error)
            except (OSError, KeyError, ValueError, UnitFileError, subprocess.SubprocessError) as error:
                say(f"{self.name} cannot be started: {error}")
                result = "resources"
            except StoppedError:
                self._ends(unit, "success")
                self.now("inactive", "dead", Result="success")
                return
            self._ends(unit, result)
            if not self._again(unit, result):
                return
            self.now("activating", "auto-restart", Result=result, NRestarts=self.state.NRestarts + 1)
            try:
                _sleep(unit.seconds("RestartSec", 0.1))
            except StoppedError:
                self.now("inactive", "dead", Result="success")
                return

    def ticks(self, unit: Unit) -> None:
        """Starts another unit now and then, until this process is told to stop."""
        service = self.name.removesuffix(".timer") + ".service"
        wait_s = unit.seconds("OnActiveSec", 0)
        try:
            while True:
                self.now("active", "waiting")
                _sleep(wait_s + random.uniform(0, unit.seconds("RandomizedDelaySec", 0)))  # noqa: S311 - no secret
                wait_s = unit.seconds("OnUnitInactiveSec", 0)
                self.now("active", "running")
                with subprocess.Popen(program.again("start", service)) as starting:
                    _until(lambda: starting.poll() is not None)
                _until(lambda: known.read(service).has_ended, tick_s=1)
        except StoppedError:
            self.now("inactive", "dead")

    def _await_others(self, unit: Unit) -> None:
        """Waits while units start that come before this one."""
        before = [name for name in unit.texts("After") if path_of(name).exists()]
        if any(known.read(name).ActiveState == "activating" for name in before):
            self.now("activating", "waiting")
            _until(lambda: all(known.read(name).ActiveState != "activating" for name in before))

    def _starts(self, unit: Unit) -> None:
        """Starts the service, and returns when it is ready.

        Raises:
            StartError: it has failed.
        """
        self.starts.append(time.monotonic())
        start, limit_s = uuid.uuid4().hex, unit.seconds("TimeoutStartSec", 90)
        until_s = time.monotonic() + limit_s
        began = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        say(f"{MARK}{start}")
        self.now("activating", "start-pre", InvocationID=start, InactiveExitTimestampMonotonic=began, MainPID=0)
        if missing := [path for path in unit.texts("ConditionPathExists") if not _holds(path)]:
            say(f"{self.name} is not started, because of ConditionPathExists={missing[0]}")
            return
        self._is_fit(unit)
        program.own_output(unit)
        self.variables = {"PATH": program.PATH, "LANG": "C.UTF-8", "INVOCATION_ID": start}
        self.variables |= program.folders(unit) | program.credentials(unit)
        for command in unit.commands("ExecStartPre"):
            self._runs(unit, command, until_s)
        commands = unit.commands("ExecStart")
        if unit.text("Type") == "oneshot":
            for command in commands:
                self.main = program.start(unit, command, self.variables)
                self.now("activating", "start", MainPID=self.main.pid)
                self._ended_well(unit, self.main, until_s, may_fail=command.may_fail)
            self.main = None
        else:
            self.main = program.start(unit, commands[0], self.variables)
            self.now("activating", "start-post", MainPID=self.main.pid)
            _until(lambda: self._has_ended() or self._has_become_itself(), tick_s=0.01)
        for command in unit.commands("ExecStartPost"):
            self._runs(unit, command, until_s)

    def _is_fit(self, unit: Unit) -> None:
        """Sees to the files that the service must not be without.

        Raises:
            StartError: one is empty or not there.
        """
        if empty := [path for path in unit.texts("AssertFileNotEmpty") if not text_of(path)]:
            say(f"{self.name} is not started, because {empty[0]} is empty")
            raise StartError("assert")

    def _lives(self, unit: Unit) -> None:
        """Returns when the service has ended well. One that has done its work may count as active until this process is told to stop.

        Raises:
            StartError: it has ended otherwise.
        """
        if self.main:
            self.now("active", "running", Result="success")
            _until(self._has_ended, tick_s=_IDLE_S)
            self._main_failed(unit)
        if unit.is_true("RemainAfterExit"):
            self.now("active", "exited", Result="success", MainPID=0)
            _until(lambda: False, tick_s=_IDLE_S)

    def _main_failed(self, unit: Unit) -> None:
        """Says how the main process has ended.

        Raises:
            StartError: not well.
        """
        code = self.main.wait() if self.main else 0
        self.state.ExecMainStatus = abs(code)
        if code and code != -signal.SIGTERM:
            how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            say(f"{unit.name}: the main process has ended {how}")
            raise StartError("signal" if code < 0 else "exit-code")
        self.main = None

    def _runs(self, unit: Unit, command: Command, until_s: float) -> None:
        try:
            process = program.start(unit, command, self.variables | self._main_pid())
        except OSError as error:
            # systemd starts a service, too, where such a program is not there: a container may have no nvidia-modprobe.
            if not command.may_fail:
                raise
            say(f"{unit.name} goes on without {command.argv[0]}: {error.strerror}")
            return
        self._ended_well(unit, process, until_s, may_fail=command.may_fail)

    def _ended_well(
        self, unit: Unit, process: subprocess.Popen[bytes], until_s: float, *, may_fail: bool = False
    ) -> None:
        """Waits for a command of the unit.

        Raises:
            StartError: it fails, or takes longer than a start may take.
        """
        # A main process that has ended is taken note of meanwhile. Otherwise whoever waits for it to be ready would take it for alive.
        if not _until(lambda: process.poll() is not None or (process is not self.main and self._has_died()), until_s):
            say(f"{unit.name} was not ready within {unit.text('TimeoutStartSec')} s")
            raise StartError("timeout")
        if process is not self.main and self._has_died():
            self._main_failed(unit)
            raise StartError("protocol")  # It has ended well before it was ready.
        self.state.ExecMainStatus = abs(process.returncode)
        if process.returncode and not may_fail:
            raise StartError("signal" if process.returncode < 0 else "exit-code")

    def _ends(self, unit: Unit, result: str) -> None:
        """Ends all processes of the service, and runs what comes after it."""
        self.now("deactivating", "stop-sigterm")
        if not program.end_all(os.getpid(), unit.seconds("TimeoutStopSec", 90)):
            say(f"{unit.name} did not end in time, and was killed")
        code = self.main.wait() if self.main else self.state.ExecMainStatus
        self.main = None
        told = {
            "SERVICE_RESULT": result,
            "EXIT_STATUS": str(abs(code)),
            "EXIT_CODE": "killed" if code < 0 else "exited",
        }
        self.now("deactivating", "stop-post", MainPID=0)
        for command in unit.commands("ExecStopPost"):
            with suppress(OSError):
                process = program.start(unit, command, {"PATH": program.PATH, "LANG": "C.UTF-8", **told})
                with suppress(subprocess.TimeoutExpired):
                    process.wait(unit.seconds("TimeoutStopSec", 90))
        program.remove_credentials(unit)
        program.end_all(os.getpid(), 0)
        program.bury(())

    def _again(self, unit: Unit, result: str) -> bool:
        """Whether the service is to be started again. Where it is not, that is written down."""
        policy = unit.text("Restart", "no")
        final = str(self.state.ExecMainStatus) in unit.texts("RestartPreventExitStatus") and result == "exit-code"
        wanted = policy == "always" or (policy == "on-failure" and result != "success")
        interval_s = unit.seconds("StartLimitIntervalSec", 10)
        recent = [each for each in self.starts if time.monotonic() - each < interval_s]
        if wanted and not final and (not interval_s or len(recent) < int(unit.text("StartLimitBurst", "5"))):
            return True
        if wanted and not final:
            say(f"{unit.name} is given up after {len(recent)} starts")
        failed = result != "success"
        self.now("failed" if failed else "inactive", "failed" if failed else "dead", Result=result)
        return False

    def _has_ended(self) -> bool:
        program.bury([self.main.pid] if self.main else [])
        return self.main is None or self._has_died()

    def _has_died(self) -> bool:
        return self.main is not None and self.main.poll() is not None

    def _has_become_itself(self) -> bool:
        """Whether the process has given up its rights and become the unit's program."""
        # In a container root may not see which program another user runs, but what it is called.
        return self.main is not None and text_of(f"/proc/{self.main.pid}/comm").strip() != "setpriv"

    def _main_pid(self) -> dict[str, str]:
        return {"MAINPID": str(self.main.pid)} if self.main else {}


def say(text: str) -> None:
    """Writes a line to the log of the unit."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def text_of(path: str) -> str:
    """The content of a file; empty where it is gone."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _holds(condition: str) -> bool:
    """Whether a path is there, or is not where a `!` stands before it."""
    return Path(condition.removeprefix("!")).exists() != condition.startswith("!")


def _pause(wait_s: float = _TICK_S) -> None:
    """Waits for a moment, or until a child has ended.

    Raises:
        StoppedError: this process is told to stop.
    """
    heard = signal.sigtimedwait(_HEARD, wait_s)
    if heard and heard.si_signo != signal.SIGCHLD:
        raise StoppedError


def _until(true: Callable[[], bool], until_s: float = float("inf"), *, tick_s: float = _TICK_S) -> bool:
    """Waits until something is true. It looks each `tick_s` seconds, and when a child has ended. Returns whether it is true in time."""
    while not true():
        if time.monotonic() > until_s:
            return False
        _pause(tick_s)
    return True


def _sleep(wait_s: float) -> None:
    end_s = time.monotonic() + wait_s
    while (left_s := end_s - time.monotonic()) > 0:
        _pause(left_s)


def main(name: str) -> int:
    """Keeps a unit. Where this program itself fails, supervisord starts it again, a moment later. Returns the exit code."""
    # This comes before any other thread, which would take a signal that the main one waits for, and end the process.
    signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
    with stamped():
        try:
            keep(name)
        except Exception:
            # It goes to the log. supervisord would start this again at once, and again.
            traceback.print_exc(file=sys.stdout)
            sys.stdout.flush()
            time.sleep(2)
            return 1
    return 0
