"""The piece `build`: the engine, compiled with the project's own options, for the architectures of the cards only.

Ninja goes on where it was, so a build that ran out of time is finished by the next call.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.gpu import bundle, cards

if TYPE_CHECKING:
    import argparse
    from types import ModuleType

_JOB_BYTES = 2 << 30  # what one compiler of CUDA kernels takes at its worst
_LAST_LINES = 20
TOOLS = ("c++", "cmake", "ninja")
PROGRAMS = "programs"
"""The link to the folder with the programs, in the folder where all is built."""


def piece(options: argparse.Namespace) -> dict[str, Any]:
    """Builds, and asks the server for its version and its devices.

    Raises:
        RuntimeError: a step fails or takes too long.
    """
    until = time.monotonic() + options.limit_s
    architectures = sorted({card["compute_capability"].replace(".", "") for card in cards.found()})
    source = _source(options)
    flags = _flags(architectures, compiler() if architectures else None)
    tree = options.work / f"build-{hashlib.sha256(json.dumps([source.name, *flags]).encode()).hexdigest()[:12]}"
    log = options.results / "build.log"
    options.results.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    (options.work / PROGRAMS).unlink(missing_ok=True)
    for_whom = (
        f"cards of the architectures {', '.join(architectures)}" if architectures else "the CPU, as there is no card"
    )
    sys.stdout.write(f"build: compiling for {for_whom}, which takes minutes; the log is {log}\n")
    sys.stdout.flush()
    _run(["cmake", "-S", str(source), "-B", str(tree), "-G", "Ninja", *flags], log, until)
    _run(["ninja", "-C", str(tree), "-j", str(_jobs()), *_recipe().TARGETS], log, until)
    server = str(tree / "bin" / "llama-server")
    said = {name: _said([server, f"--{name}"]) for name in ("version", "list-devices")}
    if bundle.pinned()[0] not in said["version"]:
        raise RuntimeError(f"the new llama-server does not say that it is {bundle.pinned()[0]}: {said['version']}")
    without = [str(number) for number in range(len(cards.found())) if f"CUDA{number}:" not in said["list-devices"]]
    if without:
        raise RuntimeError(f"llama-server does not list CUDA{', CUDA'.join(without)}: {said['list-devices']}")
    (options.work / PROGRAMS).symlink_to(tree / "bin")
    return {"flags": flags, "programs": str(tree / "bin"), **said}


def programs(options: argparse.Namespace) -> Path:
    """The folder of the programs that this piece has built.

    Raises:
        RuntimeError: It has built none.
    """
    link: Path = options.work / PROGRAMS
    if not link.exists():
        raise RuntimeError("the engine is not built yet: the piece `build` comes first")
    return link.resolve()


def version(folder: Path) -> str:
    """What the engine says of itself."""
    return _said([str(folder / "llama-server"), "--version"])


def _recipe() -> ModuleType:
    """The options and programs of the project's own build. The module needs nothing of Ansible, and is not in a package of ours."""
    path = Path(__file__).resolve().parents[2] / "plugins/module_utils/llama_cpp.py"
    spec = importlib.util.spec_from_file_location("r1prov_build_recipe", path)
    if not spec or not spec.loader:
        raise RuntimeError(f"{path} cannot be read")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _flags(architectures: list[str], nvcc: str | None) -> list[str]:
    recipe = _recipe()
    instructions = recipe.cpu_identity(Path("/proc/cpuinfo").read_text(encoding="utf-8"))["instructions"]
    flags: list[str] = recipe.cmake_flags(
        backend="cuda" if nvcc else "cpu",
        architectures=architectures,
        cuda_root=str(Path(nvcc).parents[1]) if nvcc else "",
        libcuda=_libcuda() if nvcc else None,
        amx=any(name.startswith("amx") for name in instructions),
        rpc=False,
        label=bundle.pinned()[0],
    )
    # The machine may have no ccache. The objects lie in the tree of the build, which stays.
    return flags if shutil.which("ccache") else [flag for flag in flags if not flag.endswith("_LAUNCHER=ccache")]


def compiler() -> str | None:
    """CUDA's compiler; None where there is none."""
    found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    return os.path.realpath(found) if found else None


def _libcuda() -> str | None:
    """The driver's library, as the loader knows it."""
    loader = shutil.which("ldconfig", path="/usr/sbin:/sbin:/usr/bin")
    known = _said([loader, "-p"]) if loader else ""
    return next(
        (line.split("=> ")[1] for line in known.splitlines() if "libcuda.so.1 " in line and "x86-64" in line), None
    )


def _source(options: argparse.Namespace) -> Path:
    """The engine's source, which appears whole. It is unpacked once for each bundle, so that Ninja sees the same times again."""
    archive: Path = options.bundle / bundle.SOURCE
    source: Path = options.work / f"source-{hashlib.sha256(archive.read_bytes()).hexdigest()[:12]}"
    if not source.exists():
        part = options.work / "source.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        bundle.unpack(options.bundle, part)
        part.rename(source)
    return source


def _jobs() -> int:
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(len(os.sched_getaffinity(0)), memory_bytes // _JOB_BYTES))


def _run(command: list[str], log: Path, until: float) -> None:
    with (
        log.open("ab") as output,
        # It inherits the lock of the work folder.
        subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, close_fds=False
        ) as process,
    ):
        try:
            process.wait(max(1.0, until - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(
                f"{command[0]} ran out of time. Run the piece again: it goes on where it was."
            ) from error
        finally:
            # However this ends, the compilers end, too. Otherwise they would write beside those of the next call.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
    if process.returncode:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-_LAST_LINES:])
        raise RuntimeError(f"{command[0]} ended with {process.returncode}:\n{last}")


def _said(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {(done.stdout + done.stderr).strip()}")
    return (done.stdout + done.stderr).strip()
