"""The piece `unit`: the engine on its cards under the restrictions of its unit, and without them.

Where systemd runs and this is root, systemd applies them all. Elsewhere `confined.py` applies those that need no systemd. Either way a
probe shows first that they hold, and the result lists what was tried and what was not.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1prov.models import gguf
from tests.gpu import build, cards, confined, placed, restrictions

if TYPE_CHECKING:
    import argparse

_CONFINED = Path(__file__).with_name("confined.py")
_INSIDE = "/mnt"
"""Where a unit sees the folder of this work. It may not see the home folders."""

_VARIABLES = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
_LAST = 600


def piece(options: argparse.Namespace) -> dict[str, Any]:
    """Runs llama-bench in both ways.

    Raises:
        RuntimeError: A restriction does not hold, or the engine does not run under all of them.
    """
    of_unit, engine = restrictions.read(options.bundle), build.version(placed.programs(options))
    names = list(dict.fromkeys(name for name, _ in of_unit["directives"]))
    by_systemd = Path("/run/systemd/system").is_dir() and os.geteuid() == 0 and bool(shutil.which("systemd-run"))
    folder = _folder(options)
    inside = Path(_INSIDE) if by_systemd else folder
    around = _systemd(of_unit, folder) if by_systemd else [sys.executable, "-S", str(folder / "confined.py")]
    around += [] if by_systemd else [str(folder / restrictions.FILE)]
    python = shutil.which("python3") or sys.executable
    bench = [*_bench(options, inside), "--repetitions", "2", "--output", "json"]

    def left() -> float:
        until_s: float = options.until_s
        return max(1.0, until_s - time.monotonic())

    free = _ran([*_bench(options, folder), *bench[-4:]], left())
    held = json.loads(_ran([*around, python, "-S", str(inside / "confined.py"), "--probe"], left()))
    loose = json.loads(_ran([python, "-S", str(folder / "confined.py"), "--probe"], left()))
    tried = names if by_systemd else [name for name in names if name in confined.APPLIED]
    if not by_systemd and not of_unit["system_calls"]:
        tried.remove("SystemCallFilter")
        held.pop("SystemCallFilter")
    result = {
        **cards.piece(options),
        "engine": engine,
        "by": "systemd" if by_systemd else "hand",
        "tried": tried,
        "untried": [name for name in names if name not in tried],
        "refused": held,
        "refused_without": loose,
    }
    if not all(held.values()):
        raise RuntimeError(f"what was to be refused is not: {json.dumps(result)}")
    restrained = _ran([*around, *bench], left())
    return result | {"rates_without": _rates(free), "rates": _rates(restrained)}


def _folder(options: argparse.Namespace) -> Path:
    """A folder with all that a unit needs, which everybody may read."""
    folder: Path = options.work / "unit"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    shutil.copy(_CONFINED, folder / "confined.py")
    shutil.copy(options.bundle / restrictions.FILE, folder / restrictions.FILE)
    model, _ = placed.random_model(options)
    link = folder / "model.gguf"
    link.unlink(missing_ok=True)
    os.link(model, link)
    shutil.rmtree(folder / "bin", ignore_errors=True)
    shutil.copytree(placed.programs(options), folder / "bin", ignore=shutil.ignore_patterns("*.a"))
    for path in (folder / "bin").iterdir():
        path.chmod(0o755)
    for name in ("confined.py", restrictions.FILE, "model.gguf"):
        (folder / name).chmod(0o644)
    return folder


def _bench(options: argparse.Namespace, folder: Path) -> list[str]:
    """llama-bench with all layers on the cards, where there are any."""
    model, machine = placed.random_model(options)
    entries = gguf.read(model).entries if machine.cards else 0
    tokens = ("64", "8") if options.small else ("512", "32")
    words = ["--model", str(folder / "model.gguf"), "--n-gpu-layers", str(entries)]
    return [str(folder / "bin/llama-bench"), *words, "--n-prompt", tokens[0], "--n-gen", tokens[1]]


def _systemd(of_unit: dict[str, Any], folder: Path) -> list[str]:
    """The command line that runs what follows in a unit of its own with these restrictions."""
    words = ["systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--property=User=nobody"]
    words += [f"--property=BindReadOnlyPaths={folder}:{_INSIDE}", "--property=PrivateNetwork=yes"]
    words += [f"--setenv={name}={value}" for name, value in _VARIABLES.items()]
    words += [f"--property={name}={value}" for name, value in of_unit["directives"]]
    return [*words, "--", "/usr/bin/env"]  # systemd-run looks for the program outside, where _INSIDE is empty


def _ran(command: list[str], timeout_s: float) -> str:
    environment = {**os.environ, **_VARIABLES}
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=timeout_s, env=environment, check=False
    )
    if done.returncode:
        said = (done.stdout + done.stderr).strip()[-_LAST:]
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {said}")
    return done.stdout


def _rates(text: str) -> dict[str, float]:
    """Tokens per second, of prompts and of decoding."""
    return {"decode" if test["n_gen"] else "prompt": round(test["avg_ts"], 2) for test in json.loads(text)}
