"""Ansible as a program: its command line as a value, ansible-runner to execute it, its events as a typed stream.

Ansible sees only the variables of the operator's environment that INHERITED names. So a run depends on the site, not on who started it,
and a token that happens to be exported does not end up in the files of ansible-runner.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import shutil
import signal
import sys
import tempfile
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import ansible_runner
import yaml

from r1prov.common import paths
from r1prov.common.units import MIB
from r1prov.runs import guard
from r1prov.runs.events import (
    Event,
    Finished,
    HostFailed,
    HostUnreachable,
    Output,
    Recap,
    StepStarted,
    Tally,
    TaskDone,
    TaskStarted,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterator, Mapping, Sequence

    from ansible_collections.r1.prov.plugins.module_utils.steps import Step

    from r1prov.hosts import Passwords

INHERITED = (
    "HOME",
    "KRB5CCNAME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LOGNAME",
    "PATH",
    "SSH_AUTH_SOCK",
    "TERM",
    "TMPDIR",
    "USER",
    "XDG_RUNTIME_DIR",
    # how to open what the operator has encrypted
    "ANSIBLE_VAULT_IDENTITY_LIST",
    "ANSIBLE_VAULT_PASSWORD_FILE",
)
KEPT_RUNS = 10
LOOK = "look"
"""The tag with which the playbook `up` looks first."""
FORKS_PER_CPU = 25
"""A host that waits for its compiler or its weights keeps a fork busy, but no CPU. So there may be many for each."""
FORK_BYTES = 40 * MIB
"""What a fork and its ssh take of memory. A quarter of the memory may go to them."""
STOP_S = guard.PATIENCE_S + 5
"""How long Ansible and what it has started may take to end after Ctrl-C, in seconds."""


@dataclass(frozen=True)
class Command:
    """A command to execute. No part of it holds a secret.

    Attributes:
        argv: the program and its arguments.
        env: variables that r1prov sets beside those of INHERITED.
        cwd: the folder to start in.
    """

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: Path

    def shell(self, *more: str) -> str:
        """The command as a line for a shell. `more` arguments go to its end, such as --ask-become-pass in place of a password file."""
        variables = [f"{name}={value}" for name, value in self.env.items()]
        return f"cd {shlex.quote(str(self.cwd))} && " + shlex.join(["env", *variables, *self.argv, *more])


def playbook_command(
    playbook: str,
    inventory: Path,
    *,
    n_hosts: int,
    limit: Sequence[str] = (),
    variables: Mapping[str, Any] | None = None,
    ssh_config: Path | None = None,
    verbosity: int = 0,
    check: bool = False,
    diff: bool = False,
    told_as: str = "",
    due: Sequence[str] = (),
    looked: bool = False,
) -> Command:
    """The command that runs a playbook of the collection.

    Args:
        playbook: its name, such as `up`.
        inventory: the rendered folder.
        n_hosts: how many hosts it is about. So many are worked on at once as `forks` says.
        limit: only these hosts.
        variables: for this run only. They outrank the inventory.
        ssh_config: instead of ~/.ssh/config.
        verbosity: how often Ansible is given -v.
        check: nothing is changed; Ansible says what would be.
        diff: Ansible shows what changes in files.
        told_as: what the lock on a host calls this run.
        due: only the steps with one of these tags; all without.
        looked: whether r1prov has looked already, or shall not look. Then the playbook does not either.
    """
    argv = [
        str(Path(sys.executable).with_name("ansible-playbook")),
        str(paths.collection() / "playbooks" / f"{playbook}.yml"),
        "-i",
        str(inventory),
        *(["--limit", ",".join(limit)] if limit else []),
        *(["--tags", ",".join(due)] if due else []),
        *(["--skip-tags", LOOK] if looked and not due else []),
        *(["-e", json.dumps(dict(variables))] if variables else []),
        *(["--check"] if check else []),
        *(["--diff"] if diff else []),
        *(["-" + "v" * verbosity] if verbosity else []),
    ]
    env = {
        "ANSIBLE_CONFIG": str(paths.collection() / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(paths.collections_path()),
        "ANSIBLE_FORKS": str(
            forks(n_hosts, os.cpu_count() or 1, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        ),
        "ANSIBLE_NOCOLOR": "1",
        # The inventory says which host keys ssh accepts. ansible-runner would set this variable to False.
        "ANSIBLE_HOST_KEY_CHECKING": "True",
        **({"ANSIBLE_SSH_COMMON_ARGS": shlex.join(["-F", str(ssh_config)])} if ssh_config else {}),
        **({"R1PROV_COMMAND": told_as} if told_as else {}),
    }
    return Command(tuple(argv), env, inventory.parent)


def forks(n_hosts: int, cpus: int, memory: int) -> int:
    """How many hosts a controller with so many CPUs and bytes of memory works on at once. The others wait for their turn."""
    return max(1, min(n_hosts, cpus * FORKS_PER_CPU, memory // 4 // FORK_BYTES))


def steps_of(playbook: str, due: Collection[str] = (), *, door: bool = False) -> list[Step]:
    """The steps of a run: the roles that its playbook brings in, in order. A role may come again later.

    Args:
        playbook: its name.
        due: as in `playbook_command`.
        door: whether a host is the door to others, which is asked in a second play.
    """
    plays = yaml.safe_load((paths.collection() / "playbooks" / f"{playbook}.yml").read_text())
    found: list[Step] = paths.module_util("steps").steps_of(plays if door else plays[:1], due)
    return found


def new_run() -> str:
    """A name for a run that begins now. Names are in the order of time, and those of two controllers differ."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{secrets.token_hex(3)}"


def log_of(artifacts: Path, run: str) -> Path:
    """Where all that Ansible says in a run lies, as long as it is kept."""
    return artifacts / run / "stdout"


def execute(
    command: Command, artifacts: Path, *, steps: Sequence[Step], passwords: Passwords | None = None, run: str = ""
) -> Generator[Event, None, None]:
    """Execute `command`, and yield what happens. The last event is `Finished`.

    Whoever closes the generator early, or presses Ctrl-C while it waits, ends Ansible, its workers and their ssh. Should this process be
    killed, its guard ends them.

    Args:
        command: from `playbook_command`.
        artifacts: the folder for the files of ansible-runner, 0700. The output of the last runs is kept there.
        steps: from `steps_of`.
        passwords: for ssh and sudo, where the operator gave some.
        run: the name of the run, from `new_run`.
    """
    execution = _Execution(command, artifacts, steps, passwords, run or new_run())
    execution.thread.start()
    try:
        while True:
            event = execution.events.get()
            if isinstance(event, BaseException):
                raise event
            yield event
            if isinstance(event, Finished):
                return
    finally:
        execution.stop()


class _Execution:
    """ansible-runner in a thread of its own, so that the thread of the caller is free for Ctrl-C."""

    def __init__(
        self, command: Command, artifacts: Path, steps: Sequence[Step], passwords: Passwords | None, run: str
    ) -> None:
        self.events: SimpleQueue[Event | BaseException] = SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="ansible-runner", daemon=True)
        self._command = command
        self._artifacts = artifacts
        self._run_name = run
        self._log = log_of(artifacts, run)
        self._translator = Translator(steps)
        self._secrets = _PasswordFiles(passwords, artifacts)
        self._kill = threading.Event()
        self._pid: int | None = None

    def stop(self) -> None:
        """End Ansible and all that it has started, if it still runs."""
        try:
            self._ask_guard()
        finally:  # A second Ctrl-C comes here at once, and asks the guard to hurry.
            self._ask_guard()
            self._kill.set()
            self.thread.join(STOP_S)

    def _ask_guard(self) -> None:
        if self.thread.is_alive() and self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(
                    os.getpgid(self._pid), signal.SIGTERM
                )  # The guard leads the group of the process that it guards.
            self.thread.join(STOP_S)

    def _run(self) -> None:
        try:
            with self._secrets as password_env:
                code = self._execute(password_env)
            self.events.put(Finished(code, self._log))
        except BaseException as error:
            self.events.put(error)

    def _execute(self, password_env: dict[str, str]) -> int:
        config = ansible_runner.RunnerConfig(
            private_data_dir=str(self._artifacts),
            artifact_dir=str(self._artifacts),
            ident=self._run_name,
            playbook=self._command.argv[1],
            rotate_artifacts=KEPT_RUNS,
            suppress_ansible_output=True,
            quiet=True,
        )
        config.prepare()
        own = {name: value for name, value in config.env.items() if os.environ.get(name) != value}
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        told = {"ORIGINAL_STDOUT_CALLBACK": "default", "R1PROV_PROCESS": str(os.getpid())}
        told["R1PROV_RUN"] = self._run_name
        config.env = inherited | own | self._command.env | password_env | told
        config.command = [sys.executable, "-I", guard.__file__, *self._command.argv]
        config.cwd = str(self._command.cwd)
        config.pexpect_timeout = 1  # How often, in seconds, it looks whether it shall end.
        runner = ansible_runner.Runner(config, event_handler=self._hear, cancel_callback=self._kill.is_set)
        runner.run()
        return -1 if runner.rc is None else int(runner.rc)  # None: somebody killed Ansible.

    def _hear(self, event: dict[str, Any]) -> bool:
        self._pid = event.get("pid") or self._pid
        if event.get("event") == "playbook_on_start":
            self._secrets.remove()  # Ansible has read them by now
        for translated in self._translator.translate(event):
            self.events.put(translated)
        return False  # Events are not kept: the log has the same, without what no_log hides.


class _PasswordFiles:
    """Passwords in files that only this user can read. They exist for seconds, on a file system in memory where there is one."""

    def __init__(self, passwords: Passwords | None, fallback: Path) -> None:
        self._passwords = passwords
        self._base = Path(os.environ.get("XDG_RUNTIME_DIR") or fallback)
        self._folder: Path | None = None

    def __enter__(self) -> dict[str, str]:
        if not self._passwords:
            return {}
        variables = {
            "ANSIBLE_BECOME_PASSWORD_FILE": self._passwords.sudo,
            "ANSIBLE_CONNECTION_PASSWORD_FILE": self._passwords.ssh,
        }
        given = {name: secret for name, secret in variables.items() if secret is not None}
        if not given:
            return {}
        self._folder = Path(tempfile.mkdtemp(prefix="r1prov-", dir=self._base if self._base.is_dir() else None))
        for name, secret in given.items():
            with os.fdopen(os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secret)
        return {name: str(self._folder / name) for name in given}

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)


class Translator:
    """Makes events of r1prov out of those of ansible-runner. It knows which step each host is in."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = list(steps)
        self._position: dict[str, int] = {}

    def translate(self, raw: dict[str, Any]) -> Iterator[Event]:
        """The events, none or several, that one event of ansible-runner stands for."""
        data = raw.get("event_data", {})
        host, task, result = data.get("host", ""), data.get("task", ""), data.get("res") or {}
        kind = raw.get("event")
        if text := raw.get("stdout"):
            is_diff = kind == "runner_on_file_diff"
            yield Output(f"{host}:\n{text}" if is_diff and host else text, is_diff=is_diff)
        if kind == "runner_on_start":
            yield from self._step(host, data)
            yield TaskStarted(host, self._name(host), task)
        elif kind == "runner_on_ok":
            action = str(data.get("resolved_action") or data.get("task_action") or "")
            yield TaskDone(host, self._name(host), task, bool(result.get("changed")), result, action)
        elif kind == "runner_on_failed" and not data.get("ignore_errors"):
            yield HostFailed(host, self._name(host), task, result)
        elif kind == "runner_on_unreachable":
            yield HostUnreachable(host, self._name(host), str(result.get("msg", "")).strip())
        elif kind == "playbook_on_stats":
            yield Recap(
                {
                    name: Tally(*(data[key].get(name, 0) for key in ("ok", "changed", "failures", "dark", "skipped")))
                    for name in sorted(data["processed"])
                }
            )

    def _step(self, host: str, data: dict[str, Any]) -> Iterator[StepStarted]:
        role = str(data.get("role") or "").rpartition(".")[2]
        at = self._position.get(host, -1)
        if not role or role == self._name(host):
            return
        try:
            at = [step.role for step in self._steps].index(role, at + 1)
        except ValueError:
            return  # The role of a step includes other roles, which are no steps.
        self._position[host] = at
        yield StepStarted(host, role, at + 1, len(self._steps), self._steps[at].why)

    def _name(self, host: str) -> str:
        at = self._position.get(host, -1)
        return self._steps[at].role if at >= 0 else ""
