"""The output of the command line. No other wing knows rich."""

from r1prov.output.console import begin, command, data, failure, line, problems, say, table, traceback, whisper, write
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
