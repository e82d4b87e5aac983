"""Tests of what `r1prov ask` says about an answer that is slow, or cut off."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from r1prov.cli import ask, main
from r1prov.hosts.chat import End, Piece

WHOLE = End("stop", 30, 60.0, 100, 10.0)


def test_it_says_where_the_time_went() -> None:
    assert ask.why_slow(WHOLE, 75) == (
        "It took 1:15: 0:10 for writing 100 tokens, thinking included; 1:04 for waiting for the server and the way there"
    )


def test_it_says_how_to_go_on_after_the_limit() -> None:
    told = ask.cut_off(End("length", 30, 60.0, 4096, 10.0), 4096, begun=False)
    assert told.startswith("Cut off before the answer began, at the limit of 4,096 tokens.")
    assert "--max-tokens 8192" in told


def test_a_full_context_is_not_taken_for_the_limit() -> None:
    told = ask.cut_off(End("length", 30, 60.0, 2018, 10.0), 4096, begun=True)
    assert "the context of a slot is full, with 2,048 tokens" in told
    assert "--max-tokens" not in told


def test_a_long_silence_is_explained(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    explained = threading.Event()

    @contextmanager
    def conversation(*_: object) -> Iterator[Iterator[Piece | End]]:
        def pieces() -> Iterator[Piece | End]:
            assert explained.wait(10)
            yield Piece("2", thinking=False)
            yield WHOLE

        yield pieces()

    def say(text: str = "", style: str = "") -> None:
        if "has not begun after" in text:
            explained.set()

    monkeypatch.setattr(ask.visit, "conversation", conversation)
    monkeypatch.setattr(ask, "SILENCE_S", 0.05)
    monkeypatch.setattr(ask.output, "say", say)
    with pytest.raises(SystemExit) as ended:
        main(["ask", "1+1?"])
    assert not ended.value.code
    assert capsys.readouterr().out == "2\n"
