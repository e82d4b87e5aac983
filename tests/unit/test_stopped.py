"""A run that is stopped or killed: real Ansible, ssh and lock. The host is this machine, with a /run of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from r1prov.common import paths
from r1prov.runs import guard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PRIVATE = ["unshare", "--mount", "--map-root-user", "sh", "-ec", 'mount -t tmpfs none /run; exec "$@"', "sh"]

SERVER = """
import sys, time
sys.path.insert(0, sys.argv[1])
import paramiko
from sshd import Sshd
with Sshd(users_keys=[paramiko.PKey.from_path(sys.argv[2])]) as sshd:
    print(sshd.port, flush=True)
    time.sleep(600)
"""

UP = """
- hosts: all
  strategy: free
  gather_facts: false
  tasks:
    - r1.prov.host_lock:
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

class Silent:
    def note(self, host, text): ...
    def event(self, event): ...
    def progress(self, progress): ...

signals.heed()
chosen, hosts = select(None, ["gpu1"], profile="demo")
decision = runs.settle(chosen, lambda _: None)
paths.collection = lambda: Path.cwd()
try:
    done = runs.play(Prepared(decision, hosts, ()), Login(), Request("up", "r1prov up"), Silent())
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
        there = ["ssh", *self._ssh, "root@127.0.0.1", "cat /run/r1prov/lock.json || true"]
        return subprocess.run(there, capture_output=True, text=True, check=True).stdout

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
    server = [*PRIVATE, sys.executable, "-c", SERVER, Path(__file__).parent, key]
    with subprocess.Popen(server, stdout=subprocess.PIPE, text=True) as sshd:
        assert sshd.stdout
        options = ["-p", sshd.stdout.readline().strip(), "-i", str(key), "-F", "none", "-o", "BatchMode=yes"]
        options += ["-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={tmp_path}/known"]
        yield Setting(tmp_path, options)
        sshd.kill()


def test_stopped_it_releases_the_host_and_says_where_it_was_and_killed_it_takes_ansible_along(setting: Setting) -> None:
    with setting.start() as killed:
        wait_for(setting.has("begun"), limit_s=120)
        killed.kill()
    wait_for(setting.is_quiet, limit_s=guard.PATIENCE_S + 10)
    assert '"r1prov up"' in setting.lock()
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
