"""Runs on a host, with its own Python: what is used there although it is not whole, and the digests of files that are written whole."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVES = {"r1prov-llama-server": "http://127.0.0.1:8000/health", "r1prov-open-webui": "http://127.0.0.1:8080/health"}
ON_THEIR_WAY = {".incoming"}


def wrong() -> Iterator[str]:
    """What is used although it is not whole."""
    for link in Path("/opt/r1prov").glob("*/current"):
        if not whole(link):
            yield f"{link} leads to {link.readlink()}, which is not whole"
    for unit in units():
        with suppress(OSError):
            program = Path("/proc", shown(f"{unit}.service", "MainPID"), "exe").readlink()
            parts = program.parts
            if "releases" in parts and not whole(Path(*parts[: parts.index("releases") + 2])):
                yield f"{unit} runs {program}, which is not whole"
        for path in reads(unit):
            if path.is_file() and not path.stat().st_size:
                yield f"{unit} runs, and {path} is empty"
    for unit, url in SERVES.items():
        # What was left behind by a cut may stop a service in this very moment.
        if serves(unit) and not answers(url) and serves(unit):
            yield f"{unit} is active and does not answer"


def whole(release: Path) -> bool:
    """Whether each file is there that a release was made with."""
    with suppress(OSError):
        known = json.loads((release / "manifest.json").read_bytes())
        return (release / "release.json").is_file() and all(os.path.lexists(release / name) for name in known)
    return False


def reads(unit: str) -> Iterator[Path]:
    """What a service is started with: its unit file, its credentials, and who may speak to its port."""
    file = Path(shown(f"{unit}.service", "FragmentPath"))
    yield file
    for found in re.finditer("^LoadCredential=[^:]*:(.*)$", file.read_text(), re.MULTILINE):
        yield Path(found[1])
    yield Path(f"/etc/r1prov/network/{unit}.nft")


def units() -> list[str]:
    """The services of r1prov that run."""
    argv = ["systemctl", "list-units", "--plain", "--no-legend", "--state=active", "r1prov-*.service"]
    return [line.split()[0].removesuffix(".service") for line in subprocess.check_output(argv, text=True).splitlines()]


def serves(unit: str) -> bool:
    """Whether a service runs, and its door is there."""
    return all(shown(name, "ActiveState") == "active" for name in (f"{unit}.service", f"{unit}-door.socket"))


def shown(unit: str, name: str) -> str:
    """A property of a unit."""
    return subprocess.check_output(["systemctl", "show", f"--property={name}", "--value", unit], text=True).strip()


def answers(url: str) -> bool:
    """Whether a service says that it is well."""
    with suppress(OSError), urllib.request.urlopen(url, timeout=20) as answer:
        return bool(answer.status == 200)
    return False


def files() -> Iterator[Path]:
    """The files that r1prov writes whole, or not at all. Those with temporary names do not count."""
    for root in ("/etc", "/usr/local", "/srv/r1prov/models"):
        for folder, names, inside in os.walk(root):
            names[:] = [name for name in names if name not in ON_THEIR_WAY]
            for name in inside:
                path = Path(folder, name)
                if "r1prov" in str(path) and not name.startswith(".") and path.is_file() and not path.is_symlink():
                    yield path


digests = {}
for path in files():
    with suppress(FileNotFoundError):  # A module that was left behind goes on.
        digests[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
json.dump({"wrong": list(wrong()), "files": digests}, sys.stdout)
