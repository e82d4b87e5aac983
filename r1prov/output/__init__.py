"""The output of the command line. No other wing knows rich.

rich is imported when something is printed, because a command that looks at hosts lets them begin before that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from r1prov.output.printed import begin

if TYPE_CHECKING:
    from r1prov.output.console import command, data, failure, line, problems, say, table, traceback, whisper, write
    from r1prov.output.live import LiveRun, still
    from r1prov.output.meter import Meter

__all__ = [
    "LiveRun",
    "Meter",
    "begin",
    "command",
    "data",
    "failure",
    "line",
    "problems",
    "say",
    "still",
    "table",
    "traceback",
    "whisper",
    "write",
]


def __getattr__(name: str) -> Any:
    if name in ("LiveRun", "still"):
        from r1prov.output import live as place  # noqa: PLC0415
    elif name == "Meter":
        from r1prov.output import meter as place  # type: ignore[no-redef] # noqa: PLC0415
    elif name in __all__:
        from r1prov.output import console as place  # type: ignore[no-redef] # noqa: PLC0415
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(place, name)
