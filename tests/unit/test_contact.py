"""Tests of first contact with a real ssh server in this process; tests of root's rights use a script in the place of sudo."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import paramiko
import pytest
from sshd import Sshd

from r1prov import hosts as contact
from r1prov.common.errors import UnreachableError
from r1prov.hosts import Access, Sudo
from r1prov.hosts.first import AT_ONCE, OLDEST_PYTHON
from r1prov.hosts.target import _expand, split_jump
from r1prov.site import Host

SUDO = """#!/bin/sh
# like sudo -k -n / -S -k -p '': the password is `right`
n= S=
while :; do case "$1" in -n) n=1;; -S) S=1;; -k) ;; -p) shift;; --) shift; break;; *) break;; esac; shift; done
case "$MODE" in
passwordless) exec "$@";;
stranger) [ "$n" ] && echo "sudo: a password is required" >&2 || echo "bob is not in the sudoers file." >&2
  exit 1;;
tty) echo "sudo: sorry, you must have a tty to run sudo" >&2; exit 1;;
esac
[ "$n" ] && { echo "sudo: a password is required" >&2; exit 1; }
IFS= read -r password
[ "$password" = right ] || { echo "Sorry, try again." >&2; exit 1; }
exec "$@"
"""


@pytest.fixture
def key(tmp_path):
    """A key pair made by ssh-keygen, whose private file the ssh configuration below names."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "id"], check=True)
    return paramiko.PKey.from_path(tmp_path / "id")


@pytest.fixture
def access(tmp_path, monkeypatch):
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (tmp_path / "config").write_text(
        f"Host *\n  IdentityFile {tmp_path}/id\n  UserKnownHostsFile {tmp_path}/users_known_hosts\n"
        "  GlobalKnownHostsFile none\n  User bob\n"
    )
    return Access(known_hosts=tmp_path / "known_hosts", ssh_config=tmp_path / "config")


@pytest.fixture
def sshd(key):
    with Sshd(users_keys=[key]) as server:
        yield server


def yes(_host, _shown):
    """A person who confirms every host key."""
    return True


def free_port():
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def bob(server, name="gpu1"):
    return Host(name=name, address="127.0.0.1", port=server.port)


def with_bin(tmp_path, server, **programs):
    """Puts scripts into the PATH of the server's commands."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    server.env["PATH"] = f"{folder}:/usr/bin:/bin"


def as_user(tmp_path, server, mode, **more):
    with_bin(tmp_path, server, id="#!/bin/sh\necho 1000\n", sudo=SUDO, **more)
    server.env["MODE"] = mode


def meet(host, access):
    return contact.contact_all([host], access).somebody()[host.name]


def problems(*hosts, access):
    meeting = contact.contact_all(hosts, access)
    assert not meeting.contacts
    return [problem for error in meeting.away.values() for problem in error.problems]


def the_problem(host, access):
    (problem,) = problems(host, access=access)
    return problem


def test_root_by_key_gives_the_probes_facts(tmp_path, sshd, access):
    with_bin(tmp_path, sshd, id="#!/bin/sh\necho 0\n")
    found = meet(bob(sshd), access)
    assert found.connection.sudo is Sudo.ROOT
    assert found.facts["arch"] == "x86_64"
    assert found.connection.run(["cat", "-"], "päss $HOME 'x'").out == "päss $HOME 'x'"
    found.connection.close()


@pytest.mark.parametrize(
    ("mode", "password", "expected"),
    [("passwordless", None, Sudo.PASSWORDLESS), ("password", "right", Sudo.PASSWORD)],
)
def test_sudo_that_works(tmp_path, sshd, access, mode, password, expected):
    as_user(tmp_path, sshd, mode)
    access = replace(access, sudo_password=password, confirm=yes)
    connection = meet(bob(sshd), access).connection
    assert connection.sudo is expected
    assert (
        connection.run(["cat", "-"], "for root\n", root=True).out == "for root\n"
    )  # the command does not read the password
    connection.close()


@pytest.mark.parametrize(
    ("mode", "password", "what", "remedy"),
    [
        ("password", None, "sudo there asks for a password", "--ask-become-pass"),
        ("password", "wrong", "the sudo password is wrong", "type it again"),
        ("stranger", "right", "this user may not use sudo there", "log in as another user"),
        ("tty", None, "sudo there wants a terminal", "requiretty"),
    ],
)
def test_sudo_that_does_not(tmp_path, sshd, access, mode, password, what, remedy):
    as_user(tmp_path, sshd, mode)
    problem = the_problem(bob(sshd), replace(access, sudo_password=password, confirm=yes))
    assert (problem.where, what in problem.what, remedy in problem.remedy) == ("gpu1", True, True), problem


def test_everything_wrong_with_every_host_is_said_at_once(tmp_path, sshd, access):
    uname = '#!/bin/sh\n[ "$1" = -m ] && echo aarch64 || echo Linux\n'
    with_bin(tmp_path, sshd, uname=uname, python3="#!/bin/sh\necho 3.6.8\n")
    port = free_port()
    found = problems(
        bob(sshd),
        Host(name="gone", address="127.0.0.1", port=port),
        Host(name="typo", address="no.such.invalid"),
        access=access,
    )
    assert [(p.where, p.what) for p in found] == [
        ("gpu1", "is a aarch64 machine, not x86-64"),
        ("gpu1", "has only Python 3.6.8; r1prov needs Python 3.10 or newer there"),
        ("gone", f"127.0.0.1 refuses connections on port {port}"),
        ("typo", found[-1].what),
    ]
    assert found[-1].what.startswith("the name no.such.invalid is not known here")


@pytest.mark.parametrize(
    ("version", "has"), [("3.9.18", "has only Python 3.9.18"), ("", "has no python3")], ids=["too old", "none"]
)
def test_a_python_too_old_for_our_programs(tmp_path, sshd, access, version, has):
    with_bin(tmp_path, sshd, id="#!/bin/sh\necho 0\n", python3=f"#!/bin/sh\necho {version}\n")
    problem = the_problem(bob(sshd), access)
    oldest = ".".join(map(str, OLDEST_PYTHON))
    assert problem.what == f"{has}; r1prov needs Python {oldest} or newer there"
    assert problem.remedy == (
        "apt install python3" if not version else "set the server up with Debian 12, Ubuntu 22.04, or a newer release"
    )


def test_the_oldest_python_is_enough(tmp_path, sshd, access):
    oldest = ".".join(map(str, OLDEST_PYTHON))
    python = f"""#!/bin/sh\n[ "$1" = -c ] && {{ echo {oldest}.0; exit; }}\nexec {sys.executable} "$@"\n"""
    with_bin(tmp_path, sshd, id="#!/bin/sh\necho 0\n", python3=python)
    meet(bob(sshd), access).connection.close()


def test_not_linux(tmp_path, sshd, access):
    with_bin(tmp_path, sshd, uname="#!/bin/sh\necho Darwin\n")
    assert the_problem(bob(sshd), access).what == "runs Darwin, not Linux"


def test_password_login(tmp_path, access):
    with Sshd(password="open sesame") as server:
        with_bin(tmp_path, server, id="#!/bin/sh\necho 0\n")
        for password, expected in (
            ("wrong", "the password of bob is refused"),
            (None, "sshd takes no keys, only password"),
        ):
            problem = the_problem(bob(server), replace(access, ssh_password=password, confirm=yes))
            assert expected in problem.what
        meet(bob(server), replace(access, ssh_password="open sesame")).connection.close()


def test_a_key_that_is_not_accepted(access, key):
    with Sshd(users_keys=[paramiko.ECDSAKey.generate()]) as server:
        problem = the_problem(bob(server), access)
    assert problem.what == "login as bob: none of 1 keys is accepted"
    assert f"ssh-copy-id -p {server.port} bob@127.0.0.1" in problem.remedy


def test_an_encrypted_key_without_agent_is_said_plainly(tmp_path, sshd, access):
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", tmp_path / "id"], check=True)
    problem = the_problem(bob(sshd), access)
    assert problem.what == f"the key {tmp_path}/id is encrypted, and no ssh-agent holds it"
    assert problem.remedy == f"unlock it once: ssh-add {tmp_path}/id"


def test_the_agent_is_asked(tmp_path, sshd, access, monkeypatch):
    with_bin(tmp_path, sshd, id="#!/bin/sh\necho 0\n")
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", tmp_path / "agent"], stdout=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        deadline = time.monotonic() + 60
        while not (tmp_path / "agent").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        subprocess.run(["ssh-add", "-q", tmp_path / "id"], check=True)
        (tmp_path / "id").unlink()
        meet(bob(sshd), access).connection.close()
    finally:
        agent.terminate()
        agent.wait()


def test_a_key_of_the_site_is_tried(tmp_path, sshd, access):
    with_bin(tmp_path, sshd, id="#!/bin/sh\necho 0\n")
    (tmp_path / "id").rename(tmp_path / "the_sites_id")
    host = bob(sshd).model_copy(update={"identity_file": str(tmp_path / "the_sites_id")})
    meet(host, access).connection.close()


def test_host_keys(tmp_path, sshd, access):
    with_bin(tmp_path, sshd, id="#!/bin/sh\necho 0\n")
    strict = replace(access, host_keys="strict")
    assert "its host key is not known" in the_problem(bob(sshd), strict).what
    assert not access.known_hosts.exists()

    meet(bob(sshd), access).connection.close()
    name = f"[127.0.0.1]:{sshd.port}"
    assert access.known_hosts.read_text() == f"{name} {sshd.host_key.get_name()} {sshd.host_key.get_base64()}\n"
    assert access.known_hosts.stat().st_mode & 0o777 == 0o600
    meet(bob(sshd), strict).connection.close()

    sshd.host_key = paramiko.ECDSAKey.generate()
    for either in (access, strict):
        problem = the_problem(bob(sshd), either)
        assert "its host key has changed" in problem.what
        assert f"{access.known_hosts}:1" in problem.what
        assert f"ssh-keygen -R '{name}' -f {access.known_hosts}" in problem.remedy


def line(server, key=None):
    """The line of a known_hosts file that says what the key of a server is."""
    key = key or server.host_key
    return f"[127.0.0.1]:{server.port} {key.get_name()} {key.get_base64()}\n"


def as_root(tmp_path, server):
    with_bin(tmp_path, server, id="#!/bin/sh\necho 0\n")


def test_a_key_in_the_sites_file_outranks_what_the_operators_files_say(tmp_path, sshd, access):
    as_root(tmp_path, sshd)
    (tmp_path / "users_known_hosts").write_text(line(sshd))
    meet(bob(sshd), access).connection.close()
    access.known_hosts.write_text(line(sshd, paramiko.ECDSAKey.generate()))
    assert f"{access.known_hosts}:1" in the_problem(bob(sshd), access).what


def test_a_second_key_beside_the_right_one_is_refused(tmp_path, sshd, access):
    as_root(tmp_path, sshd)
    access.known_hosts.write_text(line(sshd) + line(sshd, paramiko.ECDSAKey.generate()))
    assert f"{access.known_hosts}:2 lists another" in the_problem(bob(sshd), access).what
    access.known_hosts.write_text(line(sshd) + line(sshd, paramiko.RSAKey.generate(2048)))
    meet(bob(sshd), access).connection.close()


def test_hashed_names_count(tmp_path, sshd, access):
    as_root(tmp_path, sshd)
    access.known_hosts.write_text(line(sshd))
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", access.known_hosts], check=True, capture_output=True)
    assert "127.0.0.1" not in access.known_hosts.read_text()
    meet(bob(sshd), replace(access, host_keys="strict")).connection.close()
    sshd.host_key = paramiko.ECDSAKey.generate()
    assert "its host key has changed" in the_problem(bob(sshd), access).what


def test_a_host_that_comes_back_with_a_key_of_another_type_is_refused(tmp_path, sshd, access):
    as_root(tmp_path, sshd)
    access.known_hosts.write_text(line(sshd, paramiko.RSAKey.generate(2048)))
    assert "its host key has changed" in the_problem(bob(sshd), access).what


@pytest.mark.parametrize("how", ["mark", "list"])
def test_a_revoked_key_is_refused(tmp_path, sshd, access, how):
    as_root(tmp_path, sshd)
    access.known_hosts.write_text(line(sshd))
    if how == "mark":
        (tmp_path / "users_known_hosts").write_text(f"@revoked {line(sshd)}")
    else:
        (tmp_path / "revoked").write_text(line(sshd).partition(" ")[2])
        access.ssh_config.write_text(access.ssh_config.read_text() + f"  RevokedHostKeys {tmp_path}/revoked\n")
    assert "its host key is marked as revoked" in the_problem(bob(sshd), access).what


def test_a_line_without_an_end_is_not_joined_with_the_next(tmp_path, sshd, access):
    as_root(tmp_path, sshd)
    access.known_hosts.write_text("gpu9 ssh-ed25519 AAAA")
    meet(bob(sshd), access).connection.close()
    assert access.known_hosts.read_text() == f"gpu9 ssh-ed25519 AAAA\n{line(sshd)}"


def test_first_contact_tells_the_fingerprint_once(tmp_path, sshd, access):
    as_root(tmp_path, sshd)
    told = []
    access = replace(access, tell=lambda *words: told.append(words))
    for _ in range(2):
        meet(bob(sshd), access).connection.close()
    shown = f"ecdsa-sha2-nistp256 {sshd.host_key.fingerprint}"
    assert told == [("gpu1", f"not known before; its host key is {shown}")]


@pytest.mark.parametrize("password", ["ssh_password", "sudo_password"])
@pytest.mark.parametrize("open_one", [meet, contact.connect], ids=["all", "one"])
def test_no_password_goes_to_a_stranger_whom_nobody_confirms(tmp_path, access, password, open_one):
    with Sshd(password="open sesame") as server:
        as_root(tmp_path, server)
        asked = []

        def no(*words):
            asked.append(words)

        for confirm in (None, no):
            with pytest.raises(UnreachableError) as caught:
                open_one(bob(server), replace(access, **{password: "open sesame"}, confirm=confirm))
            assert server.host_key.fingerprint in caught.value.problems[0].what
        assert asked == [("gpu1", f"ecdsa-sha2-nistp256 {server.host_key.fingerprint}")]
        assert not server.passwords
        assert not access.known_hosts.exists()
        opened = open_one(bob(server), replace(access, ssh_password="open sesame", confirm=yes))
        getattr(opened, "connection", opened).close()
        assert server.passwords == ["open sesame"]
        assert access.known_hosts.read_text() == line(server)


def test_a_person_is_asked_about_one_host_while_others_are_away(tmp_path, sshd, access):
    as_root(tmp_path, sshd)
    typo = Host(name="typo", address="no.such.invalid")
    with Sshd() as other:
        hosts = (bob(other, "gpu2"), typo, bob(sshd))
        access = replace(access, sudo_password="x", confirm=lambda host, _: host == "gpu1")
        meeting = contact.contact_all(hosts, access)
    meeting.close()
    assert (list(meeting.contacts), list(meeting.away)) == (["gpu1"], ["gpu2", "typo"])
    assert other.logins == []


def test_who_stops_the_question_stops_the_contact(tmp_path, key, access):
    def stop(*_):
        raise KeyboardInterrupt

    with Sshd(users_keys=[key]) as first, Sshd(users_keys=[key]) as second:
        as_root(tmp_path, first)
        access.known_hosts.write_text(line(first))
        with pytest.raises(KeyboardInterrupt):
            contact.contact_all(
                [bob(first), bob(second, "gpu2")], replace(access, sudo_password="x", ssh_password="y", confirm=stop)
            )
        assert second.logins == []
        assert first.ends()


def test_hosts_that_are_away_keep_nobody_from_the_others_nor_hold_them_up(tmp_path, key, access, monkeypatch):
    """More than a screenful is away, each in its own way, and each names what to do about it."""
    monkeypatch.setattr("r1prov.hosts.ssh.TIMEOUT_S", 2.0)
    with contextlib.ExitStack() as stack:
        gpu1, other_key, no_login = (
            stack.enter_context(Sshd(users_keys=keys)) for keys in ([key], [key], [paramiko.ECDSAKey.generate()])
        )
        as_root(tmp_path, gpu1)
        access.known_hosts.write_text(line(other_key, paramiko.ECDSAKey.generate()))
        # Who has no room for another connection does not answer. Who accepts it may say nothing.
        full, silent = (stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=n)) for n in (0, 200))
        stack.enter_context(socket.create_connection(full.getsockname()))

        def at(name, port):
            return Host(name=name, address="127.0.0.1", port=port)

        hosts = [
            at("refused", gone := free_port()),
            at("full", full.getsockname()[1]),
            *(at(f"silent{n}", silent.getsockname()[1]) for n in range(40)),
            bob(other_key, "other-key"),
            bob(no_login, "no-login"),
            Host(name="typo", address="no.such.invalid"),
            bob(gpu1),
        ]
        began_s = time.monotonic()
        meeting = contact.contact_all(hosts, access)
        took_s = time.monotonic() - began_s
        assert meeting.contacts["gpu1"].connection.run(["echo", "there"]).out == "there\n"
        meeting.close()
    assert [*meeting.contacts, *meeting.away] == ["gpu1", *(host.name for host in hosts[:-1])]
    said = {name: (error.problems[0].what, error.problems[0].remedy) for name, error in meeting.away.items()}
    assert {error.problems[0].where for error in meeting.away.values()} == set(said)
    for name, what, remedy in (
        ("refused", f"127.0.0.1 refuses connections on port {gone}", "check that sshd runs there"),
        ("full", "does not answer on port", "check that the machine is on"),
        ("silent0", "does not complete an ssh handshake", "check that it is an ssh server"),
        ("other-key", "its host key has changed", "ssh-keygen -R"),
        ("no-login", "none of 1 keys is accepted", "ssh-copy-id"),
        ("typo", "the name no.such.invalid is not known here", "check the spelling"),
    ):
        assert (what in said[name][0], remedy in said[name][1]) == (True, True), said[name]
    assert other_key.logins == []  # nobody tells a stranger who wants to log in
    assert took_s < 2 * 2.0 + 10  # the waits run side by side; the rest is for a busy machine


def test_a_shell_that_chatters_is_named_and_its_words_do_not_get_into_facts_or_secrets(tmp_path, sshd, access):
    as_root(tmp_path, sshd)
    sshd.greeting = "Welcome!"
    problem = the_problem(bob(sshd), access)
    assert problem.what == "its login shell adds text of its own to what commands print: `Welcome!`"
    assert "~/.bashrc" in problem.remedy


def test_what_nobody_can_read_is_the_problem_of_one_host(tmp_path, sshd, key, access):
    as_root(tmp_path, sshd)
    strange = tmp_path / "strange"
    strange.mkdir()
    with Sshd(users_keys=[key]) as other:
        with_bin(strange, other, id="#!/bin/sh\necho 0\n", python3="#!/bin/sh\necho 3.11.x\n")
        meeting = contact.contact_all([bob(other, "gpu2"), bob(sshd)], access)
        meeting.close()
    assert (list(meeting.contacts), list(meeting.away)) == (["gpu1"], ["gpu2"])
    assert "cannot be read" in meeting.away["gpu2"].problems[0].what


def test_three_hundred_hosts_are_contacted_by_a_bounded_number_of_threads(access):
    hosts = [Host(name=f"gpu{n}", address="127.0.0.1", port=free_port()) for n in range(300)]
    most, ended = 0, threading.Event()

    def count():
        nonlocal most
        while not ended.wait(0.01):
            most = max(most, sum(thread.name.startswith("ThreadPool") for thread in threading.enumerate()))

    counter = threading.Thread(target=count)
    counter.start()
    try:
        found = problems(*hosts, access=access)
    finally:
        ended.set()
        counter.join()
    assert [problem.where for problem in found] == [host.name for host in hosts]
    assert 8 <= most <= AT_ONCE


def test_plain_ansible_gets_the_keys_that_the_operators_ssh_knows(tmp_path, monkeypatch, sshd, access):
    other = paramiko.RSAKey.generate(2048)
    (tmp_path / "users_known_hosts").write_text(f"@revoked {line(sshd, other)}{line(sshd)}{line(sshd, other)}")
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {access.ssh_config} "$@"\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}:/usr/bin:/bin")
    hosts = [bob(sshd), Host(name="gpu2", address="other.example.com"), Host(name="here", address="localhost")]
    for _ in range(2):
        assert contact.adopt(hosts, access.known_hosts) == ["gpu2"]
        assert access.known_hosts.read_text() == line(sshd)


def test_something_else_than_ssh(access):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk():
            connection, _ = listener.accept()
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()

        threading.Thread(target=talk, daemon=True).start()
        host = Host(name="web", address="127.0.0.1", port=listener.getsockname()[1])
        assert "does not complete an ssh handshake" in the_problem(host, access).what


def test_through_two_jumps_and_a_proxy_command(tmp_path, key, access):
    with Sshd(users_keys=[key]) as first, Sshd(users_keys=[key]) as second, Sshd(users_keys=[key]) as inner:
        with_bin(tmp_path, inner, id="#!/bin/sh\necho 0\n")
        config = access.ssh_config
        relay = (
            "import socket,sys,os,threading\n"
            "s=socket.create_connection(('127.0.0.1',int(sys.argv[1])))\n"
            "def pump():\n"
            "  while d:=os.read(0,65536): s.sendall(d)\n"
            "threading.Thread(target=pump,daemon=True).start()\n"
            "while d:=s.recv(65536): os.write(1,d)\n"
        )
        (tmp_path / "relay.py").write_text(relay)
        config.write_text(
            f"Host inner\n  HostName 127.0.0.1\n  Port {inner.port}\n  ProxyJump eve@127.0.0.1:{first.port},second\n"
            f"Host second\n  HostName 127.0.0.1\n  Port {second.port}\n"
            f"Host proxied\n  HostName 127.0.0.1\n  Port {inner.port}\n"
            f"  ProxyCommand {sys.executable} {tmp_path}/relay.py %p\n" + config.read_text()
        )
        by_jumps = Host(name="inner", address="inner")
        assert (
            the_problem(by_jumps, access).where == "inner (jump host 127.0.0.1)"
        )  # the operator's files do not hold the server's key
        config.write_text(config.read_text() + "  StrictHostKeyChecking accept-new\n")
        found = meet(by_jumps, access)
        assert (first.forwards[-1], second.forwards[-1]) == (("127.0.0.1", second.port), ("127.0.0.1", inner.port))
        found.connection.close()
        with_password = replace(access, ssh_password="open sesame", confirm=yes)
        refused = the_problem(
            by_jumps, with_password
        )  # Ansible's ssh would give the password to whoever poses as the jump host
        assert (refused.where, refused.what[:26]) == ("inner (jump host 127.0.0.1)", "its host key is not known:")
        meet(Host(name="proxied", address="proxied"), access).connection.close()


def test_http_through_the_connection(tmp_path, sshd, access):
    class Hello(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"data: one\n\ndata: two\n\n")

        def log_message(self, *_):
            pass

    with_bin(tmp_path, sshd, id="#!/bin/sh\necho 0\n")
    server = HTTPServer(("127.0.0.1", 0), Hello)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    connection = meet(bob(sshd), access).connection
    http = connection.open_http(server.server_port)
    http.request("GET", "/")
    assert list(http.getresponse()) == [b"data: one\n", b"\n", b"data: two\n", b"\n"]
    with pytest.raises(ConnectionRefusedError):
        connection.open_http(1).request("GET", "/")
    connection.close()
    server.shutdown()


def test_parts_of_the_ssh_configuration():
    assert split_jump("bob@jump:2222") == ("bob", 2222, "jump")
    assert split_jump("ssh://[::1]:22") == (None, 22, "::1")
    assert split_jump("2001:db8::1") == (None, None, "2001:db8::1")
    assert _expand("nc %h %p %% %x", {"h": "host", "p": "22", "%": "%"}) == "nc host 22 % %x"
