"""The judgement whether what a language model said is an answer, from its text alone."""

from __future__ import annotations

import re

_LOOP_CHARACTERS = 60  # shorter repetitions are found in good answers: rulers, ellipses, "ha ha ha"
_LOOP_TIMES = 4


def thinking_apart(content: str, reasoning: str) -> tuple[str, str]:
    """The answer, and the thinking before it.

    Args:
        content: what the server calls the content. It may hold `<think>...</think>`, or that without its opening tag.
        reasoning: the thinking that the server has already parted from the content.
    """
    before, tag, after = content.rpartition("</think>")
    if tag:
        reasoning, content = reasoning + before.replace("<think>", "", 1), after
    elif content.lstrip().startswith("<think>"):
        reasoning, content = reasoning + content.replace("<think>", "", 1), ""
    return content.strip(), reasoning.strip()


def repeated(text: str) -> str:
    """The piece of text that is repeated over and over at the end of a text; empty where none is."""
    match = re.search(r"(.{1,200}?)\1{%d,}\W*$" % (_LOOP_TIMES - 1), text, re.DOTALL)
    return match[1].strip() or "blanks" if match and len(match[0]) >= _LOOP_CHARACTERS else ""


def fault(answer: str, thinking: str, finish_reason: str, expect: str) -> str:
    """What is wrong with an answer and what to do next; empty where nothing is.

    Args:
        answer: the answer without the thinking.
        thinking: the thinking that came before the answer.
        finish_reason: `stop`, or `length` where the token limit ended the answer.
        expect: a regular expression that the answer must match, case ignored. Empty for a model that cannot know: any text will do.
    """
    if not expect:
        return "" if answer or thinking else "it is empty. The model's files or the chat template are not right."
    if loop := repeated(answer or thinking):
        return (
            f"it repeats {loop!r} over and over. The weights may be damaged, or this build of llama.cpp miscomputes on this hardware: "
            "let the role weights verify them, then try another backend or version."
        )
    if not answer and finish_reason == "length":
        return "the token limit was reached before it came to an answer. Raise smoke_bench_max_tokens."
    if not answer:
        return "it is empty. The model's files or the chat template are not right."
    if not re.search(expect, answer, re.IGNORECASE):
        return (
            f"it does not match {expect!r}. A model that talks but errs is heavily quantised, damaged or not the one that was meant; "
            "where the question is too hard for it, change smoke_bench_question and smoke_bench_expect."
        )
    return ""
