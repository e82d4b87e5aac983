"""From site to rendered inventory, with a real ssh server in this process."""

from __future__ import annotations

import subprocess

import paramiko
import pytest
from sshd import Sshd

from r1prov import session
from r1prov.errors import SiteError
from r1prov.session import Login
from r1prov.state import SiteState

CAT = """#!/bin/sh
case "$1" in
/proc/1/comm) echo systemd;;
/etc/r1prov/llama-server/api-key) [ "$KEY" ] && echo "$KEY";;
*) exec /bin/cat "$@";;
esac
"""


class Silent:
    """Watches nothing."""

    def note(self, host, text): ...

    def event(self, event): ...

    def progress(self, progress): ...


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server on which bob is root, in the folder of a site without a file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "id"], check=True)
    (tmp_path / "bin").mkdir()
    for name, text in (("cat", CAT), ("id", "#!/bin/sh\necho 0\n")):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    with Sshd(
        users_keys=[paramiko.PKey.from_path(tmp_path / "id")], env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin"}
    ) as sshd:
        (tmp_path / "config").write_text(
            f"Host gpu1\n  HostName 127.0.0.1\n  Port {sshd.port}\n  User bob\n  IdentityFile {tmp_path}/id\n"
            "Host *\n  UserKnownHostsFile none\n"
        )
        yield sshd


def prepared(tmp_path):
    chosen, hosts = session.choose(None, ["gpu1"], profile="demo")
    return session.prepare(chosen, hosts, Login(ssh_config=tmp_path / "config"), Silent())


def test_a_new_site_gets_a_key_and_an_inventory(server, tmp_path):
    chosen = prepared(tmp_path)
    state = SiteState.of(None)
    assert len(state.api_key.read_text()) > 40
    assert state.api_key.stat().st_mode & 0o777 == 0o600
    hosts = (state.inventory / "hosts.yml").read_text()
    assert '"gpu1"' in hosts
    assert 'ansible_user: "bob"' in hosts  # from the ssh configuration: Ansible needs to know who is root
    assert state.api_key.read_text() not in "".join(p.read_text() for p in state.inventory.rglob("*.yml"))
    assert session.known(None, ["gpu1"])[1] == chosen.hosts


def test_a_new_controller_takes_over_the_key_of_a_host(server, tmp_path):
    server.env["KEY"] = "made-by-another"
    prepared(tmp_path)
    assert SiteState.of(None).api_key.read_text() == "made-by-another"
    server.env["KEY"] = "changed-there"
    prepared(tmp_path)
    assert SiteState.of(None).api_key.read_text() == "made-by-another"  # what is here counts


def test_hosts_are_called_by_name_or_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r1prov.yml").write_text("profile: demo\nhosts: [gpu1, 'bob@gpu2:2222']\n")
    chosen, hosts = session.choose(None, ["bob@gpu2:2222"])
    assert (len(chosen.hosts), [host.address for host in hosts]) == (2, ["gpu2"])
    with pytest.raises(SiteError, match="no such host"):
        session.choose(None, ["a b"])


def test_the_command_is_limited_to_the_hosts_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r1prov.yml").write_text("profile: demo\nhosts: [gpu1, gpu2]\n")
    chosen, hosts = session.choose(None, ["gpu2"])
    command = session.command(chosen, hosts, Login(), session.Options("up", "r1prov up gpu2", verbosity=1))
    assert command.argv[-2:] == ("--limit", "gpu2")  # the first -v is r1prov's own
    assert command.env["R1PROV_COMMAND"] == "r1prov up gpu2"
