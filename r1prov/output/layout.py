"""How text finds room in a width: lines that end between words, tables, and records where a table finds no room.

A word is never broken, so that a path, an address or a command between backticks can be copied. A terminal folds the line of a word
that is longer than it is wide.
"""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_WORD = re.compile(r"(?:`[^`\n]*`|\S)+")
_LEAD = re.compile(r"\s*(?:-> )?")
HANGING = 2
"""So many columns further in, a line goes on below its beginning."""

PROSE = 24
"""A cell of at most so many columns is not wrapped, and a longer one keeps at least so many."""

GAP = 2
"""The columns between two cells."""


def wrapped(text: Text, width: int) -> Iterator[Text]:
    """The lines of a text, each of at most so many columns unless one word is longer."""
    for line in text.split("\n", allow_blank=True):
        lead = _LEAD.match(line.plain)
        begins = lead.end() if lead else 0
        indent = " " * (begins if line.plain[:begins].strip() else begins + HANGING)
        words = [match.span() for match in _WORD.finditer(line.plain, begins)]
        start, begun = 0, False
        for (_, end), (following, following_end) in pairwise(words):
            if cell_len(line.plain[start:following_end]) + len(indent) * begun > width:
                yield Text(indent * begun) + line[start:end]
                start, begun = following, True
        yield Text(indent * begun) + line[start:]


def command(words: Sequence[str], width: int) -> str:
    """A command line for a shell. Where it is too long for a line, it goes on after a backslash."""
    lines = [""]
    for word in map(shlex.quote, words):
        one = f"{lines[-1]} {word}" if lines[-1] else word
        if cell_len(one) > width - len(" \\") and lines[-1].strip():
            lines.append(" " * HANGING + word)
        else:
            lines[-1] = one
    return " \\\n".join(lines)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Table | list[Text]:
    """A table. Where its words find no room in the width, each row becomes a record: a line for each cell, and a blank line between two.

    Args:
        columns: the names. A column whose name ends in `>` is right-aligned.
        rows: the cells.
        width: the columns of the terminal.
    """
    names = [column.removesuffix(">") for column in columns]
    widths = _widths(names, rows, width - GAP * (len(columns) - 1))
    if not widths:
        return list(_records(names, rows, width))
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column, name, columns_wide in zip(columns, names, widths, strict=True):
        grid.add_column(Text(name), justify="right" if column.endswith(">") else "left", width=columns_wide)
    for row in rows:
        grid.add_row(*map(Text, row))
    return grid


def _widths(names: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> list[int]:
    """The widths of the columns, in which no word is broken; none where there are none."""
    columns = list(zip(names, *rows, strict=True))
    least = [max(_longest_word(name), *map(_least, cells), 1) for name, *cells in ((*column, "") for column in columns)]
    wanted = [max(few, *map(cell_len, column)) for few, column in zip(least, columns, strict=True)]
    if sum(least) > room:
        return []
    widths = least
    while sum(widths) < min(room, sum(wanted)):  # A column that wants more gets one more, the narrowest first.
        narrowest = min((i for i, width in enumerate(widths) if width < wanted[i]), key=widths.__getitem__)
        widths[narrowest] += 1
    return widths


def _least(cell: str) -> int:
    return cell_len(cell) if cell_len(cell) <= PROSE else max(PROSE, _longest_word(cell))


def _longest_word(text: str) -> int:
    return max(map(cell_len, text.split()), default=0)


def _records(names: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[Text]:
    for number, row in enumerate(rows):
        if number:
            yield Text()
        for name, cell in zip(names, row, strict=True):
            if cell:
                yield from wrapped(Text.assemble((f"{name}: ", "bold") if name else "", cell), width)
