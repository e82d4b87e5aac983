"""What is tried on a host, and what came of it."""

from __future__ import annotations

import json
import random
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1prov.site import TESTED_LLAMA_CPP
from tests.cuts.cut import KINDS, Run, kill
from tests.cuts.host import Files
from tests.e2e.people import QUESTION, told
from tests.fixtures import ollama
from tests.tree import commit

if TYPE_CHECKING:
    from r1prov.lab.hosts import LabHost
    from tests.e2e.people import Operator

COUNT = 30
ACTIONS = ("upgrade", "switch", "removal", "up")
FIRST = "first up"
LAST = f"{FIRST}: the last"
OTHER_LLAMA_CPP = "0.3.35"


@dataclass(frozen=True)
class Outcome:
    """What became of a cut.

    Attributes:
        name: of the case: what was cut, how, and a number.
        commit: of r1prov as it was tried.
        place: where it was cut; empty where the run had ended before.
        ended: the exit code of the run that was cut.
        after: the command that came next.
        faults: what was not as it must be.
        seconds: how long all of that took.
    """

    name: str
    commit: str
    place: str
    ended: int
    after: str
    faults: list[str]
    seconds: int


class Kept:
    """What is known so far: what became of each cut, and when tasks change something in a command that is not cut."""

    def __init__(self, path: Path) -> None:
        self.path = path
        known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"whole": True}
        begun = {} if known["whole"] else known
        self.courses: dict[str, list[float]] = begun.get("courses", {})
        self.outcomes = [Outcome(**each) for each in begun.get("outcomes", [])]

    def add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        at = f"{outcome.name}: cut {outcome.place or 'nowhere'}, exit {outcome.ended}"
        say(f"{'MISS' if outcome.faults else 'ok  '} {at}; then {outcome.after}; {outcome.seconds} s")
        for fault in outcome.faults:
            say(f"     {fault}")
        self.write(whole=False)

    def write(self, *, whole: bool) -> None:
        rows = [asdict(each) for each in self.outcomes]
        missed = sum(bool(each.faults) for each in self.outcomes)
        cut = sum(bool(each.place) for each in self.outcomes)
        found = {"whole": whole, "cuts": cut, "missed": missed, "courses": self.courses, "outcomes": rows}
        self.path.write_text(json.dumps(found, indent=1) + "\n")


class Proof:
    """One host, and what is tried on it."""

    def __init__(self, operator: Operator, host: LabHost, kept: Kept) -> None:
        self.operator, self.host, self.kept = operator, host, kept
        self.files = Files()

    def first(self) -> None:
        """Kills an `up` at each boundary of its tasks, until one ends by itself."""
        done = {each.name for each in self.kept.outcomes}
        while LAST not in done:
            began = time.monotonic()
            with Run(self.operator, self.host, "up") as run:
                task = next((task for task in run.tasks() if f"{FIRST}: {task.name}" not in done), None)
                if task:
                    kill(run)
                code = run.end()
            if task:
                name, place = f"{FIRST}: {task.name}", f"at {task.at:.1f} s"
                faults = self.files.see(name, self.host)
            else:
                name, place = LAST, ""
                faults = [f"up ended with {code}:\n{run.talk[-3000:]}"] if code else self.well()
            done.add(name)
            self.kept.add(Outcome(name, commit(), place, code, "up", faults, _since(began)))

    def attempt(self, name: str, seed: int) -> None:
        """Cuts one command off, and sees what the next one makes of that."""
        began, chance = time.monotonic(), random.Random(f"{seed} {name}")
        action, kind = name.split()[:2]
        if action not in self.kept.courses:
            self.kept.courses[action] = self.course(action)
        arguments = self.prepare(action)
        with Run(self.operator, self.host, *arguments) as run:
            place = self.cut(run, kind, self.kept.courses[action], chance)
            ended = run.end()
        faults = self.files.see(name, self.host, torn=kind == "power")
        after = chance.choice([["up"], arguments])
        again = self.operator.run(*after)
        if again.returncode:
            faults.append(f"{' '.join(after)} ended with {again.returncode}:\n{again.stderr[-3000:]}")
        if after[0] == "down":
            self.operator.run("up")
        faults += self.well()
        self.kept.add(Outcome(name, commit(), place, ended, " ".join(after), faults, _since(began)))
        if faults:  # The next cut shall begin on a host that is well.
            self.operator.run("up", "--full")

    def course(self, action: str) -> list[float]:
        """When tasks change something in a command that is not cut, and when it ends, in seconds."""
        arguments = self.prepare(action)
        began = time.monotonic()
        with Run(self.operator, self.host, *arguments) as run:
            tasks = list(run.tasks())
            code = run.end()
        assert code == 0, run.talk
        marks = [task.at for number, task in enumerate(tasks) if task.changed or number == 0]
        course = [round(mark, 1) for mark in [*marks, time.monotonic() - began]]
        if action == "removal":
            self.operator.does("up")
        self.files.learn(self.host)
        return course

    def cut(self, run: Run, kind: str, course: list[float], chance: random.Random) -> str:
        """Cuts a run as the seed says. Returns where."""
        number = chance.randrange(len(course) - 1)
        later_s = chance.choice([0, chance.uniform(0, course[number + 1] - course[number])])
        effects = -1
        for task in run.tasks():
            effects += task.changed or effects < 0
            if effects == number:
                time.sleep(later_s)
                if run.process.poll() is not None:
                    break
                KINDS[kind](run)
                return f"{later_s:.1f} s after '{task.name}'"
        return ""

    def prepare(self, action: str) -> list[str]:
        """Sees that an action has something to do on the host. Returns its command."""
        serves = told(self.host, "systemctl is-active r1prov-ollama || true")
        if action == "switch":
            return ["engine", "llama-server" if serves == "active" else "ollama"]
        if action == "removal":
            return ["down", "--keep-weights", "--yes", self.host.name]
        if action == "up":
            self.operator.does("down", "--keep-weights", "--yes", self.host.name)
            return ["up"]
        program = "ollama" if serves == "active" else "llama.cpp"
        both = {
            "ollama": (ollama.VERSION, ollama.OTHER_VERSION),
            "llama.cpp": (TESTED_LLAMA_CPP["pypi"], OTHER_LLAMA_CPP),
        }
        there = told(self.host, f"readlink /opt/r1prov/{program}/current")
        (other,) = (version for version in both[program] if not there.startswith(f"releases/{version}-"))
        # A release that is there already would only have to be linked. That of llama.cpp stays, for it is compiled for minutes.
        told(self.host, f"rm -rf /opt/r1prov/ollama/releases/{other}-*")
        return ["upgrade", f"--{program.replace('.', '-')}", other, "--at-least", "0", "--trial", "1s"]

    def well(self) -> list[str]:
        """What is not as it must be after the command that came next."""
        found = []
        drift = self.operator.run("drift", "--json")
        if drift.returncode:
            found.append(f"drift ended with {drift.returncode}: {drift.stdout[-2000:]} {drift.stderr[-1000:]}")
        asked = self.operator.run("ask", "--host", self.host.name, QUESTION)
        if "Paris" not in asked.stdout:
            found.append(f"ask ended with {asked.returncode}: {asked.stdout} {asked.stderr[-1000:]}")
        if not found:
            self.files.learn(self.host)
        return found + self.files.partial()


def cases() -> list[str]:
    """The names of the cuts by seed, in an order in which all kinds come soon."""
    kills = [f"{action} kill {n}" for action in ACTIONS[:3] for n in range(1, COUNT + 1)]
    others = [
        f"{ACTIONS[n % len(ACTIONS)]} {kind} {n}" for kind in KINDS if kind != "kill" for n in range(1, COUNT + 1)
    ]
    return sorted(kills + others, key=lambda name: (int(name.split()[2]), name))


def say(text: str) -> None:
    """Says what goes on."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _since(began: float) -> int:
    return round(time.monotonic() - began)
