"""How far two models, or two settings of one, are apart: what they expect of each next token of a text, by llama-perplexity.

The engine writes what a model expects into a file, and the comparison is made here. The engine's own comparison says only six digits
after the point, and now and then nothing: it ends without waiting until its log is written.
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
    """Something that shows, while it is open, how far a step is."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def update(self, done: int, total: int) -> None:
        """So many chunks are done, of so many."""


CONTEXT = 512
"""Tokens that are looked at together, a chunk. The engine judges the second half of each."""

_HEADER = 8 + 3 * 4
"""Bytes of `_logits_`, then of context, vocabulary and chunks as 32-bit numbers."""
_ROWS = 32
"""That are compared at once: 33 MB of one model for each of R1's."""

_CHUNKS = re.compile(rb"calculating perplexity over (\d+) chunks")
_CHUNK = re.compile(rb"\[(\d+)\][^\s,]+,")
"""How the engine tells how far it is: `[1]541.9360,[2]481.1267,`, each when it is known."""

_PREFIX = re.compile(r"[\d.]+ [A-Z] (.*)")
"""Time and level of a line of its log, e.g. `0.00.008.945 E llama_model_load: error loading model: ...`."""
_ERROR = re.compile(r"[\d.]+ E |.*(error|failed|assert)", re.IGNORECASE)
_TRIES = 10
"""Of an engine that fails without a word: what fails within milliseconds often ends before its log is written."""
_MOST_LINES = 8
"""Of what the engine said, in a message."""


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
        model: a GGUF file, or any shard of a set.
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


def differences(
    engine: Path, pairs: Sequence[tuple[Run, Run]], text: str, chunks: int, watch: Callable[[Run], Meter]
) -> list[Difference]:
    """Runs the engine over `chunks` chunks of the text, once for each run, and compares the second of each pair with the first.

    Args:
        engine: the folder of the engine's programs.
        pairs: what is compared.
        text: at least `chunks` times `CONTEXT` tokens.
        chunks: for each run and each of them half of `CONTEXT` times the vocabulary times two bytes lie on the disk: 66 MB for R1.
        watch: makes what shows how far a run is, in chunks.

    Raises:
        SiteError: a model or the engine is not there, or the engine refuses; the text is too short; two models have not the same
            tokens; the folder for temporary files has no room.
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
    """Tokens of the vocabulary, which all of them have."""
    sizes = {path: gguf.read(path).vocabulary for path in models}
    first = models[0]
    for path, size in sizes.items():
        if size != sizes[first]:
            what = f"its vocabulary has {size:,} tokens, that of {first} {sizes[first]:,}"
            raise SiteError(Problem(str(path), what, "compare two forms of one model"))
    return sizes[first]


def _check_room(folder: Path, text_bytes: int, runs: int, chunks: int, vocabulary: int) -> None:
    """That what is written will find room, before the first of the models is loaded."""
    judged = min(chunks, text_bytes // CONTEXT + 1)  # a token is a byte or more
    needed, free = text_bytes + runs * _bytes(CONTEXT, vocabulary, judged), shutil.disk_usage(folder).free
    if needed > free:
        what = (
            f"{runs} runs over {judged} chunks need {needed / MIB:,.1f} MiB there meanwhile; {free / MIB:,.1f} are free"
        )
        raise SiteError(Problem(str(folder), what, "name another folder in the variable TMPDIR, or fewer `--chunks`"))


def _check_written(run: Run, file: Path, said: str) -> None:
    """That the engine wrote all that it judged: it does not look whether the disk was full."""
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
    """All tokens of the text, (chunks, context)."""
    context, _, chunks = np.fromfile(file, np.int32, 3, offset=8)
    return np.fromfile(file, np.int32, chunks * context, offset=_HEADER).reshape(chunks, context)


def _judged(file: Path) -> Iterator[npt.NDArray[np.int32]]:
    """The tokens that were to be expected, for each of `_rows`: of the second half of each chunk."""
    tokens = _tokens(file)
    judged = tokens[:, tokens.shape[1] // 2 + 1 :].ravel()
    yield from (judged[start : start + _ROWS] for start in range(0, len(judged), _ROWS))


def _shape(context: int, vocabulary: int, chunks: int) -> tuple[int, int]:
    """Of what is stored: a row for each judged token, and its 16-bit numbers."""
    return chunks * (context - 1 - context // 2), vocabulary + vocabulary % 2 + 4


def _bytes(context: int, vocabulary: int, chunks: int) -> int:
    """Of a whole file."""
    n_rows, width = _shape(context, vocabulary, chunks)
    return _HEADER + 4 * chunks * context + 2 * n_rows * width


def _rows(file: Path) -> Iterator[npt.NDArray[np.float64]]:
    """What was expected, as logarithms of probabilities: (`_ROWS`, vocabulary).

    The format is that of `log_softmax` in the engine's perplexity.cpp: for each token two floats, a step and the least value, then 16
    bits for each word of the vocabulary, of an even number of words. The rounding is taken out of their sum.
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
    """What the engine says."""
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
    """How the engine ends, and what it says; the meter is told the chunks."""
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
    """The lines in which the engine tells what went wrong, each once; else its last."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    chosen = [line for line in lines if _ERROR.match(line)] or lines
    plain = (found[1] if (found := _PREFIX.match(line)) else line for line in chosen)
    return list(dict.fromkeys(plain))[-_MOST_LINES:] or ["it said nothing"]
