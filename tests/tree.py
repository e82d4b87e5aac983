"""The tree whose tests run."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path


@cache
def commit() -> str:
    """The commit that a kept result is a result of, marked where the tree differs from it.

    It is asked for once, because the kept result itself makes the tree differ.
    """
    argv = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
