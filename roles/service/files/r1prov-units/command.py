#!/usr/bin/python3 -I
"""r1prov-units: what systemctl and journalctl are on a host with systemd, for the units of r1prov on a host without it.

r1prov-units [status UNIT ...]      how these units are, or all
r1prov-units start|stop|restart|reload|enable|disable UNIT ...
r1prov-units show UNIT ... [--property=KEY,...]
r1prov-units log UNIT ... [--lines N] [--first] [--start ID] [--no-times] [--follow]
r1prov-units differences            what somebody has changed of what runs the units
r1prov-units boot                   what the platform runs when the host starts
r1prov-units shutdown               stops all units, and supervisord
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# Python is started with -I, so that nobody's folder is searched, and not even this one.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from supervised import keeper, log, supervisor, verbs
from supervised.supervisor import LOG, SupervisorError
from supervised.unit_file import UnitFileError, full, path_of

_LOOKS = ("cat", "differences", "list-units", "show", "show-environment", "status")
_OTHERS = ("keep", "kill", "log")
_OF_UNITS = {
    *("cat", "disable", "enable", "keep", "kill", "reload", "reset-failed", "restart", "show", "start", "stop"),
    "try-reload-or-restart",
}
_OF_NONE = {"boot", "daemon-reload", "guard", "loop", "shutdown", "start-enabled"}
_TELL = {"keep", "show"}
"""Those of them that tell themselves that a unit is not there."""
_NOT_THERE = dict.fromkeys(("reload", "restart", "start", "stop", "try-reload-or-restart"), 5) | {"status": 4}
"""The exit code that systemctl has for a unit that is not there. It is 1 for the other verbs."""
_NOW = {"enable": verbs.start, "disable": verbs.stop}
"""What `--now` does beside each verb."""


def main() -> int:
    """Does what the command line says. Returns the exit code, which is that of systemctl."""
    parser = argparse.ArgumentParser(
        prog="r1prov-units", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", nargs="?", default="status")
    parser.add_argument("units", nargs="*")
    parser.add_argument("--no-block", action="store_true", help="do not wait until it is done")
    parser.add_argument("--now", action="store_true", help="start or stop the units, too")
    parser.add_argument("--signal", default="TERM", help="for kill")
    parser.add_argument("--property", default="", help="for show")
    parser.add_argument("--value", action="store_true", help="for show: the values alone")
    parser.add_argument("--lines", type=int, default=0, help="for log: so many of the last lines")
    parser.add_argument("--first", action="store_true", help="for log: the first lines instead")
    parser.add_argument("--start", default="", help="for log: what was written since the start with this InvocationID")
    parser.add_argument("--no-times", action="store_true", help="for log: the lines alone")
    parser.add_argument("--follow", "-f", action="store_true", help="for log: go on with what is written from now on")
    for ignored in ("--quiet", "--all", "--plain", "--no-legend", "--no-pager", "--full"):
        parser.add_argument(ignored, action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_intermixed_args()
    if os.geteuid() != 0:
        sys.stderr.write("r1prov-units: run it as root\n")
        return 1
    os.umask(0o022)  # supervisord has another one. What is for root alone says so itself.
    try:
        return _does(asked)
    except verbs.RefusedError as refused:
        sys.stderr.write(f"{refused}\n")
        return refused.code
    except (SupervisorError, UnitFileError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _does(asked: argparse.Namespace) -> int:
    verb, units = asked.verb, asked.units
    if verb in ("is-active", "is-enabled"):
        key = "ActiveState" if verb == "is-active" else "UnitFileState"
        if verb == "is-enabled":
            _expect(verb, units)
        found = [_value(name, key) for name in units]
        _print("\n".join(found))
        well = found and all(each in ("active", "enabled", "static") for each in found)
        return 0 if well else 3 if verb == "is-active" else 1
    _refuse(asked)
    if verb in _LOOKS:
        _print(_text(asked))
    elif verb == "keep":
        return keeper.main(units[0])
    elif verb == "kill":
        verbs.kill(asked.signal, *units)
    elif verb == "log":
        return _log(asked)
    elif asked.no_block:
        verbs.in_background(verb, *units)
    else:
        verbs.VERBS[verb](*units)
        if asked.now:
            _NOW[verb](*units)
    return 0


def _refuse(asked: argparse.Namespace) -> None:
    """Checks that the words of a command line belong together.

    Raises:
        RefusedError: they do not.
    """
    verb, units = asked.verb, asked.units
    if verb not in (*_LOOKS, *_OTHERS, *verbs.VERBS):
        raise verbs.RefusedError(f"r1prov-units knows no verb {verb}")
    # One start is found in whichever log has it.
    if not units and (verb in _OF_UNITS or (verb == "log" and (asked.follow or not asked.start))):
        raise verbs.RefusedError(f"r1prov-units {verb} wants the name of a unit")
    if units and verb in _OF_NONE:
        raise verbs.RefusedError(f"r1prov-units {verb} takes no unit")
    if asked.now and verb not in _NOW:
        raise verbs.RefusedError(f"r1prov-units {verb} takes no --now")
    if verb in {*_OF_UNITS, "status"} - _TELL:
        _expect(verb, units)


def _expect(verb: str, units: list[str]) -> None:
    """Checks that units are there. A pattern may fit none.

    Raises:
        RefusedError: one is not.
    """
    missing = [name for name in map(full, units) if "*" not in name and not verbs.is_there(name)]
    if missing:
        raise verbs.RefusedError(f"Unit {', '.join(missing)} not found.", _NOT_THERE.get(verb, 1))


def _text(asked: argparse.Namespace) -> str:
    """What verbs print that only look."""
    if asked.verb == "status":
        return verbs.status(*map(full, asked.units))
    if asked.verb == "differences":
        return "\n".join(supervisor.differences())
    if asked.verb == "show":
        shown = verbs.show(asked.units, asked.property.split(",") if asked.property else [])
        return "\n".join(line.partition("=")[2] for line in shown.splitlines()) if asked.value else shown
    if asked.verb == "list-units":
        return verbs.list_units(*asked.units)
    if asked.verb == "cat":
        return "\n".join(path_of(full(name)).read_text(encoding="utf-8") for name in asked.units)
    return ""


def _value(name: str, key: str) -> str:
    return verbs.show([name], [key]).partition("=")[2]


def _log(asked: argparse.Namespace) -> int:
    names = [full(name) for name in asked.units]
    for name in names:
        if not path_of(name).exists() and not any(LOG.glob(f"{name}.log*")):
            raise verbs.RefusedError(f"Unit {name} not found, and it has no log.")
    if asked.follow:
        files = [str(LOG / f"{name}.log") for name in names]
        os.execvp(  # noqa: S606
            "tail", ["tail", "--lines", str(asked.lines or 10), "--follow=name", "--retry", *files]
        )
    found = [line for name in names or [""] for line in log.lines(name, asked.start, times=not asked.no_times)]
    count = asked.lines or len(found)
    _print("\n".join(found[:count] if asked.first else found[-count:] if count else []))
    return 0


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n" if text else "")


if __name__ == "__main__":
    sys.exit(main())
