"""Reads the archives that lie on this machine to their end before any host is met. Each is read once."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from r1prov.common.errors import Problem, SiteError

if TYPE_CHECKING:
    from r1prov.site import Site

HOLDS = {"llama_cpp": "tools/server/CMakeLists.txt", "ollama": "bin/ollama", "python": "bin/python3"}
"""A file that the archive of each source holds, and other archives do not."""


def judge(site: Site, folder: Path) -> None:
    """See that the archives of the site are whole and hold what they should.

    Args:
        site: whose archives are read.
        folder: keeps an empty file for each archive that was read, named by its sha256.

    Raises:
        SiteError: everything that is wrong with them.
    """
    problems = []
    for kind, holds in HOLDS.items():
        source = getattr(site.file.sources, kind)
        seen = folder / f"{source.sha256}.whole"
        if not Path(source.archive).is_file() or seen.is_file():
            continue
        if why := _fault(Path(source.archive), holds):
            problems.append(Problem(source.archive, why, f"get it again, or correct sources.{kind}.archive"))
        else:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            seen.touch()
    if problems:
        raise SiteError(*problems)


def _fault(archive: Path, holds: str) -> str:
    """What is wrong with an archive; empty where nothing is wrong, or where this machine cannot unpack it, which the hosts can."""
    done = subprocess.run(["tar", "--list", "--file", archive], capture_output=True, text=True, check=False)
    if "Cannot exec" in done.stderr:
        return ""
    if done.returncode:
        return f"this file is no archive, or only a part of one: {done.stderr.strip().splitlines()[0]}"
    return "" if holds in done.stdout else f"this archive holds no {holds}"
