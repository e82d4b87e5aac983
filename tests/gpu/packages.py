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


def use(bundle: Path, work: Path) -> None:
    """Lets this process import the packages, out of the wheels of the bundle that suit this Python.

    Raises:
        RuntimeError: The bundle has none for this Python, or one of them is not what the lock names.
    """
    mine = f"cp{sys.version_info.major}{sys.version_info.minor}"
    fitting = [path for path in sorted((bundle / WHEELS).glob("*.whl")) if path.name.split("-")[-3] in ("py3", mine)]
    if len(fitting) != len(NAMES):
        raise RuntimeError(
            f"{bundle / WHEELS} has {len(fitting)} of {len(NAMES)} wheels for Python {sys.version.split()[0]}. There are wheels for"
            f" Python {', '.join(PYTHONS)}. Run `make gpu-bundle` where there is a network, and carry the bundle along."
        )
    known, digest = LOCK.read_text(encoding="utf-8"), hashlib.sha256()
    for path in fitting:
        its = hashlib.sha256(path.read_bytes()).hexdigest()
        if f"sha256:{its}" not in known:
            raise RuntimeError(f"{path} is not what requirements.lock names. Run `make gpu-bundle` again.")
        digest.update(its.encode())
    folder = work / f"packages-{digest.hexdigest()[:12]}"
    if not folder.exists():
        part = work / "packages.part"
        shutil.rmtree(part, ignore_errors=True)
        for path in fitting:
            with zipfile.ZipFile(path) as wheel:
                wheel.extractall(part)
        part.rename(folder)
    sys.path.insert(0, str(folder))
