"""Tests of what keeps services where systemd does not: what it reads of unit files, and a keeper with real processes."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from supervised import known, log, program, supervisor, unit_file, verbs
from supervised.unit_file import Command, UnitFileError, parse

from tests.fixtures import service_units
from tests.fixtures.programs import installed

PROGRAM = Path(__file__).parents[2] / "roles/service/files/r1prov-units/command.py"
INSTALLED = installed("r1prov-units") / "command.py"
SITE = {
    "profile": "4x4090",
    "hosts": ["gpu1.example.com"],
    "gateway": {"server_name": "chat.example.com", "tls": {"type": "acme", "email": "admin@example.com"}},
    "sources": {"environment_file": "/etc/network_turbo"},
    "watch": "1h",
}


def test_each_setting_of_our_units_is_obeyed_or_said_to_be_lost(tmp_path):
    site = tmp_path / "r1prov.yml"
    site.write_text(yaml.safe_dump(SITE))
    units = service_units.rendered(site, tmp_path, namespace="")
    of_servers = re.compile(r".*\.socket|.*-door\.service|r1prov-network\.service")
    read = {name: parse(name, text) for name, text in units.items() if not of_servers.fullmatch(name)}
    engine = read["r1prov-llama-server.service"]
    assert engine.text("User") == "r1prov-llama"
    assert engine.seconds("TimeoutStopSec", 0) == 60
    for name in ("llama-server", "open-webui", "gateway", "measure"):
        first = read[f"r1prov-{name}.service"].commands("ExecStartPre")[0]
        assert (Path(first.argv[0]).name, first.as_root, first.may_fail) == ("nft", True, False)
    assert "r1prov-ollama.service" in read["r1prov-measure.service"].texts("Conflicts")
    assert engine.commands("ExecStart")[0].argv[0].endswith("/llama-server")


def test_a_setting_that_nobody_knows_is_refused():
    with pytest.raises(UnitFileError, match=r"r1prov-x\.service: nobody knows here what RootDirectory would do"):
        parse("r1prov-x.service", "[Service]\nRootDirectory=/\n")


def test_words_are_read_as_systemd_reads_them():
    unit = parse(
        "x.service",
        "[Service]\n"
        'ExecStart=-+/bin/sh -c \'echo "$$HOME"\' \\\n    "a \\"b\\" 100%%" ${CREDENTIALS_DIRECTORY}/key\n'
        'Environment="A=one two" "B=x"\n'
        "Environment=C=3\n"
        "# Restart=always\n"
        "Restart=on-failure\n"
        "Restart=\n",
    )
    words = ["/bin/sh", "-c", 'echo "$$HOME"', 'a "b" 100%', "${CREDENTIALS_DIRECTORY}/key"]
    assert unit.commands("ExecStart") == [Command(words, may_fail=True, as_root=True)]
    assert unit.environment == {"A": "one two", "B": "x", "C": "3"}
    assert unit.text("Restart", "no") == "no"
    assert unit_file.expanded(words[2], {}) == 'echo "$HOME"'
    assert unit_file.expanded(words[4], {"CREDENTIALS_DIRECTORY": "/run/c"}) == "/run/c/key"


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("5min", 300), ("2h", 7200), ("infinity", float("inf"))])
def test_times_are_read(text, seconds):
    assert parse("x.service", f"TimeoutStartSec={text}\n").seconds("TimeoutStartSec", 1) == seconds


def test_a_time_in_another_unit_is_refused():
    with pytest.raises(UnitFileError, match="TimeoutStartSec=2 fortnights is no length of time"):
        parse("x.service", "TimeoutStartSec=2 fortnights\n").seconds("TimeoutStartSec", 1)


def test_an_environment_file_gives_what_was_put_in():
    assert unit_file.environment_file('A="x \\"y\\" \\$z"\nB=plain\n') == {"A": 'x "y" $z', "B": "plain"}


TIMED = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ (.*)")


class Host:
    """A namespace of mounts in which the folders of units are empty, with keepers in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        mounts = "; ".join(
            f"mkdir -p {folder}{place} {place} && mount --bind {folder}{place} {place}"
            for place in ("/etc/systemd/system", "/var/lib/r1prov", "/run/r1prov", "/run/credentials")
        )
        self.inside = subprocess.Popen(
            ["unshare", "--mount", "--propagation=private", "sh", "-ec", f"{mounts}; echo made; exec sleep infinity"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.inside.stdout.readline() == "made\n"
        self.keepers: dict[str, subprocess.Popen[str]] = {}

    def run(self, *words: str) -> str:
        return self.command(sys.executable, "-I", str(INSTALLED), *words)

    def command(self, *argv: str) -> str:
        inside = ["nsenter", f"--target={self.inside.pid}", "--mount", *argv]
        done = subprocess.run(inside, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def keep(self, name: str, service: str, unit: str = "") -> None:
        text = f"[Unit]\n{unit}\n[Service]\nUser=nobody\nGroup=nogroup\n{service}\n"
        (self.folder / "etc/systemd/system" / name).write_text(text)
        command = ["nsenter", f"--target={self.inside.pid}", "--mount", sys.executable, "-I", INSTALLED, "keep", name]
        log_file = self.folder / "var/lib/r1prov/units/log" / f"{name}.log"
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with log_file.open("a") as out:
            self.keepers[name] = subprocess.Popen(command, stdout=out, stderr=out, text=True)

    def state(self, name: str) -> known.State:
        try:
            return known.State(**json.loads((self.folder / "run/r1prov/units" / f"{name}.json").read_text()))
        except FileNotFoundError:
            return known.State()

    def until(self, name: str, *subs: str, limit_s: float = 20) -> known.State:
        end = time.monotonic() + limit_s
        while (state := self.state(name)).SubState not in subs or not state.KeeperPID:
            assert time.monotonic() < end, (state, self.said(name))
            time.sleep(0.02)
        return state

    def said(self, name: str) -> list[str]:
        """What is in the log of a unit, without the times. Each line has to have one."""
        lines = (self.folder / "var/lib/r1prov/units/log" / f"{name}.log").read_text().splitlines()
        return [TIMED.fullmatch(line)[1] for line in lines]

    def close(self) -> None:
        for keeper in self.keepers.values():
            keeper.terminate()
        for keeper in self.keepers.values():
            keeper.wait(20)
        self.inside.kill()
        self.inside.wait()


@pytest.fixture
def host(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("a keeper becomes other users: run this as root")
    tmp_path.chmod(0o755)
    made = Host(tmp_path)
    yield made
    made.close()


@pytest.fixture
def booted(host):
    """A host on which supervisord runs, with one unit."""
    if not shutil.which("supervisord"):
        pytest.skip("supervisord is not installed")
    before = os.umask(0)
    (host.folder / "etc/systemd/system/r1prov-a.service").write_text("[Service]\nExecStart=/bin/sleep infinity\n")
    try:
        host.run("start", "r1prov-a")
        yield host
    finally:
        os.umask(before)
        host.run("shutdown")


def modes(*paths: Path) -> dict[str, str]:
    return {path.name: oct(path.stat().st_mode)[-3:] for path in paths}


def alive(pid: int) -> bool:
    return bool(known.began(pid))


def test_a_service_has_the_rights_of_its_user_and_no_others(host):
    host.keep(
        "r1prov-a.service",
        "Type=exec\nExecStart=/bin/sleep infinity\nUMask=0027\nNoNewPrivileges=yes\nCapabilityBoundingSet=\n"
        'Environment="A=b c"\nStateDirectory=r1prov/a\nLimitCORE=0',
    )
    pid = host.until("r1prov-a.service", "running").MainPID
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert status["Uid"].split() == ["65534"] * 4
    assert status["Groups"].split() == ["65534"]
    assert {status[key] for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Umask"]) == ("1", "0027")
    variables = dict(word.split("=", 1) for word in Path(f"/proc/{pid}/environ").read_text().split("\0") if word)
    assert (variables["A"], variables["STATE_DIRECTORY"]) == ("b c", "/var/lib/r1prov/a")
    assert "Max core file size        0" in Path(f"/proc/{pid}/limits").read_text()
    folder = (host.folder / "var/lib/r1prov/a").stat()
    assert (folder.st_uid, oct(folder.st_mode)[-3:]) == (65534, "700")


def test_only_the_program_gets_its_secret_while_it_runs(host):
    secret = host.folder / "secret"
    secret.write_text("hush")
    secret.chmod(0o600)
    host.keep(
        "r1prov-a.service",
        "Type=exec\nExecStart=/bin/sh -c 'cat \"$$0\"; exec sleep infinity' ${CREDENTIALS_DIRECTORY}/key\n"
        f"LoadCredential=key:{secret}",
    )
    host.until("r1prov-a.service", "running")
    copy = host.folder / "run/credentials/r1prov-a.service"
    time.sleep(0.3)
    assert "hush" in host.said("r1prov-a.service")[-1]
    assert [(path.stat().st_uid, oct(path.stat().st_mode)[-3:]) for path in (copy, copy / "key")] == [
        (65534, "500"),
        (65534, "400"),
    ]
    host.keepers["r1prov-a.service"].terminate()
    host.until("r1prov-a.service", "dead")
    assert not copy.exists()


def test_a_program_may_open_its_output_by_name(host):
    host.keep("r1prov-a.service", "Type=exec\nExecStart=/bin/sh -c 'echo here >> /dev/stdout; exec sleep infinity'")
    host.until("r1prov-a.service", "running")
    time.sleep(0.3)
    assert host.said("r1prov-a.service")[-1] == "here"


def test_a_service_that_dies_comes_back_and_is_given_up_after_some_starts(host):
    host.keep(
        "r1prov-a.service",
        "Type=exec\nExecStart=/bin/sleep infinity\nRestart=on-failure\nRestartSec=0.1",
        "StartLimitBurst=3\nStartLimitIntervalSec=60",
    )
    starts = set()
    for _ in range(3):
        state = host.until("r1prov-a.service", "running")
        starts.add(state.InvocationID)
        os.kill(state.MainPID, signal.SIGKILL)
        end = time.monotonic() + 10
        while host.state("r1prov-a.service").InvocationID == state.InvocationID and time.monotonic() < end:
            if host.state("r1prov-a.service").SubState == "failed":
                break
            time.sleep(0.02)
    state = host.until("r1prov-a.service", "failed")
    assert (len(starts), state.ActiveState, state.Result) == (3, "failed", "signal")
    assert host.keepers["r1prov-a.service"].wait(5) == 0
    assert "r1prov-a.service is given up after 3 starts" in host.said("r1prov-a.service")


@pytest.mark.parametrize(("code", "again"), [(0, False), (3, False), (4, True)])
def test_exit_codes_say_whether_it_is_started_again(host, code, again):
    host.keep(
        "r1prov-a.service",
        f"Type=oneshot\nExecStart=/bin/sh -c 'exit {code}'\nRestart=on-failure\nRestartSec=60\nRestartPreventExitStatus=3",
    )
    state = host.until("r1prov-a.service", "dead", "failed", "auto-restart")
    assert (state.SubState == "auto-restart") is again
    assert state.ExecMainStatus == code


def test_nothing_is_left_of_a_service_that_is_stopped(host):
    host.keep(
        "r1prov-a.service",
        "Type=exec\nTimeoutStopSec=1\nExecStopPost=-+/bin/sh -c 'echo ended: $$SERVICE_RESULT'\n"
        "ExecStart=/bin/sh -c 'trap \"\" TERM; (setsid sleep 1000 & ) ; while :; do sleep 1000; done'",
    )
    state = host.until("r1prov-a.service", "running")
    time.sleep(0.5)
    left = [int(pid) for pid in _below(state.KeeperPID)]
    assert len(left) == 3
    host.keepers["r1prov-a.service"].terminate()
    host.until("r1prov-a.service", "dead")
    assert not any(map(alive, left))
    assert host.said("r1prov-a.service")[-2:] == [
        "r1prov-a.service did not end in time, and was killed",
        "ended: success",
    ]


def test_the_log_says_when_each_start_began(host):
    host.keep("r1prov-a.service", "Type=exec\nExecStart=/bin/sh -c 'echo here; exec sleep infinity'")
    start = host.until("r1prov-a.service", "running").InvocationID
    time.sleep(0.3)
    assert host.said("r1prov-a.service") == [f"-- r1prov-units: start {start}", "here"]
    assert TIMED.match(host.run("log", "--start", start))[1] == "here"
    assert host.run("log", "--no-times", "--start", start) == "here\n"


def test_nothing_is_lost_of_what_a_service_prints_when_it_dies(host):
    program = (
        "import os; os.write(1, b'x' * 70000 + 300 * (b'line' + bytes([10])) + b'no end'); os.kill(os.getpid(), 9)"
    )
    host.keep("r1prov-a.service", f'Type=exec\nExecStart={sys.executable} -c "{program}"')
    host.until("r1prov-a.service", "failed")
    host.keepers["r1prov-a.service"].wait(20)
    assert host.said("r1prov-a.service")[1:] == [
        "x" * 70000 + "line",
        *["line"] * 299,
        "no endr1prov-a.service: the main process has ended by signal SIGKILL",
    ]


def test_a_service_dies_with_its_keeper(host):
    host.keep("r1prov-a.service", "Type=exec\nExecStart=/bin/sleep infinity")
    state = host.until("r1prov-a.service", "running")
    host.keepers["r1prov-a.service"].kill()
    end = time.monotonic() + 5
    while alive(state.MainPID):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_start_that_takes_too_long_has_failed(host):
    host.keep(
        "r1prov-a.service",
        "Type=exec\nExecStart=/bin/sleep infinity\nExecStartPost=/bin/sleep infinity\nTimeoutStartSec=1",
    )
    assert host.until("r1prov-a.service", "failed").Result == "timeout"


def test_a_start_that_is_not_ready_has_failed_when_the_program_ends(host):
    host.keep("r1prov-a.service", "Type=exec\nExecStart=/bin/sh -c 'exit 7'\nExecStartPost=/bin/sleep 1")
    state = host.until("r1prov-a.service", "failed")
    assert (state.Result, state.ExecMainStatus) == ("exit-code", 7)


def test_nobody_waits_for_a_program_that_has_ended(host):
    awaits = "/bin/sh -c 'while kill -0 $$MAINPID; do sleep 0.1; done; sleep 100'"
    host.keep("r1prov-a.service", f"Type=exec\nExecStart=/bin/sh -c 'sleep 0.5; exit 7'\nExecStartPost=-+{awaits}")
    assert host.until("r1prov-a.service", "failed", limit_s=5).Result == "exit-code"


def test_a_program_that_may_fail_need_not_be_there(host):
    host.keep("r1prov-a.service", "Type=exec\nExecStartPre=-+/usr/bin/no-such-program\nExecStart=/bin/sleep infinity")
    host.until("r1prov-a.service", "running")
    host.keep("r1prov-b.service", "Type=exec\nExecStartPre=+/usr/bin/no-such-program\nExecStart=/bin/sleep infinity")
    assert host.until("r1prov-b.service", "failed").Result == "resources"


def test_one_that_has_done_its_work_counts_as_active_until_it_is_stopped(host):
    host.keep("r1prov-a.service", "Type=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true")
    assert host.until("r1prov-a.service", "exited").ActiveState == "active"
    host.keepers["r1prov-a.service"].terminate()
    assert host.until("r1prov-a.service", "dead").ActiveState == "inactive"


def test_no_thread_of_a_keeper_dies_of_a_word_that_another_waits_for(host):
    """The kernel gives SIGTERM to whichever thread takes it at that moment."""
    host.keep("r1prov-a.service", "Type=exec\nExecStart=/bin/sleep infinity")
    keeper = host.until("r1prov-a.service", "running").KeeperPID
    (other,) = (path for path in Path(f"/proc/{keeper}/task").iterdir() if path.name != str(keeper))
    blocked = int(re.search(r"^SigBlk:\s(\w+)$", (other / "status").read_text(), re.MULTILINE)[1], 16)
    assert blocked & 1 << (signal.SIGTERM - 1)


def test_what_a_unit_tells_others_to_do_goes_on_when_it_has_ended(host):
    link = host.folder / "etc/systemd/system/multi-user.target.wants/r1prov-a.service"
    tells = f"ExecStopPost=+{sys.executable} -I {INSTALLED} --no-block enable r1prov-a.service"
    leaves = "ExecStopPost=+/bin/sh -c 'setsid sleep 4321 &'"
    host.keep(
        "r1prov-a.service", f"Type=exec\nExecStart=/bin/true\n{tells}\n{leaves}\n[Install]\nWantedBy=multi-user.target"
    )
    host.until("r1prov-a.service", "dead")
    end = time.monotonic() + 5
    while not link.is_symlink():
        assert time.monotonic() < end
        time.sleep(0.02)
    assert not subprocess.run(["pgrep", "--full", "^sleep 4321"], check=False, capture_output=True).stdout


def test_a_second_keeper_waits_for_the_first(host):
    host.keep("r1prov-a.service", "Type=exec\nExecStart=/bin/sleep infinity")
    first, keeper = host.until("r1prov-a.service", "running"), host.keepers["r1prov-a.service"]
    host.keep("r1prov-a.service", "Type=exec\nExecStart=/bin/sleep infinity")
    time.sleep(0.7)
    assert host.state("r1prov-a.service") == first
    keeper.terminate()
    keeper.wait(10)
    end = time.monotonic() + 10
    while (second := host.until("r1prov-a.service", "running")).MainPID == first.MainPID:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert (alive(first.MainPID), alive(second.MainPID)) == (False, True)


def test_all_that_is_known_of_a_unit_is_shown_where_no_property_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(unit_file, "FOLDER", tmp_path)
    monkeypatch.setattr(verbs, "FOLDER", tmp_path)
    monkeypatch.setattr(known, "FOLDER", tmp_path)
    (tmp_path / "r1prov-x.service").write_text(
        "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n"
    )
    shown = dict(line.split("=", 1) for line in verbs.show(["r1prov-x"], []).splitlines())
    assert (shown["LoadState"], shown["UnitFileState"]) == ("loaded", "disabled")
    assert (shown["ActiveState"], shown["MainPID"], shown["NRestarts"]) == ("inactive", "0", "0")
    assert verbs.show(["r1prov-x"], ["ActiveState", "LoadState"]) == "ActiveState=inactive\nLoadState=loaded"


def test_what_starts_with_supervisord_is_started_before_whoever_started_it_goes_on(tmp_path, monkeypatch):
    """Otherwise a unit that is enabled next is started by supervisord's boot, and once more by whoever has enabled it."""
    told = ["STOPPED", "STARTING", "RUNNING", "EXITED"]

    def ask(what: str, *words: str) -> object:
        if what == "getPID" and not begun:
            raise supervisor.SupervisorError("nobody answers")
        return {"statename": told.pop(0)} if (what, *words) == ("getProcessInfo", "boot") else 1

    begun: list[list[str]] = []
    monkeypatch.setattr(known, "FOLDER", tmp_path)
    monkeypatch.setattr(unit_file, "FOLDER", tmp_path)
    for name, place in {"FOLDER": tmp_path, "STATE": tmp_path, "LOG": tmp_path / "log", "_ask": ask}.items():
        monkeypatch.setattr(supervisor, name, place)
    monkeypatch.setattr(program, "detach", begun.append)
    monkeypatch.setattr(program, "CREDENTIALS", tmp_path / "credentials")
    supervisor.boot()
    assert begun
    assert not told
    supervisor.boot()  # It runs already, so nothing is waited for.


def test_a_data_disk_that_is_away_is_waited_for(tmp_path, monkeypatch, capsys):
    disk, link, run = tmp_path / "disk", tmp_path / "lib", tmp_path / "run"
    link.symlink_to(disk)
    run.mkdir()
    for module in (known, unit_file, verbs, supervisor):
        monkeypatch.setattr(module, "FOLDER", run)
    for name, place in {"STATE": link / "units", "LOG": link / "units/log"}.items():
        monkeypatch.setattr(supervisor, name, place)
    monkeypatch.setattr(supervisor, "is_there", lambda: False)
    monkeypatch.setattr(program, "CREDENTIALS", tmp_path / "credentials")
    begun: list[list[str]] = []
    monkeypatch.setattr(program, "detach", begun.append)
    away = f"the data disk is away: {link} leads to {disk}, which is not there"
    with pytest.raises(supervisor.SupervisorError, match=f"{away}. The services start when it comes"):
        supervisor.boot()
    assert begun == [program.again("loop")]
    with pytest.raises(supervisor.SupervisorError, match=away):
        verbs.daemon_reload()
    assert supervisor.differences() == [away]
    assert verbs.status().splitlines()[-1] == away
    passes: list[bool] = []

    def sleep(_: float) -> None:
        passes.append(disk.exists())
        if len(passes) == 2:
            disk.mkdir()

    def run_supervisord(*_: object, **__: object) -> None:
        assert (link / "units/supervisord.conf").exists()
        (run / "down").touch()

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(supervisor.subprocess, "run", run_supervisord)
    supervisor.loop()
    assert passes == [False, False, True]
    assert supervisor.away() == ""


def test_the_host_does_not_wait_for_the_start_of_a_unit_that_runs_already(tmp_path, monkeypatch):
    """It would hold the unit meanwhile, and whoever stops the unit would wait, too."""
    for module in (known, unit_file, verbs, supervisor):
        monkeypatch.setattr(module, "FOLDER", tmp_path)
    monkeypatch.setattr(supervisor, "STATE", tmp_path)
    asked: list[str] = []

    def ask(what: str, *_: str) -> object:
        asked.append(what)
        raise supervisor.SupervisorError("nobody answers")

    monkeypatch.setattr(supervisor, "_ask", ask)
    (tmp_path / "r1prov-x.service").write_text("[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=x.target\n")
    verbs.enable("r1prov-x")
    with known.kept("r1prov-x.service", lambda: None):
        verbs.start_enabled()
    assert asked == []


def test_nobody_but_root_can_hold_what_commands_wait_for(tmp_path, monkeypatch):
    """A lock can be held by whoever can open its file, also for reading."""
    folder = tmp_path / "units"
    monkeypatch.setattr(known, "FOLDER", folder)
    folder.mkdir()
    folder.chmod(0o755)
    (folder / "old.lock").touch()
    (folder / "old.lock").chmod(0o644)
    before = os.umask(0)
    try:
        with known.held("a.change"), known.kept("old", lambda: None), known.job("a"):
            known.write("a", known.State())
    finally:
        os.umask(before)
    assert {path.name: oct(path.stat().st_mode)[-3:] for path in (folder, *folder.iterdir())} == {
        "units": "700",
        "a.change": "600",
        "old.lock": "600",
        "a.job": "600",
        "a.json": "600",
    }


def test_only_root_reads_what_supervisord_writes(booted):
    units, run = booted.folder / "var/lib/r1prov/units", booted.folder / "run/r1prov/units"
    logs = units / "log"
    names = ("supervisord.log", "boot.log", "guard.log", "r1prov-a.service.log")
    assert modes(units, logs, *logs.iterdir()) == {"units": "700", "log": "700"} | dict.fromkeys(names, "600")
    assert modes(run, run / "supervisord.pid") == {"units": "700", "supervisord.pid": "600"}
    assert modes(booted.folder / "run/credentials") == {"credentials": "711"}
    assert "Umask:\t0022" in Path(f"/proc/{booted.state('r1prov-a.service').MainPID}/status").read_text()


def test_what_others_may_read_is_closed_when_supervisord_reads_anew(booted):
    logs = booted.folder / "var/lib/r1prov/units/log"
    for path in (logs.parent, logs, *logs.iterdir()):
        path.chmod(0o777)
    booted.run("daemon-reload")
    assert set(modes(logs.parent, logs).values()) == {"700"}
    assert set(modes(*logs.iterdir()).values()) == {"600"}


def test_what_somebody_has_changed_of_supervisord_is_named_and_put_right(booted):
    units = booted.folder / "var/lib/r1prov/units"
    evil = units / "evil.conf"
    before = booted.state("r1prov-a.service")
    assert booted.run("differences") == ""
    main = (units / "supervisord.conf").read_text()
    (units / "supervisord.conf").write_text(main.replace("chmod=0700", "chmod=0777"))
    evil.write_text("[program:evil]\ncommand=/bin/sleep infinity\n")
    (units / "r1prov-a.service.conf").unlink()
    (units / "r1prov-a.service.conf").symlink_to("/dev/null")
    (units / "supervisor.sock").chmod(0o666)
    units.chmod(0o777)  # The role names that by itself.
    place = "/var/lib/r1prov/units"
    assert booted.run("differences").splitlines() == [
        f"{place}/evil.conf is in the folder of supervisord's configuration, and no part of r1prov has made it",
        f"{place}/r1prov-a.service.conf has other content than r1prov gave it",
        f"{place}/supervisord.conf has other content than r1prov gave it",
        f"{place}/supervisor.sock has mode 0666, and should have 0700",
        f"{place}/evil.conf has mode 0666, and should have 0600",
    ]
    assert booted.run("daemon-reload") == "supervisord has another configuration now\n"
    assert booted.run("differences") == booted.run("daemon-reload") == ""
    assert (units / "supervisord.conf").read_text() == main
    assert not evil.exists()
    assert modes(units / "supervisor.sock") == {"supervisor.sock": "700"}
    assert booted.state("r1prov-a.service") == before  # It goes on.


def test_what_supervisord_runs_beside_units_ends(booted):
    units = booted.folder / "var/lib/r1prov/units"
    (units / "evil.conf").write_text("[program:evil]\ncommand=/bin/sleep infinity\n")
    booted.command("supervisorctl", "--serverurl=unix:///var/lib/r1prov/units/supervisor.sock", "update")
    (units / "evil.conf").unlink()
    assert booted.run("differences") == "supervisord runs evil, and no part of r1prov has made that\n"
    booted.run("daemon-reload")
    assert booted.run("differences") == ""


def test_a_unit_for_which_supervisord_runs_something_else_gets_its_keeper_back(booted):
    file = booted.folder / "var/lib/r1prov/units/r1prov-a.service.conf"
    file.write_text("[program:r1prov-a.service]\ncommand=/bin/sleep infinity\nautostart=true\n")
    booted.command("supervisorctl", "--serverurl=unix:///var/lib/r1prov/units/supervisor.sock", "update")
    assert booted.state("r1prov-a.service").ActiveState == "inactive"
    booted.run("daemon-reload")
    booted.run("start", "r1prov-a")
    assert booted.state("r1prov-a.service").ActiveState == "active"


def test_a_unit_that_comes_or_goes_is_no_difference(booted):
    folder = booted.folder / "etc/systemd/system"
    (folder / "r1prov-b.service").write_text("[Service]\nExecStart=/bin/true\n")
    assert booted.run("differences") == ""
    (folder / "r1prov-a.service").unlink()
    assert booted.run("differences") == ""
    booted.run("daemon-reload")
    assert booted.run("differences") == ""


@pytest.mark.parametrize(
    "words", [[], ["stop", "r1prov-a"], ["log", "r1prov-a"], ["show", "r1prov-a"], ["no-such-verb"]]
)
def test_who_is_not_root_is_told_so_and_nothing_else(monkeypatch, capsys, words):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sys, "argv", ["r1prov-units", *words])
    assert runpy.run_path(str(PROGRAM))["main"]() == 1
    assert capsys.readouterr() == ("", "r1prov-units: run it as root\n")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("status", 0, "no unit of r1prov is installed"),
        ("", 0, "no unit of r1prov is installed"),
        ("frobnicate", 1, "r1prov-units knows no verb frobnicate"),
        ("frobnicate --no-block", 1, "r1prov-units knows no verb frobnicate"),
        ("keep", 1, "r1prov-units keep wants the name of a unit"),
        ("stop", 1, "r1prov-units stop wants the name of a unit"),
        ("show", 1, "r1prov-units show wants the name of a unit"),
        ("stop --now r1prov-x", 1, "r1prov-units stop takes no --now"),
        ("boot r1prov-x", 1, "r1prov-units boot takes no unit"),
        ("kill other --signal=FOO", 1, "there is no signal FOO"),
        ("start r1prov-x", 5, "Unit r1prov-x.service not found."),
        ("start --no-block r1prov-x", 5, "Unit r1prov-x.service not found."),
        ("stop nosuch r1prov-x.timer", 5, "Unit nosuch.service, r1prov-x.timer not found."),
        ("restart r1prov-x", 5, "Unit r1prov-x.service not found."),
        ("reload r1prov-x", 5, "Unit r1prov-x.service not found."),
        ("try-reload-or-restart r1prov-x", 5, "Unit r1prov-x.service not found."),
        ("enable --now r1prov-x", 1, "Unit r1prov-x.service not found."),
        ("disable r1prov-x", 1, "Unit r1prov-x.service not found."),
        ("kill r1prov-x", 1, "Unit r1prov-x.service not found."),
        ("reset-failed r1prov-x", 1, "Unit r1prov-x.service not found."),
        ("reset-failed r1prov*", 0, ""),
        ("cat r1prov-x", 1, "Unit r1prov-x.service not found."),
        ("status r1prov-x", 4, "Unit r1prov-x.service not found."),
        ("is-enabled r1prov-x", 1, "Unit r1prov-x.service not found."),
        ("is-active r1prov-x", 3, "inactive"),
        ("log", 1, "r1prov-units log wants the name of a unit"),
        ("log --follow", 1, "r1prov-units log wants the name of a unit"),
        ("log nosuch", 1, "Unit nosuch.service not found, and it has no log."),
        ("log --follow nosuch", 1, "Unit nosuch.service not found, and it has no log."),
        ("list-units", 0, ""),
    ],
)
def test_words_that_do_not_belong_together_are_refused_in_a_sentence(tmp_path, monkeypatch, capsys, words, code, said):
    for module in (known, unit_file, verbs, supervisor):
        monkeypatch.setattr(module, "FOLDER", tmp_path)
    monkeypatch.setattr(supervisor, "is_there", lambda: True)
    monkeypatch.setattr(supervisor, "LOG", tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(sys, "argv", ["r1prov-units", *words.split()])
    (tmp_path / "other.service").touch()
    assert runpy.run_path(str(PROGRAM))["main"]() == code
    out, err = capsys.readouterr()
    assert (out + err).strip() == said


def test_logs_of_several_units_are_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(supervisor, "LOG", tmp_path)
    monkeypatch.setattr(log, "LOG", tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for name in "ab":
        (tmp_path / f"r1prov-{name}.service.log").write_text(f"{name}\n")
    monkeypatch.setattr(sys, "argv", ["r1prov-units", "log", "r1prov-a", "r1prov-b"])
    assert runpy.run_path(str(PROGRAM))["main"]() == 0
    assert capsys.readouterr().out == "a\nb\n"


def test_what_one_start_has_written_is_found_in_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr(log, "LOG", tmp_path)
    at = "2026-11-30T10:00:00Z "
    (tmp_path / "r1prov-a.service.log.1").write_text(f"{at}-- r1prov-units: start one\n{at}old\n")
    (tmp_path / "r1prov-a.service.log").write_text(f"{at}older\n{at}-- r1prov-units: start two\n{at}new\n")
    assert log.lines("r1prov-a.service", "one") == [f"{at}old", f"{at}older"]
    assert log.lines("r1prov-a.service", "one", times=False) == ["old", "older"]
    assert log.lines("", "two", times=False) == ["new"]
    assert log.lines("", "three") == []
    assert len(log.lines("r1prov-a.service", "")) == 5


def _below(pid: int) -> list[str]:
    found = subprocess.run(["pgrep", "--parent", str(pid)], capture_output=True, text=True, check=False).stdout.split()
    return [*found, *(deeper for each in found for deeper in _below(int(each)))]


SLEEPS = "[Service]\nExecStart=/bin/sleep infinity\n"


def put(host: Host, name: str, text: str) -> None:
    (host.folder / "etc/systemd/system" / name).write_text(text)


def test_of_units_that_exclude_each_other_the_one_that_is_started_runs(booted):
    put(booted, "r1prov-b.service", f"[Unit]\nConflicts=r1prov-a.service\n{SLEEPS}")
    for starts, ends in (("b", "a"), ("a", "b"), ("b", "a")):
        booted.run("start", f"r1prov-{starts}")
        now = [booted.state(f"r1prov-{each}.service").ActiveState for each in (starts, ends)]
        assert now == ["active", "inactive"]


def test_a_unit_waits_until_one_that_comes_before_it_is_ready(booted):
    ready = booted.folder / "ready"
    put(booted, "r1prov-b.service", f"{SLEEPS}ExecStartPost=/bin/sh -c 'until [ -e {ready} ]; do sleep 0.05; done'\n")
    put(booted, "r1prov-c.service", f"[Unit]\nAfter=r1prov-b.service\n{SLEEPS}")
    booted.run("start", "--no-block", "r1prov-b")
    booted.until("r1prov-b.service", "start-post")
    booted.run("start", "--no-block", "r1prov-c")
    booted.until("r1prov-c.service", "waiting")
    ready.touch()
    booted.until("r1prov-c.service", "running")
    assert booted.state("r1prov-b.service").ActiveState == "active"


def test_a_service_does_not_start_beside_an_empty_file_that_it_must_have(booted):
    rules = booted.folder / "run/r1prov/rules"
    rules.write_text("")
    booted.keep("r1prov-c.service", "ExecStart=/bin/sleep infinity", "AssertFileNotEmpty=/run/r1prov/rules")
    assert booted.until("r1prov-c.service", "failed").Result == "assert"
    assert "because /run/r1prov/rules is empty" in "".join(booted.said("r1prov-c.service"))
    rules.write_text("rules")
    booted.run("start", "r1prov-c")
    assert booted.state("r1prov-c.service").SubState == "running"


def test_a_timer_starts_its_service_again_and_again_until_it_is_stopped(booted):
    ran = booted.folder / "ran"
    put(booted, "r1prov-b.service", f"[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo >> {ran}'\n")
    put(booted, "r1prov-b.timer", "[Timer]\nOnActiveSec=0\nOnUnitInactiveSec=0.1\n")
    booted.run("start", "r1prov-b.timer")
    end = time.monotonic() + 30
    while not ran.exists() or ran.read_text().count("\n") < 2:
        assert time.monotonic() < end
        time.sleep(0.05)
    booted.run("stop", "r1prov-b.timer")
    last = ran.read_text()
    time.sleep(2)
    assert ran.read_text() == last


def test_the_log_of_a_unit_has_a_bound_and_its_end(booted):
    line, most = "x" * 999, 32 << 20
    command = f"yes {line} | head -n 45000; echo the end"
    put(booted, "r1prov-b.service", f"[Service]\nType=oneshot\nExecStart=/bin/sh -c '{command}'\n")
    booted.run("start", "r1prov-b")
    kept = [*(booted.folder / "var/lib/r1prov/units/log").glob("r1prov-b.service.log*")]
    assert len(kept) == 3
    assert (10 << 20) < sum(path.stat().st_size for path in kept) < most
    assert booted.run("log", "r1prov-b", "--lines", "1").endswith(" the end\n")


def test_a_person_may_ask_about_one_unit(booted):
    put(booted, "r1prov-b.service", SLEEPS)
    assert [line.split()[0] for line in booted.run("status", "r1prov-b").splitlines()] == ["r1prov-b.service"]
    assert len(booted.run("status").splitlines()) == 2


def test_what_a_script_of_the_platform_sets_the_program_has(host):
    put(host, "source me.sh", "export https_proxy=http://127.0.0.1:7890\n")
    wrapped = '/bin/bash -c \'. "$$0" && exec "$$@"\' "/etc/systemd/system/source me.sh" /bin/sleep infinity'
    host.keep("r1prov-a.service", f"Type=exec\nExecStart={wrapped}")
    pid = host.until("r1prov-a.service", "running").MainPID
    end = time.monotonic() + 20
    while Path(f"/proc/{pid}/comm").read_text() != "sleep\n":
        assert time.monotonic() < end
        time.sleep(0.02)
    assert "https_proxy=http://127.0.0.1:7890" in Path(f"/proc/{pid}/environ").read_text().split("\0")
