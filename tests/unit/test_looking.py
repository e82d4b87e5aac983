"""Tests of a look at a host. The host's program runs here as a process of its own, and asks the modules that hosts are sent."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from r1prov import __version__
from r1prov.cli.drift import document, exit_code
from r1prov.common import paths
from r1prov.common.errors import Exit, UnreachableError
from r1prov.hosts.connection import HostConnection, Result
from r1prov.hosts.looking import Difference, Expectation, Look, look
from r1prov.runs import expectations
from r1prov.runs.events import Finished, HostLooked, Recap, Tally, TaskDone
from r1prov.runs.report import HostReport, Recorder, RunReport
from r1prov.site.state import SiteState

secret = paths.module_util("secret")
FILE = "ansible.modules.file"


class Here:
    """A host that is a folder of this machine."""

    class _Named:
        name = "gpu1"

    host = _Named()

    def __init__(self, folder: Path, limit_s: float = 30) -> None:
        self.folder, self.limit_s, self.calls = folder, limit_s, 0

    def run(self, argv: list[str], stdin: str, **_: Any) -> Result:
        self.calls += 1
        places = {"FOLDER": "look", "LOCK": "lock.json", "HISTORY": "history"}
        own = "\n".join(f"{name} = Path({str(self.folder / place)!r})" for name, place in places.items())
        own += f"\nLIMIT_S = {self.limit_s}"
        script = stdin.replace("\n\nmain(", f"\n\n{own}\nmain(")
        done = subprocess.run([sys.executable, *argv[1:]], input=script, capture_output=True, text=True, check=False)
        return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def here(tmp_path: Path) -> Here:
    return Here(tmp_path / "host")


def seen(host: Here, *expected: Expectation) -> Look:
    return look(cast(HostConnection, host), expected)


def file_as_it_is(path: Path) -> Expectation:
    arguments = {"path": str(path), "state": "file", "mode": f"{path.stat().st_mode & 0o777:04o}"}
    return Expectation("service", "Write it", FILE, arguments, hashlib.sha1(path.read_bytes()).hexdigest())


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "written"
    path.write_text("as the run has left it\n")
    path.chmod(0o640)
    return path


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "another mode": (lambda path: path.chmod(0o666), "has the mode 0666, and should have 0640"),
    "another content": (lambda path: path.write_text("as somebody else wants it\n"), "has another content"),
    "another content of the same size and time": (
        lambda path: (path.write_text("as the run has lEft it\n"), os.utime(path, ns=(1, 1))),
        "has another content",
    ),
    "gone": (Path.unlink, "is missing"),
    "a folder in its place": (lambda path: (path.unlink(), path.mkdir()), "directory"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_file_that_differs_is_named(here: Here, written: Path, what: str) -> None:
    expected = file_as_it_is(written)
    assert seen(here, expected).clean
    damage, words = DAMAGE[what]
    damage(written)
    (difference,) = seen(here, expected).differences
    assert str(written) in difference.what
    assert words in difference.what
    assert difference.step == "service"


def test_what_two_modules_say_in_their_own_words_is_said_once() -> None:
    whole = "/etc/r1prov/gateway has owner and mode 0:0 0777, and should have 0:0 0755"
    asked = [
        {"step": "service", "task": "Remove strays", "module": "strays", "arguments": {}},
        {"step": "gateway", "task": "Make it", "module": FILE, "arguments": {"path": "/etc/r1prov/gateway"}},
        {"step": "gateway", "task": "Make it", "module": FILE, "arguments": {"path": "/etc/r1prov/gateway/x"}},
    ]
    diff = {"before": {"mode": "0777"}, "after": {"mode": "0755"}}
    answers = [{"changed": True, "differences": [whole]}, *[{"changed": True, "diff": diff}] * 2]
    found = paths.module_util("looked").summary(asked, answers)["differences"]
    assert [each["what"] for each in found] == [
        whole,
        "/etc/r1prov/gateway/x has the mode 0777, and should have 0755",
    ]


def test_what_ansible_says_of_accounts_that_are_gone_is_no_warning_of_a_look() -> None:
    asked = [{"step": "ollama", "task": "Create", "module": "ansible.modules.file", "arguments": {"path": "/x"}}]
    gone = "failed to look up user r1prov-ollama. Create user up to this point in real play"
    found = paths.module_util("looked").summary(asked, [{"changed": True, "warnings": [gone, "/y stays"]}])
    assert (found["stays"], found["built_anew"]) == (["/y stays"], False)
    assert paths.module_util("looked").summary(asked, [{"built_anew": True}])["built_anew"]


def test_where_the_data_disk_is_away_nothing_else_is_said() -> None:
    asked = [
        {"step": "data_disk", "task": "Use it", "module": "data_disk", "arguments": {}},
        {"step": "llama_cpp", "task": "Install", "module": "release", "arguments": {}},
        {"step": "ollama", "task": "Ask", "module": "unit", "arguments": {}},
    ]
    answers = [
        {"changed": True, "differences": ["the data disk is away"], "away": True},
        {"changed": True, "differences": ["llama.cpp is missing"]},
        {"error": "no such file"},
    ]
    shown = paths.module_util("look_program").SHOWN  # The rest of an answer stays on the host.
    answers = [{key: value for key, value in each.items() if key in (*shown, "error")} for each in answers]
    told = paths.module_util("looked").summary(asked, answers)
    assert (told["differences"], told["unknown"]) == ([], "the data disk is away")


def test_a_cause_for_which_several_modules_can_tell_nothing_is_said_once_and_is_no_difference() -> None:
    said = "/usr/local/bin/r1prov-units does not work, so nobody can tell how the services are"
    asked = [
        {"step": "service", "task": "Install", "module": FILE, "arguments": {"path": "/x"}},
        {"step": "ollama", "task": "Bring", "module": "service_unit", "arguments": {}},
        {"step": "gateway", "task": "Bring", "module": "service_unit", "arguments": {}},
        {"step": "watch", "task": "Ask", "module": "unit", "arguments": {}},
    ]
    untold = {"changed": True, "differences": [said], "untold": True, "more": "stays on the host"}
    answers = [{"changed": True, "content": True, "diff": {}}, untold, untold, {"error": "no such file"}]
    shown = (*paths.module_util("look_program").SHOWN, "content", "error")
    told = paths.module_util("looked").summary(
        asked, [{key: each[key] for key in each.keys() & shown} for each in answers]
    )
    assert [each["what"] for each in told["differences"]] == ["/x has another content than it should have"]
    assert told["unknown"] == f"watch, Ask: no such file; {said}"


def test_what_should_not_be_there_is_named(here: Here, written: Path) -> None:
    (difference,) = seen(
        here, Expectation("gateway", "Disable it", FILE, {"path": str(written), "state": "absent"})
    ).differences
    assert difference.what == f"{written} is there, and should not be"
    assert written.exists()


def test_a_look_changes_nothing(here: Here, tmp_path: Path, written: Path) -> None:
    missing = Expectation("service", "Make it", FILE, {"path": str(tmp_path / "folder"), "state": "directory"})
    expected = file_as_it_is(written)
    written.chmod(0o600)
    found = seen(here, missing, expected)
    assert [each.what for each in found.differences] == [
        f"{tmp_path / 'folder'} is missing",
        f"{written} has the mode 0600, and should have 0640",
    ]
    assert not (tmp_path / "folder").exists()
    assert written.stat().st_mode & 0o777 == 0o600


def test_the_modules_are_sent_once(here: Here, written: Path) -> None:
    expected = file_as_it_is(written)
    seen(here, expected)
    assert here.calls == 2
    assert seen(here, expected).clean
    assert here.calls == 3
    assert (here.folder / "look").stat().st_mode & 0o777 == 0o700
    assert len(list((here.folder / "look").iterdir())) == 1


def test_modules_that_others_may_write_or_that_are_not_all_there_are_not_run(here: Here, written: Path) -> None:
    expected = file_as_it_is(written)
    seen(here, expected)
    (code,) = (here.folder / "look").iterdir()
    (here.folder / "look").chmod(0o777)
    assert seen(here, expected).clean
    assert here.calls == 4
    code.rename(code.with_suffix(".part"))
    assert seen(here, expected).clean
    assert here.calls == 6
    assert list((here.folder / "look").iterdir()) == [code]


@pytest.mark.parametrize("damage", ["cut off", "empty", "another byte"])
def test_modules_that_are_damaged_are_sent_again(here: Here, written: Path, damage: str) -> None:
    expected = file_as_it_is(written)
    seen(here, expected)
    (code,) = (here.folder / "look").iterdir()
    whole = code.read_bytes()
    middle = len(whole) // 2
    damaged = {"cut off": whole[:middle], "empty": b"", "another byte": whole[:middle] + b"?" + whole[middle + 1 :]}
    code.write_bytes(damaged[damage])
    written.chmod(0o600)
    assert [each.what for each in seen(here, expected).differences] == [
        f"{written} has the mode 0600, and should have 0640"
    ]
    assert here.calls == 4
    seen(here, expected)
    assert here.calls == 5


def test_the_lock_of_a_run_that_was_cut_off_is_a_difference_and_hides_no_other(here: Here, written: Path) -> None:
    expected = file_as_it_is(written)
    here.folder.mkdir()
    holder = paths.module_util("lock_holder")
    me = {
        "controller_id": holder.this_controller_id(),
        "pid": os.getpid(),
        "pid_started": "another boot/1",
        "run": "dead",
    }
    lock = me | {"user": "ann", "controller": "laptop", "command": "r1prov up", "since": "2026-10-03T12:03:05+00:00"}
    (here.folder / "lock.json").write_text(json.dumps(lock))
    written.chmod(0o666)
    found = seen(here, expected)
    assert [each.step for each in found.differences] == ["lock", "service"]
    assert "it is still locked: the run of ann@laptop of" in found.differences[0].what
    assert not found.unknown
    alive = lock | {"pid_started": holder.process_started(os.getpid())}
    for text in (json.dumps(alive), json.dumps(lock | {"controller_id": "elsewhere"}), "{"):
        (here.folder / "lock.json").write_text(text)
        assert seen(here, expected).unknown == "another run is at work on it"


def test_a_command_that_reads_is_asked_for_the_same_answer(here: Here, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    arguments = {"argv": ["find", str(tmp_path / "store"), "-type", "f"]}
    expected = Expectation("build_deps", "Look", "ansible.modules.command", arguments, said={"rc": 0, "stdout": ""})
    assert seen(here, expected).clean
    (tmp_path / "store/new.crt").touch()
    (difference,) = seen(here, expected).differences
    assert difference.step == "build_deps"


def test_one_module_that_breaks_hides_no_other(here: Here, written: Path) -> None:
    expected = file_as_it_is(written)
    written.chmod(0o666)
    broken = Expectation(
        "ollama", "Register", "ansible_collections.r1.prov.plugins.modules.release_proven", {"home": 7, "nonsense": 1}
    )
    found = seen(here, broken, expected)
    assert len(found.differences) == 2
    assert "nonsense" in found.differences[0].what
    assert "0666" in found.differences[1].what


@pytest.mark.parametrize("put", [os.mkfifo, lambda path: path.symlink_to("/etc/hosts"), lambda path: path.mkdir()])
def test_what_is_no_file_is_told_at_once(here: Here, tmp_path: Path, put: Callable[[Path], None]) -> None:
    put(tmp_path / "program")
    path = str(tmp_path / "program")
    found = seen(here, Expectation("service", "Install", FILE, {"path": path, "state": "file"}, "0" * 40))
    assert not found.unknown
    assert path in found.differences[0].what
    assert found.seconds < 10


def test_a_module_that_gives_no_answer_is_unknown_and_not_clean(tmp_path: Path, written: Path) -> None:
    command = {"argv": ["sleep", "600"]}
    hanging = Expectation("service", "Read", "ansible.modules.command", command, said={"rc": 0})
    began = time.monotonic()
    found = seen(Here(tmp_path / "host", limit_s=2), hanging, file_as_it_is(written))
    assert time.monotonic() - began < 20
    assert not found.clean
    assert "service, Read: it did not answer within 2 s" in found.unknown
    assert exit_code({"gpu1": found}) == Exit.UNTOLD


def test_a_host_that_a_run_holds_is_unknown(here: Here, written: Path) -> None:
    expected = file_as_it_is(written)
    here.folder.mkdir()
    for text in ('{"run": "1"}', "half a fi", "3", "0", "{}", "null"):
        (here.folder / "lock.json").write_text(text)
        assert seen(here, expected).unknown == "another run is at work on it"


def test_of_a_host_that_a_newer_r1prov_has_changed_last_nothing_is_told(here: Here, written: Path) -> None:
    expected = file_as_it_is(written)
    history = here.folder / "history"
    history.mkdir(parents=True)
    for record, unknown in (({}, False), ({"r1prov": __version__}, False), ({"r1prov": "0.10.0"}, True)):
        (history / f"2026{len(record)}-{record.get('r1prov', '')}.json").write_text(json.dumps({"run": "x"} | record))
        found = seen(here, expected)
        assert found.clean is not unknown
        assert ("r1prov 0.10.0 has changed it last" in found.unknown) == unknown
    (history / "2027.json").write_text(json.dumps({"run": "y", "r1prov": __version__}))
    assert seen(here, expected).clean


def test_the_version_stands_everywhere_alike() -> None:
    galaxy = (paths.collection() / "galaxy.yml").read_text()
    assert f"\nversion: {__version__}\n" in galaxy
    assert __version__ == paths.module_util("version").VERSION
    assert [paths.module_util("version").is_newer(each) for each in ("0.0.9", "0.1.0", "0.1.1", "", "x")] == [
        False,
        False,
        True,
        False,
        False,
    ]


def test_a_host_without_an_answer_is_an_error(written: Path) -> None:
    class Mute(Here):
        def run(self, *_: Any, **__: Any) -> Result:
            return Result(1, "", "sudo: a terminal is required\n")

    with pytest.raises(UnreachableError, match="a terminal is required"):
        seen(Mute(written), file_as_it_is(written))


def copied(path: Path, **more: Any) -> TaskDone:
    """What Ansible says of a copy that changed nothing."""
    arguments = {"path": str(path), "dest": str(path), "mode": "0644", "state": "file", "src": None, "recurse": False}
    result = {"dest": str(path), "checksum": "5f" * 20, "invocation": {"module_args": arguments}} | more
    return TaskDone("gpu1", "service", "Write it", changed=False, result=result, action="ansible.builtin.copy")


def test_what_a_task_expects(tmp_path: Path) -> None:
    path = tmp_path / "x"
    (of_copy,) = expectations.expectations_of(copied(path))
    wanted = {"path": str(path), "mode": "0644", "state": "file"}
    assert [*expectations.expectations_of(copied(Path("/var/cache/r1prov/x")))] == []
    assert of_copy == Expectation("service", "Write it", FILE, wanted, "5f" * 20)
    asked = {"name": "r1prov-x", "credentials": {"key": secret.digest("hidden")}}
    result = {
        "look_arguments": asked,
        "asked": True,
        "invocation": {"module_args": {"name": "r1prov-x", "credentials": "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER"}},
    }
    (of_ours,) = expectations.expectations_of(TaskDone("gpu1", "service", "Run", False, result, "r1.prov.service_unit"))
    elsewhere = result | {"_ansible_delegated_vars": {"ansible_delegated_host": "front"}}
    done = TaskDone("gpu1", "service", "Run", False, elsewhere, "r1.prov.service_unit")
    assert not [*expectations.expectations_of(done)], "gpu1 would be asked what front was asked"
    assert of_ours.arguments == asked
    for action in ("r1.prov.host_lock", "r1.prov.preflight", "ansible.builtin.uri", "ansible.builtin.assert"):
        assert not [*expectations.expectations_of(replace(copied(path), action=action))]


def test_each_item_of_a_loop_is_asked(tmp_path: Path) -> None:
    items = [copied(tmp_path / name).result for name in ("a", "b")]
    looped = replace(copied(tmp_path), result={"results": [*items, {"skipped": True}]})
    assert [each.arguments["path"] for each in expectations.expectations_of(looped)] == [
        str(tmp_path / "a"),
        str(tmp_path / "b"),
    ]


def test_commands_that_only_read_are_not_asked(tmp_path: Path) -> None:
    def command(**more: Any) -> TaskDone:
        arguments = {"argv": ["true"], "creates": None, "removes": None} | more
        return replace(
            copied(tmp_path),
            action="ansible.builtin.command",
            result={"invocation": {"module_args": arguments}, "cmd": arguments["argv"], "rc": 0, "stdout": "found"},
        )

    assert not [*expectations.expectations_of(command())]
    (reading,) = expectations.expectations_of(command(argv=["find", "/x"]))
    assert reading.said == {"stdout": ""}
    assert len([*expectations.expectations_of(command(creates="/run/netns/r1prov"))]) == 1


@pytest.fixture
def state(tmp_path: Path) -> SiteState:
    found = SiteState(tmp_path / ".r1prov")
    for folder in (found.inventory, found.secrets, found.authority, found.pins):
        folder.mkdir(parents=True)
    (found.inventory / "hosts.yml").write_text(f"certificate: {tmp_path / 'page.pem'}\n")
    (tmp_path / "page.pem").write_text("one")
    (found.secrets / "api-key").write_text("one")
    return found


EXPECTED = [Expectation("service", "Write it", FILE, {"path": "/x"}, "5f" * 20)]
CHANGES: dict[str, Callable[[SiteState], object]] = {
    "the inventory": lambda state: (state.inventory / "hosts.yml").write_text("other"),
    "a secret": lambda state: (state.secrets / "api-key").write_text("two"),
    "a pin": lambda state: (state.pins / "ollama.sha256").write_text("5f"),
    "a file that the inventory names": lambda state: (state.root.parent / "page.pem").write_text("two"),
    "another form": lambda state: state.look("gpu1").write_text('{"expectations": 3}'),
    "half a file": lambda state: state.look("gpu1").write_text(state.look("gpu1").read_text()[:-9]),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_was_seen_holds_until_a_run_would_be_made_of_something_else(state: SiteState, what: str) -> None:
    expectations.keep(
        state, "gpu1", expectations.made_of(state), expectations.once([replace(EXPECTED[0], sha1="5e" * 20), *EXPECTED])
    )
    assert expectations.recall(state, "gpu1").where(expectations.made_of(state)) == EXPECTED
    CHANGES[what](state)
    assert not expectations.recall(state, "gpu1").where(expectations.made_of(state))
    assert not expectations.recall(state, "gpu2").where(expectations.made_of(state))


def test_what_a_run_of_some_steps_expects_takes_the_place_of_what_these_expected() -> None:
    def asked(step: str, path: str, task: str = "before") -> Expectation:
        return Expectation(step, task, FILE, {"path": path})

    earlier = [asked("operators", "/a"), asked("gateway", "/b"), asked("gateway", "/old"), asked("weights", "/c")]
    found = [asked("gateway", "/new", "now"), asked("gateway", "/b", "now")]
    assert expectations.merged(earlier, found, {"gateway"}) == [
        asked("operators", "/a"),
        asked("gateway", "/b"),
        asked("weights", "/c"),
        asked("gateway", "/new", "now"),
    ]
    assert expectations.merged([], found, {"gateway"}) == found


def test_what_a_step_asks_that_brings_in_the_role_of_another_stays_with_the_other() -> None:
    rules = Expectation(
        "service", "Write the rules", FILE, {"path": "/etc/r1prov/network/rules", "state": "file"}, "0" * 40
    )
    again = replace(rules, step="ollama", task="Run Ollama", sha1="1" * 40)
    for steps in ({"ollama"}, {"ollama", "service"}):
        assert expectations.merged([rules], [again], steps) == [replace(rules, sha1="1" * 40)]


def test_other_code_of_the_collection_is_another_run(
    state: SiteState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c/roles/service/tasks").mkdir(parents=True)
    (tmp_path / "c/roles/service/tasks/main.yml").write_text("one")
    monkeypatch.setattr(paths, "collection", lambda: tmp_path / "c")
    expectations.keep(state, "gpu1", expectations.made_of(state), EXPECTED)
    assert expectations.recall(state, "gpu1").where(expectations.made_of(state))
    (tmp_path / "c/roles/service/tasks/main.yml").write_text("two")
    assert not expectations.recall(state, "gpu1").where(expectations.made_of(state))


def recorded(*events: Any) -> Recorder:
    recorder = Recorder(
        RunReport("r1prov up", "r1prov.yml", "demo", "Q4_1", "2026-11-29T04:00:00+00:00", {"gpu1": HostReport()})
    )
    for event in events:
        recorder.event(event, 0)
    return recorder


def end(changed: int = 0, failed: int = 0) -> tuple[Recap, Finished]:
    return Recap({"gpu1": Tally(1, changed, failed, 0, 0)}), Finished(0, Path("log"))


def test_only_a_whole_run_shows_what_is_expected(tmp_path: Path) -> None:
    task = copied(tmp_path / "x")
    assert len(recorded(task, *end()).expectations("gpu1")) == 1
    (only,) = recorded(task, replace(task, changed=True), *end(changed=1)).expectations("gpu1")
    assert only.arguments["path"] == str(tmp_path / "x")
    assert not recorded(task, *end(failed=1)).expectations("gpu1")
    assert not recorded(task).expectations("gpu1")


def test_a_clean_host_is_done_and_another_is_not() -> None:
    clean = Look(asked=60, seconds=2.5, benchmark={"sweep": []})
    report = recorded(HostLooked("gpu1", clean)).report.hosts["gpu1"]
    assert (report.result, report.benchmark, report.changes) == ("ok", {"sweep": []}, [])
    assert json.loads(json.dumps(report.looked)) == {
        "asked": 60,
        "seconds": 2.5,
        "differences": [],
        "unknown": "",
        "stays": [],
        "built_anew": False,
    }
    for other in (replace(clean, differences=(Difference("a", "b", "c"),)), replace(clean, unknown="why")):
        assert recorded(HostLooked("gpu1", other)).report.hosts["gpu1"].result == "unfinished"


def test_what_stays_is_a_warning_whichever_steps_run_and_is_said_once() -> None:
    look = Look(60, 2.5, (Difference("gateway", "Run", "it does not run"),), stays=("/x is not r1prov's, and stays",))
    for found in (look, replace(look, differences=())):
        assert recorded(HostLooked("gpu1", found)).report.hosts["gpu1"].warnings == list(look.stays)
    again = replace(copied(Path("/x")), result={"warnings": list(look.stays)})
    assert recorded(HostLooked("gpu1", look), again).report.hosts["gpu1"].warnings == list(look.stays)


def test_the_exit_code_never_says_clean_of_what_is_unknown() -> None:
    clean, unknown = Look(1, 0.1), Look(0, 0.0, unknown="another run is at work on it")
    drifted = Look(1, 0.1, differences=(Difference("service", "Write it", "/x is missing"),))
    assert exit_code({"gpu1": clean}) == Exit.OK
    assert exit_code({"gpu1": clean, "gpu2": unknown}) == Exit.UNTOLD
    assert exit_code({"gpu1": unknown, "gpu2": drifted}) == Exit.DRIFTED
    found = document({"gpu1": clean, "gpu2": unknown, "gpu3": drifted}, Exit.DRIFTED)
    assert [host["state"] for host in found["hosts"].values()] == ["as wanted", "unknown", "drifted"]
    assert json.loads(json.dumps(found))["exit"] == 11


def test_a_digest_tells_a_secret_from_others_and_not_what_it_is() -> None:
    marked = secret.without_secrets(
        {"name": "x", "key": "hidden", "credentials": {"a": "hidden"}},
        {"key": {"no_log": True}, "credentials": {"no_log": True}},
    )
    assert "hidden" not in json.dumps(marked)
    assert marked["name"] == "x"
    assert marked["key"] != marked["credentials"]["a"]
    assert secret.same("hidden", marked["key"])
    assert not secret.same("hiddem", marked["key"])
    assert secret.same(["hidden"], secret.digest(["hidden"]))
    assert secret.same("plain", "plain")
    assert not secret.same(marked["key"], marked["key"])
