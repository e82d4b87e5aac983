"""What all commands have in common beside their options."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperOption

if TYPE_CHECKING:
    from collections.abc import Callable


class Command(TyperCommand):
    """A command that takes each option once, and is named where its command line is wrong.

    Typer would take the last of two values without a word. But whoever has named two wants both, or has forgotten the first.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line.

        Raises:
            UsageError: it is wrong, or gives an option twice that has one value.
        """
        if not ctx.resilient_parsing:
            _, _, order = self.make_parser(ctx).parse_args(args=list(args))
            given = Counter(each for each in order if isinstance(each, TyperOption) and _has_one_value(each))
            for option, count in given.items():
                if count > 1:
                    several = ", with commas between its values" if "," in (option.metavar or "") else ""
                    name = max(option.opts, key=len)
                    ctx.fail(f"{name} is given {count} times, and only the last would count; give it once{several}")
        return super().parse_args(ctx, args)

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


def _has_one_value(option: TyperOption) -> bool:
    return not (option.multiple or option.count or option.is_flag)
