"""Runs on a host and prints what is known of a measurement that pauses the engine, as one line of JSON; null where there is none.

It is sent as text, so it needs only Python 3.10 and the standard library. Where systemd does not run the host, only root is told how units
are. Its arguments are the words before the verb of a command that answers as systemctl does.

elapsed_s   the seconds since the pause began
limit_s     the seconds after which its unit ends the measurement at the latest; null where that is not known
lock        the run that holds the host, as it describes itself; null where it does not tell
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

UNIT = "r1prov-measure.service"
FILE = Path("/etc/systemd/system") / UNIT
LOCK = Path("/run/r1prov/lock.json")
KEYS = ("ActiveState", "Job", "InactiveExitTimestampMonotonic")


def main() -> None:
    """Print it."""
    print(json.dumps(pause(sys.argv[1:])))  # noqa: T201 - stdout is the interface


def pause(systemctl: list[str]) -> dict[str, Any] | None:
    """What is known of the measurement."""
    argv = [*systemctl, "show", UNIT, "--property=" + ",".join(KEYS)]
    out = subprocess.run(argv, stdout=subprocess.PIPE, check=False).stdout.decode()
    unit = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
    began = unit.get("ActiveState", "inactive") not in {"inactive", "failed"}
    # Its start waits as a job until the engine has stopped.
    if not began and not unit.get("Job"):
        return None
    since_s = int(unit["InactiveExitTimestampMonotonic"]) / 1e6 if began else time.monotonic()
    limit = re.search(r"^TimeoutStartSec=(\d+)$", read(FILE), re.MULTILINE)
    return {
        "elapsed_s": time.monotonic() - since_s,
        "limit_s": int(limit[1]) if limit else None,
        "lock": document(LOCK),
    }


def read(path: Path) -> str:
    """The content of a text file; empty where it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""


def document(path: Path) -> dict[str, Any] | None:
    """A JSON document with keys; None where there is none."""
    try:
        found = json.loads(read(path))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


main()
