"""Runs the stages of `make test`, shows what is going on, and ends with what passed, failed and was skipped.

    python -m tests.run lint unit molecule e2e --draw
    python -m tests.run molecule --keep --role gateway

Two jobs run at once, of whatever stage, and beside them what compiles: a host with llama.cpp for each Debian release, two
versions of Ollama, an ACME server. A test begins when what it needs is compiled.

All scenarios and groups together take longer than anybody waits for `make test`, so `--draw` runs some of them, other ones each
day. `--keep` writes what came of each into last-result.json, from which `--draw` knows how long they take.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from r1prov import lab
from r1prov.common import paths, signals
from r1prov.common.errors import Exit
from tests.fixtures import ollama
from tests.jobs import COMPILE, Crew, Job, Outcome
from tests.tree import commit

ROOT = Path(__file__).resolve().parent.parent
LOGS = paths.cache_dir() / "logs"
AT_ONCE = 2
STAGES = ("lint", "unit", "molecule", "e2e")

LINTERS = (
    ("ansible-lint",),
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    ("yamllint", "--strict", "."),
)
CHROMIUM = """
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends chromium fonts-dejavu-core
"""

# What scenarios wait for, beside those that boot from the image with an engine. The one of llama_cpp compiles by itself; it waits so that
# nothing is compiled twice at once, and finds in the compiler's cache what its first build has in common with the image's.
NEEDS = {
    "molecule llama_cpp": ("engine on bookworm",),
    "molecule gateway acme": ("Pebble",),
    "molecule ollama": tuple(f"Ollama {version}" for version in (ollama.VERSION, ollama.OTHER_VERSION)),
}

# What tests of the whole way may run at once. The tests of a group share hosts and run in a row, and the longest group begins first.
E2E = {
    "pair": ("test_up.py", "test_up_doors.py", "test_up_page.py", "test_up_removal.py"),
    "engines": ("test_up_engines.py",),
    "alone": ("test_up_gateway.py",),
    "models": ("test_up_models.py", "test_up_offline.py"),
    "container": ("test_up_container.py",),
    "controller": ("test_controller_trixie.py",),
    "tune": ("test_up_tune.py",),
    "fleet": ("test_up_fleet.py",),
    "pool": ("test_up_pool.py",),
    "lab": (
        "test_lab.py",
        "test_lab_container.py",
        "test_lab_images.py",
        "test_lab_units.py",
        "test_lab_packages.py",
        "test_lab_contact.py",
    ),
}

KEPT = ROOT / "tests" / "last-result.json"
DRAWN_FROM = ("molecule", "e2e")
ALWAYS = ("e2e pair",)
DRAWN_S = 1200
"""The seconds of one worker that the drawn jobs may take together, by what they took when that was kept."""
UNKNOWN_S = {"molecule": 200, "e2e": 1200}
"""What a job is taken for that nothing is kept of, by stage."""


def lint() -> list[Job]:
    """Each linter is one test; its talk is shown when it complains."""
    return [Job("lint", " ".join(argv), argv, ROOT) for argv in LINTERS]


def unit() -> list[Job]:
    """What needs no host."""
    return [_pytest("unit", name="unit", workers=AT_ONCE)]


def e2e(only: str = "") -> list[Job]:
    """The whole way, a job for each group, or for one of them. Tests that need hosts, or a browser, skip themselves where there is none."""
    after = tuple(job.name for job in compilers())
    return [
        # The name of the group becomes that of its neighbour, the host from which it looks at others.
        replace(_pytest("e2e", name=f"e2e {group}", files=files, after=after), environment={"R1PROV_TEST_GROUP": group})
        for group, files in E2E.items()
        if only in {"", group}
    ]


def molecule(role: str = "") -> list[Job]:
    """Every scenario of every role, or of one role, each on a fresh host."""
    return [_scenario(path.parent) for path in sorted(ROOT.glob(f"roles/{role or '*'}/molecule/*/molecule.yml"))]


def kept() -> dict[str, dict[str, Any]]:
    """What came of each scenario and group when it last ran with `--keep`."""
    found: dict[str, dict[str, Any]] = json.loads(KEPT.read_text())
    return found


def keep(job: Job, outcome: Outcome) -> None:
    """Writes what came of a scenario or group into last-result.json."""
    if job.stage not in DRAWN_FROM:
        return
    new = {
        "passed": outcome.passed,
        "failed": outcome.failed,
        "skipped": outcome.skipped,
        "seconds": round(outcome.ended - outcome.began),
        "commit": commit(),
        "day": datetime.now(UTC).date().isoformat(),
    }
    KEPT.write_text(json.dumps(dict(sorted((kept() | {job.name: new}).items())), indent=1) + "\n")


def drawn(jobs: list[Job], seed: int) -> set[str]:
    """The names of the scenarios and groups that are run beside those that always are, by seed."""
    took = seconds([job for job in jobs if job.stage in DRAWN_FROM and job.name not in ALWAYS])
    names, left = sorted(took), DRAWN_S
    random.Random(seed).shuffle(names)
    chosen = set()
    for name in names:
        taken = min(took[name], DRAWN_S)  # What takes longer is drawn alone.
        if taken <= left:
            chosen.add(name)
            left -= taken
    return chosen


def seconds(jobs: list[Job]) -> dict[str, int]:
    """How long each job took when that was kept, by name."""
    known = kept()
    return {job.name: known.get(job.name, {}).get("seconds", UNKNOWN_S.get(job.stage, 0)) for job in jobs}


def compilers() -> list[Job]:
    """What is compiled once and kept, in the order in which tests need it."""
    jobs = {
        "engine on bookworm": [sys.executable, "-m", "tests.fixtures.engine", "bookworm"],
        "Pebble": [sys.executable, "-m", "tests.fixtures.pebble"],
        f"Ollama {ollama.VERSION}": [sys.executable, "-m", "tests.fixtures.ollama", ollama.VERSION],
        f"Ollama {ollama.OTHER_VERSION}": [sys.executable, "-m", "tests.fixtures.ollama", ollama.OTHER_VERSION],
        "engine on trixie": [sys.executable, "-m", "tests.fixtures.engine", "trixie"],
        "engine in a container": [sys.executable, "-m", "tests.fixtures.engine", "bookworm", "--container"],
    }
    if not shutil.which("chromium") and shutil.which("apt-get"):
        jobs["a browser to look at the chat page with"] = ["sh", "-ec", CHROMIUM]
    return [Job(COMPILE, name, tuple(argv), ROOT, tell_each=True) for name, argv in jobs.items()]


def _scenario(folder: Path) -> Job:
    role = folder.parents[1]
    name = f"molecule {role.name}" + ("" if folder.name == "default" else f" {folder.name}")
    journal = LOGS / f"{name.replace(' ', '-')}.journal"
    return Job(
        "molecule",
        name,
        ("molecule", "test", "--scenario-name", folder.name),
        role,
        after=_needs(name, folder),
        environment={"R1PROV_JOURNAL": str(journal)},
        afterwards=journal,
    )


def _needs(name: str, folder: Path) -> tuple[str, ...]:
    """The names of the compilers and scenarios that a scenario waits for."""
    platforms = yaml.safe_load((folder / "molecule.yml").read_text())["platforms"]
    images = {
        "engine in a container" if "containers" in platform.get("groups", ()) else "engine on bookworm"
        for platform in platforms
        if platform.get("engine")
    }
    # Its hubs and mirrors listen on the same ports of this machine as those of the scenario whose playbooks it shares.
    shared = name.removesuffix(" container")
    return (*NEEDS.get(shared, ()), *sorted(images), *((shared,) if shared != name else ()))


def _pytest(
    stage: str, *, name: str, files: tuple[str, ...] = (), workers: int = 1, after: tuple[str, ...] = ()
) -> Job:
    """A job of pytest: all tests of a stage, or those of some files in the order given."""
    paths = [f"tests/{stage}/{file}" for file in files] or [f"tests/{stage}"]
    argv = (sys.executable, "-m", "pytest", *paths, "-v", "-n", str(workers), "--dist", "worksteal")
    return Job(stage, name, argv, ROOT, after=after, pytest=True, tell_each=stage == "e2e")


def _report(outcomes: dict[str, Outcome], crew: Crew) -> Outcome:
    total = Outcome()
    lines = ["what ran, and from when to when:"]
    for stage, outcome in outcomes.items():
        lines.append(f"  {stage:10} {outcome.began:6.0f} to {outcome.ended:5.0f} s   {outcome}")
        total.add(outcome)
    lines += ["", "the slowest:"]
    lines += [f"  {seconds:6.0f} s  {name}" for seconds, name in sorted(total.times, reverse=True)[:10]]
    for reason, tests in total.skipped.items():
        lines += ["", f"SKIPPED {len(tests)}: {reason}", *(f"  {test}" for test in tests)]
    lines += ["", *(f"FAILED {test}" for test in total.failed), str(total)]
    crew.say("\n".join(lines))
    return total


def every_job(stages: Iterable[str], role: str = "", group: str = "") -> list[Job]:
    """The jobs of stages in the order in which they should begin."""
    found = {"lint": lint(), "unit": unit(), "molecule": molecule(role), "e2e": e2e(group)}
    jobs = [job for stage in STAGES if stage in stages for job in found[stage]]
    # What tells most in the least time comes first, then the longest, so that no worker is left with a long one at the end.
    took = seconds(jobs)
    return sorted(jobs, key=lambda job: (job.stage not in {"lint", "unit"}, -took[job.name]))


def with_compilers(jobs: list[Job]) -> list[Job]:
    """The jobs, after the compilers that they wait for."""
    wanted = {name for job in jobs for name in job.after}
    return [*(job for job in compilers() if job.name in wanted), *jobs]


def main() -> int:
    """Runs the stages named; 1 if any test failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.run", description=__doc__)
    parser.add_argument("stages", nargs="+", choices=STAGES)
    parser.add_argument("--role", default="", help="molecule: this role only")
    parser.add_argument("--group", default="", choices=["", *E2E], help="e2e: this group only")
    parser.add_argument("--draw", action="store_true", help="of the scenarios and groups, those of the day")
    parser.add_argument("--keep", action="store_true", help="write what came of each into tests/last-result.json")
    options = parser.parse_args()

    signals.heed()  # A closed terminal must not leave hosts behind either.
    crew = Crew(LOGS, keep if options.keep else None)
    if options.role and not molecule(options.role):
        parser.error(f"no role named {options.role} has a scenario")
    jobs = every_job(options.stages, options.role, options.group)
    seed = int(os.environ.get("R1PROV_DRAW_SEED", time.time() // 86400))
    chosen = {*ALWAYS, *drawn(jobs, seed)} if options.draw else {job.name for job in jobs}
    left_out = [job for job in jobs if job.stage in DRAWN_FROM and job.name not in chosen]
    jobs = with_compilers([job for job in jobs if job not in left_out])
    reason = "; ".join(f"{p.where} {p.what} -> {p.remedy}" for p in lab.requirements())
    unbootable = [job for job in jobs if reason and job.stage in (COMPILE, "molecule")]
    try:
        outcomes = crew.run([job for job in jobs if job not in unbootable], AT_ONCE)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    for job in unbootable:
        outcomes.setdefault(job.stage, Outcome()).skip(f"hosts cannot be booted here: {reason}", job.name)
    for job in left_out:
        reason = f"not drawn today (R1PROV_DRAW_SEED={seed}): `make molecule` and `make e2e` run all, and tests/last-result.json tells when"
        outcomes.setdefault(job.stage, Outcome()).skip(reason, job.name)
    return 1 if _report(outcomes, crew).failed else 0


if __name__ == "__main__":
    sys.exit(main())
