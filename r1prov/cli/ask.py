"""`r1prov ask`: one question, its answer as it comes."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from r1prov import output
from r1prov.cli import options
from r1prov.hosts import visit
from r1prov.hosts.chat import End
from r1prov.output.pace import clock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from r1prov.hosts.chat import Piece

MAX_TOKENS = 4096
"""Enough for R1 to think about a plain question. A model that repeats itself ends there, after minutes and not after hours."""

SILENCE_S = 5.0
"""How long nothing is said about an answer that has not begun, in seconds."""

SLOW_S = 30.0
"""The time in seconds from which on an answer is so slow that one wants to know why."""


@options.logs_in
def ask(
    question: Annotated[str, typer.Argument(help="The question; `-` reads it from stdin.")],
    *,
    host: options.OneHost = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Where the answer is cut off, with the thinking before it.")
    ] = MAX_TOKENS,
    site: options.SiteFile = None,
    login_options: options.LoginOptions,
    json: options.Json = False,
) -> None:
    """Ask a running server. The answer goes to stdout, what the model thinks before it to stderr.

    Example: `r1prov ask --host gpu1 "How many r are in strawberry?"`
    """
    login = login_options.ask()
    text = sys.stdin.read() if question == "-" else question
    thinking: list[str] = []
    answer: list[str] = []
    end: End | None = None
    with visit.conversation(site, host, login, text, max_tokens) as pieces:
        asked_s = time.monotonic()
        for piece in _broken_silence(pieces):
            if isinstance(piece, End):
                end = piece
                continue
            (thinking if piece.thinking else answer).append(piece.text)
            if not json:
                (output.whisper if piece.thinking else output.write)(piece.text)
        took_s = time.monotonic() - asked_s
    assert end  # noqa: S101 - for the type checker: the pieces end with it, or with an error
    if json:
        rates = {key: value for key, value in asdict(end).items() if key != "reason"}
        document = {"answer": "".join(answer), "thinking": "".join(thinking), "rates": rates}
        output.data({**document, "finish_reason": end.reason, "max_tokens": max_tokens})
    else:
        output.write("\n")
        output.say(
            f"prompt: {end.prompt_tokens} tokens at {end.prompt_tokens_per_second:.1f} tokens/s, "
            f"decode: {end.decode_tokens} tokens at {end.decode_tokens_per_second:.2f} tokens/s",
            "dim",
        )
    if took_s > SLOW_S:
        output.say(why_slow(end, took_s), "dim")
    if end.reason == "length":
        output.say(cut_off(end, max_tokens, begun=bool("".join(answer).strip())), "yellow")


def _broken_silence(pieces: Iterator[Piece | End]) -> Iterator[Piece | End]:
    """The same pieces. Where the first takes long, it is said what may keep it."""
    text = (
        f"The answer has not begun after {SILENCE_S:.0f} s: the engine reads the whole question first, "
        "and others may be ahead of it. Ctrl-C gives up."
    )
    silence = threading.Timer(SILENCE_S, output.say, [text, "dim"])
    silence.daemon = True
    silence.start()
    try:
        for piece in pieces:
            silence.cancel()
            yield piece
    finally:
        silence.cancel()


def why_slow(end: End, took_s: float) -> str:
    """Where the time of an answer went, as a sentence."""
    reading_s, writing_s = (
        tokens / rate if rate else 0.0
        for tokens, rate in (
            (end.prompt_tokens, end.prompt_tokens_per_second),
            (end.decode_tokens, end.decode_tokens_per_second),
        )
    )
    parts = {
        f"reading the question of {end.prompt_tokens:,} tokens": reading_s,
        f"writing {end.decode_tokens:,} tokens, thinking included": writing_s,
        "waiting for the server and the way there": took_s - reading_s - writing_s,
    }
    return f"It took {clock(took_s)}: " + "; ".join(f"{clock(s)} for {what}" for what, s in parts.items() if s >= 1)


def cut_off(end: End, max_tokens: int, *, begun: bool) -> str:
    """Why an answer is not whole, and how to get one that is."""
    where = "in the middle of the answer" if begun else "before the answer began"
    if end.decode_tokens < max_tokens:
        held = end.prompt_tokens + end.decode_tokens
        return (
            f"Cut off {where}: the context of a slot is full, with {held:,} tokens of question and answer. "
            "Ask something shorter, or serve with a larger context: r1prov up --ctx-size N"
        )
    return (
        f"Cut off {where}, at the limit of {max_tokens:,} tokens. If it was going somewhere, ask again with "
        f"--max-tokens {2 * max_tokens}; a model that repeats itself never ends."
    )
