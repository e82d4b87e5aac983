"""What the MLA form changes in what a model expects, and in what it answers, beside what flash attention changes.

    python -m benchmarks.mla_quality ENGINE [FOLDER [CHUNKS]]

ENGINE is a folder with llama-perplexity, llama-quantize and llama-server, built for the CPU. FOLDER is what
`benchmarks.trained_model` filled; without it that runs first. Each of its two models, of random weights and trained, is measured with
attn_kv_b in each of `KINDS`:

- Rest in F16, and rest in Q8_0, which is nearer to what is published: each form is compared with the legacy file, and so are the trained
  model's answers, with everything else in Q8_0 and in F32.
- Without rounding: where attn_kv_b is quantised, the CPU rounds to 8 bits what is multiplied with it too, at other places in each form.
  So with everything else in F32 each form is compared with a legacy file that holds the same values of attn_kv_b in F32, where nothing is
  rounded so. It tells which form is nearer to what the weights say, and what of the difference is left where both hold them in F32.
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
"""Of attn_kv_b. The small published quants of R1 have it in Q6_K."""
CHUNKS = 64
"""Expert choices differ for few tokens, which carry most of a mean: it takes many to know it."""
PROMPTS, PROMPT_CHARACTERS, ANSWER_TOKENS = 16, 300, 128
JAX = "jax==0.10.2"

_ONE = ("--threads", "1")  # models this small gain nothing from more
FLASH = "flash attention on"
OFF, ON = (*_ONE, "--flash-attn", "off"), (*_ONE, "--flash-attn", "on")

Rows = dict[str, str]
"""What was found, by what it is of."""


def rest_in_f16(engine: Path, source: Path, kind: str, folder: Path, *, text: str, chunks: int) -> Rows:
    """How far the forms of one file are apart, beside flash attention on and off.

    Args:
        engine: the folder of its programs.
        source: a legacy model in F32.
        kind: the type that its attn_kv_b gets.
        folder: an empty one.
        text: what the models read.
        chunks: how much of it.
    """
    return _forms(engine, quantised(engine, source, kind, "F16", folder / "legacy.gguf"), text, chunks)


def rest_in_q8_0(engine: Path, source: Path, kind: str, folder: Path, *, text: str, chunks: int) -> Rows:
    """The same of a file that is quantised; arguments as above."""
    return _forms(engine, quantised(engine, source, kind, "Q8_0", folder / "legacy.gguf"), text, chunks)


def _forms(engine: Path, legacy: Path, text: str, chunks: int) -> Rows:
    return _compared(engine, Run(legacy, OFF), {FLASH: Run(legacy, ON), **_mla(legacy)}, text, chunks)


def answers(engine: Path, source: Path, kind: str, folder: Path, *, text: str, chunks: int) -> Rows:
    """How many answers of the legacy file the others give too, and how many of their tokens before they part; arguments as above."""
    step = len(text) // PROMPTS
    prompts = [text[start : start + PROMPT_CHARACTERS] for start in range(0, step * PROMPTS, step)]
    rows = {}
    for others in ("Q8_0", "F32"):
        legacy = quantised(engine, source, kind, others, folder / f"legacy-{others}.gguf")
        wanted = greedy.answers(engine, Run(legacy, OFF), prompts, ANSWER_TOKENS)
        for name, run in {FLASH: Run(legacy, ON), **_mla(legacy)}.items():
            found = greedy.answers(engine, run, prompts, ANSWER_TOKENS)
            rows[f"the rest in {others}, {name}"] = _agreement(wanted, found)
    return rows


def without_rounding(engine: Path, source: Path, kind: str, folder: Path, *, text: str, chunks: int) -> Rows:
    """How far each form is from the same values in F32; the arguments are those of `rest_in_f16`."""
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
    """The model with attn_kv_b in `kind`, and the other matrices in `others`.

    A type that is named for a tensor counts only where the type of the whole file is a quantised one.
    """
    kinds = ("--tensor-type", f"attn_kv_b={kind}", "--tensor-type", f".={others}")
    _run([engine / "llama-quantize", *kinds, source, target, "Q8_0"])
    return target


def exact_values(source: Path, target: Path) -> Path:
    """The legacy model with its attn_kv_b in F32."""
    header, blocks, stream = (paths.module_util(name) for name in ("gguf_header", "ggml_blocks", "gguf_stream"))
    old = header.read(source)
    parts = []
    for tensor in old.tensors:
        part = stream.copied(source, tensor)
        if "attn_kv_b" in tensor.name:
            values = partial(_values, blocks, tensor.type_name)
            part = replace(part, type=header.TYPE_NUMBERS["F32"], make=values, agrees=lambda *_: True)
        parts.append(part)
    stream.write(target, old.keys, parts, lambda *_: None)
    return target


def _values(blocks: ModuleType, kind: str, raw: bytes) -> bytes:
    return bytes(blocks.dequantise(kind, np.frombuffer(raw, np.uint8)[None]).tobytes())


def _mla(legacy: Path) -> dict[str, Run]:
    """How the MLA forms of a file run, by name."""
    runs = {}
    for kind in ("F16", "Q8_0"):
        made = weights.convert(legacy, legacy.with_name(f"{legacy.stem}-{kind}.gguf"), kind, lambda *_: None)
        assert made  # noqa: S101 - for the type checker: it was a legacy file
        runs[f"MLA form, `attn_k_b` in {kind}"] = Run(made.path, OFF)
    return runs


def _compared(engine: Path, base: Run, runs: dict[str, Run], text: str, chunks: int) -> Rows:
    pairs = [(base, run) for run in runs.values()]
    found = perplexity.differences(engine, pairs, text, chunks, lambda run: output.Meter(run.model.name, "steps"))
    rows = {
        name: f"{one.kl_divergence:.3e} ± {one.uncertainty:.0e}, median {one.median:.1e}, {one.same_top:.2%}"
        for name, one in zip(runs, found, strict=True)
    }
    return rows | {"perplexity": f"{found[0].base_perplexity:.4f}"}


def _agreement(wanted: list[list[int]], found: list[list[int]]) -> str:
    whole = sum(one == other for one, other in zip(wanted, found, strict=True))
    alike = sum(greedy.alike(one, other) for one, other in zip(wanted, found, strict=True))
    return f"{whole} of {len(wanted)} answers, {alike:,} of {sum(map(len, wanted)):,} tokens"


def _run(command: list[str | Path]) -> None:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}\n{' '.join(map(str, command))} failed")


def table(columns: Mapping[str, Rows]) -> str:
    """Markdown, of as many columns as there are types."""
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    lines += [[name, *(rows[name] for rows in columns.values())] for name in next(iter(columns.values()))]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def train(folder: Path) -> Path:
    """The trained model's folder. JAX is no dependency of r1prov: uv brings it for this."""
    program = ["uv", "run", "--no-project", "--with", JAX, "--with", f"gguf=={version('gguf')}", "python", "-m"]
    subprocess.run([*program, "benchmarks.trained_model", str(folder)], check=True)
    return folder


def main(engine: Path, models: Path | None, chunks: int) -> None:
    """Measures, and prints what came of it."""
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
