"""What the MLA form changes in what a model expects, beside what flash attention changes in it.

    python -m benchmarks.mla_quality ENGINE [CHUNKS [KIND...]]

ENGINE is a folder with llama-perplexity. The model is the lab's tiny R1 of random weights, in legacy form. Where its attn_kv_b is
quantised, the CPU rounds what is multiplied with it to 8 bits as well. So each form is also compared with a legacy model whose attn_kv_b
holds the same values in F32, where nothing is rounded: it tells which form is nearer to what the weights say. One JSON document.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np

from r1prov import paths, perplexity, weights
from r1prov.lab import tinymodel
from r1prov.perplexity import Run

if TYPE_CHECKING:
    from types import ModuleType

OFF, ON = ("--flash-attn", "off"), ("--flash-attn", "on")


def measure(engine: Path, kind: str, chunks: int, folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """KL divergence and agreement of each form of one model: by what it is compared with, then by form."""
    legacy = tinymodel.write(folder / "legacy.gguf", legacy=gguf.GGMLQuantizationType[kind])
    forms = {"legacy, flash attention": Run(legacy, ON)}
    for key_type in weights.KEY_TYPES:
        made = weights.convert(legacy, folder / f"{key_type}.gguf", key_type, lambda *_: None)
        assert made  # noqa: S101 - for the type checker: it was a legacy file
        forms[f"MLA, k_b {key_type}"] = Run(made.path, OFF)
        forms[f"MLA, k_b {key_type}, flash attention"] = Run(made.path, ON)
    found = {"legacy": _against(engine, Run(legacy, OFF), forms, chunks)}
    if kind != "F16":
        exact = exact_values(legacy, folder / "exact.gguf")
        forms = {"the same, flash attention": Run(exact, ON), "legacy": Run(legacy, OFF)} | {
            name: form for name, form in forms.items() if form.arguments == OFF
        }
        found["the same values in F32"] = _against(engine, Run(exact, OFF), forms, chunks)
    return found


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


def _against(engine: Path, base: Run, forms: dict[str, Run], chunks: int) -> dict[str, dict[str, float]]:
    found = perplexity.differences(engine, base, list(forms.values()), perplexity.prose(None), chunks)
    return {name: vars(difference) for name, difference in zip(forms, found, strict=True)}


def main(engine: Path, chunks: int, kinds: list[str]) -> None:
    """Measures, and prints what came of it."""
    result = {}
    for kind in kinds:
        with tempfile.TemporaryDirectory() as scratch:
            result[f"attn_kv_b {kind}"] = measure(engine, kind, chunks, Path(scratch))
    tokens = chunks * perplexity.CONTEXT // 2
    print(json.dumps({"tokens": tokens, **result}, indent=2))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else 16, sys.argv[3:] or ["F16", "Q8_0"])
