"""A run that is stopped or killed: real Ansible, ssh, lock and history. The host is this machine, with a /run and a /var/lib of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from r1prov.common import paths
from r1prov.common.errors import Exit
from r1prov.runs import guard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PRIVATE = [
    "unshare",
    "--mount",
    "--map-root-user",
    "sh",
    "-ec",
    'mount -t tmpfs none /run; mount -t tmpfs none /var/lib; exec "$@"',
    "sh",
]

SERVER = """
import sys, time
sys.path.insert(0, sys.argv[1])
import paramiko
from sshd import Sshd
with Sshd(users_keys=[paramiko.PKey.from_path(sys.argv[2])], env={"PATH": f"{sys.argv[3]}:/usr/bin:/bin"}) as sshd:
    print(sshd.port, flush=True)
    time.sleep(600)
"""

CAT = """#!/bin/sh
[ "$1" = /proc/1/comm ] && echo systemd || exec /bin/cat "$@"
"""

UP = """
- hosts: all
  strategy: free
  gather_facts: false
  tasks:
    - r1.prov.host_lock: {new_history: true}
    - block:
        - ansible.builtin.import_role: {name: llama_cpp}
      always:
        - r1.prov.host_lock: {state: absent}
"""
WORK = "- ansible.builtin.command: {{cmd: sh -c 'touch {0}/begun; sleep {1}; touch {0}/finished', creates: {0}/finished}}\n"

RUN = """
import json, sys
from pathlib import Path
from r1prov.common import paths, signals
from r1prov.hosts import Login
from r1prov.runs import run as runs
from r1prov.runs.run import Prepared, Request
from r1prov.site.select import select
from r1prov.site.state import SiteState

class Silent:
    def note(self, host, text): ...
    def event(self, event): ...
    def progress(self, progress): ...

signals.heed()
chosen, hosts = select(None, ["gpu1"], profile="demo")
decision = runs.settle(chosen, lambda _: None)
SiteState.of(None).remember(chosen)
paths.collection = lambda: Path.cwd()
try:
    login = Login(ssh_config=Path.cwd() / "config")
    done = runs.play(Prepared(decision, hosts, ()), login, Request("up", "r1prov up"), Silent())
    print(json.dumps(done.report.hosts["gpu1"].result))
except runs.Stopped as stop:
    print(json.dumps(stop.hosts))
"""


class Setting:
    """A folder with a collection and a site, and the ways to run it and to look at its host."""

    def __init__(self, folder: Path, ssh: list[str]) -> None:
        self.folder, self._ssh = folder, ssh
        role = folder / "playbooks" / "roles" / "llama_cpp" / "tasks"
        role.mkdir(parents=True)
        (role / "main.yml").write_text(WORK.format(folder, 8))
        (folder / "playbooks" / "up.yml").write_text(UP)
        unlock = (paths.collection() / "playbooks" / "unlock.yml").read_text()
        (folder / "playbooks" / "unlock.yml").write_text(unlock.replace("become: true", "become: false"))
        (folder / "plugins").symlink_to(paths.collection() / "plugins")
        (folder / "ansible.cfg").write_text(
            f"[defaults]\ninterpreter_python = {sys.executable}\n[ssh_connection]\npipelining = True\ncontrol_path_dir = {folder}/cp\n"
        )
        inventory = folder / "state" / "r1prov" / "default" / "inventory"
        inventory.mkdir(parents=True)
        host = {"ansible_host": "127.0.0.1", "ansible_user": "root", "ansible_ssh_common_args": " ".join(ssh)}
        (inventory / "hosts.yml").write_text(json.dumps({"all": {"hosts": {"gpu1": host}}}))

    def start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "XDG_STATE_HOME": str(self.folder / "state")}
        return subprocess.Popen(
            [sys.executable, "-c", RUN], cwd=self.folder, env=environment, stdout=subprocess.PIPE, text=True
        )

    def lock(self) -> str:
        return self.there("cat /run/r1prov/lock.json || true")

    def there(self, command: str) -> str:
        argv = ["ssh", *self._ssh, "root@127.0.0.1", command]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    def history(self, *more: str) -> subprocess.CompletedProcess[str]:
        """What `r1prov history` says."""
        program = [Path(sys.executable).with_name("r1prov"), "history", "--ssh-config", self.folder / "config", *more]
        environment = {**os.environ, "XDG_STATE_HOME": str(self.folder / "state")}
        return subprocess.run(program, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)

    def has(self, name: str) -> Callable[[], bool]:
        return (self.folder / name).exists

    def is_quiet(self) -> bool:
        """Whether neither Ansible nor its ssh runs any more."""
        return not [
            file
            for file in Path("/proc").glob("[0-9]*/cmdline")
            if f"{self.folder}/playbooks" in (text := _read(file))
            or (text.startswith("ssh") and f"{self.folder}/cp" in text)
        ]


def runs_of(setting: Setting) -> list[tuple[str, int | None]]:
    """How the runs over the host ended, with their exit codes."""
    said = setting.history("--json")
    assert said.returncode == Exit.OK, said.stderr
    return [(run["state"], run["exit"]) for run in json.loads(said.stdout)["hosts"]["gpu1"]["runs"]]


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:  # The process has ended meanwhile.
        return ""


def wait_for(condition: Callable[[], bool], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    if subprocess.run([*PRIVATE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody have a /run of their own")
    key = tmp_path / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "cat").write_text(CAT)
    (tmp_path / "bin" / "cat").chmod(0o755)
    server = [*PRIVATE, sys.executable, "-c", SERVER, Path(__file__).parent, key, tmp_path / "bin"]
    with subprocess.Popen(server, stdout=subprocess.PIPE, text=True) as sshd:
        assert sshd.stdout
        port = sshd.stdout.readline().strip()
        (tmp_path / "config").write_text(
            f"Host gpu1\n  HostName 127.0.0.1\n  Port {port}\n  User root\n  IdentityFile {key}\n  UserKnownHostsFile none\n"
        )
        options = ["-p", port, "-i", str(key), "-F", "none", "-o", "BatchMode=yes"]
        options += ["-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={tmp_path}/known"]
        yield Setting(tmp_path, options)
        sshd.kill()


def test_stopped_it_releases_the_host_and_says_where_it_was_and_killed_it_takes_ansible_along(setting: Setting) -> None:
    with setting.start() as killed:
        wait_for(setting.has("begun"), limit_s=120)
        killed.kill()
    wait_for(setting.is_quiet, limit_s=guard.PATIENCE_S + 10)
    assert '"r1prov up"' in setting.lock()
    assert runs_of(setting) == [("did not end", None)]
    wait_for(setting.has("finished"), limit_s=30)  # The host goes on by itself.
    for name in ("begun", "finished"):
        (setting.folder / name).unlink()

    with setting.start() as stopped:  # It takes the lock over.
        wait_for(setting.has("begun"), limit_s=120)
        stopped.send_signal(signal.SIGTERM)
        said = json.loads(stopped.communicate(timeout=60)[0])
    assert said == {"gpu1": "was in llama_cpp, and is not locked"}
    assert setting.lock() == ""
    wait_for(setting.has("finished"), limit_s=30)

    with setting.start() as last:
        assert json.loads(last.communicate(timeout=120)[0]) == "ok"
    assert setting.lock() == ""
    assert runs_of(setting) == [("did not end", None), ("unfinished", Exit.INTERRUPTED), ("ok", Exit.OK)]

    # Another controller of the site sees the same, for the host has it.
    shutil.rmtree(setting.folder / "state/r1prov/default/history")
    assert runs_of(setting) == [("did not end", None), ("unfinished", Exit.INTERRUPTED), ("ok", Exit.OK)]
    there = setting.there(
        "stat -c '%a %U' /var/lib/r1prov/history /var/lib/r1prov/history/*; ls -A /var/lib/r1prov/history"
    )
    assert there.splitlines()[:4] == ["700 root", *["600 root"] * 3]
    assert len(there.splitlines()) == 7, "a half-written record is left"
