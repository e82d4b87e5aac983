"""How far two models, or two settings of one, are apart: what they expect of each next token of a text, by llama-perplexity.

The engine writes what a model expects into a file, and the comparison is made here. The engine's own comparison says only six digits
after the point, and now and then nothing: it ends without waiting until its log is written.
"""

from __future__ import annotations

import math
import subprocess
import tempfile
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING

import numpy as np

from r1prov.errors import Problem, SiteError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

PROGRAM = "llama-perplexity"
CONTEXT = 512
"""Tokens that are looked at together, a chunk. The engine judges the second half of each."""

_HEADER = 8 + 3 * 4
"""Bytes of `_logits_`, then of context, vocabulary and chunks as 32-bit numbers."""
_ROWS = 32
"""That are compared at once: 33 MB of one model for each of R1's."""


@dataclass(frozen=True)
class Difference:
    """What lies between the expectations of two runs.

    Attributes:
        kl_divergence: mean over the tokens, in nats.
        uncertainty: of that mean.
        median: of a token. Few tokens, for which another expert was chosen, may carry most of the mean.
        same_top: share of the tokens for which both expect the same one most.
        perplexity: of what is compared.
        base_perplexity: of what it is compared with.
    """

    kl_divergence: float
    uncertainty: float
    median: float
    same_top: float
    perplexity: float
    base_perplexity: float


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


def differences(engine: Path, pairs: Sequence[tuple[Run, Run]], text: str, chunks: int) -> list[Difference]:
    """Runs the engine over `chunks` chunks of the text, once for each run, and compares the second of each pair with the first.

    Args:
        engine: the folder of the engine's programs.
        pairs: what is compared.
        text: at least `chunks` times `CONTEXT` tokens.
        chunks: for each run and each of them half of `CONTEXT` times the vocabulary times two bytes lie on the disk: 66 MB for R1.

    Raises:
        SiteError: the engine is not there, or refuses; the text is too short; two models have not the same tokens.
    """
    with tempfile.TemporaryDirectory(prefix="r1prov-") as scratch:
        file = Path(scratch) / "text"
        file.write_text(text, encoding="utf-8")
        common = ("--file", str(file), "--chunks", str(chunks), "--ctx-size", str(CONTEXT))
        expected: dict[Run, Path] = {}
        for run in chain.from_iterable(pairs):
            if run not in expected:
                expected[run] = Path(scratch) / str(len(expected))
                said = _run(engine, run, (*common, "--kl-divergence-base", str(expected[run])))
                if not expected[run].is_file() or expected[run].stat().st_size < _HEADER:
                    what = f"{PROGRAM} judged too few tokens: {_last(said)}"
                    raise SiteError(Problem(str(run.model), what, "give a longer text"))
        return [_difference(first, second, expected) for first, second in pairs]


def _difference(first: Run, second: Run, expected: dict[Run, Path]) -> Difference:
    files = (expected[first], expected[second])
    if not np.array_equal(_tokens(files[0]), _tokens(files[1])):
        what = f"it divides the text into other tokens than {first.model}"
        raise SiteError(Problem(str(second.model), what, "compare two forms of one model"))
    divergences, same_top, surprises = [], [], []
    for tokens, base, other in zip(_judged(files[0]), _rows(files[0]), _rows(files[1]), strict=True):
        divergences.append((np.exp(base) * (base - other)).sum(axis=1))
        same_top.append(base.argmax(axis=1) == other.argmax(axis=1))
        surprises.append([-rows[np.arange(len(rows)), tokens] for rows in (base, other)])
    of_each = np.concatenate(divergences)
    perplexities = np.exp(np.concatenate(surprises, axis=1).mean(axis=1))
    return Difference(
        kl_divergence=float(of_each.mean()),
        uncertainty=float(of_each.std(ddof=1)) / math.sqrt(len(of_each)),
        median=float(np.median(of_each)),
        same_top=float(np.concatenate(same_top).mean()),
        perplexity=float(perplexities[1]),
        base_perplexity=float(perplexities[0]),
    )


def _tokens(file: Path) -> npt.NDArray[np.int32]:
    """All tokens of the text, (chunks, context)."""
    context, _, chunks = np.fromfile(file, np.int32, 3, offset=8)
    return np.fromfile(file, np.int32, chunks * context, offset=_HEADER).reshape(chunks, context)


def _judged(file: Path) -> Iterator[npt.NDArray[np.int32]]:
    """The tokens that were to be expected, for each of `_rows`: of the second half of each chunk."""
    tokens = _tokens(file)
    judged = tokens[:, tokens.shape[1] // 2 + 1 :].ravel()
    yield from (judged[start : start + _ROWS] for start in range(0, len(judged), _ROWS))


def _rows(file: Path) -> Iterator[npt.NDArray[np.float64]]:
    """What was expected, as logarithms of probabilities: (`_ROWS`, vocabulary).

    The format is that of `log_softmax` in the engine's perplexity.cpp: for each token two floats, a step and the least value, then 16
    bits for each word of the vocabulary, of an even number of words. The rounding is taken out of their sum.
    """
    _, vocabulary, _ = np.fromfile(file, np.int32, 3, offset=8)
    tokens = _tokens(file)
    n_rows = tokens.shape[0] * (tokens.shape[1] - 1 - tokens.shape[1] // 2)
    width = vocabulary + vocabulary % 2 + 4
    stored = np.memmap(file, np.uint16, "r", _HEADER + tokens.nbytes, (n_rows, width))
    for start in range(0, n_rows, _ROWS):
        rows = stored[start : start + _ROWS]
        step, least = np.split(rows[:, :4].copy().view(np.float32).astype(np.float64), 2, axis=1)
        logarithms = rows[:, 4 : 4 + vocabulary] * step + least
        yield logarithms - np.log(np.exp(logarithms).sum(axis=1, keepdims=True))


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
