"""`r1prov ask`: one question, its answer as it comes."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from r1prov import output
from r1prov.cli import options
from r1prov.hosts import visit
from r1prov.hosts.chat import Rates


@options.logs_in
def ask(
    question: Annotated[str, typer.Argument(help="The question; `-` reads it from stdin.")],
    *,
    host: Annotated[str | None, typer.Option(help="Which of the site's hosts; the first without.")] = None,
    site: options.SiteFile = None,
    login_options: options.LoginOptions,
    json: options.Json = False,
) -> None:
    """Ask a running server. The answer goes to stdout, what R1 thinks before it to stderr.

    Example: `r1prov ask --host gpu1 "How many r are in strawberry?"`
    """
    login = login_options.ask()
    text = sys.stdin.read() if question == "-" else question
    thinking: list[str] = []
    answer: list[str] = []
    rates: Rates | None = None
    with visit.conversation(site, host, login, text) as pieces:
        for piece in pieces:
            if isinstance(piece, Rates):
                rates = piece
                continue
            (thinking if piece.thinking else answer).append(piece.text)
            if not json:
                (output.whisper if piece.thinking else output.write)(piece.text)
    if json:
        document = {"answer": "".join(answer), "thinking": "".join(thinking), "rates": asdict(rates) if rates else None}
        output.data(document)
        return
    output.write("\n")
    if rates:
        output.say(
            f"prompt: {rates.prompt_tokens} tokens at {rates.prompt_tokens_per_second:.1f} tokens/s, "
            f"decode: {rates.decode_tokens} tokens at {rates.decode_tokens_per_second:.2f} tokens/s",
            "dim",
        )
