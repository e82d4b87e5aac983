"""`r1prov weights compare`, with a program in the engine's place that keeps what it was told and writes what it was given."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from r1prov import cli, perplexity
from r1prov.errors import Exit

VOCABULARY, CONTEXT, CHUNKS = 7, 10, 9  # more tokens than are compared at once, and no even vocabulary
TOKENS = np.random.default_rng(1).integers(VOCABULARY, size=(CHUNKS, CONTEXT)).astype(np.int32)
LOGITS = np.random.default_rng(2).normal(size=(CHUNKS, CONTEXT - 1 - CONTEXT // 2, VOCABULARY))


def written(logits: np.ndarray, tokens: np.ndarray = TOKENS) -> bytes:
    """A file as llama-perplexity writes it."""
    logarithms = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    least = logarithms.min(axis=-1, keepdims=True)
    step = (logarithms.max(axis=-1, keepdims=True) - least) / 65535
    words = np.rint((logarithms - least) / step).astype(np.uint16)
    scales = np.concatenate([step, least], axis=-1).astype(np.float32).view(np.uint16)
    rows = np.concatenate([scales, words, np.zeros_like(words[..., :1])], axis=-1)
    header = np.array([CONTEXT, VOCABULARY, CHUNKS], np.int32)
    return b"_logits_" + header.tobytes() + tokens.tobytes() + rows.tobytes()


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """Keeps its arguments, one line a run, and its text; writes the file that is there for the model and the state of flash attention."""
    program = tmp_path / "bin" / "llama-perplexity"
    program.parent.mkdir()
    (tmp_path / "a.gguf.off").write_bytes(written(LOGITS))
    (tmp_path / "b.gguf.off").write_bytes(written(LOGITS + np.eye(VOCABULARY)[0]))
    (tmp_path / "b.gguf.on").write_bytes(written(LOGITS + np.eye(VOCABULARY)[0]))
    program.write_text(
        f"""#!/bin/sh -e
echo "$@" >> {tmp_path}/runs
model=$2
while [ "$1" != --kl-divergence-base ]; do [ "$1" = --file ] && cp "$2" {tmp_path}/read; shift; done
echo of no use
file=$2
while [ "$1" != --flash-attn ]; do shift; done
cp {tmp_path}/$model.$2 "$file"
"""
    )
    program.chmod(0o755)
    return program.parent


def compare(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["weights", "compare", *words])
    return int(ended.value.code or 0)


def test_each_form_and_the_noise_beside_it(engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text"
    text.write_text("What the engine reads.")
    code = compare("a.gguf", "b.gguf", "--engine", str(engine), "--text", str(text), "--json", "--", "-ngl", "62")
    assert code == 0
    forms, noise = json.loads(capsys.readouterr().out)

    chances = [np.exp(logits) for logits in (LOGITS, LOGITS + np.eye(VOCABULARY)[0])]
    first, second = (chance / chance.sum(axis=-1, keepdims=True) for chance in chances)
    divergences = (first * np.log(first / second)).sum(axis=-1).ravel()
    judged = TOKENS[:, CONTEXT // 2 + 1 :, None]
    perplexities = [np.exp(-np.log(np.take_along_axis(of_it, judged, axis=-1)).mean()) for of_it in (first, second)]
    assert forms == {
        "what": "b.gguf instead of a.gguf",
        "kl_divergence": pytest.approx(divergences.mean(), rel=1e-3),
        "uncertainty": pytest.approx(divergences.std(ddof=1) / len(divergences) ** 0.5, rel=1e-3),
        "median": pytest.approx(np.median(divergences), rel=1e-3),
        "same_top": pytest.approx((first.argmax(axis=-1) == second.argmax(axis=-1)).mean()),
        "perplexity": pytest.approx(perplexities[1], rel=1e-4),
        "base_perplexity": pytest.approx(perplexities[0], rel=1e-4),
    }
    assert 0 < forms["same_top"] < 1
    assert (noise["what"], noise["kl_divergence"], noise["same_top"]) == ("flash attention in b.gguf", 0, 1)

    runs = [line.split() for line in (tmp_path / "runs").read_text().splitlines()]
    off, on = (["-ngl", "62", "--flash-attn", state] for state in ("off", "on"))
    assert [(run[1], run[-4:]) for run in runs] == [("a.gguf", off), ("b.gguf", off), ("b.gguf", on)]
    assert (tmp_path / "read").read_text() == "What the engine reads."


def test_without_a_text_it_reads_prose(engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare("a.gguf", "b.gguf", "--engine", str(engine)) == 0
    assert "0.00e+00 ± 0e+00" in capsys.readouterr().out
    assert (tmp_path / "read").read_text() == perplexity.prose(None)
    assert len(perplexity.prose(None).split()) > 50_000


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"_logits_\n\0\0\0", "a.gguf: llama-perplexity judged too few tokens: of no use"),
        (None, "a.gguf: llama-perplexity failed: cp:"),
        (written(LOGITS, TOKENS + 1), "b.gguf: it divides the text into other tokens than a.gguf"),
    ],
)
def test_an_engine_that_writes_nothing_of_use(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, says: str
) -> None:
    (tmp_path / "a.gguf.off").unlink()
    if content:
        (tmp_path / "a.gguf.off").write_bytes(content)
    assert compare("a.gguf", "b.gguf", "--engine", str(engine)) == Exit.SITE
    assert says in capsys.readouterr().err


def test_an_engine_or_a_text_that_is_not_there(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare("a.gguf", "b.gguf", "--engine", str(tmp_path)) == Exit.SITE
    assert "llama-perplexity: it does not run: No such file or directory" in capsys.readouterr().err
    assert compare("a.gguf", "b.gguf", "--engine", str(engine), "--text", str(tmp_path / "none")) == Exit.SITE
    assert "it cannot be read: No such file or directory" in capsys.readouterr().err
