"""The command line: Typer commands read arguments, call, and show. No logic of their own."""

from __future__ import annotations

import atexit
import gc
import sys
from itertools import takewhile
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from r1prov import __version__, output
from r1prov.cli.verbs import MARKUP, Verbs
from r1prov.common import signals
from r1prov.common.errors import EXIT_CODES, Exit, Problem, R1provError

if TYPE_CHECKING:
    from collections.abc import Sequence

app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=MARKUP,
    help="Fresh GPU servers become a private, full DeepSeek-R1 671B. Start with `r1prov up --help`.",
    epilog="Exit codes:\n\n" + "\n".join(f"- {code.value}: {meaning}" for code, meaning in EXIT_CODES.items()),
)
_debugging = False

_OBJECTS_UNTIL_COLLECTED = 100_000
"""How many objects may be made before Python looks for cycles among them. A plan makes millions, and none of them are in cycles. With
the default of 700 a tenth of its time goes into looking."""


def _version(wanted: bool) -> None:
    if wanted:
        output.write(f"{__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    del version
    globals()["_debugging"] = debug


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. What fails ends here: in plain words, with the exit code of its kind, and as JSON where that was asked for.

    Raises:
        SystemExit: always.
    """
    signals.heed()
    gc.set_threshold(_OBJECTS_UNTIL_COLLECTED)
    atexit.register(gc.freeze)  # Otherwise Python goes through all that was imported once more when it ends: 45 ms.
    words = sys.argv[1:] if arguments is None else arguments
    # Looked for here, because a wrong command line is refused before its options are read.
    as_json = "--json" in takewhile(lambda word: word != "--", words)
    output.begin()
    try:
        app(args=words)
    except R1provError as error:
        output.problems(error.problems)
        _show_traceback()
        _end(error.exit, error.problems, as_json=as_json)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # Rich and Typer end with 1 then.
            raise SystemExit(Exit.UNREAD) from None
        _end(int(end.code or Exit.OK), _usage(end), as_json=as_json)
    except Exception as error:
        defect = Problem(
            "r1prov", f"{type(error).__name__}: {error}", "`r1prov --debug ...` shows where; please report it"
        )
        output.say(f"r1prov has a defect: {defect.what}", "bold red")
        output.say(f"  -> {defect.remedy}")
        _show_traceback()
        _end(Exit.INTERNAL, [defect], as_json=as_json)


def _usage(end: SystemExit) -> list[Problem]:
    """What is wrong with the command line, if that is why Typer ends. It has told so on stderr."""
    what = getattr(end.__context__, "format_message", None)
    return [Problem("command line", what(), "`--help` after the verb says what it takes")] if what else []


def _end(code: int, found: Sequence[Problem], *, as_json: bool) -> NoReturn:
    if as_json and code:
        output.failure(code, found)
    raise SystemExit(code) from None


def _show_traceback() -> None:
    if _debugging:
        output.traceback()
