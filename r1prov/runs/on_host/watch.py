"""Runs on a host as root, by the timer r1prov-watch: looks whether the host is still as the last run has left it, and keeps what differs.

It is the program of a zip file that holds all it needs: the modules, the program of a look, and `job.json` with `asked` (the expectations),
`version` (of ansible-core) and `every_s`. It changes nothing else on the host, and takes no lock. While a run holds the host, it tells
nothing.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import time
import zipfile
from pathlib import Path

KEPT = Path("/var/lib/r1prov/watch/last.json")
_UTILS = "ansible_collections.r1.prov.plugins.module_utils"


def main() -> None:
    """Look, keep what was found, and say it to the journal."""
    names = ("look_program", "looked", "files")
    look, looked, files = (importlib.import_module(f"{_UTILS}.{name}") for name in names)
    with zipfile.ZipFile(sys.argv[0]) as whole:
        job = json.loads(whole.read("job.json"))
    began, started = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()), time.monotonic()
    if look.document(look.LOCK):
        return
    answers = look.answers(job["asked"], job["version"], tempfile.gettempdir())
    if look.document(look.LOCK):  # A run has begun meanwhile, and what differs may be its work.
        return
    found = looked.summary(job["asked"], answers)
    seconds = round(time.monotonic() - started, 1)
    kept = {"schema": 1, "looked": began, "seconds": seconds, "asked": len(answers), "every_s": job["every_s"], **found}
    files.write_whole(KEPT, json.dumps(kept), 0o600)
    for each in found["differences"]:
        _say("<4>", f"{each['what']} (mended by {each['step']})")
    if found["unknown"]:
        _say("<4>", f"not all could be told: {found['unknown']}")
    elif not found["differences"]:
        _say("<6>", f"nothing differs ({len(answers)} questions, {seconds} s)")


def _say(priority: str, text: str) -> None:
    """Print a line, which becomes one of the journal. A line break in it would make two."""
    print(priority + " ".join(text.split()), flush=True)  # noqa: T201 - stdout is the journal


if __name__ == "__main__":
    main()
