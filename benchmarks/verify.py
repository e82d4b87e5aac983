"""Measures how fast weights are verified, beside what the disk and the processor give.

    python -m benchmarks.verify [FOLDER] [GB]

Files of arbitrary bytes are verified by the code of `r1prov weights verify`: one whose pieces are known, one of which nothing is known but
its sha256, several at once, and one as a host's own timer does it, with one core. Beside that `dd` reads such a file past the page cache,
`sha256sum` and `openssl dgst` hash it out of the page cache, and `openssl speed` says what one core can do when it does nothing else. All
that takes turns, and the best of each counts, because others may use the machine. What one core gives is what `openssl dgst` reaches by the
clock, because others take from it as they take from a verification. The result is printed as one JSON document, in GB/s and as ratios.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1prov.common import paths

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 7
FILES = 2
BLOCK_BYTES = 4 << 20


def write(path: Path, n_bytes: int) -> str:
    """Writes a file of arbitrary bytes, safely to the disk; returns its sha256."""
    digest = hashlib.sha256()
    with path.open("wb") as stream:
        for _ in range(n_bytes // BLOCK_BYTES):
            block = os.urandom(BLOCK_BYTES)
            digest.update(block)
            stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())
    return digest.hexdigest()


def seconds(work: Callable[[], object]) -> float:
    """How long something takes."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


def ran(*argv: str) -> str:
    """What a command says."""
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def one_core_bytes_s() -> float:
    """What `openssl speed` says of sha256 and one core, in blocks of a megabyte."""
    said = ran("openssl", "speed", "-seconds", "2", "-bytes", str(1 << 20), "sha256")
    found = re.search(r"^sha256\s+([\d.]+)k$", said, re.MULTILINE)
    if not found:
        raise RuntimeError(said)
    return float(found[1]) * 1000


def forget(path: Path) -> None:
    """Drops a file from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


class Bench:
    """Some files, and what is known of them."""

    def __init__(self, folder: Path, n_bytes: int) -> None:
        self._verify, self._progress = (paths.module_util(name) for name in ("weights_verify", "progress"))
        self.folder, self.bytes = folder, n_bytes // BLOCK_BYTES * BLOCK_BYTES
        self.files = [
            {"name": name, "bytes": self.bytes, "sha256": write(folder / name, n_bytes)}
            for name in (f"{number}.gguf" for number in range(FILES))
        ]
        self.state = folder / "state.json"

    def verify(self, count: int, *, known: bool, cores: int = 0) -> float:
        """Bytes per second of a verification of so many files."""
        files = self.files[:count]
        if not known:
            shutil.rmtree(self.folder / "pieces", ignore_errors=True)
        for file in files:
            forget(self.folder / str(file["name"]))
        rows: list[dict[str, Any]] = []
        progress = self._progress.Progress("weights", self.folder)
        took = seconds(
            lambda: rows.extend(self._verify.verified(self.folder, files, progress, state=self.state, cores=cores))
        )
        if any(row["why"] for row in rows):
            raise RuntimeError(str(rows))
        return count * self.bytes / took

    def dd(self) -> float:
        """Bytes per second of the disk."""
        source = f"if={self.folder / '0.gguf'}"
        forget(self.folder / "0.gguf")
        return self.bytes / seconds(lambda: ran("dd", source, "of=/dev/null", "bs=16M", "iflag=direct"))

    def hashed(self, *argv: str) -> float:
        """Bytes per second of a program that hashes what is in the page cache."""
        file = self.folder / "0.gguf"
        with file.open("rb") as stream:
            while stream.read(BLOCK_BYTES):
                pass
        return self.bytes / seconds(lambda: ran(*argv, str(file)))


def main(folder: Path, n_bytes: int) -> None:
    """Measures, and prints the result."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        bench = Bench(Path(scratch), n_bytes)
        bench.verify(1, known=False)
        work: dict[str, Callable[[], float]] = {
            "dd": bench.dd,
            "sha256sum": lambda: bench.hashed("sha256sum"),
            "openssl dgst": lambda: bench.hashed("openssl", "dgst", "-sha256"),
            "openssl speed": one_core_bytes_s,
            "pieces known": lambda: bench.verify(1, known=True),
            "pieces known, one core": lambda: bench.verify(1, known=True, cores=1),
            "nothing known": lambda: bench.verify(1, known=False),
            f"nothing known, {FILES} files": lambda: bench.verify(FILES, known=False),
        }
        rates: dict[str, list[float]] = {name: [] for name in work}
        for _ in range(ROUNDS):
            bench.verify(1, known=False)  # The pieces are known again.
            for name, measure in work.items():
                rates[name].append(measure())
        found = {name: max(each) for name, each in rates.items()}
    one = min(found["dd"], found["openssl dgst"])
    ratios = {name: found[name] / one for name in work if "known" in name}
    document = {
        "bytes": bench.bytes,
        "cores": len(os.sched_getaffinity(0)),
        "GB/s": {name: round(rate / 1e9, 3) for name, rate in found.items()},
        "of the disk, or of one core, whichever is less": {name: round(each, 2) for name, each in ratios.items()},
    }
    print(json.dumps(document, indent=2))  # noqa: T201 - stdout is the result


if __name__ == "__main__":
    main(Path(sys.argv[1] if sys.argv[1:] else "."), int(float(sys.argv[2] if sys.argv[2:] else 2) * 1e9))
