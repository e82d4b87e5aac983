"""Tests of the exact output of a run at a fixed width."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from r1prov import output
from r1prov.common.errors import Problem
from r1prov.hosts import Difference, Look, Progress
from r1prov.output import layout
from r1prov.runs.events import (
    HostFailed,
    HostLooked,
    HostUnreachable,
    Output,
    Recap,
    StepStarted,
    Tally,
    TaskDone,
    TaskStarted,
)

GIB = 1024**3


class Clock:
    """A clock that the test moves."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def text_of(console):
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def console(*, terminal):
    return Console(
        file=io.StringIO(), width=100, force_terminal=terminal, color_system=None, legacy_windows=False, _environ={}
    )


def progress(step, done, total, *, unit="steps", label="compiling", at=0.0, state="running", host="gpu1"):
    return Progress(host, step, label, done, total, unit, state, at)


def test_a_step_that_comes_again_is_told_apart(clock):
    plain = console(terminal=False)
    with output.LiveRun(["gpu1"], console=plain, now=clock) as live:
        live.event(StepStarted("gpu1", "ollama", 1, 2, "install"))
        live.event(StepStarted("gpu1", "ollama", 2, 2, "register the model and stop"))
    assert "gpu1  [1/2] ollama (install): not needed\n" in text_of(plain)
    assert "[2/2] ollama (register the model and stop)" in text_of(plain)


@pytest.mark.parametrize(
    ("done", "outcome"),
    [
        ([("r1.prov.service_unit", {}), ("r1.prov.measurement", {})], "measured"),
        ([("r1.prov.smoke_bench", {"measured": True})], "measured"),
        ([("r1.prov.smoke_bench", {"measured": False})], "1 change"),  # as a check says it
        ([("r1.prov.service_unit", {})], "1 change"),
    ],
)
def test_what_was_only_measured_is_called_no_change(clock, done, outcome):
    plain = console(terminal=False)
    with output.LiveRun(["gpu1"], console=plain, now=clock) as live:
        live.event(StepStarted("gpu1", "measure", 1, 1))
        for action, result in done:
            live.event(TaskDone("gpu1", "measure", "a task", changed=True, result=result, action=action))
        live.event(Recap({"gpu1": Tally(2, 1, 0, 0, 0)}))
    assert text_of(plain).splitlines()[0] == f"gpu1  [1/1] measure: 0:00, {outcome}"


def test_a_difference_is_told_once_by_the_look_or_by_the_step_that_mends_it(clock):
    plain = console(terminal=False)
    with output.LiveRun(["gpu1"], console=plain, now=clock) as live:
        live.event(HostLooked("gpu1", Look(60, 1.5, (Difference("embeddings", "Run", "it does not run"),))))
        live.event(StepStarted("gpu1", "embeddings", 1, 1))
        found = {"differences": ["it does not run", "/x is gone"]}
        live.event(TaskDone("gpu1", "embeddings", "Run", changed=True, result=found))
    assert text_of(plain).split("\n")[:2] == ["gpu1  embeddings: it does not run", "gpu1  /x is gone"]


@pytest.mark.parametrize("by_look", [True, False])
def test_of_a_host_that_was_built_anew_nothing_is_said_that_it_has_lost(clock, by_look):
    plain, lost = console(terminal=False), "/etc/r1prov is missing"
    with output.LiveRun(["gpu1"], console=plain, now=clock) as live:
        if by_look:
            live.event(HostLooked("gpu1", Look(60, 1.5, (Difference("service", "Run", lost),), built_anew=True)))
        live.event(StepStarted("gpu1", "data_disk", 1, 1))
        found = {"differences": ["/opt/r1prov is not on the data disk"], "built_anew": True}
        live.event(TaskDone("gpu1", "data_disk", "Run", changed=True, result=found))
        live.event(TaskDone("gpu1", "service", "Run", changed=True, result={"differences": [lost]}))
    assert text_of(plain).split("\n")[:2] == [
        "gpu1  was built anew: what lay on its system disk is gone, and all of it is laid anew",
        "gpu1  stopped in [1/1] data_disk after 0:00",
    ]


def test_a_check_does_not_warn_of_accounts_that_it_does_not_make(clock):
    plain = console(terminal=False)
    text = "failed to look up user r1prov-ollama. Create user up to this point in real play"
    with output.LiveRun(["gpu1"], console=plain, now=clock) as live:
        live.event(StepStarted("gpu1", "ollama", 1, 1))
        live.event(TaskDone("gpu1", "ollama", "Create", changed=True, result={"warnings": [text, "its disk is slow"]}))
    assert text_of(plain).startswith("gpu1: its disk is slow\n")


def test_what_stays_on_a_host_is_said_once_by_the_look_or_by_the_step_that_finds_it(clock):
    plain = console(terminal=False)
    with output.LiveRun(["gpu1"], console=plain, now=clock) as live:
        live.event(HostLooked("gpu1", Look(60, 1.5, stays=("/x is not r1prov's, and stays",))))
        found = {"warnings": ["/x is not r1prov's, and stays"]}
        live.event(TaskDone("gpu1", "llama_cpp", "Look", changed=False, result=found))
    assert text_of(plain).count("/x is not r1prov's, and stays") == 1


def test_without_a_terminal_each_step_is_a_line_that_stays(clock):
    plain = console(terminal=False)
    with output.LiveRun(["gpu1", "gpu2"], console=plain, now=clock) as live:
        live.note("gpu1", "is still starting; steps wait for it")
        live.event(StepStarted("gpu1", "preflight", 1, 3))
        for task in ("look", "look again"):
            live.event(
                TaskDone("gpu1", "preflight", task, changed=False, result={"warnings": ["its RAM has 2 NUMA nodes"]})
            )
        clock.now = 2
        live.event(StepStarted("gpu1", "llama_cpp", 2, 3))
        live.event(StepStarted("gpu2", "llama_cpp", 2, 3))
        for second in range(3, 26):
            clock.now = second
            live.progress(progress("llama_cpp", second * 10, 359, at=second))
        live.event(TaskDone("gpu1", "llama_cpp", "build", changed=True, result={}))
        live.event(HostFailed("gpu2", "llama_cpp", "build", {"msg": "no"}))
        live.event(StepStarted("gpu1", "cuda_toolkit", 3, 3))
        clock.now = 95
        live.event(Recap({"gpu1": Tally(2, 1, 0, 0, 0), "gpu2": Tally(0, 0, 1, 0, 0)}))
    assert text_of(plain) == (
        "gpu1: is still starting; steps wait for it\n"
        "gpu1: its RAM has 2 NUMA nodes\n"
        "gpu1  [1/3] preflight: 0:02, nothing to change\n"
        "gpu1  [2/3] llama_cpp: compiling 33%, 120 of 359, 0:23 left\n"
        "gpu1  [2/3] llama_cpp: compiling 61%, 220 of 359, 0:13 left\n"
        "gpu2  failed at [2/3] llama_cpp\n"
        "gpu1  [2/3] llama_cpp: 0:23, 1 change\n"
        "gpu1  [3/3] cuda_toolkit: not needed\n"
        "gpu1  done in 1:35"
    )


def test_without_a_terminal_what_flows_to_all_hosts_is_a_line_every_ten_seconds(clock):
    plain = console(terminal=False)
    hosts = ("gpu1", "gpu2")
    with output.LiveRun(hosts, console=plain, now=clock) as live:
        for host in hosts:
            live.event(StepStarted(host, "llama_cpp", 1, 1))  # It flows while something else is done.
        for second in range(1, 26):
            clock.now = 1000 + second
            for host in hosts:
                flow = progress("weights", second << 30, 100 << 30, unit="bytes", label="x", at=second, host=host)
                live.progress(replace(flow, sources=["a.example", "b.example"], verifying="m.gguf 7 %"))
    said = [line for line in " ".join(text_of(plain).split()).split("weights ") if "from" in line]
    assert len(said) == 3
    assert said[1].startswith(
        "gpu1 11.0 of 100.0 GiB, 1024.0 MiB/s, 1:29 left, from a.example, b.example, verifying m.gguf 7 %; gpu2 10.0 of"
    )


def test_on_a_terminal_what_flows_to_all_hosts_is_one_table(clock):
    screen = console(terminal=True)
    live = output.LiveRun(["gpu1", "gpu2"], console=screen, now=clock)
    for host in ("gpu1", "gpu2"):
        live.event(StepStarted(host, "weights", 1, 1))
        flow = progress("weights", 1 << 30, 2 << 30, unit="bytes", label="fetching", host=host)
        live.progress(replace(flow, sources=["a.example"], verifying="m.gguf 7 %"))
    screen.print(live._lines())
    shown = [line.split() for line in text_of(screen).splitlines()]
    assert shown[2] == ["weights", "from", "verifying"]
    assert [row[0] for row in shown[3:5]] == ["gpu1", "gpu2"]
    assert shown[3][1:] == ["1.0", "of", "2.0", "GiB", "a.example", "m.gguf", "7", "%"]
    # What does not flow any more is not in it.
    live.progress(progress("weights", 2 << 30, 2 << 30, unit="bytes", label="merging", host="gpu1"))
    assert len(live._flows()) == 1


def test_whom_a_step_waits_for_is_said_at_once_and_once(clock):
    plain = console(terminal=False)
    live = output.LiveRun(["gpu1"], console=plain, now=clock)
    live.event(StepStarted("gpu1", "llama_cpp", 2, 3))
    for second, label in ((1, "compiling"), (2, "waiting: flock holds it"), (4, "waiting: flock holds it")):
        clock.now = second
        live.progress(progress("llama_cpp", 0, 0, label=label, at=second))
    assert text_of(plain).splitlines() == ["gpu1  [2/3] llama_cpp: waiting: flock holds it"]


def test_a_step_that_waits_for_two_in_turn_does_not_repeat_them_and_says_later_how_long_it_waits(clock):
    plain = console(terminal=False)
    live = output.LiveRun(["gpu1"], console=plain, now=clock)
    live.event(StepStarted("gpu1", "measure", 2, 3))
    for second in range(0, 13, 2):
        clock.now = second
        label = "waiting: it gives 1 answer" if second % 4 else "waiting: it is too busy to say"
        live.progress(progress("measure", 0, 0, label=label, at=second))
    assert text_of(plain).splitlines() == [
        "gpu1  [2/3] measure: waiting: it is too busy to say",
        "gpu1  [2/3] measure: waiting: it gives 1 answer",
        "gpu1  [2/3] measure: waiting: it is too busy to say, 0:12 so far",
    ]


def test_an_empty_column_takes_no_room_from_the_others():
    assert layout._widths(["mode", "what it is", ""], [("ollama", "Ollama, which places whole layers", "")], 1000) == [
        6,
        33,
        1,
    ]


def test_a_label_of_several_parts_comes_after_the_amounts(clock):
    label = "experts-in-ram, one user, 32639 tokens deep; at most 18 min more"
    plain = console(terminal=False)
    live = output.LiveRun(["gpu1"], console=plain, now=clock)
    live.event(StepStarted("gpu1", "measure", 1, 2))
    clock.now = 11
    live.progress(progress("measure", 13, 40, label=label))
    assert text_of(plain) == f"gpu1  [1/2] measure: 32%, 13 of 40: {label}"
    screen = console(terminal=True)
    screen.width = 80
    live = output.LiveRun(["gpu1"], console=screen, now=clock)
    live.event(StepStarted("gpu1", "measure", 1, 2))
    live.progress(progress("measure", 13, 40, label=label))
    screen.print(live._lines())
    assert text_of(screen).splitlines()[:2] == ["gpu1 [1/2] measure 0:00", f"  13 of 40: {label}"]


def test_on_a_terminal_each_host_is_a_line_that_moves(clock):
    screen = console(terminal=True)
    live = output.LiveRun(["gpu1", "gpu2", "gpu3", "gpu4"], console=screen, now=clock)
    live.event(StepStarted("gpu1", "llama_cpp", 5, 8))
    live.event(StepStarted("gpu2", "weights", 6, 8))
    live.event(StepStarted("gpu3", "preflight", 1, 8))
    live.event(TaskStarted("gpu3", "preflight", "See whether the host fits"))
    for second in (0, 10):
        clock.now = second
        live.progress(progress("llama_cpp", 100 + second, 359, at=second))
        live.progress(progress("weights", second * GIB // 20, 131 * GIB, unit="bytes", label="fetching", at=second))
        live.progress(
            progress(
                "weights",
                (50 * 10 + second) * GIB // 10,
                131 * GIB,
                unit="bytes",
                label="fetching",
                at=second,
                host="gpu2",
            )
        )
    live.event(HostUnreachable("gpu4", "", "timed out"))
    clock.now = 133
    screen.print(live._lines())
    assert text_of(screen) == (
        "gpu4  lost\n"
        "gpu1 [5/8] llama_cpp   compiling        ━━━╸                              110 of 359, 4:09 left 2:13\n"
        "     meanwhile weights fetching                        0.5 of 131.0 GiB, 51.2 MiB/s, 43:30 left\n"
        "gpu2 [6/8] weights     fetching         ━━━━╸        51.0 of 131.0 GiB, 102.4 MiB/s, 13:20 left 2:13\n"
        "gpu3 [1/8] preflight   See whether the…                                                         2:13\n"
        "2:13 so far; gpu1, weights: about 44 min more at this rate (no earlier run tells of the rest)"
    )


def test_raw_output_and_diffs(clock):
    for options, shown in (
        ({"raw": True}, "TASK [x]\n+ line"),
        ({"diffs": True}, "+ line"),
        ({}, ""),
    ):
        plain = console(terminal=False)
        live = output.LiveRun(["a"], console=plain, now=clock, **options)
        live.event(Output("\r\nTASK [x]", is_diff=False))
        live.event(Output("+ line\n", is_diff=True))
        assert text_of(plain) == shown


def test_problems_and_data_go_to_their_streams(capsys):
    output.problems([Problem("gpu1", "has no [bold]sudo", "log in as root")])
    output.data({"answer": "Päris"})
    output.table(("host", "n>"), [("gpu[1]", "5")])
    out, err = capsys.readouterr()
    assert err == "gpu1: has no [bold]sudo\n  -> log in as root\n"
    assert out.splitlines()[:4] == ["{", '  "schema": 1,', '  "answer": "Päris"', "}"]
    assert out.splitlines()[4:] == ["host    n", "gpu[1]  5"]
