"""The two consoles of the command line. stdout carries the data that was asked for; stderr carries all the talk."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from r1prov.common.errors import Problem

PLAIN_WIDTH = 120
"""The width in columns where neither a terminal nor COLUMNS gives one."""


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PLAIN_WIDTH
    return console


out = _console(stderr=False)
err = _console(stderr=True)


def say(text: str = "", style: str = "") -> None:
    """Print one line of talk on stderr."""
    err.print(Text(text, style=style), soft_wrap=True)


def write(text: str) -> None:
    """Write a piece of the answer to stdout as soon as it arrives, without a line break."""
    out.out(text, end="", highlight=False)


def whisper(text: str) -> None:
    """Write a piece of the model's reasoning to stderr, dimmed and without a line break."""
    err.print(Text(text, style="dim"), end="", soft_wrap=True)


def data(value: Any) -> None:
    """Print one JSON document on stdout."""
    out.out(json.dumps(value, indent=2, ensure_ascii=False), highlight=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, talk: bool = False) -> None:
    """Print a table on stdout, or on stderr if it is part of the talk. A column whose name ends in `>` is right-aligned."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column.removesuffix(">"), justify="right" if column.endswith(">") else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(escape(cell) for cell in row))
    (err if talk else out).print(grid)


def problems(found: Iterable[Problem]) -> None:
    """Print each problem on stderr: where it is, what is wrong and what to do next."""
    for problem in found:
        err.print(Text.assemble((problem.where, "bold red"), ": ", problem.what), soft_wrap=True)
        err.print(Text.assemble(("  -> ", "bold"), problem.remedy), soft_wrap=True)


def traceback() -> None:
    """Print the traceback of the current exception on stderr. `--debug` asks for it."""
    err.print_exception()
