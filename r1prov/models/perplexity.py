"""Measures how far two models, or two settings of one model, differ in the tokens that they expect, with llama-perplexity.

The engine writes the expected probabilities of each next token of a text into a file, and this module compares two such files. The
engine's own comparison has only six digits after the point, and sometimes prints nothing, as it ends before its log is written.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from r1prov.common.errors import Problem, SiteError
from r1prov.common.units import MIB
from r1prov.models import gguf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

PROGRAM = "llama-perplexity"


class Meter(Protocol):
    """A context manager that shows the progress of a run while it is open."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def update(self, done: int, total: int) -> None:
        """Shows that `done` of `total` chunks are done."""


CONTEXT = 512
"""The tokens of a chunk. The engine judges the second half of each chunk."""

_HEADER = 8 + 3 * 4
"""The bytes before the tokens: `_logits_`, then context, vocabulary and chunks as 32-bit numbers."""
_ROWS = 32
"""The rows that are compared at once. For R1 they take 33 MB of each model."""

_CHUNKS = re.compile(rb"calculating perplexity over (\d+) chunks")
_CHUNK = re.compile(rb"\[(\d+)\][^\s,]+,")
"""The engine prints its progress as `[1]541.9360,[2]481.1267,`, one entry after each chunk."""

_PREFIX = re.compile(r"[\d.]+ [A-Z] (.*)")
"""Removes time and level from a line of the log, e.g. `0.00.008.945 E llama_model_load: error loading model: ...`."""
_ERROR = re.compile(r"[\d.]+ E |.*(error|failed|assert)", re.IGNORECASE)
_TRIES = 10
"""The most tries of an engine that fails without a message. One that fails within milliseconds often ends before its log is written."""
_MOST_LINES = 8
"""The most lines of the engine's output in a message."""


@dataclass(frozen=True)
class Difference:
    """The difference between the expected tokens of two runs.

    Attributes:
        kl_divergence: The mean over the tokens, in nats.
        uncertainty: The standard error of that mean.
        median: The median over the tokens. A few tokens that were routed to another expert may dominate the mean.
        same_top: The share of the tokens for which both runs expect the same token most.
        perplexity: The perplexity of the second run.
        base_perplexity: The perplexity of the first run, with which the second is compared.
    """

    kl_divergence: float
    uncertainty: float
    median: float
    same_top: float
    perplexity: float
    base_perplexity: float


@dataclass(frozen=True)
class Run:
    """A model and the arguments with which llama-perplexity runs it.

    Attributes:
        model: A GGUF file, or any shard of a set.
        arguments: The arguments of llama-perplexity.
    """

    model: Path
    arguments: tuple[str, ...]


def prose(file: Path | None) -> str:
    """The text of a file. Without a file it is English prose that comes with every Python, the reference of the language.

    Raises:
        SiteError: The file cannot be read.
    """
    if not file:
        return "\n".join(topics.values())
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise SiteError(Problem(str(file), f"it cannot be read: {what}", "name a text file")) from None


def differences(
    engine: Path, pairs: Sequence[tuple[Run, Run]], text: str, chunks: int, watch: Callable[[Run], Meter]
) -> list[Difference]:
    """Runs the engine over `chunks` chunks of the text, once for each run, and compares the second of each pair with the first.

    Args:
        engine: The folder of the engine's programs.
        pairs: The pairs of runs to compare.
        text: A text of at least `chunks` times `CONTEXT` tokens.
        chunks: The number of chunks. Each run writes half of `CONTEXT` times the vocabulary times two bytes per chunk: 66 MB for R1.
        watch: Makes the meter that shows the progress of a run, in chunks.

    Raises:
        SiteError: A model or the engine is missing, or the engine refuses; the text is too short; two models have different tokens; or
            the folder for temporary files has no room.
    """
    runs = dict.fromkeys(chain.from_iterable(pairs))
    vocabulary = _vocabulary([run.model for run in runs])
    with tempfile.TemporaryDirectory(prefix="r1prov-") as scratch:
        _check_room(Path(scratch).parent, len(text.encode()), len(runs), chunks, vocabulary)
        file = Path(scratch) / "text"
        file.write_text(text, encoding="utf-8")
        common = ("--file", str(file), "--chunks", str(chunks), "--ctx-size", str(CONTEXT))
        expected = {run: Path(scratch) / str(number) for number, run in enumerate(runs)}
        for run, of_it in expected.items():
            with watch(run) as meter:
                said = _run(engine, run, (*common, "--kl-divergence-base", str(of_it)), meter)
            _check_written(run, of_it, said)
        return [_difference(first, second, expected) for first, second in pairs]


def _vocabulary(models: Sequence[Path]) -> int:
    """The size of the vocabulary, which must be the same for all models."""
    sizes = {path: gguf.read(path).vocabulary for path in models}
    first = models[0]
    for path, size in sizes.items():
        if size != sizes[first]:
            what = f"its vocabulary has {size:,} tokens, that of {first} {sizes[first]:,}"
            raise SiteError(Problem(str(path), what, "compare two forms of one model"))
    return sizes[first]


def _check_room(folder: Path, text_bytes: int, runs: int, chunks: int, vocabulary: int) -> None:
    """Checks that the disk has room for all output, before the first model is loaded."""
    judged = min(chunks, text_bytes // CONTEXT + 1)  # a token is a byte or more
    needed, free = text_bytes + runs * _bytes(CONTEXT, vocabulary, judged), shutil.disk_usage(folder).free
    if needed > free:
        what = (
            f"{runs} runs over {judged} chunks need {needed / MIB:,.1f} MiB there meanwhile; {free / MIB:,.1f} are free"
        )
        raise SiteError(Problem(str(folder), what, "name another folder in the variable TMPDIR, or fewer `--chunks`"))


def _check_written(run: Run, file: Path, said: str) -> None:
    """Checks that the engine wrote its whole output, because it does not notice a full disk."""
    written = file.stat().st_size if file.is_file() else 0
    if written < _HEADER:
        what = "\n".join([f"{PROGRAM} judged too few tokens:", *_errors(said)])
        raise SiteError(Problem(str(run.model), what, "give a longer text"))
    wanted = _bytes(*map(int, np.fromfile(file, np.int32, 3, offset=8)))
    if written < wanted:
        what = f"{PROGRAM} could write only {written:,} bytes of {wanted:,} there"
        remedy = "make room there, or name another folder in the variable TMPDIR"
        raise SiteError(Problem(str(file.parent.parent), what, remedy))


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
    """All tokens of the text, as (chunks, context)."""
    context, _, chunks = np.fromfile(file, np.int32, 3, offset=8)
    return np.fromfile(file, np.int32, chunks * context, offset=_HEADER).reshape(chunks, context)


def _judged(file: Path) -> Iterator[npt.NDArray[np.int32]]:
    """The true next tokens for each array of `_rows`, from the second half of each chunk."""
    tokens = _tokens(file)
    judged = tokens[:, tokens.shape[1] // 2 + 1 :].ravel()
    yield from (judged[start : start + _ROWS] for start in range(0, len(judged), _ROWS))


def _shape(context: int, vocabulary: int, chunks: int) -> tuple[int, int]:
    """The number of stored rows, one for each judged token, and of 16-bit numbers in each row."""
    return chunks * (context - 1 - context // 2), vocabulary + vocabulary % 2 + 4


def _bytes(context: int, vocabulary: int, chunks: int) -> int:
    """The size in bytes of a whole output file."""
    n_rows, width = _shape(context, vocabulary, chunks)
    return _HEADER + 4 * chunks * context + 2 * n_rows * width


def _rows(file: Path) -> Iterator[npt.NDArray[np.float64]]:
    """The expected probabilities as logarithms, in arrays of (`_ROWS`, vocabulary).

    The format is that of `log_softmax` in the engine's perplexity.cpp. Each row has two floats, a step and the least value, then 16 bits
    for each token of the vocabulary, padded to an even number. The result is normalised, as rounding changed the sum.
    """
    context, vocabulary, chunks = map(int, np.fromfile(file, np.int32, 3, offset=8))
    n_rows, width = _shape(context, vocabulary, chunks)
    stored = np.memmap(file, np.uint16, "r", _HEADER + _tokens(file).nbytes, (n_rows, width))
    for start in range(0, n_rows, _ROWS):
        rows = stored[start : start + _ROWS]
        step, least = np.split(rows[:, :4].copy().view(np.float32).astype(np.float64), 2, axis=1)
        logarithms = rows[:, 4 : 4 + vocabulary] * step + least
        yield logarithms - np.log(np.exp(logarithms).sum(axis=1, keepdims=True))


def _run(engine: Path, run: Run, arguments: Sequence[str], meter: Meter) -> str:
    """Runs the engine, and returns its output."""
    first_shard = gguf.files(run.model)[0]  # from which it finds the others
    load = [str(engine / PROGRAM), "--model", str(first_shard)]
    for _ in range(_TRIES):
        code, said = _listen([*load, *arguments, *run.arguments], meter)
        if not code:
            return said
        if said:
            break
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else "failed"
    what = "\n".join([f"{PROGRAM} {how}:", *_errors(said)])
    remedy = f"mend that; alone it is loaded by `{shlex.join([*load, *run.arguments])}`"
    raise SiteError(Problem(str(run.model), what, remedy))


def _listen(command: Sequence[str], meter: Meter) -> tuple[int, str]:
    """Runs the engine once, updates the meter, and returns the exit code and the output."""
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        remedy = f"build it: `cmake --build BUILD --target {PROGRAM}` in llama.cpp's tree makes BUILD/bin"
        raise SiteError(Problem(command[0], f"it does not run: {error.strerror}", remedy)) from None
    said, chunks = b"", None
    with process:
        assert process.stdout  # noqa: S101 - for the type checker: it is a pipe
        try:
            while piece := os.read(process.stdout.fileno(), 2**16):
                said += piece
                chunks = chunks or _CHUNKS.search(said)
                judged = _CHUNK.findall(said[-100:])
                if chunks and judged:
                    meter.update(int(judged[-1]), int(chunks[1]))
        except BaseException:
            process.kill()
            raise
    return process.returncode, said.decode(errors="replace")


def _errors(said: str) -> list[str]:
    """The lines of the output that report errors, without repeats; if there are none, its last lines."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    chosen = [line for line in lines if _ERROR.match(line)] or lines
    plain = (found[1] if (found := _PREFIX.match(line)) else line for line in chosen)
    return list(dict.fromkeys(plain))[-_MOST_LINES:] or ["it said nothing"]
