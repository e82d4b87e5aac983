"""How far two models, or two settings of one, are apart: llama-perplexity compares what they expect of each next token of a text."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING

from r1prov.errors import Problem, SiteError

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "llama-perplexity"
CONTEXT = 512
"""Tokens that are looked at together, a chunk. The engine judges the second half of each."""

_KLD = re.compile(r"Mean\s+KLD:\s*(\S+)\s*±\s*(\S+)")
_SAME_TOP = re.compile(r"Same top p:\s*(\S+)\s*±")


@dataclass(frozen=True)
class Difference:
    """What lies between the expectations of two runs.

    Attributes:
        kl_divergence: mean over the tokens, in nats.
        uncertainty: of that mean.
        same_top: share of the tokens for which both expect the same one most.
    """

    kl_divergence: float
    uncertainty: float
    same_top: float


@dataclass(frozen=True)
class Run:
    """A model and how the engine runs it.

    Attributes:
        model: a GGUF file, or the first shard of a set.
        arguments: llama-perplexity's.
    """

    model: Path
    arguments: tuple[str, ...]


def prose(file: Path | None) -> str:
    """The text of a file; without one English prose that every Python has, the reference of its language.

    Raises:
        SiteError: the file cannot be read.
    """
    if not file:
        return "\n".join(topics.values())
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise SiteError(Problem(str(file), f"it cannot be read: {what}", "name a text file")) from None


def differences(engine: Path, base: Run, others: Sequence[Run], text: str, chunks: int) -> list[Difference]:
    """Runs the engine over `chunks` chunks of the text, once for each, and compares the others with the base.

    Args:
        engine: the folder of the engine's programs.
        base: what is compared with.
        others: what is compared.
        text: at least `chunks` times `CONTEXT` tokens.
        chunks: for each of them half of `CONTEXT` times the vocabulary times two bytes lie on the disk: 66 MB for R1.

    Raises:
        SiteError: the engine is not there, or refuses.
    """
    with tempfile.TemporaryDirectory(prefix="r1prov-") as scratch:
        file, logits = Path(scratch) / "text", Path(scratch) / "logits"
        file.write_text(text, encoding="utf-8")
        common = ("--file", str(file), "--chunks", str(chunks), "--ctx-size", str(CONTEXT))
        keep = ("--kl-divergence-base", str(logits))
        _run(engine, base, (*common, *keep))
        return [_difference(_run(engine, other, (*common, *keep, "--kl-divergence")), other) for other in others]


def _difference(said: str, run: Run) -> Difference:
    kld, same_top = _KLD.search(said), _SAME_TOP.search(said)
    if not kld or not same_top:
        what = f"{PROGRAM} compared too few tokens: {_last(said)}"
        raise SiteError(Problem(str(run.model), what, "give a longer text, or more chunks"))
    return Difference(float(kld[1]), float(kld[2]), round(float(same_top[1]) / 100, 5))


def _run(engine: Path, run: Run, arguments: Sequence[str]) -> str:
    """What the engine says."""
    command = [str(engine / PROGRAM), "--model", str(run.model), *arguments, *run.arguments]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
        )
    except OSError as error:
        remedy = f"build it: `cmake --build BUILD --target {PROGRAM}` in llama.cpp's tree makes BUILD/bin"
        raise SiteError(Problem(command[0], f"it does not run: {error.strerror}", remedy)) from None
    if done.returncode:
        remedy = f"the whole story: {' '.join(command)}"
        raise SiteError(Problem(str(run.model), f"{PROGRAM} failed: {_last(done.stdout)}", remedy))
    return done.stdout


def _last(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
