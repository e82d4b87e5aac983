"""Brings along what a machine without a network needs for `make test-gpu`.

That is the engine's pinned source without what no build reads, the wheels that r1prov's arithmetic needs, and the unit's restrictions.

    python -m tests.gpu.bundle [SDIST]

Without SDIST, pip fetches it. The bundle lies in tests/gpu/bundle, which git ignores: carry that folder along.
"""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from tests.gpu import packages, restrictions

HERE = Path(__file__).resolve().parent
BUNDLE = HERE / "bundle"
SOURCE = "engine.tar.xz"
MOST_BYTES = 30 << 20

_DEFAULTS = HERE.parents[1] / "roles/llama_cpp/defaults/main.yml"
_UNREAD = ("docs", "models", "tests", "examples", "media", "gguf-py", "benches", "ci", ".github", ".devops")
"""Folders of llama.cpp that a build with the project's options does not read."""


def pinned() -> tuple[str, str]:
    """The version of the sdist that the role llama_cpp builds, and its sha256."""
    text = _DEFAULTS.read_text(encoding="utf-8")
    found = [re.search(rf"^llama_cpp_{key}: (\S+)$", text, re.MULTILINE) for key in ("version", "archive_sha256")]
    if not all(found):
        raise SystemExit(f"{_DEFAULTS} does not say llama_cpp_version and llama_cpp_archive_sha256.")
    version, sha256 = (match[1] for match in found if match)
    return version, sha256


def fetch(version: str, folder: Path) -> Path:
    """Brings the sdist of a version into `folder`. pip asks the sdist for its metadata, and for that brings the sdist's build backend."""
    name = "llama-cpp-python"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--no-binary", name, f"{name}=={version}", "--dest", str(folder)], check=True)
    return next(folder.glob("*.tar.gz"))


def pack(sdist: Path, sha256: str, folder: Path) -> Path:
    """Writes the engine's source out of `sdist` to `folder`, with its own sha256 beside it.

    Returns:
        The archive.

    Raises:
        RuntimeError: `sdist` is not what is pinned, or too much is left of it.
    """
    content = sdist.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise RuntimeError(f"{sdist} has not the sha256 {sha256} that the role llama_cpp pins. Fetch it again.")
    packed = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(content)) as whole,
        tarfile.open(fileobj=packed, mode="w:xz") as stripped,
    ):
        for member in whole:
            # The sdist has git's objects below .git/modules, too.
            inside = re.fullmatch(r"[^/]+/vendor/llama\.cpp/(.+)", member.name)
            if not inside or not member.isfile() or _unread(inside[1]):
                continue
            member.name = inside[1]
            stripped.addfile(member, whole.extractfile(member))
    data = packed.getvalue()
    if len(data) > MOST_BYTES:
        raise RuntimeError(f"the engine's source takes {len(data)} bytes, more than {MOST_BYTES}. Strip more of it.")
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / SOURCE
    archive.write_bytes(data)
    (folder / f"{SOURCE}.sha256").write_text(f"{hashlib.sha256(data).hexdigest()}\n")
    return archive


def problems(folder: Path) -> list[str]:
    """What is wrong with the source of the bundle in `folder`, file by file."""
    archive, digest = folder / SOURCE, folder / f"{SOURCE}.sha256"
    if missing := [f"{path}: not there" for path in (archive, digest) if not path.is_file()]:
        return missing
    its = hashlib.sha256(archive.read_bytes()).hexdigest()
    return [] if its == digest.read_text(errors="replace").strip() else [f"{archive}: not what was packed"]


def unpack(folder: Path, target: Path) -> None:
    """Unpacks the source of the bundle in `folder` to `target`.

    Raises:
        RuntimeError: it holds what leads out of `target`.
    """
    archive = folder / SOURCE
    with tarfile.open(archive) as source:
        for member in source:
            place = PurePosixPath(member.name)
            if place.is_absolute() or ".." in place.parts or not member.isfile():
                raise RuntimeError(f"{archive} holds {member.name}, which leads out of it. Make the bundle again.")
        source.extractall(target)  # every member was looked at


def _unread(inside: str) -> bool:
    # The file `.git` names a folder that the bundle has not, and git would complain of that.
    return inside == ".git" or any(inside.startswith(f"{folder}/") for folder in _UNREAD)


def main() -> None:
    """Makes the bundle."""
    version, sha256 = pinned()
    with tempfile.TemporaryDirectory() as folder:
        sdist = Path(sys.argv[1]) if len(sys.argv) > 1 else fetch(version, Path(folder))
        try:
            archive = pack(sdist, sha256, BUNDLE)
        except RuntimeError as error:
            raise SystemExit(str(error)) from None
    wheels = packages.fetch(BUNDLE)
    described = restrictions.write(BUNDLE)
    whole = sum(path.stat().st_size for path in BUNDLE.rglob("*") if path.is_file())
    if whole > MOST_BYTES:
        raise SystemExit(f"{BUNDLE} takes {whole} bytes, more than {MOST_BYTES}. Strip more of it.")
    sys.stdout.write(
        f"{archive}: {archive.stat().st_size >> 10} KiB of llama.cpp {version}\n"
        f"{wheels[0].parent}: {len(wheels)} wheels\n{described}\nin all {whole >> 10} KiB\n"
    )


if __name__ == "__main__":
    main()
