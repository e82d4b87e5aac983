"""Tests of `r1prov weights compare` with a script in the engine's place, which records its arguments and writes prepared files."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

from r1prov import cli
from r1prov.common.errors import Exit
from r1prov.models import perplexity
from r1prov.output import console, meter
from tests.fixtures import shards, tinymodel

VOCABULARY, CONTEXT, CHUNKS = 7, 10, 9  # more tokens than are compared at once, and an odd vocabulary
TOKENS = np.random.default_rng(1).integers(VOCABULARY, size=(CHUNKS, CONTEXT)).astype(np.int32)
LOGITS = np.random.default_rng(2).normal(size=(CHUNKS, CONTEXT - 1 - CONTEXT // 2, VOCABULARY))


def written(logits: np.ndarray, tokens: np.ndarray = TOKENS) -> bytes:
    """The content of a file of logits as llama-perplexity writes it."""
    logarithms = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    least = logarithms.min(axis=-1, keepdims=True)
    step = (logarithms.max(axis=-1, keepdims=True) - least) / 65535
    words = np.rint((logarithms - least) / step).astype(np.uint16)
    scales = np.concatenate([step, least], axis=-1).astype(np.float32).view(np.uint16)
    rows = np.concatenate([scales, words, np.zeros_like(words[..., :1])], axis=-1)
    header = np.array([CONTEXT, VOCABULARY, CHUNKS], np.int32)
    return b"_logits_" + header.tobytes() + tokens.tobytes() + rows.tobytes()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymodel.write(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def engine(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a script that records the arguments of each run as one line, and keeps a copy of the text.

    The script writes the prepared file for its model and its setting of flash attention.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console.out, "width", 120)  # the tests must not depend on the terminal's width
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).symlink_to(model)
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
    forms, noise = json.loads(capsys.readouterr().out)["differences"]

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
        (b"_logits_\n\0\0\0", "a.gguf: llama-perplexity judged too few tokens:\nof no use\n"),
        (None, "a.gguf: llama-perplexity failed:\nof no use\ncp: "),
        (written(LOGITS)[:-1], "llama-perplexity could write only 1,243 bytes of 1,244 there\n  -> make room there"),
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


LOG = """\
0.00.008.123 W llama_context: a warning
0.00.008.945 E llama_model_load: error loading model: check_tensor_dims: tensor 'blk.2.attn_k_b.weight' not found
0.00.008.989 E llama_model_load_from_file_impl: failed to load model
0.00.009.001 E llama_model_load_from_file_impl: failed to load model
0.00.009.123 I of no use
"""
TOLD = """\
llama_model_load: error loading model: check_tensor_dims: tensor 'blk.2.attn_k_b.weight' not found
llama_model_load_from_file_impl: failed to load model
"""


def instead(engine: Path, script: str) -> None:
    (engine / "llama-perplexity").write_text(f"#!/bin/sh\n{script}\n")


def sparse(path: Path, vocabulary: int) -> None:
    """Writes a model file that consists of a header and a hole."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(1)
    writer.add_head_count(0)
    writer.add_context_length(CONTEXT)
    for name, shape in (
        ("token_embd.weight", (vocabulary, 1)),
        ("output_norm.weight", (1,)),
        ("blk.0.attn_norm.weight", (1,)),
    ):
        writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * shape[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, 2**20 + 4 * vocabulary)


def test_a_folder_without_room_is_told_before_anything_is_loaded(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse(tmp_path / "large.gguf", vocabulary=2**27)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    assert compare("large.gguf", "large.gguf", "--engine", str(engine), "--chunks", "500") == Exit.SITE
    said = capsys.readouterr().err
    assert f"{scratch}: " in said
    # The text is Python's own language reference, whose length depends on the version.
    assert re.search(r"2 runs over 500 chunks need 65,280,00\d\.\d MiB there meanwhile; ", said)
    assert "  -> name another folder in the variable TMPDIR, or fewer `--chunks`" in said
    assert not (tmp_path / "runs").exists()
    assert not list(scratch.iterdir())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "b.gguf: it cannot be read: No such file or directory"),
        (b"no model", "b.gguf: it is no GGUF file"),
    ],
)
def test_a_second_model_that_is_none_is_told_before_the_first_is_loaded(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, says: str
) -> None:
    (tmp_path / "b.gguf").unlink()
    if content:
        (tmp_path / "b.gguf").write_bytes(content)
    assert compare("a.gguf", "b.gguf", "--engine", str(engine)) == Exit.SITE
    assert says in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_model_with_another_vocabulary_is_told_before_the_first_is_loaded(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sparse(tmp_path / "wide.gguf", vocabulary=300)
    assert compare("a.gguf", "wide.gguf", "--engine", str(engine)) == Exit.SITE
    assert f"its vocabulary has 300 tokens, that of a.gguf {len(tinymodel.vocabulary())}" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_any_shard_of_a_set(engine: Path, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards.split(model, tmp_path / "s", 60)
    for state in ("off", "on"):
        shutil.copy(tmp_path / "a.gguf.off", tmp_path / f"s-00001-of-00003.gguf.{state}")
    assert compare("a.gguf", "s-00002-of-00003.gguf", "--engine", str(engine)) == 0
    runs = [line.split()[1] for line in (tmp_path / "runs").read_text().splitlines()]
    assert runs == ["a.gguf", "s-00001-of-00003.gguf", "s-00001-of-00003.gguf"]


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (
            f"cat <<'END'\n{LOG}END\nexit 1",
            f"a.gguf: llama-perplexity failed:\n{TOLD}  -> mend that",
        ),
        (
            "seq 20; exit 1",
            "a.gguf: llama-perplexity failed:\n13\n14\n15\n16\n17\n18\n19\n20\n  -> mend that",
        ),
        (
            "mkdir once 2> /dev/null && exit 1; echo its log; exit 1",
            "a.gguf: llama-perplexity failed:\nits log\n  -> mend that",
        ),
        (
            "kill -9 $$",
            "a.gguf: llama-perplexity was ended by SIGKILL:\nit said nothing\n  -> mend that",
        ),
    ],
)
def test_what_an_engine_that_fails_says(
    engine: Path, capsys: pytest.CaptureFixture[str], script: str, says: str
) -> None:
    instead(engine, script)
    assert compare("a.gguf", "b.gguf", "--engine", str(engine)) == Exit.SITE
    said = capsys.readouterr().err
    assert says in said
    assert f"; alone it is loaded by `{engine}/llama-perplexity --model a.gguf --flash-attn off`" in said


def test_it_says_what_is_judged_and_how_far_it_is(
    engine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "PLAIN_EVERY_S", 0)
    program = engine / "llama-perplexity"
    progress = "echo '0.00.173.690 I perplexity: calculating perplexity over 9 chunks, n_ctx=512'; printf '[1]541.93,[2]481.1,'"
    program.write_text(program.read_text().replace("echo of no use", progress))
    assert compare("a.gguf", "b.gguf", "--engine", str(engine)) == 0
    said = capsys.readouterr().err
    assert "[1/3] llama-perplexity loads and judges a.gguf\nchunks of a.gguf: 22%, 2 of 9" in said
    assert "[2/3] llama-perplexity loads and judges b.gguf\nchunks of b.gguf: 22%, 2 of 9" in said
    assert "[3/3] llama-perplexity loads and judges b.gguf with flash attention\n" in said
