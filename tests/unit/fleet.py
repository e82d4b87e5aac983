"""Hosts that are a table: what the last inventory said for each. Tests of verbs that bring other versions look into it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from loader import Loader

from r1prov import inventory
from r1prov.cli import main, running
from r1prov.common.errors import Exit, Problem, RunError, UnreachableError
from r1prov.decision import Decision
from r1prov.hosts import Releases
from r1prov.runs import going_back, trial
from r1prov.runs.report import HostReport, RunReport
from r1prov.runs.run import Done, Request, settle_hosts
from r1prov.site import TESTED_LLAMA_CPP, TESTED_OLLAMA, TESTED_OPEN_WEBUI, Host
from r1prov.site.state import SiteState

NEW = "0.17.4"
PINNED = ("ollama-0.17.4.sha256", "ollama-0.12.10.sha256", "llama-cpp-python-0.3.37.sha256", "open-webui-0.12.5.txt")
TESTED = {"llama_cpp": TESTED_LLAMA_CPP["pypi"], "ollama": TESTED_OLLAMA, "open_webui": TESTED_OPEN_WEBUI}


@dataclass
class Fleet:
    """What hosts run, which is what the last inventory said for them. Those that a run breaks on run it nevertheless.

    Attributes:
        file: the site file.
        runs: host -> program -> version.
        context: host -> the context that it serves with.
        broken: what does not become healthy, as a host and a version.
        away: hosts that cannot be reached.
        stops_at: the host at which somebody presses Ctrl-C.
        called: the hosts of each run.
        asked: the variables of each run.
        lying: host -> program -> the versions whose releases lie there, the current one last.
        falling: what does not stay well, as a host and a version.
        tried: the hosts of each trial, with its seconds.
    """

    file: Path
    runs: dict[str, dict[str, str]] = field(default_factory=dict)
    context: dict[str, str] = field(default_factory=dict)
    broken: set[tuple[str, str]] = field(default_factory=set)
    away: set[str] = field(default_factory=set)
    stops_at: str = ""
    called: list[list[str]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    lying: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    falling: set[tuple[str, str]] = field(default_factory=set)
    tried: list[tuple[list[str], int]] = field(default_factory=list)

    def write(self, text: str, hosts: str = "gpu1, gpu2") -> None:
        self.file.write_text(f"profile: cpu\nhosts: [{hosts}]\n{text}\n")

    def run(
        self, decision: Decision, targets: list[Host], _login: object, request: Request, _early: object = None
    ) -> Done:
        self.called.append([host.name for host in targets])
        self.asked.append(dict(request.variables))
        state = SiteState.of(self.file)
        folder = inventory.render(decision, state.inventory)
        report = RunReport(
            "r1prov", "site", "cpu", "quant", "2026-01-01", {host.name: HostReport() for host in targets}
        )
        error: RunError | UnreachableError | None = None
        for name, host in report.hosts.items():
            if name in self.away:
                problem = Problem(name, "is away", "wait")
                host.result, host.problems, error = "unreachable", [asdict(problem)], UnreachableError(problem)
                continue
            found = effective(folder, name)
            self.runs[name] = {program: found.get(f"{program}_version", TESTED[program]) for program in TESTED}
            for program, version in self.runs[name].items():
                lying = self.lying.setdefault(name, {}).setdefault(program, [])
                lying[:] = [*(each for each in lying if each != version), version][-2:]
            words = found["llama_server_arguments"]
            self.context[name] = words[words.index("--ctx-size") + 1]
            host.changes = ["llama_cpp: Build llama.cpp"]
            if self.stops_at == name:
                raise typer.Exit(Exit.INTERRUPTED)
            host.result = "ok"
            if {(name, version) for version in self.runs[name].values()} & self.broken:
                host.result, error = "failed", RunError(Problem(name, "does not answer", "mend it"))
        state.remember(decision.site)
        settle_hosts(state, decision.site, report, request.playbook)
        return Done(decision, report, error)

    def stay_well(
        self, hosts: list[Host], _site: object, _login: object, seconds: int, _said: object
    ) -> dict[str, Problem]:
        self.tried.append(([host.name for host in hosts], seconds))
        fallen = [
            host.name for host in hosts if {(host.name, each) for each in self.runs[host.name].values()} & self.falling
        ]
        return {name: Problem(name, "its engine ended", "see its log") for name in fallen}

    def releases(
        self, _site: object, hosts: list[Host], _login: object
    ) -> tuple[dict[str, Releases], dict[str, UnreachableError]]:
        folders = {"llama_cpp": "llama.cpp", "ollama": "ollama", "open_webui": "open-webui"}
        found, away = {}, {}
        for name in (host.name for host in hosts):
            if name in self.away:
                away[name] = UnreachableError(Problem(name, "is away", "wait"))
                continue
            lying = {
                folders[key]: [f"{version}-{'0' * 12}" for version in each] for key, each in self.lying[name].items()
            }
            found[name] = Releases({folder: names[-1] for folder, names in lying.items()}, lying)
        return found, away

    def versions(self, program: str = "ollama") -> list[str]:
        return [self.runs[name][program] for name in sorted(self.runs)]


def effective(folder: Path, host: str) -> dict[str, Any]:
    """The variables of a host, as Ansible merges them."""
    group = yaml.load((folder / "group_vars/all.yml").read_text(), Loader=Loader)
    own = yaml.safe_load((folder / "hosts.yml").read_text())["all"]["hosts"][host]
    return group | (own or {})


def set_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """Two hosts that `up` has set up, from a site in this folder."""
    monkeypatch.chdir(folder)
    made = Fleet(folder / "r1prov.yml")
    made.write("")
    pins = SiteState.of(made.file).pins
    pins.mkdir()
    for name in PINNED:
        (pins / name).write_text("0" * 64)
    monkeypatch.setattr(running, "run", made.run)
    monkeypatch.setattr(going_back, "releases", made.releases)
    monkeypatch.setattr(trial, "stay_well", made.stay_well)
    done("up")
    return made


def done(*words: str, code: Exit = Exit.OK) -> None:
    """Calls `r1prov WORDS`, which must end with `code`."""
    ended = Exit.OK
    try:
        main(list(words))
    except SystemExit as end:
        ended = Exit(end.code or 0)
    assert ended == code
