"""Measures how fast a legacy file becomes an MLA file, and compares it with `cp` of the same bytes on the same disk.

    python -m benchmarks.convert [FOLDER] [GB]

The source has R1's own attention tensors (0.6 % of the bytes, as in UD-IQ1_S) and experts of arbitrary bytes. The page cache holds
nothing of it when a measurement starts, and the target is flushed to the disk when the measurement ends. Rounds of `cp` and of the
conversion alternate, and the median of each counts. Where others use the machine too, the processor time says more than the clock.
The result is printed as one JSON document.
"""

from __future__ import annotations

import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np

from r1prov.models import convert as weights
from r1prov.models.layout import HEADS, KEY_LENGTH, LATENT, ROPE_LENGTH, VALUE_LENGTH

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 5
LAYER_BYTES = 2_200_000_000
"""The size of one layer of UD-IQ1_S, in bytes."""
_BLOCK = random.Random(1).randbytes(8 << 20)  # noqa: S311 - nobody needs these bytes to be secret


def write_source(path: Path, n_bytes: int) -> Path:
    """Writes a legacy deepseek2 file of about `n_bytes` to `path` and returns `path`.

    The file holds only attn_kv_b and experts, besides a small embedding.
    """
    layers = max(1, round(n_bytes / LAYER_BYTES))
    kinds = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(path, "deepseek2")
    writer.add_block_count(layers)
    writer.add_context_length(163840)
    writer.add_embedding_length(7168)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_kv_lora_rank(LATENT)
    writer.add_key_length(KEY_LENGTH)
    writer.add_value_length(VALUE_LENGTH)
    writer.add_rope_dimension_count(ROPE_LENGTH)
    rows = HEADS * (KEY_LENGTH - ROPE_LENGTH + VALUE_LENGTH)
    tensors = [("token_embd.weight", (1024, 7168), kinds.F32)]
    for layer in range(layers):
        experts = LAYER_BYTES // (7168 * 2048 // 256 * 50)
        tensors.append((f"blk.{layer}.attn_kv_b.weight", (rows, LATENT), kinds.Q6_K))
        tensors.append((f"blk.{layer}.ffn_gate_exps.weight", (experts, 2048, 7168), kinds.IQ1_S))
    sizes = []
    for name, shape, kind in tensors:
        elements, block = gguf.GGML_QUANT_SIZES[kind]
        sizes.append(int(np.prod(shape)) // elements * block)
        writer.add_tensor_info(name, shape, np.dtype(np.float32), sizes[-1], kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("ab") as file:
        file.write(bytes(-file.tell() % 32))
        for (name, _, _), size in zip(tensors, sizes, strict=True):
            content = _finite(size) if "kv_b" in name else None
            for position in range(0, size, len(_BLOCK)):
                file.write(content[position : position + len(_BLOCK)] if content else _BLOCK[: size - position])
            file.write(bytes(-size % 32))
    return path


def _finite(size: int) -> bytes:
    """`size` bytes of Q6_K blocks whose scales are finite numbers."""
    raw = np.frombuffer(_BLOCK * (size // len(_BLOCK) + 1), np.uint8)[:size].copy().reshape(-1, 210)
    raw[:, 208:] = np.frombuffer(np.float16(1e-4).tobytes(), np.uint8)
    return raw.tobytes()


def _forget(path: Path) -> None:
    """Flushes a file to the disk and drops it from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def _seconds(source: Path, target: Path, work: Callable[[], object]) -> tuple[float, float]:
    """The seconds that `work` takes to make `target` from `source`: by the clock, and of processor time."""
    _forget(source)
    started, used = time.monotonic(), _processor_seconds()
    work()
    descriptor = os.open(target, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    taken = time.monotonic() - started, _processor_seconds() - used
    for made in target.parent.glob(f"{target.name}*"):  # the file of its sha256 goes too
        made.unlink()
    return taken


def _processor_seconds() -> float:
    """The processor time in seconds that this process and the children it has waited for have used so far."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main(folder: Path, n_bytes: int) -> None:
    """Measures, and prints the result."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        source, target = write_source(Path(scratch) / "source.gguf", n_bytes), Path(scratch) / "target.gguf"
        size = source.stat().st_size
        copying, converting = [], []
        for _ in range(ROUNDS):
            command = ["cp", "--reflink=never", source, target]
            copying.append(_seconds(source, target, lambda: subprocess.run(command, check=True)))  # noqa: B023
            converting.append(
                _seconds(source, target, lambda: weights.convert(source, target, "Q8_0", lambda *_: None))
            )
    result: dict[str, object] = {"bytes": size}
    speeds = []
    for name, rounds in (("cp", copying), ("convert", converting)):
        clock, processor = zip(*rounds, strict=True)
        speeds.append(size / statistics.median(clock) / 1e6)
        result[name] = {
            "seconds": [round(seconds, 2) for seconds in clock],
            "mb_per_second": round(speeds[-1]),
            "processor_seconds_per_gb": round(statistics.median(processor) / size * 1e9, 2),
        }
    result["ratio"] = round(speeds[1] / speeds[0], 2)
    result["peak_memory_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)
    print(json.dumps(result, indent=2))  # noqa: T201


if __name__ == "__main__":
    given = sys.argv[1:]
    main(Path(given[0] if given else tempfile.gettempdir()), int(float(given[1] if given[1:] else 4.4) * 1e9))
