"""What the pieces need, looked at before any of them begins: the hour with a card shall not end with a file that nobody brought along."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, NamedTuple

from tests.gpu import build, bundle, cards, packages, restrictions

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

PROGRAMS = ("llama-server", "llama-bench", "llama-batched-bench")
WITHOUT_ENGINE = ("cards", "build")
"""The pieces that need neither the wheels nor the engine."""

FETCH = "run `make gpu-bundle` where there is a network, and carry the bundle along"
OF_ENGINE = "--programs names the folder of an engine's programs; without it, the piece `build` makes them"


class Problem(NamedTuple):
    """Something that is missing or broken, and what to do about it."""

    what: str
    remedy: str


def problems(pieces: Sequence[str], options: argparse.Namespace) -> list[Problem]:
    """All that keeps these pieces, in this order, from being run."""
    found: list[Problem] = []
    with_engine = [piece for piece in pieces if piece not in WITHOUT_ENGINE]
    if with_engine:
        found += [Problem(what, FETCH) for what in packages.problems(options.bundle)]
        found += _of_engine(options, is_built="build" in pieces[: pieces.index(with_engine[0])])
    if "unit" in pieces:
        found += [Problem(what, FETCH) for what in restrictions.problems(options.bundle)]
    if "build" in pieces:
        found += [Problem(what, FETCH) for what in bundle.problems(options.bundle)]
    if set(pieces) - {"cards"}:
        found += _of_machine(is_to_build="build" in pieces)
    return found


def _of_engine(options: argparse.Namespace, *, is_built: bool) -> Iterator[Problem]:
    """What is wrong with the engine that is there, or with the one that is named."""
    if options.programs:
        without = [name for name in PROGRAMS if not shutil.which(name, path=options.programs)]
        if without:
            yield Problem(f"{options.programs}: no {', '.join(without)} there that can be run", OF_ENGINE)
    elif not is_built and not (options.work / build.PROGRAMS).exists():
        yield Problem(f"{options.work / build.PROGRAMS}: not there, because no engine is built yet", OF_ENGINE)


def _of_machine(*, is_to_build: bool) -> Iterator[Problem]:
    """What is wrong with the machine."""
    try:
        there = cards.found()
    except RuntimeError as error:
        yield Problem(str(error), "mend the driver: `nvidia-smi` must list the cards")
        return
    if not is_to_build:
        return
    for tool in build.TOOLS:
        if not shutil.which(tool):
            yield Problem(f"{tool}: not installed", "install what a build needs (docs/cards.md)")
    if there and not build.compiler():
        what = "nvcc: there are cards, and it is neither on the PATH nor in /usr/local/cuda/bin"
        yield Problem(what, "install what a build needs (docs/cards.md)")
