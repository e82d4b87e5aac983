from __future__ import annotations

import json

import pytest

from r1prov.cli.verify import document
from r1prov.common.errors import (
    DamagedError,
    Exit,
    LockedError,
    PreflightError,
    RunError,
    UnhealthyError,
    UnreachableError,
)
from r1prov.machines.profile import Published
from r1prov.runs.events import Finished, HostFailed, HostUnreachable, Output, Recap, StepStarted, Tally, TaskDone
from r1prov.runs.report import HostReport, Recorder, RunReport, benchmark_rows, failure, last_start_s
from r1prov.runs.run import Stopped, _told_where_stopped

COMPARED = "decodes 5.78 tokens/s where the last measurement is 5.80"
MEASURED = {
    "subject": {"engine": "ollama"},
    "sweep": [
        {"users": 1, "prompt_tokens_per_second_each": 61.25, "decode_tokens_per_second_each": 5.781},
        {"users": 4, "decode_tokens_per_second_total": 11.5},
    ],
    "page": {"decode_tokens_per_second": 5.5},
}


def recorder(*hosts):
    return Recorder(
        RunReport(
            "r1prov up", "default", "4x4090", "UD-IQ1_S", "2026-11-24T03:00:00+00:00", {h: HostReport() for h in hosts}
        )
    )


def test_a_run_from_its_events(tmp_path):
    record = recorder("a", "b")
    log = tmp_path / "stdout"
    for second, event in enumerate(
        [
            StepStarted("a", "preflight", 1, 2),
            TaskDone("a", "preflight", "look", changed=False, result={"warnings": ["2 NUMA nodes"]}),
            TaskDone("a", "preflight", "look again", changed=False, result={"warnings": ["2 NUMA nodes"]}),
            TaskDone("a", "preflight", "run", changed=True, result={"unit": "r1prov-x.service", "start_s": 7.5}),
            StepStarted("a", "smoke_bench", 2, 2),
            TaskDone(
                "a",
                "smoke_bench",
                "measure",
                changed=True,
                result={"measured": True, "result": MEASURED, "compared": COMPARED},
            ),
            HostUnreachable("b", "", "timed out"),
            Recap({"a": Tally(5, 1, 0, 0, 2), "b": Tally(0, 0, 0, 1, 0)}),
            Finished(4, log),
        ]
    ):
        record.event(event, float(second))
    report = record.report
    assert report.hosts["a"] == HostReport(
        result="ok",
        ok=5,
        changed=1,
        changes=["preflight: run", "smoke_bench: measure"],
        starts={"r1prov-x": 7.5},
        steps=[("preflight", 4.0), ("smoke_bench", 3.0)],
        warnings=["2 NUMA nodes"],
        benchmark=MEASURED,
        compared=COMPARED,
    )
    assert report.hosts["b"].result == "unreachable"
    assert isinstance(record.error(), UnreachableError)
    path = report.write(tmp_path, "up")
    assert path.name == "up-2026-11-24T030000+0000.json"
    kept = json.loads((tmp_path / "last.json").read_text())
    assert path.read_text() == (tmp_path / "last.json").read_text()
    assert (kept["schema"], kept["ansible_exit"], kept["log"]) == (1, 4, str(log))
    assert last_start_s(tmp_path, "a", "r1prov-x") == 7.5
    assert last_start_s(tmp_path, "b", "r1prov-x") is None


def test_damage_is_what_a_run_ends_with_whatever_else_went_wrong():
    record = recorder("a", "b", "c")
    whole = {"path": "/m/1", "bytes": 5, "sha256": "f" * 64, "state": "whole", "why": ""}
    bad = whole | {"path": "/m/2", "state": "damaged", "why": "its sha256 is another"}
    for event in (
        TaskDone(
            "a",
            "weights",
            "read",
            changed=False,
            result={"verified": {"files": [whole], "seconds": 1.5, "fetched_bytes": 0}},
        ),
        HostFailed(
            "b",
            "weights",
            "read",
            {"msg": "x", "verified": {"files": [whole, bad], "seconds": 2.5, "fetched_bytes": 0}},
        ),
        HostUnreachable("c", "", "timed out"),
        Recap({"a": Tally(1, 0, 0, 0, 0), "b": Tally(0, 0, 1, 0, 0), "c": Tally(0, 0, 0, 1, 0)}),
    ):
        record.event(event, 0.0)
    error = record.error()
    assert isinstance(error, DamagedError)
    assert [(problem.where, problem.what) for problem in error.problems] == [
        ("b", "/m/2 is damaged: its sha256 is another"),
        ("c", "the connection is lost: timed out"),
    ]
    record.report.exit = error.exit
    found = document(record.report)
    assert found["exit"] == 10
    assert {name: (host["result"], host["files"], host["seconds"]) for name, host in found["hosts"].items()} == {
        "a": ("whole", [whole], 1.5),
        "b": ("damaged", [whole, bad], 2.5),
        "c": ("unreachable", [], None),
    }
    assert [len(host["problems"]) for host in found["hosts"].values()] == [0, 1, 1]


CUT_OFF = {
    "msg": "Module result deserialization failed: No start of json char found",
    "module_stdout": "",
    "module_stderr": "Traceback (most recent call last):\nFileNotFoundError: payload.zip",
    "rc": 1,
}


LOST = (
    'Task failed: Data could not be sent to remote host "10.0.0.7". Make sure this host can be reached over ssh:\n'
    "ssh: connect to host 10.0.0.7 port 22: Connection refused\n"
)


def test_a_host_that_goes_down_in_the_middle_of_a_module_is_lost_and_has_not_failed():
    record = recorder("a", "b")
    for event in (
        HostFailed("a", "measure", "Measure", CUT_OFF),
        HostFailed("b", "measure", "Measure", CUT_OFF),
        HostUnreachable("a", "measure", LOST),
        Recap({"a": Tally(3, 0, 1, 1, 0), "b": Tally(3, 0, 1, 0, 0)}),
    ):
        record.event(event, 0.0)
    assert [each["what"] for each in record.report.hosts["a"].problems] == [
        "the connection is lost: connect to host 10.0.0.7 port 22: Connection refused"
    ]
    assert record.report.hosts["a"].result == "unreachable"
    (problem,) = record.report.hosts["b"].problems
    assert problem["what"].startswith("Measure: it ended on the host without an answer\n")
    assert problem["what"].endswith("payload.zip")
    assert record.report.hosts["b"].result == "failed"


def test_what_a_failed_task_means():
    preflight = failure(
        HostFailed(
            "a",
            "preflight",
            "look",
            {
                "problems": [
                    {"check": "ram", "what": "8 GB", "remedy": "buy"},
                    {"check": "os", "what": "old", "remedy": "new"},
                ]
            },
        )
    )
    assert isinstance(preflight, PreflightError)
    assert [(p.where, p.what, p.remedy) for p in preflight.problems] == [
        ("a", "ram: 8 GB", "buy"),
        ("a", "os: old", "new"),
    ]

    locked = failure(
        HostFailed(
            "a", "", "hold", {"locked": True, "msg": "a is being changed by bob@desk since 10:00. Remedy: wait for it."}
        )
    )
    assert isinstance(locked, LockedError)
    assert (locked.problems[0].what, locked.problems[0].remedy) == (
        "is being changed by bob@desk since 10:00",
        "wait for it",
    )

    bench = failure(HostFailed("a", "smoke_bench", "Ask", {"msg": "the model said ''"}))
    assert (type(bench), bench.exit) == (UnhealthyError, Exit.UNHEALTHY)

    other = failure(
        HostFailed("a", "llama_cpp", "Compile", {"msg": "non-zero return code", "stderr": "x\n" * 9 + "No space left"})
    )
    assert type(other) is RunError
    assert other.problems[0].where == "a, llama_cpp"
    assert other.problems[0].what.startswith("Compile: non-zero return code\n")
    assert other.problems[0].what.endswith("No space left")

    hidden = failure(HostFailed("a", "llama_server", "Key", {"censored": "..."}))
    assert "hidden" in hidden.problems[0].what

    items = {"msg": "One or more items failed", "results": [{"msg": "fine"}, {"failed": True, "msg": "disk full"}]}
    assert failure(HostFailed("a", "s", "t", items)).problems[0].what == "t: disk full"


def test_different_kinds_together_are_a_failed_run():
    record = recorder("a", "b")
    record.event(HostFailed("a", "", "hold", {"locked": True, "msg": "x"}), 0)
    assert isinstance(record.error(), LockedError)
    record.event(HostFailed("b", "preflight", "look", {"problems": [{"check": "c", "what": "w", "remedy": "r"}]}), 1)
    assert type(record.error()) is RunError
    assert len(record.error().problems) == 2


def test_ansible_that_ends_without_a_host_gives_its_own_words(tmp_path):
    record = recorder("a")
    record.event(Output("[ERROR]: the role 'r1.prov.x' was not found\nOrigin: up.yml:3", is_diff=False), 0)
    record.event(Finished(1, tmp_path / "log"), 1)
    (problem,) = record.error().problems
    assert problem.what == "the role 'r1.prov.x' was not found"
    assert str(tmp_path / "log") in problem.remedy


def test_the_benchmark_beside_the_published_figures():
    published = [Published(what="35 layers", decode_tokens_per_second=5.78)]
    assert benchmark_rows({"gpu1": MEASURED}, published) == [
        ("gpu1, ollama", "61.2", "5.78"),
        ("gpu1, through the page", "", "5.50"),
        ("gpu1, 4 at once", "", "11.50"),
        ("published: 35 layers", "", "5.78"),
    ]


@pytest.mark.parametrize("was_locked", [{}, {"a": False, "b": False, "c": False}])
def test_a_host_whose_run_came_to_its_end_is_done_though_somebody_stopped_the_rest(was_locked: dict[str, bool]) -> None:
    record = recorder("a", "b", "c")
    for name in ("a", "b"):
        record.event(StepStarted(name, "ollama", 1, 2), 0.0)
    record.event(HostFailed("b", "ollama", "start", {"msg": "broken"}), 1.0)
    assert record.places(was_locked)["c"].startswith("was not begun")
    record.event(Recap({"a": Tally(5, 1, 0, 0, 2), "b": Tally(3, 0, 1, 0, 0)}), 2.0)
    assert {name: record.places(was_locked)[name] for name in ("a", "b")} == {"a": "is done", "b": "has failed"}


def test_what_a_removal_says_is_in_the_report():
    record = recorder("a")
    said = {"removed": {"units": ["r1prov-weights.service"]}, "kept": [], "in_use": [], "away": ""}
    record.event(TaskDone("a", "removal", "remove", changed=True, result={**said, "changed": True}), 0.0)
    assert record.report.hosts["a"].removal == said


def test_a_removal_that_cannot_reach_the_data_disk_has_failed_and_says_what_it_has_removed():
    record = recorder("a")
    said = {"removed": {"units": ["r1prov-weights.service"]}, "kept": [], "in_use": [], "away": "the disk is away"}
    msg = "the disk is away. What lies on it was not removed. Remedy: bring it back"
    record.event(HostFailed("a", "removal", "Remove", {**said, "msg": msg}), 0.0)
    record.event(Recap({"a": Tally(1, 1, 1, 0, 0)}), 1.0)
    assert (record.report.hosts["a"].result, record.report.hosts["a"].removal) == ("failed", said)
    error = record.error()
    assert isinstance(error, RunError)
    (problem,) = error.problems
    assert problem.what == "Remove: the disk is away. What lies on it was not removed."
    assert problem.remedy == "bring it back"


@pytest.mark.parametrize(
    "said",
    [
        "[Errno 1] Operation not permitted: '/etc/r1prov/gateway/.nginx.conf.v91' -> '/etc/r1prov/gateway/nginx.conf'",
        "Could not replace file: [Errno 1] Operation not permitted: b'/etc/r1prov/gateway/.x' -> b'/etc/r1prov/gateway/nginx.conf'",
        "chmod failed: [Errno 1] Operation not permitted: b'/etc/r1prov/gateway/nginx.conf'",
    ],
)
def test_a_file_that_not_even_root_may_change_is_named_with_the_command_that_helps(said: str) -> None:
    (problem,) = failure(HostFailed("a", "gateway", "Write it", {"msg": said})).problems
    assert problem.what == "Write it: not even root may change /etc/r1prov/gateway/nginx.conf"
    assert "`chattr -i -a /etc/r1prov/gateway/nginx.conf`" in problem.remedy


def test_who_stops_what_comes_after_a_run_is_told_what_is_done() -> None:
    record = recorder("a")
    record.event(Recap({"a": Tally(5, 1, 0, 0, 2)}), 2.0)
    with pytest.raises(Stopped) as stopped, _told_where_stopped(record):
        raise KeyboardInterrupt
    assert stopped.value.hosts == {"a": "is done"}
