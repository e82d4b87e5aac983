"""Asks the engine itself whether a model finds room, before anything is stopped for it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from typing import TYPE_CHECKING, Any

from ansible_collections.r1.prov.plugins.module_utils import remedies
from ansible_collections.r1.prov.plugins.module_utils.llama_memory import MIB, fit_arguments, fit_devices

if TYPE_CHECKING:
    from pathlib import Path

_LIMIT_S = 300  # a driver that nothing keeps awake takes seconds per card
_TRIES = 5


class FitError(Exception):
    """The engine refuses the arguments or the file. The message is what it said."""


class CardsFullError(Exception):
    """The cards are so full that the engine cannot even be asked."""


def run(argv: list[str], environment: dict[str, Any], known: list[str]) -> str:
    """What a program of the engine prints.

    llama-fit-params aborts where it cannot load a model. Its log is written by a thread of its own, which on a busy host often does not get
    to the reason. So it is asked again with a real-time priority, until it has told one of the reasons whose patterns are `known`.

    Raises:
        CardsFullError: it found no room on a card for its own beginnings.
        FitError: it failed otherwise.
    """
    for attempt in range(_TRIES):
        done = subprocess.run(
            argv,
            preexec_fn=_ahead if attempt else None,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_LIMIT_S,
            env={**os.environ, **environment},
        )
        output = (done.stderr + done.stdout).strip()
        if done.returncode != -signal.SIGABRT or any(re.search(pattern, output) for pattern in known):
            break
    if done.returncode:
        raise CardsFullError(output) if "CUDA error: out of memory" in output else FitError(output)
    return done.stdout


def _ahead() -> None:
    """Gives this process a real-time priority, so that none of its threads waits for a processor."""
    with contextlib.suppress(OSError):  # a container may forbid it
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def measured(programs: Path, options: dict[str, Any]) -> list[dict[str, Any]]:
    """The bytes that each device will hold, as the engine says.

    Raises:
        CardsFullError, FitError: as `run`.
    """
    environment = {name: str(value) for name, value in options["environment"].items()}
    known = [row["pattern"] for row in options["remedies"]]
    # It reads all arguments, says its version, and ends: so a wrong one is found before anything is stopped for it.
    run([str(programs / "llama-server"), *options["arguments"], "--version"], environment, known)
    program = str(programs / "llama-fit-params")
    arguments = fit_arguments(options["arguments"], run([program, "--help"], environment, known))
    output = run([program, "--model", options["model"], "--fit-print", "on", *arguments], environment, known)
    devices = fit_devices(output)
    if not devices:
        raise FitError("llama-fit-params named no device")
    return devices


def advice(rooms: dict[str, Any]) -> str:
    """What to do about a misfit, with what the profile must say for the plan to be made for this host."""
    sizes = [f"{name} has {room // MIB:,} MiB" for name, room in rooms.items()]
    return (
        f"Compare the profile's `machine` with this host ({', '.join(sizes)}): where they differ, correct the profile, and it is planned "
        "anew; else lower context_per_slot or slots, or choose a smaller quant. To go on nevertheless: --override fit."
    )


def remedy(output: str, known: list[dict[str, Any]]) -> str:
    """What to do about the engine's refusal."""
    return remedies.first(output, known) or "Correct llama_server_arguments."
