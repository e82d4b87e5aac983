"""The command line: Typer commands read arguments, call, and show. No logic of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from r1prov import __version__, output
from r1prov.cli.verbs import MARKUP, Verbs
from r1prov.common import signals
from r1prov.common.errors import EXIT_CODES, Exit, R1provError

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
    """Run the command line. What fails ends here: in plain words, with the exit code of its kind.

    Raises:
        SystemExit: always.
    """
    signals.heed()
    try:
        app(args=arguments)
    except R1provError as error:
        output.problems(error.problems)
        _show_traceback()
        raise SystemExit(error.exit) from None
    except Exception as error:
        output.say(f"r1prov has a defect: {type(error).__name__}: {error}", "bold red")
        output.say("  -> `r1prov --debug ...` shows where; please report it")
        _show_traceback()
        raise SystemExit(Exit.INTERNAL) from None


def _show_traceback() -> None:
    if _debugging:
        output.traceback()
