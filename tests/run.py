"""Runs the stages of `make test`, shows what is going on, and ends with the count of what passed, failed and was skipped."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from r1prov import lab
from r1prov.common import paths

ROOT = Path(__file__).resolve().parent.parent
LOGS = paths.cache_dir() / "logs"

# Borders, colours and links help on a terminal, not in a log.
PLAIN = {"MOLECULE_COMMAND_BORDERS": "0", "NO_COLOR": "1", "ANSIBLE_NOCOLOR": "1", "TERM": "dumb"}

LINTERS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    ("yamllint", "--strict", "."),
    ("ansible-lint",),
)


@dataclass
class Outcome:
    """What came of one stage."""

    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=dict)  # reason -> tests

    def skip(self, reason: str, test: str) -> None:
        self.skipped.setdefault(reason, []).append(test)

    def __str__(self) -> str:
        skipped = sum(len(tests) for tests in self.skipped.values())
        counts = {"passed": self.passed, "failed": len(self.failed), "skipped": skipped}
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "nothing to do"


def lint(_: argparse.Namespace) -> Outcome:
    """Each linter is one test; its talk is shown when it complains."""
    outcome = Outcome()
    _run_all({" ".join(argv): (list(argv), ROOT) for argv in LINTERS}, outcome, at_once=2)
    return outcome


def unit(_: argparse.Namespace) -> Outcome:
    """What needs no host."""
    return _pytest("tests/unit")


def e2e(_: argparse.Namespace) -> Outcome:
    """The whole way; tests that need hosts, or a browser, skip themselves where there is none."""
    if not shutil.which("chromium") and not lab.requirements() and shutil.which("apt-get"):
        _say("  installing chromium, to look at the chat page with")
        install = ["apt-get", "install", "-qq", "--yes", "--no-install-recommends", "chromium", "fonts-dejavu-core"]
        subprocess.run(["apt-get", "update", "-qq"], check=False, capture_output=True)
        subprocess.run(
            install, check=False, capture_output=True, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        )
    return _pytest("tests/e2e")


def molecule(options: argparse.Namespace) -> Outcome:
    """Every scenario of every role, or of one role, each on a fresh host."""
    outcome = Outcome()
    scenarios = sorted(ROOT.glob(f"roles/{options.role or '*'}/molecule/*/molecule.yml"), key=_order)
    if not scenarios:
        outcome.failed.append(f"no role named {options.role} has a scenario")
    commands: dict[bool, dict[str, tuple[list[str], Path]]] = {False: {}, True: {}}
    reason = "; ".join(f"{p.where} {p.what} -> {p.remedy}" for p in lab.requirements())
    for path in scenarios:
        scenario, role = path.parent.name, path.parents[2]
        name = f"molecule {role.name}" + ("" if scenario == "default" else f" {scenario}")
        if reason:
            outcome.skip(f"hosts cannot be booted here: {reason}", name)
        else:
            commands[_needs_engine(path)][name] = (["molecule", "test", "--scenario-name", scenario], role)
    # One after the other: llama.cpp is then in the compiler's cache, not compiled twice at once.
    for needs_engine in (False, True):
        _run_all(commands[needs_engine], outcome, at_once=2)
    return outcome


def _order(scenario: Path) -> tuple[bool, Path]:
    """llama_cpp first: it takes longest."""
    return scenario.parents[2].name != "llama_cpp", scenario


def _needs_engine(scenario: Path) -> bool:
    """Whether its preparation builds llama.cpp."""
    prepare = scenario.with_name("prepare.yml")
    return prepare.exists() and "engine_and_model" in prepare.read_text()


def _run_all(commands: dict[str, tuple[list[str], Path]], outcome: Outcome, *, at_once: int) -> None:
    """Runs commands, a few at once, with one line when one starts and ends; the end of its log if it fails."""
    LOGS.mkdir(parents=True, exist_ok=True)

    def run(name: str) -> bool:
        argv, folder = commands[name]
        log = LOGS / f"{name.replace(' ', '-').replace('/', '-')}.log"
        started = time.monotonic()
        _say(f"  {name} ...")
        with log.open("wb") as handle:
            code = subprocess.run(
                argv,
                cwd=folder,
                env={**os.environ, **PLAIN},
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        _say(f"  {name}: {'FAILED' if code else 'passed'} in {time.monotonic() - started:.0f} s")
        if code:
            lines = log.read_text(errors="replace").splitlines()
            _say("\n".join(f"    | {line}" for line in lines[-60:]) + f"\n    all of it: {log}")
        return code == 0

    with ThreadPoolExecutor(at_once) as pool:
        for name, passed in zip(commands, pool.map(run, commands), strict=True):
            if passed:
                outcome.passed += 1
            else:
                outcome.failed.append(name)


def _pytest(folder: str) -> Outcome:
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        argv = [sys.executable, "-m", "pytest", folder, "--quiet", "--durations=5", f"--junitxml={report}"]
        code = subprocess.run(argv, cwd=ROOT, check=False).returncode
        cases: Iterable[ElementTree.Element] = ElementTree.parse(report).iter("testcase") if report.exists() else ()
        for case in cases:
            name = f"{case.get('classname')}::{case.get('name')}"
            skipped = case.find("skipped")
            if case.find("failure") is not None or case.find("error") is not None:
                outcome.failed.append(name)
            elif skipped is not None:
                outcome.skip(skipped.get("message") or "", name)
            else:
                outcome.passed += 1
    if code and not outcome.failed:
        outcome.failed.append(f"pytest {folder} ended with status {code}")
    return outcome


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


STAGES: dict[str, Callable[[argparse.Namespace], Outcome]] = {
    "lint": lint,
    "unit": unit,
    "molecule": molecule,
    "e2e": e2e,
}


def main() -> int:
    """Runs the stages named; 1 if any test failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="+", choices=STAGES)
    parser.add_argument("--role", help="molecule: this role only")
    options = parser.parse_args()

    total = Outcome()
    table = []
    for stage in options.stages:
        _say(f"== {stage}")
        started = time.monotonic()
        outcome = STAGES[stage](options)
        table.append(f"{stage:10} {time.monotonic() - started:6.0f} s   {outcome}")
        total.passed += outcome.passed
        total.failed += outcome.failed
        for reason, tests in outcome.skipped.items():
            for test in tests:
                total.skip(reason, test)

    _say("\n" + "\n".join(table))
    for reason, tests in total.skipped.items():
        _say(f"\nSKIPPED {len(tests)}: {reason}\n  " + "\n  ".join(tests))
    for test in total.failed:
        _say(f"FAILED {test}")
    _say(f"\n{total}")
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main())
