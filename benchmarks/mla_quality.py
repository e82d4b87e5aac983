"""Measures how the MLA form changes a model's predictions and its answers, and compares that with the effect of flash attention.

    python -m benchmarks.mla_quality ENGINE [FOLDER [CHUNKS]]

ENGINE is a folder with llama-perplexity, llama-quantize and llama-server, built for the CPU. FOLDER is a folder that
`benchmarks.trained_model` has filled; without FOLDER, that program runs first. The folder holds two models, one with random weights and
one that is trained. Each is measured with attn_kv_b in each of `KINDS`:

- Rest in F16, and rest in Q8_0: each form is compared with the legacy file whose other matrices have that type. Q8_0 is nearer to the
  published quants. The answers of the trained model are compared too, with the other matrices in Q8_0 and in F32.
- Without rounding: where attn_kv_b is quantised, the CPU also rounds the vectors that it multiplies with it to 8 bits, and each form
  rounds at other places. So the other matrices are in F32 here, and each form is compared with a legacy file that holds the same values
  of attn_kv_b in F32, for which the CPU does not round. This shows which form is nearer to the exact weights, and how much of the
  difference is left when both forms hold the weights in F32.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import greedy
from r1prov import output
from r1prov.common import paths
from r1prov.models import convert as weights
from r1prov.models import perplexity
from r1prov.models.perplexity import Run

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

KINDS = ("F16", "Q8_0", "Q6_K")
"""The types of attn_kv_b. The small published quants of R1 have it in Q6_K."""
CHUNKS = 64
"""The number of chunks that a model reads. The chosen experts differ for few tokens, but those make up most of the mean, so a sure
mean takes many chunks."""
PROMPTS, PROMPT_CHARACTERS, ANSWER_TOKENS = 16, 300, 128
JAX = "jax==0.10.2"

_ONE = ("--threads", "1")  # a model this small gains nothing from more threads
FLASH = "flash attention on"
OFF, ON = (*_ONE, "--flash-attn", "off"), (*_ONE, "--flash-attn", "on")

Rows = dict[str, str]
"""The cells of one column of a table, by the name of their row."""


def rest_in_f16(engine: Path, source: Path, kind: str, folder: Path, *, text: str, chunks: int) -> Rows:
    """How far the forms of one file differ, with the difference between flash attention on and off for comparison.

    Args:
        engine: The folder of the engine's programs.
        source: A legacy model in F32.
        kind: The type that its attn_kv_b gets.
        folder: An empty folder for the files made on the way.
        text: The text that the models read.
        chunks: The number of chunks of the text that they read.
    """
    return _forms(engine, quantised(engine, source, kind, "F16", folder / "legacy.gguf"), text, chunks)


def rest_in_q8_0(engine: Path, source: Path, kind: str, folder: Path, *, text: str, chunks: int) -> Rows:
    """The same as `rest_in_f16` for a file whose other matrices are in Q8_0; the arguments are the same."""
    return _forms(engine, quantised(engine, source, kind, "Q8_0", folder / "legacy.gguf"), text, chunks)


def _forms(engine: Path, legacy: Path, text: str, chunks: int) -> Rows:
    return _compared(engine, Run(legacy, OFF), {FLASH: Run(legacy, ON), **_mla(legacy)}, text, chunks)


def answers(engine: Path, source: Path, kind: str, folder: Path, *, text: str, chunks: int) -> Rows:
    """How many answers of the legacy file the other runs repeat, and how many tokens they repeat before they differ.

    The arguments are those of `rest_in_f16`.
    """
    step = len(text) // PROMPTS
    prompts = [text[start : start + PROMPT_CHARACTERS] for start in range(0, step * PROMPTS, step)]
    rows = {}
    for others in ("Q8_0", "F32"):
        legacy = quantised(engine, source, kind, others, folder / f"legacy-{others}.gguf")
        of_legacy = greedy.answers(engine, Run(legacy, OFF), prompts, ANSWER_TOKENS)
        for name, run in {FLASH: Run(legacy, ON), **_mla(legacy)}.items():
            of_run = greedy.answers(engine, run, prompts, ANSWER_TOKENS)
            rows[f"the rest in {others}, {name}"] = _agreement(of_legacy, of_run)
    return rows


def without_rounding(engine: Path, source: Path, kind: str, folder: Path, *, text: str, chunks: int) -> Rows:
    """How far each form differs from the legacy form with the same values in F32; the arguments are those of `rest_in_f16`."""
    legacy, exact = quantised(engine, source, kind, "F32", folder / "legacy.gguf"), folder / "exact.gguf"
    exact_values(legacy, exact)
    runs = {
        FLASH: Run(exact, ON),
        "MLA form of the same values in F32": _mla(exact)["MLA form, `attn_k_b` in F16"],
        "legacy form": Run(legacy, OFF),
        **_mla(legacy),
    }
    return _compared(engine, Run(exact, OFF), runs, text, chunks)


def quantised(engine: Path, source: Path, kind: str, others: str, target: Path) -> Path:
    """Writes the model with attn_kv_b in `kind` and the other matrices in `others` to `target`, and returns `target`.

    llama-quantize obeys the type named for a tensor only where the type of the whole file is a quantised one.
    """
    kinds = ("--tensor-type", f"attn_kv_b={kind}", "--tensor-type", f".={others}")
    _run([engine / "llama-quantize", *kinds, source, target, "Q8_0"])
    return target


def exact_values(source: Path, target: Path) -> Path:
    """Writes the legacy model with its attn_kv_b in F32 to `target`, and returns `target`."""
    names = ("gguf_header", "ggml_blocks", "gguf_layout", "gguf_stream")
    header, blocks, layout, stream = map(paths.module_util, names)
    old = header.read(source)
    parts = []
    for tensor in old.tensors:
        part = layout.copied(source, tensor)
        if "attn_kv_b" in tensor.name:
            values = partial(_values, blocks, tensor.type_name)
            part = replace(part, type=header.TYPE_NUMBERS["F32"], make=values, agrees=lambda *_: True)
        parts.append(part)
    stream.write(target, old.keys, parts, lambda *_: None)
    return target


def _values(blocks: ModuleType, kind: str, raw: bytes) -> bytes:
    return bytes(blocks.dequantise(kind, np.frombuffer(raw, np.uint8)[None]).tobytes())


def _mla(legacy: Path) -> dict[str, Run]:
    """Converts a legacy file into each MLA form and returns the runs of these forms, by name."""
    runs = {}
    for kind in ("F16", "Q8_0"):
        made = weights.convert(legacy, legacy.with_name(f"{legacy.stem}-{kind}.gguf"), kind, lambda *_: None)
        assert made  # noqa: S101 - tells the type checker that the file was a legacy one
        runs[f"MLA form, `attn_k_b` in {kind}"] = Run(made.path, OFF)
    return runs


def _compared(engine: Path, base: Run, runs: dict[str, Run], text: str, chunks: int) -> Rows:
    pairs = [(base, run) for run in runs.values()]
    measured = perplexity.differences(engine, pairs, text, chunks, lambda run: output.Meter(run.model.name, "steps"))
    rows = {
        name: f"{result.kl_divergence:.3e} ± {result.uncertainty:.0e}, median {result.median:.1e}, {result.same_top:.2%}"
        for name, result in zip(runs, measured, strict=True)
    }
    return rows | {"perplexity": f"{measured[0].base_perplexity:.4f}"}


def _agreement(base: list[list[int]], answers: list[list[int]]) -> str:
    whole = sum(first == second for first, second in zip(base, answers, strict=True))
    alike = sum(greedy.alike(first, second) for first, second in zip(base, answers, strict=True))
    return f"{whole} of {len(base)} answers, {alike:,} of {sum(map(len, base)):,} tokens"


def _run(command: list[str | Path]) -> None:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}\n{' '.join(map(str, command))} failed")


def table(columns: Mapping[str, Rows]) -> str:
    """A Markdown table with one column for each type."""
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    lines += [[name, *(rows[name] for rows in columns.values())] for name in next(iter(columns.values()))]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def train(folder: Path) -> Path:
    """Trains the model into `folder` and returns `folder`. JAX is no dependency of r1prov, so uv brings it for this run."""
    program = ["uv", "run", "--no-project", "--with", JAX, "--with", f"gguf=={version('gguf')}", "python", "-m"]
    subprocess.run([*program, "benchmarks.trained_model", str(folder)], check=True)
    return folder


def main(engine: Path, models: Path | None, chunks: int) -> None:
    """Measures, and prints the tables."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        models = models or train(scratch)
        text = (models / "held-out.txt").read_text(encoding="utf-8")
        pairs = itertools.product(("random", "trained"), (rest_in_f16, rest_in_q8_0, without_rounding))
        for model, measure in (*pairs, ("trained", answers)):
            columns = {}
            for kind in KINDS:
                folder = scratch / kind
                folder.mkdir()
                columns[kind] = measure(engine, models / f"{model}.gguf", kind, folder, text=text, chunks=chunks)
                shutil.rmtree(folder)
            tokens = chunks * perplexity.CONTEXT // 2
            print(f"{model}, {measure.__name__.replace('_', ' ')}, {tokens:,} tokens\n\n{table(columns)}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2:] else None, int(sys.argv[3]) if sys.argv[3:] else CHUNKS)
