"""Who uses r1prov in these tests: a person with a folder and a shell, and what that person sees of a host."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from r1prov import lab
from r1prov.common.errors import Exit
from r1prov.lab.hosts import LabHost
from tests.fixtures import ollama, saying

from .page import Page

QUESTION = "What is the capital of France? Answer in one short sentence."
MODEL = "SmolLM2-135M-Instruct-Q4_1"
IN_HASTE = ("--at-least", "0", "--trial", "1s")
"""Cores that are busy with other things measure no speed, and nobody waits for a trial. That a release which is slower is put back is a
unit test of smoke_bench, and that one which falls in its trial is, one of the roll-out. `make rollout` tries both on hosts."""


@dataclass
class Operator:
    """A person with a folder, a site file in it, and a shell. `r1prov` is a program to them, not a library."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def site(self, hosts: list[LabHost], *, duties: Mapping[str, Mapping[str, Any]] | None = None, **keys: Any) -> Path:
        """Writes r1prov.yml for these hosts. `duties` has more keys of some of them, by their names."""
        entries = [
            {"name": host.name, "address": host.address, "user": "root", "identity_file": str(host.key)}
            | dict((duties or {}).get(host.name, {}))
            for host in hosts
        ]
        path = self.folder / "r1prov.yml"
        if keys.get("sources", {}).get("ollama", {}).get("releases"):
            self._pin_our_ollama()
        # Images of hosts have llama.cpp with its RPC server. A site that wants none would have it built anew.
        path.write_text(yaml.safe_dump({"profile": "demo", "hosts": entries, "rpc": True, **keys}, sort_keys=False))
        return path

    @contextmanager
    def has_also(self, *hosts: str) -> Iterator[None]:
        """Lets the site have more hosts, in front of its own, as long as this lasts."""
        path = self.folder / "r1prov.yml"
        before = path.read_text()
        path.write_text(before.replace("hosts:\n", "hosts:\n" + "".join(f"- {host}\n" for host in hosts)))
        try:
            yield
        finally:
            path.write_text(before)

    def _pin_our_ollama(self) -> None:
        """Lets the site have seen our own build of the tested version first. The digest that r1prov comes with is the project's."""
        pins = self.folder / ".r1prov" / "pins"
        pins.mkdir(mode=0o700, parents=True, exist_ok=True)
        pins.parent.chmod(0o700)
        archive = ollama.release(ollama.VERSION, saying.to_stderr)
        (pins / f"ollama-{ollama.VERSION}.sha256").write_text(hashlib.sha256(archive.read_bytes()).hexdigest())

    def start(self, *arguments: str, **pipes: Any) -> subprocess.Popen[str]:
        """Starts `r1prov ARGUMENTS` in the folder, in a session of its own, so that it can be sent a Ctrl-C."""
        # Tests that run in the background of a shell have inherited that Ctrl-C is ignored.
        command = ["env", "--default-signal=INT", sys.executable, "-m", "r1prov.cli", *arguments]
        return subprocess.Popen(
            command, cwd=self.folder, env=self._environment, text=True, start_new_session=True, **pipes
        )

    def run(self, *arguments: str, limit_s: float = 2400) -> subprocess.CompletedProcess[str]:
        """Runs `r1prov ARGUMENTS` in the folder to its end, whatever that is."""
        return subprocess.run(
            [sys.executable, "-m", "r1prov.cli", *arguments],
            cwd=self.folder,
            env=self._environment,
            input="",
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )

    def does(self, *arguments: str, code: Exit = Exit.OK, limit_s: float = 2400) -> subprocess.CompletedProcess[str]:
        """Runs `r1prov ARGUMENTS`, which must end with `code`."""
        done = self.run(*arguments, limit_s=limit_s)
        assert done.returncode == code, f"{' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def asks(self, host: LabHost) -> str:
        """The answer of the engine of a host to QUESTION."""
        return self.does("ask", "--host", host.name, QUESTION).stdout

    @property
    def report(self) -> dict[str, Any]:
        """What the last run reported."""
        return json.loads((self.folder / ".r1prov" / "reports" / "last.json").read_text())

    @property
    def changes(self) -> dict[str, list[str]]:
        """What the last run changed, by host."""
        return {name: host["changes"] for name, host in self.report["hosts"].items()}

    def secret(self, name: str) -> str:
        """A secret of the site."""
        return (self.folder / ".r1prov" / "secrets" / name).read_text()

    @contextmanager
    def opens(self, host: LabHost) -> Iterator[dict[str, Any]]:
        """What `r1prov open --json` says, while it is open."""
        running = self.start("open", "--host", host.name, "--json", stdout=subprocess.PIPE)
        assert running.stdout
        text = ""
        try:
            while not text.endswith("}\n"):
                line = running.stdout.readline()
                assert line, text
                text += line
            yield json.loads(text)
        finally:
            running.send_signal(signal.SIGINT)
            code = running.wait(timeout=60)
        assert code == Exit.OK

    def logs_in(self, doors: dict[str, Any]) -> Page:
        """The chat page behind the tunnel, where the administrator has logged in."""
        page = Page(doors["page"])
        assert page.log_in(doors["email"], self.secret("webui-admin-password")) == 200
        return page

    @property
    def _environment(self) -> dict[str, str]:
        state = {"XDG_STATE_HOME": str(self.folder / "state"), "PYTHONUNBUFFERED": "1"}
        return {**os.environ, **state, **self.environment}


def told(host: LabHost, script: str, *, limit_s: float = 600) -> str:
    """What a shell script prints on a host. It must succeed: a host that cannot be reached prints nothing, too."""
    done = lab.ssh(host, ["sh", "-ec", script], timeout_s=limit_s)
    assert done.returncode == 0, f"{host.name}: {script}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


def by_hand(owner: Operator, host: LabHost, *words: str) -> str:
    """What the command line of `r1prov by-hand` prints on the host, for a member of the operators' group who is not root."""
    line = json.loads(owner.does("by-hand", "--json", *words, host.name).stdout)["line"]
    told(host, "useradd --create-home --shell /bin/bash --groups r1prov-operators olga")
    try:
        # Random weights also say what is no text.
        asked = f"su --login olga --command {shlex.quote(line)} < /dev/null > /root/said 2>&1"
        return told(host, f"{asked}; iconv -f UTF-8 -t UTF-8 -c /root/said; rm /root/said")
    finally:
        told(host, "userdel --remove olga 2> /dev/null")


@contextmanager
def untouched(
    host: LabHost, listed: str = "systemctl show --property=Id,InvocationID 'r1prov-*.service'", *folders: str
) -> Iterator[None]:
    """Expects that nothing is installed, configured or started on a host while this lasts.

    Args:
        host: the host.
        listed: a command that prints the same before and afterwards.
        folders: in which nothing may be written, beside those of the system.
    """
    before = told(host, f"touch /root/before; {listed}")
    yield
    assert told(host, f"find /etc /opt /srv /usr {' '.join(folders)} -cnewer /root/before") == ""
    assert told(host, f"rm /root/before; {listed}") == before
