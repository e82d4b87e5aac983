"""Tests of passwords on a real host, with a real sshd, a real sudo, and Ansible after the first contact."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import threading
import time

import pytest

from r1prov import lab
from r1prov.common import paths
from r1prov.common.errors import UnreachableError
from r1prov.hosts import Access, Passwords, ProgressWatch, Sudo, contact_all, read_secret, read_status
from r1prov.runs import ansible
from r1prov.runs.ansible import playbook_command
from r1prov.runs.events import HostFailed, TaskDone
from r1prov.site import Host

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("systemd-nspawn"), reason="needs root and systemd-nspawn"),
]

PASSWORD = "corr3ct horse"
PLAY = """
- hosts: all
  gather_facts: false
  become: true
  tasks:
    - name: Who
      ansible.builtin.command: id -un
      changed_when: false
"""


@pytest.fixture(scope="module")
def host():
    """A host on which the account `bob` logs in with a password and becomes root with a password."""
    host = lab.up("cli-passwords")
    try:
        script = (
            "apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y sudo >/dev/null && "
            f"useradd -m -s /bin/bash -G sudo bob && echo 'bob:{PASSWORD}' | chpasswd"
        )
        assert lab.ssh(host, ["sh", "-c", script]).returncode == 0
        yield host
    finally:
        lab.down("cli-passwords")


@pytest.fixture
def access(tmp_path, monkeypatch):
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (tmp_path / "config").write_text("Host *\n  IdentityFile none\n  UserKnownHostsFile none\n")

    def make(ssh=None, sudo=None):
        return Access(tmp_path / "known_hosts", ssh_password=ssh, sudo_password=sudo, ssh_config=tmp_path / "config")

    return make


def bob(host):
    return Host(name="box", address=host.address, user="bob")


def test_wrong_passwords_are_said_plainly(host, access):
    for ssh, sudo, what in (
        (None, None, "login as bob: there is no key to try"),
        ("wrong", None, "the password of bob is refused"),
        (PASSWORD, None, "sudo there asks for a password"),
        (PASSWORD, "wrong", "the sudo password is wrong"),
    ):
        with pytest.raises(UnreachableError) as caught:
            contact_all([bob(host)], access(ssh, sudo))
        assert [problem.what for problem in caught.value.problems] == [what]


def test_contact_with_passwords_reads_as_root(host, access):
    contact = contact_all([bob(host)], access(PASSWORD, PASSWORD), probe_ports=[22])["box"]
    connection = contact.connection
    assert (connection.sudo, connection.user, contact.facts["init"]) == (Sudo.PASSWORD, "bob", "systemd")
    assert "\nroot:" in read_secret(connection, "/etc/shadow")
    assert read_secret(connection, "/no/such") is None
    status = read_status(
        connection,
        {
            "engine": "ollama",
            "url": "http://127.0.0.1:8000",
            "key_file": "/none",
            "page": "",
            "embeddings": "",
            "gateway": "",
        },
    )
    assert (status["health"], status["releases"]["ollama"], status["units"]) == ("down", None, {})
    connection.close()


def test_progress_is_followed_through_a_lost_connection(host, access, monkeypatch):
    monkeypatch.setattr("r1prov.hosts.reading.RECONNECT_S", 0.2)

    def write(done):
        fields = {"step": "x", "label": "l", "done": done, "total": 9, "unit": "steps", "state": "running"}
        text = shlex.quote(json.dumps(fields | {"updated": time.time()}))
        folder = "/run/r1prov/x"
        script = f"mkdir -p {folder} && echo {text} > {folder}/new && mv {folder}/new {folder}/progress.json"
        assert lab.ssh(host, ["sh", "-c", script]).returncode == 0

    seen, news = [], threading.Semaphore(0)

    def report(progress):
        seen.append(progress.done)
        news.release()

    watch = ProgressWatch(bob(host), access(PASSWORD), report)
    try:
        write(1)
        assert news.acquire(timeout=120)
        watch._connection._link.transport.sock.shutdown(2)
        write(2)
        while 2 not in seen:  # a watch that connects again before the write reports 1 once more
            assert news.acquire(timeout=120)
    finally:
        watch.close()
    assert set(seen) == {1, 2}


def test_ansible_gets_both_passwords_and_nobody_sees_them(host, access, tmp_path, monkeypatch):
    contact_all([bob(host)], access(PASSWORD, PASSWORD))["box"].connection.close()
    for folder in ("playbooks", "inventory", "artifacts"):
        (tmp_path / folder).mkdir(mode=0o700)
    (tmp_path / "playbooks" / "x.yml").write_text(PLAY)
    (tmp_path / "ansible.cfg").write_text((paths.collection() / "ansible.cfg").read_text())
    (tmp_path / "inventory" / "hosts.yml").write_text(
        f"all: {{hosts: {{box: {{ansible_host: {host.address}, ansible_user: bob}}}}}}"
    )
    monkeypatch.setattr(paths, "collection", lambda: tmp_path)
    command = playbook_command(
        "x", tmp_path / "inventory", known_hosts=tmp_path / "known_hosts", n_hosts=1, ssh_config=tmp_path / "config"
    )
    shown = []
    done = []
    for event in ansible.execute(
        command, tmp_path / "artifacts", steps=[], passwords=Passwords(ssh=PASSWORD, sudo=PASSWORD)
    ):
        processes = subprocess.run(["ps", "axeww"], capture_output=True, text=True, check=True).stdout
        shown += [line for line in processes.splitlines() if PASSWORD in line]
        assert not isinstance(event, HostFailed), event
        if isinstance(event, TaskDone):
            done.append(event.result["stdout"])
    assert done == ["root"]
    assert shown == []
    assert all(PASSWORD.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
