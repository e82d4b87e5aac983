"""Runs commands a few at once and in order, shows what goes on, and gathers what came of each.

A job is one command of a stage. Jobs of the stage `compile` have a lane of their own, so that compilers work from the first
second on while the tests that do not need them run.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

COMPILE = "compile"
# Borders, colours and links help on a terminal, not in a log.
PLAIN = {
    "MOLECULE_COMMAND_BORDERS": "0",
    "NO_COLOR": "1",
    "ANSIBLE_NOCOLOR": "1",
    "TERM": "dumb",
    "PYTHONUNBUFFERED": "1",
}

_QUIET_S = 30  # so long nothing is said; then one line tells what runs
_LAST_LINES = 60
_MOST_LINES = 400
_CASE = re.compile(r"(?:\[gw\d+\] )?\[ *(?P<percent>\d+)%\] (?P<result>[A-Z]+) (?P<test>\S+)")


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        stage: whose count it goes to.
        name: for people.
        argv: the command.
        cwd: where it runs.
        after: the names of jobs that must have ended before this one begins, well or badly.
        environment: what it gets beside the environment of this process.
        pytest: whether the command is pytest, whose tests are counted one by one.
        tell_each: whether each line that the command prints is shown as it comes, or the result of each test.
        afterwards: a file that the command may have written, and that a reader wants to see if it fails.
    """

    stage: str
    name: str
    argv: tuple[str, ...]
    cwd: Path
    after: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    pytest: bool = False
    tell_each: bool = False
    afterwards: Path | None = None


@dataclass
class Outcome:
    """What came of one job, or of several.

    Attributes:
        passed: how many tests.
        failed: the names of those that did not.
        skipped: the names of those that did not run, by reason.
        times: each test's duration in seconds, with its name.
        began: seconds after the start of all.
        ended: likewise.
    """

    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    times: list[tuple[float, str]] = field(default_factory=list)
    began: float = 0.0
    ended: float = 0.0

    def skip(self, reason: str, test: str) -> None:
        """Counts a test that did not run."""
        self.skipped.setdefault(reason, []).append(test)

    def add(self, other: Outcome) -> None:
        """Counts what came of another job too."""
        self.began = min(self.began, other.began) if self.ended else other.began
        self.ended = max(self.ended, other.ended)
        self.passed += other.passed
        self.failed += other.failed
        self.times += other.times
        for reason, tests in other.skipped.items():
            self.skipped.setdefault(reason, []).extend(tests)

    def __str__(self) -> str:
        skipped = sum(len(tests) for tests in self.skipped.values())
        counts = {"passed": self.passed, "failed": len(self.failed), "skipped": skipped}
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "nothing to do"


class Crew:
    """Workers that take jobs in the order given, each as soon as what it waits for has ended."""

    def __init__(self, logs: Path, ended: Callable[[Job, Outcome], None] | None = None) -> None:
        """`logs` is the folder that gets what each command prints, `ended` is called with each job that was not interrupted."""
        self._logs, self._ended = logs, ended
        self._started = self._spoke = time.monotonic()
        self._changed = threading.Condition()
        self._waiting: list[Job] = []
        self._running: dict[str, tuple[float, str]] = {}
        self._outcomes: dict[str, Outcome] = {}
        self._processes: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def run(self, jobs: list[Job], at_once: int) -> dict[str, Outcome]:
        """Runs jobs and returns what came of each stage, in the order in which the stages are first named.

        Args:
            jobs: the first that is ready goes first.
            at_once: how many run at the same time, beside one that compiles.
        """
        self._waiting = list(jobs)
        self._outcomes = {job.stage: Outcome() for job in jobs}
        self._logs.mkdir(parents=True, exist_ok=True)
        lanes = [False] * at_once + [True]
        workers = [threading.Thread(target=self._work, args=(compiles,), daemon=True) for compiles in lanes]
        try:
            for worker in workers:
                worker.start()
            while any(worker.is_alive() for worker in workers):
                time.sleep(0.2)  # Not `join`: Python 3.11 takes a thread for dead when its join is interrupted.
                self._say_what_runs()
        except KeyboardInterrupt:
            self._stop()
            raise
        return self._outcomes

    def say(self, text: str) -> None:
        """Prints a line, with the seconds since the start."""
        with self._changed:
            self._spoke = time.monotonic()
            sys.stdout.write(f"{self._elapsed():5.0f} s  {text}\n")
            sys.stdout.flush()

    def _work(self, compiles: bool) -> None:
        while job := self._next(compiles):
            try:
                outcome = self._do(job)
            except (
                Exception
            ) as error:  # A job that cannot even be started counts as failed, or others would wait for it for ever.
                self.say(f"{job.name}: FAILED, {type(error).__name__}: {error}")
                outcome = Outcome(failed=[job.name])
            with self._changed:
                if self._ended and not self._stopped:
                    self._ended(job, outcome)
                self._outcomes[job.stage].add(outcome)
                del self._running[job.name]
                self._changed.notify_all()

    def _next(self, compiles: bool) -> Job | None:
        """The next job of a lane; None when there will be no more."""
        with self._changed:
            while True:
                lane = [job for job in self._waiting if (job.stage == COMPILE) == compiles]
                if not lane or self._stopped:
                    return None
                unfinished = {job.name for job in self._waiting} | set(self._running)
                ready = [job for job in lane if not unfinished & set(job.after)]
                if ready:
                    self._waiting.remove(ready[0])
                    self._running[ready[0].name] = (self._elapsed(), "")
                    return ready[0]
                self._changed.wait()

    def _do(self, job: Job) -> Outcome:
        self.say(f"{job.name} ...")
        began = self._elapsed()
        log = self._logs / f"{re.sub(r'[^a-zA-Z0-9_.]+', '-', job.name)}.log"
        report = log.with_suffix(".xml")
        report.unlink(missing_ok=True)
        if job.afterwards:
            job.afterwards.unlink(missing_ok=True)
        code = self._command(job, [*job.argv, *([f"--junitxml={report}"] if job.pytest else ())], log)
        outcome = _cases(job, report, code) if job.pytest else Outcome()
        outcome.began, outcome.ended = began, self._elapsed()
        if not job.pytest:
            outcome.passed, outcome.failed = (0, [job.name]) if code else (1, [])
            outcome.times = [(outcome.ended - began, job.name)]
        counted = f" ({outcome})" if job.pytest else ""
        self.say(f"{job.name}: {'FAILED' if code else 'passed'} in {outcome.ended - began:.0f} s{counted}")
        if code and not self._stopped:
            shown = [*_end_of(log, job.pytest), f"all of it: {log}"]
            if job.afterwards and job.afterwards.exists():
                shown += ["", "what its host had to say:", *job.afterwards.read_text(errors="replace").splitlines()]
            self.say(f"{job.name}: what it printed at the end\n" + "\n".join(f"    | {line}" for line in shown))
        return outcome

    def _command(self, job: Job, argv: list[str], log: Path) -> int:
        with (
            log.open("w", encoding="utf-8") as kept,
            subprocess.Popen(
                argv,
                cwd=job.cwd,
                env={**os.environ, **({} if job.pytest else PLAIN), **job.environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                # A group of its own: `_stop` alone passes an interruption on, once, wherever that came from.
                start_new_session=True,
            ) as process,
        ):
            self._begun(process)
            assert process.stdout
            for line in process.stdout:
                kept.write(line)
                kept.flush()
                self._hear(job, line.rstrip())
        self._processes.discard(process)
        return process.returncode

    def _begun(self, process: subprocess.Popen[str]) -> None:
        """Keeps a command for `_stop`, and interrupts it where it began too late to be seen there."""
        with self._changed:
            self._processes.add(process)
            if self._stopped:
                os.killpg(process.pid, signal.SIGINT)

    def _hear(self, job: Job, line: str) -> None:
        """Keeps how far a run of pytest is, and says what is worth a line."""
        case = _CASE.match(line) if job.pytest else None
        if case:
            with self._changed:
                self._running[job.name] = (self._running[job.name][0], f"{case['percent']} %, ")
        if job.tell_each and (case or not job.pytest):
            self.say(f"  {job.name}: " + (f"{case['test']} {case['result']}" if case else line))

    def _say_what_runs(self) -> None:
        with self._changed:
            if time.monotonic() - self._spoke < _QUIET_S:
                return
            now = self._elapsed()
            running = [f"{name} ({note}{now - since:.0f} s)" for name, (since, note) in self._running.items()]
        self.say("running: " + ", ".join(running))

    def _stop(self) -> None:
        """Interrupts the commands, and waits until they have cleaned up and ended. Whoever is impatient ends them by another Ctrl-C."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self.say(f"stopping: {', '.join(self._running) or 'nothing runs'}")
        for end in (signal.SIGINT, signal.SIGTERM):
            for process in list(self._processes):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, end)
            with contextlib.suppress(KeyboardInterrupt), self._changed:
                self._changed.wait_for(lambda: not self._running)
                return

    def _elapsed(self) -> float:
        return time.monotonic() - self._started


def _cases(job: Job, report: Path, code: int) -> Outcome:
    """What pytest says of each test."""
    outcome = Outcome()
    for case in ElementTree.parse(report).iter("testcase") if report.exists() else ():
        name = f"{case.get('classname')}::{case.get('name')}"
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            outcome.failed.append(name)
        elif skipped is not None:
            outcome.skip(skipped.get("message") or "", name)
        else:
            outcome.passed += 1
        outcome.times.append((float(case.get("time") or 0), name))
    if code and not outcome.failed:
        outcome.failed.append(f"{job.name} ended with status {code}")
    return outcome


def _end_of(log: Path, pytest: bool) -> list[str]:
    """The lines that say why: of pytest all about failures, else the last ones."""
    lines = log.read_text(errors="replace").splitlines()
    if pytest:
        headings = [number for number, line in enumerate(lines) if re.fullmatch(r"=+ (FAILURES|ERRORS) =+", line)]
        return lines[headings[0] if headings else -_LAST_LINES :][:_MOST_LINES]
    return lines[-_LAST_LINES:]
