"""The two consoles of the command line. stdout carries the data that was asked for; stderr carries all the talk."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleDimensions
from rich.table import Table
from rich.text import Text

from r1prov.output import layout, printed
from r1prov.output.layout import wrapped

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from r1prov.common.errors import Problem

UNBOUNDED = 100_000
"""The width in columns where neither a terminal nor COLUMNS gives one: a paragraph or a row of a table is one line there."""


def _console(*, stderr: bool) -> Console:
    """A console. What moves is for a terminal alone, whatever the environment says of colours."""
    stream = sys.stderr if stderr else sys.stdout
    is_terminal = stream.isatty()
    console = Console(stderr=stderr, force_interactive=None if is_terminal else False)
    given = os.environ.get("COLUMNS", "")
    columns = int(given) if given.isdigit() else 0
    if not is_terminal:
        console.width = columns or UNBOUNDED
    elif given or console.is_dumb_terminal:  # rich would take a width of 0 literally, and 80 for a dumb terminal.
        size = os.get_terminal_size(stream.fileno())
        console.size = ConsoleDimensions(columns or size.columns or 80, size.lines or 25)
    return console


out = _console(stderr=False)
err = _console(stderr=True)


def lines(console: Console, text: Text) -> None:
    """Print a text whose lines end between words."""
    for line in wrapped(text, console.width):
        console.print(line, soft_wrap=True)


def say(text: str = "", style: str = "") -> None:
    """Print a paragraph of talk on stderr."""
    lines(err, Text(text, style=style))


def line(text: str = "") -> None:
    """Print a paragraph of the answer on stdout."""
    lines(out, Text(text))


def command(words: Sequence[str], *, indent: str = "") -> None:
    """Print a command line of the answer on stdout, so that it can be copied into a shell."""
    written = layout.command(words, out.width - len(indent))
    out.out("\n".join(indent + each for each in written.splitlines()), highlight=False)


def write(text: str) -> None:
    """Write a piece of the answer to stdout as soon as it arrives, without a line break."""
    out.out(text, end="", highlight=False)


def whisper(text: str) -> None:
    """Write a piece of the model's reasoning to stderr, dimmed and without a line break."""
    err.print(Text(text, style="dim"), end="", soft_wrap=True)


def data(document: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout, with the number of its schema: its own, or 1."""
    printed.document.set()
    out.out(json.dumps({"schema": 1, **document}, indent=2, ensure_ascii=False), highlight=False)


def failure(code: int, found: Iterable[Problem]) -> None:
    """Say with a JSON document on stdout why a command ended with this exit code, unless there is a document already."""
    if not printed.document.is_set():
        data({"exit": code, "problems": [asdict(problem) for problem in found]})


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, talk: bool = False) -> None:
    """Print a table on stdout, or on stderr if it is part of the talk. A column whose name ends in `>` is right-aligned.

    Where its words find no room, each row is printed as a record.
    """
    console = err if talk else out
    laid_out = layout.table(columns, list(rows), console.width)
    for part in _ragged(console, laid_out) if isinstance(laid_out, Table) else laid_out:
        console.print(part, soft_wrap=isinstance(part, Text))


def _ragged(console: Console, grid: Table) -> Iterable[Table | Text]:
    """A table as it is for a terminal. For a pipe its lines, without the blanks that fill the last column."""
    if console.is_terminal:
        return [grid]
    rows = console.render_lines(grid, pad=False)
    return [Text("".join(segment.text for segment in row).rstrip()) for row in rows]


def problems(found: Iterable[Problem]) -> None:
    """Print each problem on stderr: where it is, what is wrong and what to do next."""
    for problem in found:
        lines(err, Text.assemble((problem.where, "bold red"), ": ", problem.what))
        lines(err, Text.assemble(("  -> ", "bold"), problem.remedy))


def traceback() -> None:
    """Print the traceback of the current exception on stderr. `--debug` asks for it."""
    err.print_exception()
