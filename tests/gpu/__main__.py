"""Runs the pieces of `make test-gpu` in a row, on a machine with cards and without a network.

    python3 -m tests.gpu                # all pieces
    python3 -m tests.gpu build          # one of them

Each piece writes one JSON result, whole or not at all, to the folder that the variable OUT names, or else to tests/gpu/results. A piece
that ran out of time goes on where it was when it is called again. The exit status is 1 where a piece failed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.gpu import build, cards

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).resolve().parent
PIECES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"cards": cards.piece, "build": build.piece}


def run(name: str, options: argparse.Namespace) -> bool:
    """Runs a piece and keeps its result. Returns whether the piece passed."""
    started = time.time()
    try:
        result = {"failed": "", **PIECES[name](options)}
    except Exception as error:  # the result says what went wrong, whatever it was, and the other pieces still run
        result = {"failed": f"{type(error).__name__}: {error}"}
    result |= {"piece": name, "started_unix_s": round(started), "wall_s": round(time.time() - started, 1)}
    options.results.mkdir(parents=True, exist_ok=True)
    part = options.results / f".{name}.json.part"
    part.write_text(json.dumps(result, indent=2) + "\n")
    part.rename(options.results / f"{name}.json")
    sys.stdout.write(f"{name}: {result['failed'] or 'done'} ({result['wall_s']} s)\n")
    return not result["failed"]


def main(words: list[str] | None = None) -> int:
    """Runs the pieces that are asked for."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("pieces", nargs="*", metavar="PIECE", help=f"{', '.join(PIECES)}; all where none is named")
    parser.add_argument("--results", type=Path, default=Path(os.environ.get("OUT") or HERE / "results"))
    parser.add_argument("--bundle", type=Path, default=HERE / "bundle", help="what tests.gpu.bundle has made")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="where the engine is built")
    parser.add_argument("--limit-s", type=float, default=560, help="the seconds that a piece may take")
    options = parser.parse_args(words)
    unknown = [name for name in options.pieces if name not in PIECES]
    if unknown:
        parser.error(f"there is no piece {', '.join(unknown)}; there are {', '.join(PIECES)}")
    passed = [run(name, options) for name in options.pieces or PIECES]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
