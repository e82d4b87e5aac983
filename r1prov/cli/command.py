"""What all commands have in common beside their options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from collections.abc import Callable


class Command(TyperCommand):
    """A command that is named where its options contradict each other."""

    def invoke(self, ctx: Any) -> Any:
        """Do what the command does.

        Raises:
            BadParameter: its options contradict each other. It names the command, whose `--help` says what it takes.
        """
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.ctx = error.ctx or ctx
            raise


class App(typer.Typer):
    """A group, or a verb, whose commands are of this kind."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        """The decorator that makes a command of a function."""
        return super().command(name, cls=Command, **settings)
