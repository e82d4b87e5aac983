"""The packages that r1prov's arithmetic needs. They travel as wheels for several versions of Python, and no pip unpacks them."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

LOCK = Path(__file__).resolve().parents[2] / "requirements.lock"
WHEELS = "wheels"
NAMES = ("annotated-types", "pydantic", "pydantic-core", "pyyaml", "typing-extensions", "typing-inspection")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
_PLATFORMS = ("manylinux_2_17_x86_64", "manylinux2014_x86_64")


def fetch(bundle: Path, pythons: Sequence[str] = PYTHONS) -> list[Path]:
    """Brings the wheels into the bundle. pip holds them against the digests in requirements.lock."""
    blocks = re.findall(r"^\S+==[^\n]*(?:\n [^\n]*)*", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    wanted = [block for block in blocks if block.partition("==")[0] in NAMES]
    folder = bundle / WHEELS
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as around:
        pinned = Path(around) / "pinned.txt"
        pinned.write_text("\n".join(wanted) + "\n", encoding="utf-8")
        for version in pythons:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            command += ["--only-binary=:all:", "--require-hashes"]
            command += ["--implementation", "cp", "--python-version", version]
            command += [word for platform in _PLATFORMS for word in ("--platform", platform)]
            subprocess.run([*command, "--requirement", str(pinned), "--dest", str(folder)], check=True)
    return sorted(folder.iterdir())


def problems(bundle: Path) -> list[str]:
    """What is wrong with the wheels of the bundle for this Python, file by file."""
    mine = f"{sys.version_info.major}.{sys.version_info.minor}"
    if mine not in PYTHONS:
        return [f"{sys.executable} is Python {mine}: the bundle has wheels for {', '.join(PYTHONS)}"]
    found, known = [], LOCK.read_text(encoding="utf-8")
    for stem, path in _wheels(bundle).items():
        if not path:
            found.append(f"{bundle / WHEELS / stem}-*.whl for Python {mine}: not there")
        elif f"sha256:{_sha256(path)}" not in known:
            found.append(f"{path}: not what {LOCK.name} names")
    return found


def _wheels(bundle: Path) -> dict[str, Path | None]:
    """The wheel of each package for this Python, by how its name begins; None where there is none."""
    pinned = dict(re.findall(r"^(\S+)==(\S+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE))
    tags = ("py3", f"cp{sys.version_info.major}{sys.version_info.minor}")
    there = [path for path in sorted((bundle / WHEELS).glob("*.whl")) if path.name.split("-")[-3] in tags]
    stems = [f"{name.replace('-', '_')}-{pinned[name]}" for name in NAMES]
    return {stem: next((path for path in there if path.name.lower().startswith(f"{stem}-")), None) for stem in stems}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def use(bundle: Path, work: Path) -> None:
    """Lets this process import the packages, out of the wheels of the bundle that suit this Python."""
    fitting = [path for path in _wheels(bundle).values() if path]
    digest = hashlib.sha256("".join(map(_sha256, fitting)).encode())
    folder = work / f"packages-{digest.hexdigest()[:12]}"
    if not folder.exists():
        part = work / "packages.part"
        shutil.rmtree(part, ignore_errors=True)
        for path in fitting:
            with zipfile.ZipFile(path) as wheel:
                wheel.extractall(part)
        part.rename(folder)
    sys.path.insert(0, str(folder))
