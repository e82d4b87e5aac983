"""Tests of what people see on terminals of several widths, in a pipe, and on a terminal that moves nothing."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from dataclasses import replace

import pytest
from rich.console import Console
from rich.text import Text

from r1prov import output
from r1prov.cli import main, show
from r1prov.common.errors import Exit, Problem
from r1prov.hosts import Progress
from r1prov.output import console as consoles
from r1prov.output import layout
from r1prov.output.console import UNBOUNDED
from r1prov.runs.events import StepStarted, TaskDone
from r1prov.runs.past import PastRun
from r1prov.runs.report import HostReport, RunReport, benchmark_rows
from tests import golden

GIB = 1024**3
PATH = "/srv/r1prov/models/DeepSeek-R1-UD-IQ1_S/DeepSeek-R1-UD-IQ1_S-MLA-00001-of-00003.gguf"
URL = "https://mirror.example.com/huggingface/unsloth/DeepSeek-R1-GGUF-UD/resolve/main/UD-IQ1_S/DeepSeek-R1.gguf"
COMMAND = "`r1prov up --site /etc/r1prov/r1prov.yml --override ram gpu1.rack4.example.com`"
PROBLEMS = [
    Problem("gpu1.rack4.example.com", f"weights: {URL} answers 403 for the third time", f"download it to {PATH}"),
    Problem("gpu2", "ram: 256.0 GiB, but 300.5 GiB are needed", f"{COMMAND} accepts that, or add memory to the host"),
]
HOST, RELEASE = "gpu1.rack4.example.com", "0.3.36-cuda-c72ec179d111"
STATUS = ("host", "engine", "release", "health", "page", "gateway", "slots x context>", "weights", "decode/s>")
HOSTS = [
    (
        "gpu1.rack4.example.com",
        "llama-server",
        "0.3.36-cuda-c72ec179d111",
        "ok",
        "ok, no document search",
        "ok",
        "2 x 32,768",
        "done",
        "12.50",
    ),
    ("gpu2", "ollama", "not installed", "down", "", "", "", "not installed", ""),
]
CHANGES = ["weights: a", "llama_cpp: b", *["ollama: c"] * 12, "open_webui: d", "llama_server: e", "smoke_bench: f"]
WIDTHS = [40, 60, 80, 120, UNBOUNDED]


def page() -> None:
    """Shows one example of everything that is not a plan."""
    output.say("## Problems")
    output.problems(PROBLEMS)
    output.say("\n## status")
    output.table(STATUS, HOSTS, talk=True)
    output.say("\n## The end of a run")
    steps = [("weights", 61.0), ("llama_cpp", 620.5)]
    hosts = {
        "gpu1": HostReport("ok", 60, 17, CHANGES, {"r1prov-llama-server": 41.5}, steps),
        "gpu2": HostReport("failed"),
    }
    hosts[
        "gpu1"
    ].compared = "decodes 5.90 tokens/s where the median of 3 measurements (of 2026-11-20 to 2026-11-27) is 5.80"
    show.summary(RunReport("r1prov up", "default", "4x4090", "UD-IQ1_S", "", hosts))
    output.say("\n## bench")
    alone = {"users": 1, "prompt_tokens_per_second_each": 61.25, "decode_tokens_per_second_each": 5.9}
    measured = {"gpu1.rack4.example.com": {"subject": {"engine": "llama-server"}, "sweep": [alone]}}
    output.table(("tokens per second", "prompt>", "decode>"), benchmark_rows(measured, []), talk=True)
    output.say("\n## tune")
    tried = [("the plan's own", "61.25", "5.90", ""), ("threads 48, micro-batch 512", "66.10", "6.45", "kept")]
    output.table(("gpu1, tokens per second", "prompt>", "decode>", "outcome"), tried, talk=True)


def shown(console: Console) -> str:
    return "".join(f"{line.rstrip()}\n" for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined] # a StringIO


def console(width: int, *, terminal: bool = False) -> Console:
    return Console(
        file=io.StringIO(), width=width, force_terminal=terminal, color_system=None, legacy_windows=False, _environ={}
    )


def page_of(width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    paper = console(width)
    monkeypatch.setattr(consoles, "err", paper)
    page()
    return shown(paper)


def test_what_people_see_at_each_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """The golden files are what a person sees. `make golden` writes the files again."""
    pages = {f"{'pipe' if width == UNBOUNDED else width}.txt": page_of(width, monkeypatch) for width in WIDTHS}
    golden.assert_golden(pages | {f"moving-{width}.txt": moving_at(width) for width in WIDTHS[:-1]}, "output")


@pytest.mark.parametrize("width", WIDTHS)
def test_no_word_is_broken(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    text = page_of(width, monkeypatch)
    for whole in (PATH, URL, COMMAND, RELEASE, HOST):
        assert whole in text
    for line in text.splitlines():  # Only what may not be broken is longer than the terminal is wide.
        assert len(line) <= width or line.strip().removeprefix("-> ").startswith((PATH, URL, COMMAND)), line


@pytest.mark.parametrize("width", range(20, 130, 7))
def test_no_word_of_a_table_is_broken(width: int) -> None:
    paper = console(width)
    found = layout.table(STATUS, HOSTS, width)
    for part in [found] if not isinstance(found, list) else found:
        paper.print(part, soft_wrap=isinstance(part, Text))
    words = shown(paper).split()
    assert all(word in words for row in HOSTS for cell in row for word in cell.split())
    assert isinstance(found, list) or all(len(line) <= width for line in shown(paper).splitlines())


def test_columns_are_as_wide_as_their_words_want() -> None:
    cells = [("a b", "x" * 30 + " " + "y" * 20, "a long text that may well be wrapped between its words")]
    grid = layout.table(("one", "two", "three"), cells, 90)
    assert not isinstance(grid, list)
    assert [column.width for column in grid.columns] == [3, 42, 41]
    assert isinstance(layout.table(("one", "two", "three"), cells, 50), list)


def test_a_command_goes_on_after_a_backslash_and_is_the_same_command() -> None:
    words = ["llama-server", "--override-tensor", "blk[.](1|2)[.]ffn .*=CPU", "--model", PATH, "-np", "1"]
    for width in (20, 40, 80, 500):
        text = layout.command(words, width)
        said = subprocess.run(["sh", "-c", f"printf '%s\\n' {text}"], capture_output=True, text=True, check=True)
        assert said.stdout.splitlines() == words
    assert "\n" not in layout.command(words, 500)


def progress(step: str, done: int, total: int, unit: str, label: str, at: float) -> Progress:
    return Progress("gpu1", step, label, done, total, unit, "running", at)


def moving_at(width: int) -> str:
    """What moves on a terminal while a host compiles and fetches."""
    now = 0.0
    screen = console(width, terminal=True)
    steps = (("weights", 1.0), ("llama_cpp", 400.0), ("weights", 900.0), ("smoke_bench", 60.0))
    past = {"gpu1": [PastRun("2026-11-24", steps, frozenset({"weights"}))]}
    live = output.LiveRun(["gpu1"], console=screen, now=lambda: now, past=past)
    live.event(StepStarted("gpu1", "weights", 1, 4))
    live.event(TaskDone("gpu1", "weights", "start", changed=True, result={}))
    now = 2.0
    live.event(StepStarted("gpu1", "llama_cpp", 2, 4))
    for now in (2.0, 12.0):
        live.progress(progress("llama_cpp", int(100 + now), 359, "steps", "compiling", now))
        weights = progress("weights", int(now) * GIB // 20, 131 * GIB, "bytes", "fetching", now)
        live.progress(
            replace(weights, sources=["huggingface.co", "hf-mirror.com"], verifying="m-00001-of-00003.gguf 1 %")
        )
    screen.print(live._lines())
    return shown(screen)


@pytest.mark.parametrize("width", WIDTHS[:-1])
def test_what_moves_fits_the_terminal(width: int) -> None:
    assert all(len(line) <= width for line in moving_at(width).splitlines())


RUN = """
import sys, time
from r1prov import output
from r1prov.runs.events import *
with output.LiveRun(["gpu1"]) as live:
    for number, step in enumerate(("preflight", "weights"), 1):
        live.event(StepStarted("gpu1", step, number, 3))
        live.event(TaskDone("gpu1", step, "x", changed=step == "weights", result={}))
        time.sleep(0.3)
    live.event(StepStarted("gpu1", "llama_cpp", 3, 3))
    live.event(TaskStarted("gpu1", "llama_cpp", "Compile it"))
    time.sleep(0.3)
"""


def on_a_terminal(code: str, columns: int, **env: str) -> str:
    """What a program writes to a terminal of its own."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES", "TERM", "NO_COLOR"}}
    with subprocess.Popen([sys.executable, "-c", code], stdin=its, stdout=its, stderr=its, env=kept | env) as program:
        os.close(its)
        told = b""
        try:
            while piece := os.read(ours, 65536):
                told += piece
        except OSError:  # how Linux says that nobody has the other end open any more
            pass
        os.close(ours)
    assert program.returncode == 0
    return told.decode().replace("\r\n", "\n")


FINISHED = ["gpu1  [1/3] preflight: 0:00, nothing to change", "gpu1  [2/3] weights: 0:00, 1 change"]


def test_a_terminal_that_moves_nothing_gets_lines_without_escapes() -> None:
    told = on_a_terminal(RUN, 60, TERM="dumb")
    assert "\x1b" not in told
    assert told.splitlines() == [*FINISHED, "gpu1  stopped in [3/3] llama_cpp after 0:00"]
    sentence = on_a_terminal(f"from r1prov import output; output.say({' '.join(['word'] * 20)!r})", 40, TERM="dumb")
    assert max(map(len, sentence.splitlines())) <= 40
    assert len(sentence.splitlines()) == 3


def test_on_a_terminal_finished_steps_stay_and_the_running_one_moves_below() -> None:
    told = on_a_terminal(RUN, 60, TERM="xterm", NO_COLOR="1")
    assert "\x1b[3" not in re.sub(r"\x1b\[3?[0-9]?[A-Z]", "", told)  # no colour
    kept = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).strip() for line in told.replace("\r", "\n").splitlines()]
    for line in FINISHED:
        assert line in kept
    assert kept.index(FINISHED[0]) < kept.index(FINISHED[1]) < kept.index("Compile it")
    assert any(line.startswith("gpu1 [3/3] llama_cpp 0:0") for line in kept)


def test_a_pipe_gets_one_line_a_step_whatever_is_said_of_colours() -> None:
    for env in ({}, {"FORCE_COLOR": "1"}):
        run = subprocess.run(
            [sys.executable, "-c", RUN], capture_output=True, text=True, check=True, env={**os.environ, **env}
        )
        plain = re.sub(r"\x1b\[[0-9;]*m", "", run.stderr)
        assert "\x1b" not in plain
        assert plain.splitlines() == [*FINISHED, "gpu1  stopped in [3/3] llama_cpp after 0:00"]


def test_a_width_that_is_none_is_ignored() -> None:
    code = "from r1prov.output import console; print(console.out.width)"
    for columns, width in (("0", UNBOUNDED), ("", UNBOUNDED), ("x", UNBOUNDED), ("72", 72)):
        run = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "COLUMNS": columns},
        )
        assert int(run.stdout) == width


def test_a_path_in_a_wrong_command_line_is_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consoles.err, "width", 40)
    with pytest.raises(SystemExit) as end:
        main(["up", "--ssh-config", PATH, "gpu1"])
    assert end.value.code == Exit.USAGE
    told = capsys.readouterr().err
    assert PATH in told
    assert "\n  -> `r1prov up --help` says what it\n" in told
