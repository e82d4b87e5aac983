"""Runs the pieces of `make test-gpu` in a row, on a machine with cards and without a network.

    python3 -m tests.gpu                # all pieces
    python3 -m tests.gpu build          # one of them

Each piece writes one JSON result, whole or not at all, to the folder that the variable OUT names, or else to tests/gpu/results. A piece
that ran out of time goes on where it was when it is called again. The exit status is 1 where a piece failed.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib
import json
import math
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.gpu import cards, inputs, packages

HERE = Path(__file__).resolve().parent
PIECES = {
    "cards": "cards.piece",
    "build": "build.piece",
    "whole": "placed.whole",
    "hybrid": "placed.hybrid",
    "cut": "placed.cut",
    "mixed": "placed.mixed",
    "forms": "placed.forms",
    "tune": "placed.tune",
    "unit": "unit.piece",
}
"""The function of each piece, which is imported when it runs."""


def run(name: str, options: argparse.Namespace) -> bool:
    """Runs a piece and keeps its result. Returns whether the piece passed.

    The result of an earlier call goes first: a piece that is stopped has none, and does not seem to have passed.
    """
    started, kept = time.time(), options.results / f"{name}.json"
    kept.unlink(missing_ok=True)
    options.until_s = time.monotonic() + options.limit_s
    try:
        result = {"failed": "", **_called(name, options)}
    except Exception as error:  # the result says what went wrong, whatever it was, and the other pieces still run
        kind = "" if type(error) is RuntimeError else f"{type(error).__name__}: "
        result = {"failed": f"{kind}{error}"}
    result |= {"piece": name, "started_unix_s": round(started), "wall_s": round(time.time() - started, 1)}
    part = options.results / f".{name}.json.part"
    part.write_text(json.dumps(result, indent=2) + "\n")
    part.rename(kept)
    sys.stdout.write(f"{name}: {result['failed'] or 'done'} ({result['wall_s']} s)\n")
    return not result["failed"]


def _called(name: str, options: argparse.Namespace) -> dict[str, Any]:
    module, _, function = PIECES[name].partition(".")
    if name not in inputs.WITHOUT_ENGINE:
        packages.use(options.bundle, options.work)
    found: dict[str, Any] = getattr(importlib.import_module(f"tests.gpu.{module}"), function)(options)
    return found


def _stop(number: int, _: object) -> None:
    """Ends this program, and on the way out what it has started."""
    sys.stderr.write("Stopped. The same command goes on where this was.\n")
    sys.exit(128 + number)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return number


def _prove_writable(folder: Path, parser: argparse.ArgumentParser) -> None:
    """Makes a folder, and writes into it. A piece takes minutes, and its result must not be lost at the end of that."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        parser.error(f"{folder} must be a folder that can be written to, and is not: {error.strerror}")


def _told(problems: list[inputs.Problem]) -> str:
    """All problems, and below those of one kind what to do about them."""
    of: dict[str, list[str]] = {}
    for problem in problems:
        of.setdefault(problem.remedy, []).append(problem.what)
    lines = [line for remedy, whats in of.items() for line in (*whats, f"  -> {remedy}")]
    return "\n".join(["Nothing was begun, because not all is there that these pieces need.", *lines, ""])


def main(words: list[str] | None = None) -> int:
    """Runs the pieces that are asked for."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("pieces", nargs="*", metavar="PIECE", help=f"{', '.join(PIECES)}; all where none is named")
    parser.add_argument("--results", type=Path, default=Path(os.environ.get("OUT") or HERE / "results"))
    parser.add_argument("--bundle", type=Path, default=HERE / "bundle", help="what tests.gpu.bundle has made")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="where the engine is built")
    parser.add_argument("--limit-s", type=_positive, default=560, help="the seconds that a piece may take")
    parser.add_argument(
        "--programs", type=Path, help="a folder with an engine; without it, what the piece build has made"
    )
    parser.add_argument(
        "--ram-gib", type=_positive, help="the RAM, where the machine gets more than it shows when it is used"
    )
    parser.add_argument("--small", action="store_true", help="models that are much smaller than R1, to try the pieces")
    options = parser.parse_args(words)
    unknown = [name for name in options.pieces if name not in PIECES]
    if unknown:
        parser.error(f"there is no piece {', '.join(unknown)}; there are {', '.join(PIECES)}")
    for folder in (options.results, options.work):
        _prove_writable(folder, parser)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    lock = os.open(options.work / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    os.set_inheritable(lock, True)  # A compiler that has outlived its run holds it, too.
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        parser.exit(
            1, f"Another run, or what is left of one, works in {options.work}. Wait until it ends, or end it.\n"
        )
    pieces = options.pieces or [*PIECES]
    if problems := inputs.problems(pieces, options):
        parser.exit(2, _told(problems))
    with contextlib.suppress(RuntimeError):  # The piece `cards`, alone, tells of a driver that fails.
        if not cards.found():
            sys.stdout.write("No card was found. The pieces run on the CPU, and say little of a machine with cards.\n")
            sys.stdout.flush()
    passed = []
    for name in pieces:
        passed.append(run(name, options))
        if name == "build" and not passed[-1] and name != pieces[-1]:
            sys.stdout.write(
                "The pieces after it were not begun, because they need the engine. The same command goes on.\n"
            )
            break
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
