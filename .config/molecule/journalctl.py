#!/usr/bin/python3
"""Answers what scenarios ask journalctl on a host without systemd, from the logs of its units."""

import argparse
import re
import subprocess
import sys
from pathlib import Path

MARK = "-- r1prov-units: start "
LOGS = Path("/var/lib/r1prov/units/log")

parser = argparse.ArgumentParser()
parser.add_argument("--unit", "-u", "--identifier", default="")
parser.add_argument("--boot", action="store_true")
parser.add_argument("--grep", default="")
parser.add_argument("--lines", type=int, default=0)
parser.add_argument("--output")
for ignored in ("--no-pager", "--quiet"):
    parser.add_argument(ignored, action="store_true")
parser.add_argument("match", nargs="?", default="")
asked = parser.parse_args()

if (asked.unit and "*" not in asked.unit) or asked.match:
    start = ["--start", asked.match.partition("=")[2]] if asked.match else []
    command = ["/usr/local/bin/r1prov-units", "log", "--no-times", *filter(None, [asked.unit]), *start]
    lines = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True).stdout.splitlines()
else:
    lines = [
        re.sub(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", "", line)
        for path in sorted(LOGS.glob(f"{asked.unit or '*'}.log"))
        for line in path.read_text(errors="replace").splitlines()
    ]
if asked.boot:  # A unit starts anew with its host.
    lines = lines[max((number for number, line in enumerate(lines) if line.startswith(MARK)), default=0) :]
found = [line for line in lines if re.search(asked.grep, line)]
print("\n".join(found[-asked.lines :]))  # noqa: T201 - a program with an output
sys.exit(1 if asked.grep and not found else 0)
