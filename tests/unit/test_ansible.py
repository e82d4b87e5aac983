"""Tests of ansible-playbook's arguments and environment as values, and of real runs of it on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from ansible_collections.r1.prov.plugins.module_utils.steps import Step

from r1prov.common import paths
from r1prov.common.units import GIB
from r1prov.hosts import Passwords
from r1prov.runs import ansible, guard
from r1prov.runs.ansible import Command, Translator, playbook_command
from r1prov.runs.events import Finished, HostFailed, HostUnreachable, Output, Recap, StepStarted, Tally, TaskDone

BIN = Path(sys.executable).parent
ROOT = paths.collection()


def test_the_whole_command():
    assert playbook_command("up", Path("/s/inventory"), n_hosts=2) == Command(
        argv=(f"{BIN}/ansible-playbook", f"{ROOT}/playbooks/up.yml", "-i", "/s/inventory"),
        env={
            "ANSIBLE_CONFIG": f"{ROOT}/ansible.cfg",
            "ANSIBLE_COLLECTIONS_PATH": str(paths.collections_path()),
            "ANSIBLE_FORKS": "2",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_HOST_KEY_CHECKING": "True",
        },
        cwd=Path("/s"),
    )


def test_every_option():
    command = playbook_command(
        "bench",
        Path("/s/inventory"),
        n_hosts=0,
        limit=["gpu1", "gpu2:2222"],
        variables={"r1prov_break_lock": True},
        ssh_config=Path("/my sites/ssh_config"),
        verbosity=2,
        check=True,
        diff=True,
        told_as="r1prov up",
    )
    assert command.argv[3:] == (
        "/s/inventory",
        "--limit",
        "gpu1,gpu2:2222",
        "-e",
        '{"r1prov_break_lock": true}',
        "--check",
        "--diff",
        "-vv",
    )
    assert command.env["ANSIBLE_FORKS"] == "1"
    assert command.env["R1PROV_COMMAND"] == "r1prov up"
    assert command.env["ANSIBLE_SSH_COMMON_ARGS"] == "-F '/my sites/ssh_config'"


@pytest.mark.parametrize(
    ("hosts", "cpus", "memory", "expected"),
    [
        (3, 2, 4 * GIB, 3),
        (0, 2, 4 * GIB, 1),
        (300, 2, 4 * GIB, 25),  # a quarter of the memory, at 40 MiB each
        (300, 2, 64 * GIB, 50),
        (300, 8, 64 * GIB, 200),
        (300, 64, 512 * GIB, 300),
        (300, 1, GIB // 64, 1),
    ],
)
def test_forks_are_as_many_as_hosts_cpus_and_memory_allow(hosts, cpus, memory, expected):
    assert ansible.forks(hosts, cpus, memory) == expected


def test_the_shell_line_is_the_same_command(tmp_path):
    command = Command(("sh", "-c", 'printf %s "$A|$1|$PWD"', "sh", "it's"), {"A": "b c"}, tmp_path)
    done = subprocess.run(["sh", "-c", command.shell()], capture_output=True, text=True, check=True)
    assert done.stdout == f"b c|it's|{tmp_path}"


def test_steps_are_the_roles_of_a_playbook():
    steps = ansible.steps_of("up")
    roles = [step.role for step in steps]
    assert roles[:6] == ["preflight", "open_webui", "gateway", "data_disk", "build_deps", "service"]
    assert roles.count("weights") == 3  # the transfer starts, the run waits for it, and replaced files go


def test_a_step_that_comes_again_says_what_for():
    steps = ansible.steps_of("up")
    again = [step for step in steps if sum(step.role == other.role for other in steps) > 1]
    twice = {"weights", "cuda_toolkit", "llama_cpp", "ollama", "open_webui", "gateway", "llama_server"}
    assert {step.role for step in again} == twice
    assert all(step.why and len(step.why) <= 40 for step in again)
    assert len(set(again)) == len(again)
    assert ("ollama", "install") in [(step.role, step.why) for step in again]
    assert not any(step.why for step in steps if step not in again)


def test_a_step_is_due_where_what_it_builds_upon_differs():
    def due(*tags):
        return list(dict.fromkeys(step.role for step in ansible.steps_of("up", tags)))

    assert due("lock") == ["preflight", "smoke_bench"]
    assert due("gateway") == ["preflight", "gateway", "smoke_bench"]
    assert due("cuda_toolkit") == [
        "preflight",
        "cuda_toolkit",
        "llama_cpp",
        "rpc_server",
        "llama_server",
        "embeddings",
        "smoke_bench",
    ]
    assert due("weights", "gateway") == ["preflight", "gateway", "weights", "ollama", "llama_server", "smoke_bench"]
    every = {step.role for step in ansible.steps_of("up")}
    assert set(due("build_deps")) == every - {"operators", "watch", "data_disk"}
    assert set(due("data_disk")) == every  # whose services it has stopped, and whose folders it has moved
    assert every - {"preflight", "smoke_bench"} <= {tag for step in ansible.steps_of("up") for tag in step.tags}


def test_a_role_that_other_steps_bring_in_is_a_step_before_them():
    """A step is known by its role. One that came later would be taken for what the others bring in."""
    roles = [step.role for step in ansible.steps_of("up")]
    assert roles.index("service") < roles.index("weights")
    assert (roles.count("service"), roles.count("operators")) == (1, 1)


def test_hosts_of_a_stopped_run_of_some_steps_are_unlocked():
    words = [BIN / "ansible-playbook", "-i", "gpu1,", "--tags", "gateway", "--list-tasks", "playbooks/unlock.yml"]
    listed = subprocess.run(words, cwd=ROOT.resolve(), capture_output=True, text=True, check=True)
    assert "Unlock the host" in listed.stdout


def test_all_steps_of_a_role_are_due_together():
    """Otherwise what a run of some steps expects would be taken for all that its roles do."""
    found = {}
    for step in ansible.steps_of("up"):
        assert found.setdefault(step.role, step.tags) == step.tags
        assert step.role in step.tags or step.tags == ("always",)


def raw(event, **data):
    return {"event": event, "event_data": data}


def test_a_step_is_a_role_of_the_playbook_and_what_it_includes():
    steps = [Step("weights", "start"), Step("llama_cpp"), Step("weights", "wait"), Step("llama_server")]
    translator = Translator(steps)
    roles = ["", "weights", "weights", "r1.prov.llama_cpp", "weights", "llama_server", "service", "llama_server", ""]
    events = [e for role in roles for e in translator.translate(raw("runner_on_start", host="a", task="t", role=role))]
    assert [e for e in events if isinstance(e, StepStarted)] == [
        StepStarted("a", "weights", 1, 4, "start"),
        StepStarted("a", "llama_cpp", 2, 4),
        StepStarted("a", "weights", 3, 4, "wait"),
        StepStarted("a", "llama_server", 4, 4),
    ]
    assert [e.step for e in events if not isinstance(e, StepStarted)][-3:] == ["llama_server"] * 3


def test_the_other_events():
    translate = Translator([]).translate
    assert list(translate(raw("runner_on_failed", host="a", task="t", res={"msg": "no"}))) == [
        HostFailed("a", "", "t", {"msg": "no"})
    ]
    assert list(translate(raw("runner_on_failed", host="a", task="t", res={}, ignore_errors=True))) == []
    assert list(translate(raw("runner_on_unreachable", host="a", task="t", res={"msg": "gone\n"}))) == [
        HostUnreachable("a", "", "gone")
    ]
    stats = {
        "ok": {"a": 3},
        "changed": {"a": 1},
        "failures": {},
        "dark": {"b": 1},
        "skipped": {},
        "processed": {"b": 1, "a": 1},
    }
    assert list(translate(raw("playbook_on_stats", **stats))) == [
        Recap({"a": Tally(3, 1, 0, 0, 0), "b": Tally(0, 0, 0, 1, 0)})
    ]


PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Make a file
      ansible.builtin.copy: {content: "hello", dest: "{{ inventory_dir }}/../made", mode: "0600"}
    - name: See the environment
      ansible.builtin.command: env
      changed_when: false
    - name: Keep a secret
      ansible.builtin.command: "echo {{ 'hush' + 'hush' }}"
      changed_when: false
      no_log: true
"""


@pytest.fixture
def play(tmp_path, monkeypatch):
    """A function that runs a playbook of a collection with this machine as its inventory."""
    (tmp_path / "playbooks").mkdir()
    (tmp_path / "inventory").mkdir()
    (tmp_path / "artifacts").mkdir(mode=0o700)
    (tmp_path / "ansible.cfg").write_text(f"[defaults]\ninterpreter_python = {sys.executable}\n")
    (tmp_path / "inventory" / "hosts.yml").write_text("all: {hosts: {here: {ansible_connection: local}}}")
    monkeypatch.setattr(paths, "collection", lambda: tmp_path)

    def start(text, passwords=None, n_hosts=1, **options):
        (tmp_path / "playbooks" / "x.yml").write_text(text)
        command = playbook_command("x", tmp_path / "inventory", n_hosts=n_hosts, **options)
        return ansible.execute(command, tmp_path / "artifacts", steps=ansible.steps_of("x"), passwords=passwords)

    return start


def test_a_real_run(tmp_path, play, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_exported")
    monkeypatch.setenv("ANSIBLE_STDOUT_CALLBACK", "minimal")
    monkeypatch.setenv("ANSIBLE_CHECK_MODE_MARKERS", "noise")
    events = list(play(PLAY))
    done = {event.task: event for event in events if isinstance(event, TaskDone)}
    assert done["Make a file"].changed
    seen = dict(line.split("=", 1) for line in done["See the environment"].result["stdout_lines"] if "=" in line)
    assert "HF_TOKEN" not in seen
    assert "ANSIBLE_CHECK_MODE_MARKERS" not in seen
    assert seen["HOME"] == os.environ["HOME"]
    assert "TASK [Make a file]" in "".join(e.text for e in events if isinstance(e, Output))
    assert events[-2] == Recap({"here": Tally(3, 1, 0, 0, 0)})
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.code == 0
    assert last.log.stat().st_mode & 0o077 == 0
    everything = b"".join(path.read_bytes() for path in (tmp_path / "artifacts").rglob("*") if path.is_file())
    assert b"TASK [Make a file]" in everything
    assert b"hf_exported" not in everything
    assert b"hushhush" not in everything


def test_a_small_controller_works_on_few_hosts_at_once(tmp_path, play, monkeypatch):
    monkeypatch.setattr(ansible, "FORK_BYTES", os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4 // 2)
    hosts = ", ".join(f"gpu{n}: {{ansible_connection: local}}" for n in range(6))
    (tmp_path / "inventory" / "hosts.yml").write_text(f"all: {{hosts: {{{hosts}}}}}")
    (tmp_path / "working").mkdir()
    count = f"cd {tmp_path}; mkdir working/$$; ls working | wc -l >> counts; sleep 0.4; rmdir working/$$"
    tasks = [{"ansible.builtin.raw": count}]
    play_of_all = [{"hosts": "all", "strategy": "free", "gather_facts": False, "tasks": tasks}]
    events = list(play(json.dumps(play_of_all), n_hosts=6))
    assert len(next(event.hosts for event in events if isinstance(event, Recap))) == 6
    counts = [int(line) for line in (tmp_path / "counts").read_text().split()]
    assert (len(counts), max(counts)) == (6, 2)


def test_check_and_diff_change_nothing_and_show_it(tmp_path, play):
    events = list(play(PLAY, check=True, diff=True))
    assert not (tmp_path / "made").exists()
    assert "+hello" in "".join(event.text for event in events if isinstance(event, Output) and event.is_diff)


def test_passwords_reach_ansible_and_lie_nowhere(tmp_path, play, monkeypatch):
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    text = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.debug: {msg: "{{ lookup('ansible.builtin.pipe', 'find ' ~ dir ~ ' -type f') }}"}
      vars: {dir: "{{ lookup('ansible.builtin.env', 'XDG_RUNTIME_DIR') }}"}
"""
    events = list(play(text, Passwords(ssh="s3cret-ssh", sudo="s3cret-sudo")))
    (done,) = [event for event in events if isinstance(event, TaskDone)]
    assert done.result["msg"] == ""  # the file is gone before the first task
    assert list(runtime.iterdir()) == []
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"s3cret" not in everything
    assert "s3cret" not in repr(Passwords(ssh="s3cret-ssh", sudo="s3cret-sudo"))


def test_a_failed_task(play):
    events = list(play("- {hosts: all, gather_facts: false, tasks: [ansible.builtin.fail: {msg: out of luck}]}"))
    (failed,) = [event for event in events if isinstance(event, HostFailed)]
    assert failed.result["msg"] == "out of luck"
    assert events[-1].code == 2


def test_a_broken_playbook_ends_with_ansibles_words(play):
    events = list(play("- {hosts: all, tasks: [no.such.module: {}]}"))
    assert events[-1].code != 0
    assert "no.such.module" in "".join(event.text for event in events if isinstance(event, Output))


def processes_with(*words):
    """The processes of this machine whose arguments contain one of the words."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # the process has ended meanwhile
            continue
        found += [arguments] if any(word in arguments for word in words) else []
    return found


def wait_for(condition, limit_s=120):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def long_play(tmp_path, play):
    """The text of a play whose tasks last, here and over ssh, and a word that their processes have among their arguments.

    The task of the host `busy` is deaf, as apt is while it works. It leaves the file `finished`.
    """
    task = f"sleep 612{os.getpid()}"
    ssh = tmp_path / "ssh"
    ssh.write_text(
        "#!/bin/sh\ntrap '' INT TERM HUP\nwhile sleep 0.5; do :; done\n"
    )  # in a session of its own, and deaf
    ssh.chmod(0o755)
    deaf = f"sh -c \"trap '' INT; touch {tmp_path}/begun; sleep 4; touch {tmp_path}/finished\""
    hosts = {
        "here": {"ansible_connection": "local", "task": task},
        "busy": {"ansible_connection": "local", "task": deaf},
        "there": {"ansible_ssh_executable": str(ssh), "task": task},
    }
    (tmp_path / "inventory" / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
    return "- {hosts: all, gather_facts: false, tasks: [ansible.builtin.command: '{{ task }}']}", task


def works(folder, task):
    here = [arguments for arguments in processes_with(task) if arguments.startswith(task)]
    return bool(here and processes_with(f"{folder}/ssh") and (folder / "begun").exists())


def test_closing_early_stops_ansible_and_all_that_it_has_started(tmp_path, play, long_play):
    text, task = long_play
    events = play(text, n_hosts=3)
    for event in events:
        if type(event).__name__ == "TaskStarted":
            break
    wait_for(lambda: works(tmp_path, task))
    assert processes_with(f"{tmp_path}/playbooks")
    events.close()
    assert processes_with(f"{tmp_path}/playbooks", f"{tmp_path}/ssh", task) == []
    wait_for((tmp_path / "finished").exists, limit_s=10)


def test_whoever_kills_r1prov_alone_ends_ansible_and_all_that_it_has_started(tmp_path, play, long_play):
    text, task = long_play
    (victim := os.fork()) or _run_and_die(play(text, n_hosts=3))
    try:
        wait_for(lambda: works(tmp_path, task))
    finally:
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
    wait_for(
        lambda: processes_with(f"{tmp_path}/playbooks", f"{tmp_path}/ssh", task) == [], limit_s=guard.PATIENCE_S + 10
    )


def _run_and_die(events):
    with contextlib.suppress(BaseException):
        list(events)
    os._exit(1)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_ansible_that_is_killed_leaves_nothing_behind(tmp_path, play, long_play, number):
    text, task = long_play
    events = play(text, n_hosts=3)
    next(event for event in events if type(event).__name__ == "TaskStarted")
    wait_for(lambda: works(tmp_path, task))
    listed = subprocess.run(["ps", "-wweo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    ours = [line.split(None, 2) for line in listed.splitlines() if f"{tmp_path}/playbooks" in line]
    (the_guard,) = [pid for pid, _, arguments in ours if guard.__file__ in arguments]
    (pid,) = [int(pid) for pid, parent, _ in ours if parent == the_guard]
    os.kill(pid, number)
    last = list(events)[-1]
    assert last.code == 128 + number
    assert processes_with(f"{tmp_path}/playbooks", f"{tmp_path}/ssh", task) == []
