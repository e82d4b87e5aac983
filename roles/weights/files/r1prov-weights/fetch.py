#!/usr/bin/python3
"""Brings the files of a model to a folder, and gives each its name only when its sha256 is right.

    fetch.py JOB

Runs as r1prov-weights.service until all files are there, through lost connections, kills and reboots. JOB is a JSON file
that only this program may read: `folder`, `files` (name, bytes, sha256), `merged` (the name of the one file that is made of them, or
empty), `attention` (the form of that file), `sources` in the order of preference, `token` (for those with `login`; empty where none has
it), `environment` (proxies), `reserve_bytes`, `patience_s` (how long sources that refuse a file are asked again), `rate_limit` (bytes per
second by hours such as `08:00-18:00`; empty for no limit).

A file grows as `.incoming/SHA256` beside its final place, in pieces that several connections bring. While it grows it is read in order and
hashed, and it gets its name if its sha256 is right. What has been verified is remembered, so that a start with nothing to do takes
milliseconds. A damaged file that may be served stays until what replaces it is whole. One process at a time works on a folder, of whatever
host. Beside the standard library of Python 3.10 it takes files of this collection's module_utils, and numpy where tensors are converted.

Where one file is to be made of them, they come straight into it, and the published files are never on the disk
(`transfer/straight.py`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import sys
from pathlib import Path

sys.dont_write_bytecode = True  # It would be left beside the program when root runs this by hand.

from transfer.errors import HopelessError  # noqa: E402
from transfer.run import Transfer  # noqa: E402

EXIT_HOPELESS = 3  # the unit does not restart after this one: a person has to act

log = logging.getLogger("fetch")


def act_as_owner(folder: Path) -> None:
    """Makes a run by root act as the owner of the folder. The unit could not write to files that belong to root."""
    if os.geteuid() == 0 and folder.is_dir() and (owner := folder.stat()).st_uid:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


def main() -> int:
    """Runs the job.

    Returns:
        0 when all files are there; EXIT_HOPELESS when a person has to act, and state.json and the journal say how.
    """
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    os.umask(0o022)  # the models are for every service of this host to read
    job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    act_as_owner(Path(job["folder"]))
    os.environ.update(job["environment"])
    transfer = Transfer(job, Path(os.environ["STATE_DIRECTORY"]), Path(os.environ["RUNTIME_DIRECTORY"]))
    try:
        transfer.run()
    except HopelessError as error:
        return give_up(transfer, str(error))
    except OSError as error:  # the network's are dealt with: this is the host's own disk
        where = error.filename or transfer.folder
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return give_up(transfer, f"the disk of {where} is full: make room; what has arrived is kept")
        return give_up(transfer, f"{where}: {error.strerror}")
    return 0


def give_up(transfer: Transfer, why: str) -> int:
    """Tells what a person has to do."""
    if transfer.damaged:
        why = f"{why}. {' and '.join(transfer.damaged)} is damaged, and stays until what replaces it is whole"
    transfer.progress.remark = ""
    log.error("%s", why)
    # A disk may be too full even for this, or the place of one file taken. The journal has it.
    with contextlib.suppress(OSError, HopelessError):
        transfer.progress.show(why, state="failed")
    with contextlib.suppress(OSError, HopelessError):
        transfer.record.say("failed", why)
    return EXIT_HOPELESS


if __name__ == "__main__":
    code = main()
    # Connections still read and hash in threads. While Python ends in its own way, such a thread can abort the process, and the unit would
    # take that for a failure that passes. Nothing is lost: what must outlive the process has been written by now.
    logging.shutdown()
    os._exit(code)
