"""Pebble, the ACME server of Let's Encrypt for tests: real, and built from its Go module."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from r1prov.common.paths import cache_dir
from r1prov.lab import golang
from r1prov.lab.base import locked

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION = "2.8.0"
"""The newest that the Go of `golang` compiles."""


def program(say: Callable[[str], None]) -> Path:
    """The program; made once (a minute), then taken from the cache.

    Args:
        say: told what is going on.

    Raises:
        LabError: what it is made of cannot be had, or does not compile.
    """
    made = cache_dir() / "pebble" / f"pebble-{VERSION}"
    with locked(made.with_suffix(".lock")):  # two tests may want it at the same time
        if not made.exists():
            with tempfile.TemporaryDirectory(dir=made.parent, prefix=".making-") as making:
                golang.bring(Path(making))
                package = f"github.com/letsencrypt/pebble/v2/cmd/pebble@v{VERSION}"
                golang.install(f"Pebble {VERSION}", package, Path(making), say).rename(made)
    return made
