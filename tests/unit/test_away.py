"""Tests of verbs over three hosts of which two are away: real ssh servers, a real ansible-playbook, a play that only says a word."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path

import paramiko
import pytest
from sshd import Sshd
from test_contact import free_port

from r1prov import cli
from r1prov.common import paths
from r1prov.common.errors import Exit
from r1prov.hosts import Login, read_pause
from r1prov.hosts.connection import Result
from r1prov.output import console
from r1prov.runs import run as runs
from r1prov.runs.events import Finished
from r1prov.runs.run import Prepared, Request
from r1prov.site.select import select
from r1prov.site.state import API_KEY, SiteState

PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Say a word
      ansible.builtin.raw: echo done >> {made}
"""


MEASURES = "echo ActiveState=activating; echo InactiveExitTimestampMonotonic=1000000"


@pytest.fixture
def gpu1(tmp_path, monkeypatch):
    """A host that is there. `stranger` has another key than the site knows, and nobody listens where `off` should be."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "id"], check=True)
    keys = [paramiko.PKey.from_path(tmp_path / "id")]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "id").write_text("#!/bin/sh\necho 0\n")
    (tmp_path / "bin" / "id").chmod(0o755)
    collection = tmp_path / "collection"
    collection.mkdir()
    for part in paths.collection().iterdir():
        if part.name != "playbooks":
            (collection / part.name).symlink_to(part.resolve())
    (collection / "playbooks").mkdir()
    for name in ("up", "bench", "tune", "verify", "down", "prune", "read"):
        (collection / "playbooks" / f"{name}.yml").write_text(PLAY.format(made=tmp_path / "made"))
    monkeypatch.setattr(paths, "collection", lambda: collection)
    monkeypatch.setattr(paths.module_util("units"), "SYSTEMD", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setenv("R1PROV_SSH_CONFIG", str(tmp_path / "config"))
    with Sshd(users_keys=keys, env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin"}) as there, Sshd(keys) as stranger:
        there.stranger = stranger
        (tmp_path / "config").write_text(
            "".join(
                f"Host {name}\n  HostName 127.0.0.1\n  Port {port}\n"
                for name, port in (("gpu1", there.port), ("stranger", stranger.port), ("off", free_port()))
            )
            + f"Host *\n  User bob\n  IdentityFile {tmp_path}/id\n  UserKnownHostsFile none\n"
        )
        # Whatever else runs on this machine may have the usual port.
        service = f"service: {{port: {free_port()}}}"
        (tmp_path / "r1prov.yml").write_text(f"profile: demo\nhosts: ['off', stranger, gpu1]\n{service}\n")
        state = SiteState.of(tmp_path / "r1prov.yml")
        key = paramiko.ECDSAKey.generate()
        state.known_hosts.write_text(f"[127.0.0.1]:{stranger.port} {key.get_name()} {key.get_base64()}\n")
        state.keep_secret(API_KEY, "old")
        yield there


@pytest.fixture
def r1prov(capsys):
    """Runs a command line, and returns its exit code, stdout and stderr."""

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        return end.value.code, *capsys.readouterr()

    return run


def those_away(hosts):
    """What a document says of the hosts that are away."""
    assert list(hosts) == ["off", "stranger", "gpu1"]
    return [hosts[name]["problems"][0]["what"].partition(":")[0] for name in ("off", "stranger")]


AWAY = ["127.0.0.1 refuses connections on port", "its host key has changed"]


def done(tmp_path):
    """How often the play has run, since this was asked last."""
    made = tmp_path / "made"
    count = len(made.read_text().split()) if made.exists() else 0
    made.unlink(missing_ok=True)
    return count


def test_the_others_converge_and_the_report_names_who_is_away(gpu1, tmp_path, r1prov):
    code, out, err = r1prov("up", "--json")
    assert code == Exit.UNREACHABLE
    assert done(tmp_path) == 1
    report = json.loads(out)
    assert [said.rpartition(" port")[0] or said for said in those_away(report["hosts"])] == [AWAY[0][:-5], AWAY[1]]
    assert {name: host["result"] for name, host in report["hosts"].items()} == {
        "off": "unreachable",
        "stranger": "unreachable",
        "gpu1": "ok",
    }
    assert report["exit"] == Exit.UNREACHABLE
    assert json.loads((tmp_path / ".r1prov" / "reports" / "last.json").read_text()) == report
    for words in (
        "off  left out: 127.0.0.1 refuses",
        "-> check that sshd runs there",
        "-> if the host was installed anew",
    ):
        assert words in err
    assert "r1prov ask --host gpu1" in err  # how to reach those that serve
    # The stranger is not contacted after its key was seen, and nobody has told it who wants to log in.
    assert (len(gpu1.stranger.connections), gpu1.stranger.logins) == (1, [])
    assert r1prov("up", "--check", "off")[0] == Exit.UNREACHABLE


def test_all_or_none(gpu1, tmp_path, r1prov):
    """With --require-all not even a secret is made."""
    (tmp_path / ".r1prov" / "secrets" / "api-key").unlink()
    code, out, err = r1prov("up", "--require-all", "--json")
    told = json.loads(out)
    assert (code, done(tmp_path)) == (Exit.UNREACHABLE, 0)
    assert [problem["where"] for problem in told["problems"]] == ["off", "stranger"]
    assert "nothing is changed on any host, because all are required" in " ".join(err.split())
    assert [*(tmp_path / ".r1prov" / "secrets").iterdir()] == []
    assert not (tmp_path / ".r1prov" / "inventory").exists()
    assert r1prov("up", "--require-all", "--print-command")[:2] == (Exit.UNREACHABLE, "")
    code, out, _ = r1prov("up", "--require-all", "--json", "gpu1")
    assert (code, done(tmp_path)) == (0, 1)
    # They have been met and looked at already when it is known that some are away.
    assert r1prov("up", "--require-all", "off", "gpu1")[0] == Exit.UNREACHABLE
    assert done(tmp_path) == 0


CHANGES = {
    "engine": (("engine", "ollama"), Exit.UNREACHABLE),
    "verify": (("weights", "verify", "--mend"), Exit.UNREACHABLE),
    "prune": (("weights", "prune", "--yes"), Exit.UNREACHABLE),
    "deep": (("drift", "--deep"), Exit.UNTOLD),
    "rollback": (("rollback",), Exit.UNREACHABLE),
}
"""Verbs that work on hosts, beside those that have tests of their own here, and how each ends where some are away."""


@pytest.mark.parametrize(("words", "code"), CHANGES.values(), ids=CHANGES)
def test_a_dead_host_stops_nothing_for_the_others(gpu1, tmp_path, r1prov, words, code):
    on_host(tmp_path, "systemctl", "exit 0")  # there is something to verify
    rest = tmp_path / "data" / "models" / "another" / "rest.gguf"
    (rest.parent / ".incoming").mkdir(parents=True)  # by which a folder is known as the transfer's
    rest.write_text("GGUF")
    path = tmp_path / "r1prov.yml"
    path.write_text(f"{path.read_text()}data_dir: {tmp_path}/data\n")
    state = SiteState.of(path)
    site, hosts = select(path, ())
    for host in hosts:
        for version in ("0.12.3", "0.12.4"):
            chosen = site.model_copy(update={"chosen": {host.name: {"open_webui": version}}})
            state.pins.mkdir(exist_ok=True)
            (state.pins / f"open-webui-{version}.txt").write_text("")
            state.keep_settled(host.name, chosen.of(host.name))
    ended, _, err = r1prov(*words)
    assert (ended, done(tmp_path)) == (code, 1)
    told = " ".join(err.split())
    assert "127.0.0.1 refuses connections" in told
    assert "its host key has changed" in told


def test_status_shows_every_host(gpu1, r1prov, monkeypatch):
    monkeypatch.setattr(console.out, "width", 240)
    code, out, _ = r1prov("status", "--json")
    hosts = json.loads(out)["hosts"]
    assert code == Exit.UNREACHABLE
    assert len(those_away(hosts)) == 2
    assert {name: host["reachable"] for name, host in hosts.items()} == {"off": False, "stranger": False, "gpu1": True}
    assert hosts["gpu1"]["releases"].keys() >= {"llama.cpp"}
    code, out, err = r1prov("status")
    assert code == Exit.UNREACHABLE
    rows = {line.split()[0]: line for line in out.splitlines() if line[:1].strip()}
    assert rows["off"].split() == ["off", "unreachable"]
    assert "llama-server" in rows["gpu1"]
    assert "off: 127.0.0.1 refuses connections on port" in err
    assert "-> check that sshd runs there" in err
    code, out, _ = r1prov("status", "--json", "off", "stranger")
    assert (code, [host["reachable"] for host in json.loads(out)["hosts"].values()]) == (Exit.UNREACHABLE, [False] * 2)


BEFORE_UP = [["bench"], ["bench", "--modes", "cpu"], ["tune", "--yes"], ["weights", "verify"]]


@pytest.mark.parametrize("words", BEFORE_UP, ids=" ".join)
def test_a_host_that_was_never_set_up_is_refused_before_anything_is_changed(gpu1, tmp_path, r1prov, words):
    on_host(tmp_path, "systemctl", "exit 1")
    code, _, err = r1prov(*words, "gpu1")
    assert code == Exit.UNHEALTHY
    told = " ".join(err.split())
    assert "gpu1: is not set up yet" in told
    assert told.count("run `r1prov up` first") == 1
    assert "will not answer" not in told
    assert done(tmp_path) == 0
    state = SiteState.of(tmp_path / "r1prov.yml")
    assert [path.name for path in state.secrets.iterdir()] == ["api-key"]  # No other was made.
    assert not state.inventory.exists()


@pytest.mark.parametrize("words", BEFORE_UP, ids=" ".join)
@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({}, Exit.LOCKED, f"or stop it (`kill {os.getpid()}` on this machine)"),
        ({"controller_id": "another"}, Exit.LOCKED, "as `r1prov up --break-lock` does"),
        ({"pid_started": "long ago"}, Exit.UNHEALTHY, "run `r1prov up` first"),
    ],
    ids=["here", "elsewhere", "dead"],
)
def test_who_sets_a_host_up_is_named_rather_than_that_it_is_not_set_up(
    gpu1, tmp_path, r1prov, words, changes, code, says
):
    """A run that is dead sets up nothing."""
    on_host(tmp_path, "systemctl", "exit 1")
    lock = lock_of_this_process() | changes
    (tmp_path / "lock.json").write_text(json.dumps(lock))
    on_host(tmp_path, "cat", f"[ $1 = /run/r1prov/lock.json ] && exec /bin/cat {tmp_path}/lock.json; echo systemd")
    ended, _, err = r1prov(*words, "gpu1")
    told = " ".join(err.split())
    assert ended == code
    assert says in told
    assert ("gpu1: is being changed by olga@laptop since" in told) == (code == Exit.LOCKED)
    assert (", and has no r1prov-" in told) == (code == Exit.LOCKED)
    assert "will not answer" not in told
    assert done(tmp_path) == 0


def lock_of_this_process():
    known = paths.module_util("lock_holder")
    return {
        "user": "olga",
        "controller": "laptop",
        "controller_id": known.this_controller_id(),
        "pid": os.getpid(),
        "pid_started": known.process_started(os.getpid()),
        "stop": os.getpid(),
        "command": "r1prov up",
        "since": "2026-10-03T12:03:05+00:00",
        "run": "a",
    }


def test_bench_measures_the_others(gpu1, tmp_path, r1prov):
    on_host(tmp_path, "systemctl", "exit 0")  # there is an engine to measure
    code, out, _ = r1prov("bench", "--json")
    assert (code, done(tmp_path), len(those_away(json.loads(out)["hosts"]))) == (Exit.UNREACHABLE, 1, 2)


def test_a_host_that_was_never_set_up_leaves_the_others_to_be_measured(gpu1, tmp_path, r1prov):
    on_host(tmp_path, "systemctl", "exit 0")
    without = tmp_path / "without"
    without.mkdir()
    for program in (tmp_path / "bin").iterdir():
        (without / program.name).write_text(
            program.read_text() if program.name != "systemctl" else "#!/bin/sh\nexit 1\n"
        )
        (without / program.name).chmod(0o755)
    keys = [paramiko.PKey.from_path(tmp_path / "id")]
    with Sshd(users_keys=keys, env={"PATH": f"{without}:/usr/bin:/bin"}) as bare:
        config = tmp_path / "config"
        config.write_text(f"Host bare\n  HostName 127.0.0.1\n  Port {bare.port}\n{config.read_text()}")
        (tmp_path / "r1prov.yml").write_text("profile: demo\nhosts: [bare, gpu1]\n")
        code, out, err = r1prov("bench", "--json")
    assert (code, done(tmp_path)) == (Exit.UNREACHABLE, 1)
    assert "is not set up yet" in json.loads(out)["hosts"]["bare"]["problems"][0]["what"]
    assert "bare: is not set up yet" in " ".join(err.split())


def on_host(folder, name, text):
    """Puts a program into the PATH of the host's commands."""
    (folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / "bin" / name).chmod(0o755)


def test_a_status_that_cannot_be_read_is_that_of_one_host(gpu1, tmp_path, r1prov):
    """The first contact asks Python twice."""
    asked = tmp_path / "asked"
    on_host(
        tmp_path, "python3", f'echo >> {asked}; [ "$(wc -l < {asked})" -gt 2 ] && exit 1; exec /usr/bin/python3 "$@"'
    )
    code, out, _ = r1prov("status", "--json")
    hosts = json.loads(out)["hosts"]
    assert (code, [host["reachable"] for host in hosts.values()]) == (Exit.UNREACHABLE, [False] * 3)
    assert hosts["gpu1"]["problems"][0]["what"] == "its status cannot be read: no reason given"


def test_a_pause_for_a_measurement_is_no_failure_of_the_service(gpu1, tmp_path, r1prov):
    on_host(tmp_path, "systemctl", 'case "$2" in r1prov-measure.service) ' + MEASURES + ";; esac")
    code, out, _ = r1prov("status", "--json", "gpu1")
    assert (code, json.loads(out)["hosts"]["gpu1"]["health"]) == (Exit.UNHEALTHY, "paused")
    code, _, err = r1prov("status", "gpu1")
    assert "gpu1: a measurement has paused llama-server since" in " ".join(err.split())
    code, _, err = r1prov("ask", "--host", "gpu1", "1+1?")
    assert code == Exit.UNHEALTHY
    assert "gpu1: a measurement has paused llama-server since" in " ".join(err.split())
    on_host(tmp_path, "systemctl", "echo ActiveState=inactive")
    assert json.loads(r1prov("status", "--json", "gpu1")[1])["hosts"]["gpu1"]["health"] == "down"
    assert "the service does not answer" in r1prov("ask", "--host", "gpu1", "1+1?")[2]


def test_a_host_without_systemd_is_asked_by_r1provs_own_program(gpu1, tmp_path, r1prov, monkeypatch):
    monkeypatch.setattr(paths.module_util("units"), "SYSTEMD", tmp_path / "none")
    monkeypatch.setattr(paths.module_util("units"), "OWN", [str(tmp_path / "bin" / "own")])
    on_host(tmp_path, "systemctl", "exit 1")
    on_host(tmp_path, "own", 'case "$2" in r1prov-measure.service) ' + MEASURES + ";; esac")
    told = json.loads(r1prov("status", "--json", "gpu1")[1])["hosts"]["gpu1"]
    assert (told["health"], told["systemd"]) == ("paused", False)
    on_host(tmp_path, "own", "exit 0")  # there is an engine to measure
    assert r1prov("bench", "--json", "gpu1")[0] == 0
    assert done(tmp_path) == 1


def test_the_others_are_tuned(gpu1, tmp_path, r1prov):
    on_host(tmp_path, "systemctl", "exit 0")  # there is an engine to measure
    code, out, err = r1prov("tune", "--check", "--json")
    told = json.loads(out)
    assert (code, list(told["to_measure"])) == (Exit.UNREACHABLE, ["gpu1"])
    assert [problem["where"] for problem in told["problems"]] == ["off", "stranger"]
    assert "gpu1: " in err


def test_down_removes_from_the_others(gpu1, tmp_path, r1prov):
    code, out, _ = r1prov("down", "--yes", "--json")
    assert (code, done(tmp_path), len(those_away(json.loads(out)["hosts"]))) == (Exit.UNREACHABLE, 1, 2)


def test_rotation_says_who_still_has_the_old_secrets(gpu1, tmp_path, r1prov):
    key = tmp_path / ".r1prov" / "secrets" / "api-key"
    code, out, err = r1prov("secrets", "rotate", "--only", "api-key", "--json")
    assert (code, done(tmp_path), len(those_away(json.loads(out)["hosts"]))) == (Exit.UNREACHABLE, 1, 2)
    assert "off, stranger may still accept the old ones, until `r1prov up` ends well there" in err
    new = key.read_text()
    assert new != "old"
    gpu1.close()
    assert r1prov("secrets", "rotate", "--only", "api-key")[0] == Exit.UNREACHABLE
    assert key.read_text() == new  # nobody has taken another one


def test_an_upgrade_goes_past_hosts_that_are_away(gpu1, tmp_path, r1prov):
    path = tmp_path / "r1prov.yml"
    state = SiteState.of(path)
    site, hosts = select(path, ())
    for host in hosts:
        state.keep_settled(host.name, site)
    code, out, err = r1prov("upgrade", "--open-webui", "0.12.4", "off", "--json")
    assert code == Exit.UNREACHABLE
    assert json.loads(out)["runs"][0]["hosts"]["off"]["result"] == "unreachable"
    assert state.versions("off") == {}
    code, out, err = r1prov("upgrade", "--open-webui", "0.12.4", "--json")
    assert (code, done(tmp_path)) == (Exit.UNREACHABLE, 1)
    results = [host["result"] for run in json.loads(out)["runs"] for host in run["hosts"].values()]
    assert results == ["unreachable", "unreachable", "ok"]
    assert "putting it back" not in err
    assert [state.versions(host.name) for host in hosts] == [{}, {}, {"open_webui": "0.12.4"}]


def test_the_printed_command_is_about_those_who_are_there(gpu1, r1prov):
    code, out, err = r1prov("up", "--print-command")
    assert code == Exit.UNREACHABLE
    assert "--limit gpu1" in out
    assert "stranger: its host key has changed" in err


def test_where_nobody_is_there_nothing_is_made(gpu1, tmp_path, r1prov):
    code, out, _ = r1prov("up", "--json", "off", "stranger")
    hosts = json.loads(out)["hosts"]
    assert (code, [host["result"] for host in hosts.values()]) == (Exit.UNREACHABLE, ["unreachable"] * 2)
    assert not (tmp_path / ".r1prov" / "inventory").exists()
    assert not (tmp_path / ".r1prov" / "site.json").exists()
    assert [path.name for path in (tmp_path / ".r1prov" / "secrets").iterdir()] == ["api-key"]


def test_progress_of_three_hundred_hosts_is_followed_by_a_bounded_number_of_threads(tmp_path, monkeypatch):
    """The watches are real. Only Ansible is not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").write_text("Host *\n  IdentityFile none\n  UserKnownHostsFile none\n")
    entries = "\n".join(f"- {{name: gpu{n}, address: 127.0.0.1, port: {free_port()}}}" for n in range(300))
    (tmp_path / "r1prov.yml").write_text(f"profile: demo\nhosts:\n{entries}\n")
    site, hosts = select(None, [])
    watching = []

    def ansible(command, *_, **__):
        watching.extend(thread for thread in threading.enumerate() if thread.name.startswith("progress of"))
        assert int(command.env["ANSIBLE_FORKS"]) < 300
        yield Finished(0, Path("log"))

    monkeypatch.setattr(runs.ansible, "execute", ansible)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    decision = runs.settle(site, lambda _: None)

    class Silent:
        def event(self, event): ...

        def progress(self, progress): ...

    runs.play(
        Prepared(decision, hosts, ()), Login(ssh_config=tmp_path / "config"), Request("up", "r1prov up"), Silent()
    )
    assert len(watching) == runs.WATCHED
    for thread in watching:
        thread.join(30)
    assert not any(thread.is_alive() for thread in watching)


def test_root_asks_for_units_because_without_systemd_nobody_else_is_answered():
    class ForRootAlone:
        def run(self, argv, stdin="", *, root=False, timeout_s=30):
            told = {"elapsed_s": 1, "limit_s": None, "lock": None}
            return Result(0, json.dumps(told), "") if root else Result(1, "", "r1prov-units: run it as root")

    assert runs._bare("gpu1", ForRootAlone(), "r1prov-llama-server") is None
    assert read_pause(ForRootAlone()) is not None
