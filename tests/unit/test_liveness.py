"""Tests of what watches whether an engine lives: its judgement over made-up hours, what it asks real servers, and what root does then."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import watch_engine
from ansible_collections.r1.prov.plugins.module_utils import liveness
from living import effort
from living.book import A_DAY, DAY_S, Book
from living.engines import Engine, LlamaServer, Ollama
from living.judge import Effort, Finding, Judge, Rules, Seen, State, Token

from r1prov.cli import show

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "roles/liveness/files/r1prov-liveness"
LLAMA = Rules(counts=True, idle_s=45, batch=2048, start_s=900)
OLLAMA = Rules(counts=False, idle_s=600, batch=2048, start_s=900)
EVERY_S = 10.0
LIMIT_S = 180.0
"""A wedged engine is found and restarted within so long."""
KILL_S = 12.0
"""So long root may take to end it."""


@dataclass
class Hours:
    """An engine and its judge, and looks as they come. Where a token is asked for, `token` says what becomes of it."""

    rules: Rules = LLAMA
    prompt_s: float | None = 0.001
    seen: Seen = field(default_factory=lambda: Seen(1000.0, State.ANSWERS, work=(10.0, 5.0, 5.0)))
    token: Token = Token.CAME
    asked: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.judge = Judge(self.rules, self.prompt_s)
        self._next = Token.NONE

    def look(self, steps: int = 0, busy: float = 0.0, **changed: Any) -> Finding:
        """One look, ten seconds after the last one."""
        count, *others = self.seen.work
        steps += self._next == Token.CAME  # It is counted, too.
        used = replace(self.seen.effort, seconds=self.seen.effort.seconds + busy * EVERY_S)
        usual = {
            "at_s": self.seen.at_s + EVERY_S,
            "work": (count + steps, *others),
            "token": self._next,
            "effort": used,
        }
        self.seen = replace(self.seen, **usual | changed)
        found = self.judge.look(self.seen)
        if found.asks:
            self.asked.append(self.seen.at_s)
        if found.asks or self._next == Token.ASKED:
            self._next = self.token
        else:
            self._next = Token.NONE
        return found

    def until_dead(self, limit_s: float, **changed: Any) -> float | None:
        """How many seconds later the engine is judged dead; None where it is not before the limit."""
        began_s = self.seen.at_s
        while self.seen.at_s - began_s < limit_s:
            if self.look(**changed).is_dead:
                return self.seen.at_s - began_s
        return None

    def lives(self, seconds: float, **changed: Any) -> bool:
        return self.until_dead(seconds, **changed) is None


def test_an_idle_engine_is_asked_for_a_token_now_and_then_and_lives_by_it() -> None:
    hours = Hours()
    assert hours.lives(3600)
    assert {b - a for a, b in zip(hours.asked, hours.asked[1:], strict=False)} == {60}  # It came at the next look.
    assert hours.judge.by == "a token that it was asked for"
    assert hours.seen.at_s - (hours.judge.alive_s or 0) < 70


@pytest.mark.parametrize("idle_s", range(0, 120, 10))
@pytest.mark.parametrize(
    ("how", "changed"),
    [
        ("stopped", {"state": State.SILENT}),
        ("a thread held", {}),
        ("a thread held, and the others spin", {"busy": 4.0}),
        ("stopped with answers in hand", {"state": State.SILENT, "requests": 3}),
        ("held with answers in hand", {"requests": 3}),
        ("held with answers in hand, and spinning", {"requests": 3, "busy": 4.0}),
    ],
)
def test_a_wedged_engine_is_found_in_time(how: str, changed: dict[str, Any], idle_s: int) -> None:
    hours = Hours()
    hours.look(steps=5)
    assert hours.lives(100 + idle_s)
    hours.token = Token.ASKED  # It does not come any more.
    found_s = hours.until_dead(LIMIT_S, **changed)
    assert found_s is not None, how
    assert found_s + KILL_S < LIMIT_S


def test_work_that_advances_is_life_however_long_an_answer_takes() -> None:
    hours = Hours()
    assert hours.lives(3600, steps=1, busy=2.0, requests=50)
    assert hours.asked == []  # Nobody's slot is taken.
    assert hours.judge.by == "its work"
    assert hours.until_dead(LIMIT_S, requests=50) is not None  # An answer that stands still is none.


@pytest.mark.parametrize("prompt_s", [0.03, 0.1, 0.4])
def test_a_long_prompt_may_take_minutes(prompt_s: float) -> None:
    hours = Hours(prompt_s=prompt_s)
    batch_s = 2048 * prompt_s
    for _ in range(4):  # 8k tokens: the engine counts each batch when it is over, and a deep one takes twice as long.
        assert hours.lives(2 * batch_s, requests=1, busy=30.0)
        hours.look(steps=1, requests=1, busy=30.0)
    assert hours.until_dead(4 * batch_s + LIMIT_S, requests=1, busy=30.0) is not None


def test_an_engine_whose_rate_nobody_knows_has_half_an_hour_while_it_computes() -> None:
    hours = Hours(prompt_s=None)
    assert hours.lives(1700, requests=1, busy=1.0)
    assert hours.until_dead(200, requests=1, busy=1.0) is not None
    learns = Hours(prompt_s=None)
    learns.look(steps=1, prompt_s=0.002)
    learns.look(steps=1, prompt_s=0.001)
    assert learns.judge.prompt_s == pytest.approx(0.0018)  # A fast prompt does not say that all are.
    assert learns.until_dead(100, requests=1, busy=1.0) is not None


def test_an_older_engine_that_is_silent_while_it_computes_has_as_long() -> None:
    hours = Hours(prompt_s=0.1)
    hours.look(steps=1)
    assert hours.lives(400, state=State.SILENT, busy=60.0)
    assert hours.until_dead(60, state=State.SILENT) is not None


def test_an_engine_that_loads_or_is_stopped_is_left_alone() -> None:
    hours = Hours()
    hours.look(steps=1)
    for state in (State.DOWN, State.LOADING, State.UNKNOWN):
        assert hours.lives(1200, state=state, requests=0)
    assert hours.asked == []
    hours.look(state=State.DOWN)
    assert hours.lives(800, state=State.SILENT)  # It does not even say that it loads.
    assert hours.until_dead(300, state=State.SILENT) is not None


def test_a_watcher_that_was_stopped_and_a_host_that_slept_prove_nothing() -> None:
    hours = Hours()
    hours.look(steps=1)
    for _ in range(100):
        assert not hours.look(requests=1).is_dead
        assert not hours.look(requests=1).is_dead
        hours.seen = replace(hours.seen, at_s=hours.seen.at_s + 600)


def test_an_engine_that_reads_its_model_again_from_the_disk_is_not_dead() -> None:
    hours = Hours()
    hours.look(steps=1)
    for _ in range(60):
        faults = hours.seen.effort.faults + 500
        assert not hours.look(requests=1, effort=Effort(faults=faults)).is_dead
    assert hours.lives(600, requests=1, effort=Effort(faults=30000, waits=True))
    assert hours.until_dead(LIMIT_S, requests=1, effort=Effort(faults=30000)) is not None


def test_counters_that_are_shown_too_coarsely_prove_nothing_while_it_computes() -> None:
    hours = Hours()
    hours.look(work=(2.5e8, 1.0, 1.0))
    assert hours.lives(3600, requests=1, busy=1.0)
    assert hours.until_dead(LIMIT_S, requests=1) is not None


def test_an_engine_that_answers_with_errors_of_its_own_is_dead_the_second_time() -> None:
    hours = Hours(token=Token.FAILED)
    assert (hours.until_dead(LIMIT_S) or LIMIT_S) < 100
    once = Hours(token=Token.FAILED)
    while not once.look().misses:
        pass
    once.token = Token.CAME
    assert once.lives(600)


def test_an_engine_that_has_lost_a_worker_is_found_at_once_and_not_called_dead() -> None:
    hours = Hours()
    hours.look(steps=1)
    found = hours.look(is_severed=True)
    assert (found.is_severed, found.is_dead, found.state) == (True, False, "has lost a worker")
    assert not hours.look(state=State.LOADING, is_severed=False).is_severed


def test_an_engine_whose_workers_compute_need_not_use_a_processor_itself() -> None:
    spread = replace(LLAMA, is_spread=True)
    hours = Hours(rules=spread, prompt_s=0.1)
    hours.look(steps=1)
    assert hours.lives(300, requests=1)  # A batch of 2,048 tokens takes them 205 s.
    assert Hours(prompt_s=0.1).until_dead(300, requests=1) is not None
    assert hours.until_dead(400, requests=1) is not None
    quick = Hours(rules=spread)
    assert quick.until_dead(LIMIT_S, requests=1) is not None


def test_ollama_lives_by_what_it_uses_of_the_processors() -> None:
    hours = Hours(rules=OLLAMA, prompt_s=None)
    assert hours.lives(3600, busy=1.0, requests=3)
    assert hours.asked == []
    hours.token = Token.ASKED
    # Somebody waits, and nothing is computed: that is worth what the token costs.
    assert hours.until_dead(LIMIT_S, requests=1) is not None


def test_ollama_is_asked_for_a_token_when_nobody_has_used_it_for_ten_minutes() -> None:
    hours = Hours(rules=OLLAMA, prompt_s=None)
    hours.look(busy=1.0)
    used_s = hours.seen.at_s
    assert hours.lives(1300)
    assert hours.asked[0] - used_s == 600
    assert len(hours.asked) == 2
    stopped = Hours(rules=OLLAMA, prompt_s=None)
    stopped.look(busy=1.0)
    assert stopped.until_dead(LIMIT_S, state=State.SILENT, busy=0.5) is not None


METRICS = """\
# HELP llamacpp:n_decode_total Total number of llama_decode() calls
llamacpp:n_decode_total {decoded}
llamacpp:prompt_tokens_total 200
llamacpp:prompt_seconds_total 4
llamacpp:tokens_predicted_total 1.23457e+06
llamacpp:requests_processing 2
llamacpp:requests_deferred 3
"""


@dataclass
class Answers:
    """How a made-up engine answers."""

    status: int = 200
    text: str = METRICS.format(decoded=17)
    token_status: int = 200
    keys: list[str] = field(default_factory=list)
    waits: threading.Event = field(default_factory=threading.Event)


@contextmanager
def engine(answers: Answers) -> Iterator[str]:
    """An engine on a port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers.keys.append(self.headers.get("Authorization", ""))
            self._says(answers.status, answers.text)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            answers.waits.wait(10)
            self._says(answers.token_status, "{}")

        def _says(self, status: int, text: str) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        answers.waits.set()
        server.shutdown()
        server.server_close()


def llama(url: str, folder: Path) -> LlamaServer:
    (folder / "key").write_text("secret\n")
    return LlamaServer(url, str(folder / "key"), "nobody", LLAMA)


def token(asked: Engine, is_there: Callable[[Seen], bool]) -> Seen:
    """The look in which something is to be seen of a token."""
    until_s = time.monotonic() + 10
    while not is_there(seen := asked.look(0.0)):
        assert time.monotonic() < until_s
        time.sleep(0.01)
    return seen


def test_what_llama_server_tells(tmp_path: Path) -> None:
    answers = Answers()
    with engine(answers) as url:
        asked = llama(url, tmp_path)
        seen = asked.look(5.0)
        assert seen == Seen(5.0, State.ANSWERS, "", (17, 200, 1234570), 5, None, Token.NONE, seen.effort)
        assert answers.keys == ["Bearer secret"]
        # So few tokens say nothing, and neither do those that the last one of six digits stands for.
        for tokens, seconds, prompt_s in (
            (263, 10, None),
            (463, 14, 0.02),
            ("1.5e6", 99, None),
            ("1.5002e6", 99, None),
        ):
            asked.look(5.0)
            answers.text = METRICS.format(decoded=17).replace("200", str(tokens)).replace("4\n", f"{seconds}\n", 1)
            if tokens != "1.5e6":
                assert asked.look(5.0).prompt_s == prompt_s
        answers.text = ""
        assert asked.look(5.0).state == State.UNKNOWN
        for status, state in ((503, State.LOADING), (401, State.UNKNOWN), (500, State.UNKNOWN)):
            answers.status = status
            assert asked.look(5.0).state == state
    assert asked.look(5.0).state == State.DOWN


def test_a_token_is_asked_for_beside_the_looks(tmp_path: Path) -> None:
    answers = Answers()
    with engine(answers) as url:
        asked = llama(url, tmp_path)
        asked.ask()
        asked.ask()  # One at a time.
        assert asked.look(5.0).token == Token.ASKED
        answers.waits.set()
        token(asked, lambda seen: seen.token == Token.CAME)
        assert asked.look(5.0).token == Token.NONE
        answers.token_status = 500
        asked.ask()
        token(asked, lambda seen: seen.token == Token.FAILED)
        answers.token_status = 404
        asked.ask()
        assert "HTTP 404" in token(asked, lambda seen: seen.state == State.UNKNOWN).why
        assert asked.look(5.0).state == State.ANSWERS


def test_an_engine_that_is_stopped_by_a_signal_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("living.engines.ANSWER_S", 0.3)
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "0"], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout
            port = server.stdout.readline().split("port ")[1].split()[0]
            asked = llama(f"http://127.0.0.1:{port}", tmp_path)
            server.send_signal(signal.SIGSTOP)
            assert asked.look(5.0).state == State.SILENT
        finally:
            server.kill()


def test_how_many_wait_for_ollama_is_told_by_the_kernel(tmp_path: Path) -> None:
    answers = Answers(text='{"version": "0.12.11"}')
    with engine(answers) as url:
        port = int(url.rpartition(":")[2])
        (tmp_path / "tcp").write_text(
            "  sl  local_address rem_address   st\n"
            f"   0: 0100007F:{port:04X} 00000000:0000 0A\n"
            f"   1: 0100007F:{port:04X} 0100007F:D431 01\n"
            f"   2: 0100007F:D431 0100007F:{port:04X} 01\n"
            f"   3: 0100007F:{port:04X} 0100007F:D432 06\n"
        )
        (tmp_path / "tcp6").write_text(f"head\n   0: 00:{port:04X} 00:D433 01\n")
        asked = Ollama(url, "nobody", "demo", OLLAMA, tmp_path)
        assert asked.look(5.0).requests == 2
        asked.ask()
        assert asked.look(5.0).requests == 1  # The other one is the watcher's own.


def test_whether_a_worker_is_connected_is_told_by_the_kernel(tmp_path: Path) -> None:
    def listed(state: str) -> None:
        end = f"{int.from_bytes(bytes([127, 0, 0, 2]), sys.byteorder):08X}:1D14"
        (tmp_path / "tcp").write_text(f"head\n   0: 0100007F:D431 {end} {state} 0\n   1: {end} 0100007F:D431 01 0\n")

    (tmp_path / "key").write_text("secret\n")
    with engine(Answers()) as url:
        asked = LlamaServer(url, str(tmp_path / "key"), "nobody", LLAMA, workers=["127.0.0.2:7444"], net=tmp_path)
        for state, is_severed in (("01", False), ("08", True)):  # The other side has closed the second one.
            listed(state)
            assert asked.look(5.0).is_severed is is_severed
        (tmp_path / "tcp").unlink()
        assert asked.look(5.0).is_severed
        assert not LlamaServer(url, str(tmp_path / "key"), "nobody", LLAMA, net=tmp_path).look(5.0).is_severed


def test_what_the_processes_of_a_user_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pwd.getpwnam", lambda _: type("Entry", (), {"pw_uid": os.geteuid()}))
    assert effort.of("me").seconds > 0
    fields = ["S", *["0"] * 40]
    for name, state, faults in (("7/task/7", "S", "3"), ("7/task/8", "D", "3"), ("7", "S", "4"), ("self", "S", "9")):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        fields[0], fields[9], fields[11], fields[12] = state, faults, "200", "100"
        (tmp_path / name / "stat").write_text(f"7 (llama) server) {' '.join(fields)}\n")
    assert effort.of("me", tmp_path) == Effort(300 / os.sysconf("SC_CLK_TCK"), 4, waits=True)
    monkeypatch.undo()
    assert effort.of("no-such-user") == Effort()


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path / "kept.json", tmp_path / "last.json", lambda: 1e9)


def test_five_restarts_a_day_and_then_none(book: Book, tmp_path: Path) -> None:
    def at(now_s: float) -> Book:
        return Book(tmp_path / "kept.json", tmp_path / "last.json", lambda: now_s)

    assert [at(1e9 + hour * 3600).may_restart() for hour in range(A_DAY + 1)] == [True] * A_DAY + [False]
    assert at(1e9).kept.stays_down_since == 1e9 + A_DAY * 3600
    assert not at(1e9 - 3600).may_restart()  # Somebody has set the clock back.
    assert at(1e9 + DAY_S + 1).may_restart()  # The first one is over.
    assert at(1e9).begins_anew()
    assert not at(1e9).begins_anew()
    assert at(1e9).kept.restarts == []


@pytest.mark.parametrize("half", ["", "{", '{"restarts": 5}', "[]"])
def test_half_of_a_file_is_a_beginning(tmp_path: Path, half: str) -> None:
    (tmp_path / "kept.json").write_text(half)
    assert Book(tmp_path / "kept.json", tmp_path / "last.json").may_restart()


def test_what_was_seen_is_written_when_it_changes_and_now_and_then(book: Book, tmp_path: Path) -> None:
    written = []
    for at_s, state in ((0, "idle"), (10, "idle"), (20, "alive"), (30, "alive"), (60, "alive")):
        book.tell(at_s, state=state, alive_s=at_s)
        written.append(json.loads((tmp_path / "last.json").read_text())["looked_s"])
    assert written == [0, 0, 20, 20, 60]


def test_what_was_learnt_of_an_engine_outlives_the_watcher(book: Book, tmp_path: Path) -> None:
    book.learn(0.05)
    book.learn(0.051)
    assert Book(tmp_path / "kept.json", tmp_path / "last.json").kept.prompt_s == 0.05


class Wedged:
    """An engine that stands still from the first look on."""

    rules = LLAMA

    def __init__(self, clock: list[float]) -> None:
        self._clock = clock

    def look(self, at_s: float) -> Seen:
        return Seen(at_s, State.ANSWERS, work=(1.0,), requests=1)

    def ask(self) -> None:
        raise AssertionError("it has something in hand")


def test_the_verdict_is_the_exit_code(book: Book, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clock = [0.0]

    def pause() -> None:
        clock[0] += EVERY_S

    for expected in [watch_engine.RESTART] * A_DAY + [watch_engine.STOP]:
        assert watch_engine.watch("llama-server", Wedged(clock), book, pause, lambda: clock[0]) == expected  # type: ignore[arg-type]
        book.kept.stays_down_since = None if expected == watch_engine.RESTART else book.kept.stays_down_since
    said = capsys.readouterr().out.splitlines()
    assert said[-1].endswith("stays down until somebody starts it")
    assert json.loads((tmp_path / "last.json").read_text())["state"] == "llama-server stands still"


def test_a_lost_worker_costs_none_of_the_restarts(book: Book, capsys: pytest.CaptureFixture[str]) -> None:
    class Severed(Wedged):
        def look(self, at_s: float) -> Seen:
            return Seen(at_s, State.ANSWERS, work=(1.0,), is_severed=True)

    for _ in range(A_DAY + 2):
        verdict = watch_engine.watch("llama-server", Severed([0.0]), book, lambda: None, lambda: 0.0)  # type: ignore[arg-type]
        assert verdict == watch_engine.RESTART_UNCOUNTED
    assert book.kept.restarts == []
    assert "has lost a worker: it is restarted, which is not counted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "status", "states", "does"),
    [
        ("exited", "70", ["active", "active", "activating"], ["reset-failed", "--no-block restart"]),
        ("exited", "71", ["active", "deactivating", "inactive"], ["reset-failed", "--no-block stop"]),
        ("exited", "72", ["active", "active", "activating"], ["reset-failed", "--no-block restart"]),
        (
            "exited",
            "70",
            ["active"] + ["deactivating"] * 11,
            ["reset-failed", "--no-block restart", "kill --signal=KILL"],
        ),
        ("exited", "70", ["activating"], []),  # It loads.
        ("exited", "70", ["inactive"], []),
        ("exited", "0", [], []),
        ("exited", "1", [], []),
        ("killed", "70", [], []),
    ],
)
def test_root_acts_on_the_verdict_and_on_nothing_else(
    tmp_path: Path, code: str, status: str, states: list[str], does: list[str]
) -> None:
    (tmp_path / "states").write_text("".join(f"ActiveState={each}\n" for each in states))
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(
        f'#!/bin/sh\ncd {tmp_path}\n[ $1 = show ] || {{ echo "$@" >> done; exit 0; }}\n'
        "head -n 1 states\n[ $(wc -l < states) = 1 ] || sed -i 1d states\n"
    )
    systemctl.chmod(0o755)
    text = (PROGRAM / "act.py").read_text().replace("time.sleep(1)", "time.sleep(0)")
    (tmp_path / "act.py").write_text(text)
    environment = {"PATH": os.environ["PATH"], "EXIT_CODE": code, "EXIT_STATUS": status}
    subprocess.run([sys.executable, "-I", tmp_path / "act.py", systemctl, "e.service"], env=environment, check=True)
    done = tmp_path / "done"
    assert (done.read_text().splitlines() if done.exists() else []) == [f"{each} e.service" for each in does]


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what a watcher leaves on a host."""
    monkeypatch.setattr(liveness, "SEEN", tmp_path / "last.json")
    monkeypatch.setattr(liveness, "KEPT", tmp_path / "kept.json")
    return tmp_path


def shown(**more: Any) -> tuple[str, bool]:
    return show.liveness("gpu1", {"engine": "llama-server", "liveness": liveness.last_seen(), **more})


def test_what_status_says_of_it(left: Path) -> None:
    assert liveness.last_seen() is None
    assert shown() == ("", False)
    now_s = watch_engine.clock()
    book = Book(left / "kept.json", left / "last.json")
    book.tell(now_s - 5, state="alive", by="its work", alive_s=now_s - 5)
    assert shown() == ("gpu1: llama-server was seen alive 0:05 ago, by its work", False)
    seen = liveness.last_seen() or {}
    assert abs(datetime.fromisoformat(seen["alive"]).timestamp() - time.time() + 5) < 3
    book.kept.restarts = [time.time() - DAY_S - 60]
    assert book.may_restart()
    assert shown()[0].endswith("by its work; it stood still, and was restarted once in the last 24 hours")
    book.tell(now_s - 500, state="cannot be judged: HTTP 401", by="", alive_s=None)
    text, is_news = shown()
    assert "was not seen alive yet" in text
    assert "nobody has looked for 8:20, and `journalctl -u r1prov-liveness` there says why" in text
    assert is_news
    assert not liveness.has_given_up()
    while book.may_restart():
        pass
    assert liveness.has_given_up()
    text, is_news = shown()
    assert text.startswith("gpu1: llama-server stood still again after 5 restarts in 24 hours, and stays down since ")
    assert is_news
