"""`r1prov weights compare`, with a program in the engine's place that says what llama-perplexity said of two models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r1prov import cli, perplexity
from r1prov.errors import Exit

SAID = """\
chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence              Δp RMS            Same top p
====== KL divergence statistics ======
Mean    KLD:   0.000799 ±   0.000078
Maximum KLD:   0.046218
Mean    Δp:  0.001 ± 0.004 %
Same top p: 94.706 ± 0.702 %
"""


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """Keeps its arguments, one line a run; what it compares with must be what a run before it kept."""
    program = tmp_path / "bin" / "llama-perplexity"
    program.parent.mkdir()
    (tmp_path / "said").write_text(SAID)
    program.write_text(
        f"""#!/bin/sh -e
echo "$@" >> {tmp_path}/runs
while [ "$1" != --kl-divergence-base ]; do [ "$1" = --file ] && text=$2; shift; done
case "$*" in *--kl-divergence" "*) cmp "$2" "$text"; cat {tmp_path}/said ;; *) cp "$text" "$2" ;; esac
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
    figures = {"kl_divergence": 0.000799, "uncertainty": 0.000078, "same_top": 0.94706}
    names = ["b.gguf instead of a.gguf", "flash attention in b.gguf"]
    assert json.loads(capsys.readouterr().out) == [{"what": name, **figures} for name in names]
    runs = [line.split() for line in (tmp_path / "runs").read_text().splitlines()]
    told = [(run[1], "--kl-divergence" in run, run[-4:]) for run in runs]
    off, on = (["-ngl", "62", "--flash-attn", state] for state in ("off", "on"))
    assert told == [("a.gguf", False, off), ("b.gguf", True, off), ("b.gguf", False, off), ("b.gguf", True, on)]


def test_without_a_text_it_reads_prose(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare("a.gguf", "b.gguf", "--engine", str(engine)) == 0
    assert "0.000799 ± 0.000078" in capsys.readouterr().out
    assert len(perplexity.prose(None).split()) > 50_000


@pytest.mark.parametrize(
    ("said", "says"),
    [("too short\n", "llama-perplexity compared too few tokens: too short"), (None, "llama-perplexity failed: cat:")],
)
def test_an_engine_that_says_nothing_of_use(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], said: str | None, says: str
) -> None:
    (tmp_path / "said").unlink()
    if said:
        (tmp_path / "said").write_text(said)
    assert compare("a.gguf", "b.gguf", "--engine", str(engine)) == Exit.SITE
    assert says in capsys.readouterr().err


def test_an_engine_or_a_text_that_is_not_there(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare("a.gguf", "b.gguf", "--engine", str(tmp_path)) == Exit.SITE
    assert "llama-perplexity: it does not run: No such file or directory" in capsys.readouterr().err
    assert compare("a.gguf", "b.gguf", "--engine", str(engine), "--text", str(tmp_path / "none")) == Exit.SITE
    assert "it cannot be read: No such file or directory" in capsys.readouterr().err
