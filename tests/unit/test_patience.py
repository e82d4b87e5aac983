"""Tests that a service which goes away in the middle of an answer is told from a wrong answer, by real connections that are cut."""

from __future__ import annotations

import json
import os
import pwd
import sqlite3
from collections.abc import Callable
from pathlib import Path

import cutting
import pytest
from ansible_collections.r1.prov.plugins.module_utils import patience
from ansible_collections.r1.prov.plugins.module_utils.doors import Limits, LlamaServer, Ollama, Page, Reply
from ansible_collections.r1.prov.plugins.module_utils.http_api import Api, ApiError, AwayError
from ansible_collections.r1.prov.plugins.module_utils.patience import GoneError, Services, patiently
from ansible_collections.r1.prov.plugins.module_utils.progress import Progress
from ansible_collections.r1.prov.plugins.modules import smoke_bench

LIMITS = Limits(16, 30, 0.6)
WHOLE = cutting.UNTIL_CLOSED + "".join(cutting.events(cutting.delta("Paris."), cutting.delta("", "stop")))
DONE = cutting.UNTIL_CLOSED + "".join(cutting.events(cutting.delta("Paris."))) + "data: [DONE]\n\n"
MODELS = 'HTTP/1.1 200 OK\r\nContent-Length: 24\r\n\r\n{"data": [{"id": "m1"}]}'


class WrongError(Exception):
    """The answer is wrong."""


def api(port: int) -> Api:
    return Api(f"http://127.0.0.1:{port}", timeout_s=5)


def ask(port: int) -> Reply:
    return LlamaServer(api(port), "m1").ask("?", LIMITS, lambda _: None)


@pytest.mark.parametrize("answer", [WHOLE, DONE])
def test_an_answer_with_its_end_is_whole(answer: str) -> None:
    with cutting.answering(answer) as port:
        assert ask(port).content == "Paris."


@pytest.mark.parametrize("what", cutting.CUT)
def test_an_answer_without_its_end_is_a_service_that_went_away(what: str) -> None:
    with cutting.answering(cutting.CUT[what]) as port, pytest.raises(AwayError):
        ask(port)
    with cutting.answering(MODELS, cutting.CUT[what]) as port, pytest.raises(AwayError):
        Page(api(port), "m1").ask("?", LIMITS, lambda _: None)


def test_a_connection_that_is_reset_in_the_middle() -> None:
    with cutting.answering(cutting.UNTIL_CLOSED + cutting.SAYS[0], reset=True) as port, pytest.raises(AwayError):
        ask(port)


def test_the_own_apis_of_both_engines_have_an_end_too() -> None:
    piece = {"content": "a", "stop": False}
    for last, ends in (({"content": "", "stop": True}, True), (piece, False)):
        tokens = 'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"tokens":[]}'
        answer = cutting.UNTIL_CLOSED + "".join(cutting.events(piece, last))
        with cutting.answering(tokens, answer) as port:
            engine = LlamaServer(api(port), "m1")
            if ends:
                assert engine.generate("a", 1, LIMITS, lambda _: None).content == "a"
            else:
                with pytest.raises(AwayError):
                    engine.generate("a", 1, LIMITS, lambda _: None)
    end = {"message": {"content": ""}, "done": True, "eval_count": 1, "eval_duration": 10**9}
    lines = [json.dumps(each) + "\n" for each in ({"message": {"content": "Paris."}, "done": False}, end)]
    with cutting.answering(cutting.UNTIL_CLOSED + "".join(lines)) as port:
        assert Ollama(api(port), "m1", 1).ask("?", LIMITS, lambda _: None).decode_tokens_per_second == 1
    with cutting.answering(cutting.UNTIL_CLOSED + lines[0]) as port, pytest.raises(AwayError):
        Ollama(api(port), "m1", 1).ask("?", LIMITS, lambda _: None)


def test_an_error_of_the_engine_is_its_own_words() -> None:
    told = cutting.events({"error": {"message": "context full"}})
    with (
        cutting.answering(cutting.UNTIL_CLOSED + told[0]) as port,
        pytest.raises(ApiError, match="context full") as error,
    ):
        ask(port)
    assert not isinstance(error.value, AwayError)


@pytest.mark.parametrize("path", ["/health", "/nothing"])
def test_json_that_is_cut_is_no_defect(path: str) -> None:
    with cutting.answering('HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"da') as port, pytest.raises(AwayError):
        api(port).get(path)


@pytest.fixture
def unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Sets how systemd describes the unit. The first argument is its start, the second its state."""
    state = tmp_path / "state"

    def describe(start: str, active: str) -> None:
        state.write_text(f"InvocationID={start}\nActiveState={active}\nSubState=x\nResult=signal\nNRestarts={start}\n")

    describe("0", "active")
    (tmp_path / "systemctl").write_text(f"#!/bin/sh\ncat {state}\n")
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(patience.units, "SYSTEMD", tmp_path)
    monkeypatch.setattr(patience, "LOOK_AGAIN_S", 0.05)
    monkeypatch.setattr(patience, "STOPPED_S", 0.2)
    return describe


def judged(port: int, right: str = "Paris.") -> str:
    said = ask(port).content
    if said != right:
        raise WrongError(f"it said {said!r}")
    return said


def test_who_comes_back_is_asked_once_more(unit: Callable[[str, str], None]) -> None:
    warnings: list[str] = []
    waits: list[str] = []
    with cutting.answering(cutting.CUT["the connection ends in a chunk"], WHOLE) as port:
        services = Services(["r1prov-x"], lambda: unit("1", "active"), limit_s=5)
        assert patiently(lambda: judged(port), services, WrongError, waits.append, warnings.append) == "Paris."
    assert len(waits) == len(warnings) == 1
    assert "went away in the middle of an answer" in warnings[0]
    assert "r1prov-x is active" in warnings[0]


def test_an_answer_of_a_process_that_was_replaced_meanwhile_is_not_judged(unit: Callable[[str, str], None]) -> None:
    """A proxy may end the cut answer of the service behind it as if it were whole."""
    answers = iter(["The capital of", "Paris."])
    warnings: list[str] = []

    def work() -> str:
        said = next(answers)
        if said != "Paris.":
            unit("1", "active")
            raise WrongError(said)
        return said

    services = Services(["r1prov-x"], lambda: None, limit_s=5)
    assert patiently(work, services, WrongError, lambda _: None, warnings.append) == "Paris."
    assert len(warnings) == 1


def test_a_wrong_answer_stays_one(unit: Callable[[str, str], None]) -> None:
    del unit
    services = Services(["r1prov-x"], lambda: None, limit_s=5)
    with cutting.answering(WHOLE) as port, pytest.raises(WrongError):
        patiently(lambda: judged(port, "Lyon."), services, WrongError, pytest.fail, pytest.fail)


def test_who_does_not_come_back_is_named_with_its_state(unit: Callable[[str, str], None]) -> None:
    def goes() -> str:
        unit("0", "failed")
        raise AwayError("/completion ended in the middle of the answer")

    services = Services(["r1prov-x"], lambda: None, limit_s=5)
    with pytest.raises(GoneError, match=r"Now r1prov-x is failed \(x, signal\)"):
        patiently(goes, services, WrongError, lambda _: None, pytest.fail)


def test_who_goes_away_twice_is_not_asked_for_ever(unit: Callable[[str, str], None]) -> None:
    del unit
    services = Services(["r1prov-x"], lambda: None, limit_s=5)
    with cutting.answering(cutting.CUT["the stream is empty"]) as port, pytest.raises(GoneError, match="twice"):
        patiently(lambda: ask(port), services, WrongError, lambda _: None, lambda _: None)


def said(document: dict) -> str:
    text = json.dumps(document)
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}"


def test_the_whole_measurement_is_done_again_with_a_new_login(
    unit: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page goes away in the middle of its answer. While it is away, a login that was signed for one request ends."""
    monkeypatch.setattr(smoke_bench, "DATABASE", "webui.db")
    monkeypatch.setattr(smoke_bench.units, "show", lambda *_: {"MainPID": "0"})
    with sqlite3.connect(tmp_path / "webui.db") as database:
        database.executescript(
            "CREATE TABLE user (id TEXT, role TEXT, created_at BIGINT); CREATE TABLE auth (id TEXT, session_stamp TEXT);"
            "INSERT INTO user VALUES ('u1', 'admin', 1); INSERT INTO auth VALUES ('u1', 's1')"
        )
    unit("0", "active")
    timings = {"prompt_n": 1, "prompt_per_second": 9.0, "predicted_n": 4, "predicted_per_second": 5.0}
    props = {"default_generation_settings": {"n_ctx": 64}, "build_info": "b", "model_path": "/m", "total_slots": 1}
    last = {"content": "x", "stop": True, "timings": timings}
    completion = cutting.UNTIL_CLOSED + "".join(cutting.events({"content": "x", "stop": False}, last))
    of_engine = (said(props), WHOLE, said(props), WHOLE, said({"tokens": [1, 2]}), completion)
    of_page = (MODELS, cutting.CUT["the connection ends in a chunk"], MODELS, MODELS, WHOLE)
    logins: list[str] = []
    waits: list[str] = []
    with cutting.answering(*of_engine) as engine_port, cutting.answering(*of_page, heard=logins) as page_port:
        options = {"engine": "llama-server", "model": "m1", "question": "?", "expect": "Paris", "max_tokens": 16}
        options |= {
            "timeout_s": 5,
            "temperature": 0.6,
            "sweep_tokens": 4,
            "prompts": [],
            "prompts_limit_s": 0,
            "page_url": f"http://127.0.0.1:{page_port}",
        }
        options |= {"page_secret_key": "k", "page_data": str(tmp_path), "page_user": pwd.getpwuid(os.getuid()).pw_name}
        engine = LlamaServer(api(engine_port), "m1")
        engine.facts()
        bench = smoke_bench.Bench(options, Progress("smoke_bench", tmp_path), engine)
        services = Services([], bench.look, limit_s=5)
        measured = patiently(lambda: bench.measure([1]), services, WrongError, waits.append, lambda _: None)
    assert len(waits) == 1
    assert measured["page"]["answer"] == measured["question"]["answer"] == "Paris."
    assert measured["sweep"][0]["decode_tokens_per_second_each"] == 5.0
    assert measured["load"]["cores"] > 0
    assert len({login for login in logins if login}) == 3  # for the question, for the look, and for the question again
