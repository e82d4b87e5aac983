"""Tests of passwords on a real host, with a real sshd, a real sudo, and Ansible after the first contact."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import paramiko
import pytest

from r1prov import inventory, lab, site
from r1prov.common import paths
from r1prov.common.errors import Exit, UnreachableError
from r1prov.decision import decide
from r1prov.hosts import Access, Passwords, ProgressWatch, Sudo, contact_all, read_secret, read_status
from r1prov.runs import ansible
from r1prov.runs.ansible import playbook_command
from r1prov.runs.events import HostFailed, HostUnreachable, TaskDone
from r1prov.runs.report import failure
from r1prov.site import Host
from r1prov.site.state import SiteState

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
    (tmp_path / "config").write_text(
        "Host *\n  IdentityFile none\n  UserKnownHostsFile none\n"
        "  StrictHostKeyChecking no\n  VerifyHostKeyDNS yes\n  NoHostAuthenticationForLocalhost yes\n"
    )

    def make(ssh=None, sudo=None):
        return Access(
            tmp_path / "known_hosts",
            ssh_password=ssh,
            sudo_password=sudo,
            ssh_config=tmp_path / "config",
            confirm=lambda _host, _shown: True,
        )

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
            contact_all([bob(host)], access(ssh, sudo)).somebody()
        assert [problem.what for problem in caught.value.problems] == [what]


def test_contact_with_passwords_reads_as_root(host, access):
    contact = contact_all([bob(host)], access(PASSWORD, PASSWORD)).somebody()["box"]
    connection = contact.connection
    assert (connection.sudo, connection.user, contact.facts["init"]) == (Sudo.PASSWORD, "bob", "systemd")
    assert "\nroot:" in read_secret(connection, "/etc/shadow")
    assert read_secret(connection, "/no/such") is None
    status = read_status(
        connection,
        {
            "engine": "ollama",
            "lends_to": "",
            "url": "http://127.0.0.1:8000",
            "key_file": "/none",
            "page": "",
            "embeddings": "",
            "gateway": "",
            "model": "R1",
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

    contact_all([bob(host)], access(PASSWORD, PASSWORD)).somebody()["box"].connection.close()
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


@pytest.fixture
def run(host, access, tmp_path, monkeypatch):
    """A function that makes the command of a play over the host, with the inventory that a site renders. The host is known."""
    folder, account = tmp_path / "site", bob(host)
    folder.mkdir()
    (folder / "r1prov.yml").write_text(
        json.dumps({"profile": "demo", "hosts": [account.model_dump(exclude_unset=True)]})
    )
    state = SiteState.of(folder / "r1prov.yml")
    login = replace(access(PASSWORD, PASSWORD), known_hosts=state.known_hosts)
    contact_all([account], login).somebody()["box"].connection.close()
    inventory.render(decide(site.load(folder / "r1prov.yml")), state.inventory)
    root = tmp_path / "collection"
    (root / "playbooks").mkdir(parents=True)
    (root / "ansible.cfg").write_text((paths.collection() / "ansible.cfg").read_text())

    def make(play):
        (root / "playbooks" / "x.yml").write_text(play)
        with monkeypatch.context() as patched:
            patched.setattr(paths, "collection", lambda: root)
            return state, playbook_command("x", state.inventory, n_hosts=1, ssh_config=tmp_path / "config")

    return make


def test_ansible_gets_both_passwords_and_nobody_sees_them(run, tmp_path):
    state, command = run(PLAY)
    shown = []
    done = []
    passwords = Passwords(ssh=PASSWORD, sudo=PASSWORD)
    for event in ansible.execute(command, state.artifacts, steps=[], passwords=passwords):
        processes = subprocess.run(["ps", "axeww"], capture_output=True, text=True, check=True).stdout
        shown += [line for line in processes.splitlines() if PASSWORD in line]
        assert not isinstance(event, HostFailed), event
        if isinstance(event, TaskDone):
            done.append(event.result["stdout"])
    assert done == ["root"]
    assert shown == []
    assert all(PASSWORD.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def lenient(folder):
    """The environment of an operator whose Ansible accepts every host key, by variables and by a configuration."""
    no = f"-o StrictHostKeyChecking=no -o UserKnownHostsFile={folder}/others"
    (folder / "ansible.cfg").write_text(
        f"[defaults]\nhost_key_checking = False\n[ssh_connection]\nssh_args = {no} -o ControlMaster=auto -o ControlPersist=60s\n"
    )
    return {
        **os.environ,
        "ANSIBLE_CONFIG": str(folder / "ansible.cfg"),
        "ANSIBLE_HOST_KEY_CHECKING": "False",
        "ANSIBLE_SSH_HOST_KEY_CHECKING": "False",
        "ANSIBLE_SSH_ARGS": f"{no} -o ControlMaster=auto -o ControlPersist=60s",
        "ANSIBLE_SSH_COMMON_ARGS": f"-F {folder}/config {no}",
        "ANSIBLE_SSH_EXTRA_ARGS": no,
        "ANSIBLE_TRANSPORT": "paramiko",
    }


def plain(command, folder):
    """Plain ansible-playbook with that environment, while it runs."""
    key = ["-e", json.dumps({"ansible_user": "root", "ansible_ssh_private_key_file": str(folder / "key")})]
    return subprocess.Popen(
        [*command.argv, *key],
        env=lenient(folder),
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def ssh_of(address):
    """The arguments of an ssh that runs here and talks to an address."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            argv = entry.read_bytes().decode(errors="replace").split("\0")[:-1]
            if argv and Path(argv[0]).name == "ssh" and address in argv:
                return argv
    return None


def test_ansibles_ssh_accepts_the_keys_of_the_site_and_no_others(run, host, tmp_path):
    """The argv of the running ssh is read by ssh itself. The connection of the first run is still open when the key is swapped."""
    state, command = run("- {hosts: all, gather_facts: false, tasks: [{ansible.builtin.raw: sleep 3}]}")
    shutil.copy(host.key, tmp_path / "key")
    with plain(command, tmp_path) as playbook:
        deadline = time.monotonic() + 60
        while not (argv := ssh_of(host.address)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        output = playbook.communicate()[0]
    assert playbook.returncode == 0, output
    seen = subprocess.run([argv[0], "-G", *argv[1:]], capture_output=True, text=True, check=True).stdout.splitlines()
    wanted = {"stricthostkeychecking true", "globalknownhostsfile /dev/null", "verifyhostkeydns false"}
    assert wanted | {"nohostauthenticationforlocalhost no"} <= set(seen)
    files = next(line.split()[1:] for line in seen if line.startswith("userknownhostsfile "))
    assert [Path(file).resolve() for file in files] == [state.known_hosts]

    others = paramiko.ECDSAKey.generate()
    state.known_hosts.write_text(f"{host.address} {others.get_name()} {others.get_base64()}\n")
    with plain(command, tmp_path) as playbook:
        output = playbook.communicate()[0]
    assert playbook.returncode == 4, output
    assert "Host key verification failed" in output
    for passwords in (None, Passwords(ssh=PASSWORD, sudo=PASSWORD)):
        events = list(ansible.execute(command, state.artifacts, steps=[], passwords=passwords))
        refused = [failure(event) for event in events if isinstance(event, HostUnreachable | HostFailed)]
        assert [error.exit for error in refused] == [Exit.UNREACHABLE]
        assert "box: its host key is not one that this site has accepted" in str(refused[0])
    assert not (tmp_path / "others").exists()
