"""Tests of what counts as a good answer."""

from __future__ import annotations

import pytest
from ansible_collections.r1.prov.plugins.module_utils.answer import fault, repeated, thinking_apart


@pytest.mark.parametrize(
    ("content", "reasoning", "apart"),
    [
        ("Paris.", "", ("Paris.", "")),
        ("Paris.", "The capital?", ("Paris.", "The capital?")),
        ("<think>\nHm.\n</think>\n\nParis.", "", ("Paris.", "Hm.")),
        ("Hm.\n</think>\n\nParis.", "", ("Paris.", "Hm.")),  # the template has opened the thinking already
        ("<think>\nHm, and so on", "", ("", "Hm, and so on")),  # the answer was cut off while thinking
    ],
)
def test_thinking_comes_apart(content: str, reasoning: str, apart: tuple[str, str]) -> None:
    assert thinking_apart(content, reasoning) == apart


@pytest.mark.parametrize(
    ("text", "piece"),
    [
        ("GGGG" * 20, "G"),
        ("Paris is " * 10, "Paris is"),
        ("So the answer is: " + "the the " * 20, "the"),
        ("line one\nline two\n" * 6, "line one\nline two"),
    ],
)
def test_repetition_is_found(text: str, piece: str) -> None:
    assert repeated(text).split() == piece.split()


@pytest.mark.parametrize(
    "text", ["", "Paris.", "Hm... ha ha ha!", "| a | b |\n|---|---|\n| 1 | 2 |", "Paris is the capital of France. " * 2]
)
def test_good_answers_are_no_repetition(text: str) -> None:
    assert repeated(text) == ""


@pytest.mark.parametrize(
    ("answer", "thinking", "finish", "expect", "says"),
    [
        ("The capital is PARIS.", "", "stop", "paris", ""),
        ("Lyon.", "", "stop", "Paris", "does not match 'Paris'"),
        ("", "Let me think", "length", "Paris", "Raise smoke_bench_max_tokens"),
        ("", "", "stop", "Paris", "it is empty"),
        ("@" * 100, "", "length", "Paris", "over and over"),
        ("", "wait, " * 50, "length", "Paris", "over and over"),
        ("@" * 100, "", "length", "", ""),  # a model with random weights answers like this
        ("", "", "stop", "", "it is empty"),
    ],
)
def test_fault(answer: str, thinking: str, finish: str, expect: str, says: str) -> None:
    found = fault(answer, thinking, finish, expect)
    assert says in found
    assert bool(found) == bool(says)
