"""Compares what a running llama-server does with its arguments."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

from ansible_collections.r1.prov.plugins.module_utils.host_probe import as_owner_of

_CONTEXT_STEP = 256  # llama.cpp rounds each slot's context up to this many tokens


def differences(props: dict[str, Any], model: str, arguments: list[str]) -> list[str]:
    """One sentence for each value that differs from the arguments. A value without an argument is not compared."""
    context, slots = _value(arguments, "--ctx-size", "-c"), _value(arguments, "--parallel", "-np")
    runs_context, runs_slots = props["default_generation_settings"]["n_ctx"], props["total_slots"]
    sentences = []
    if props["model_path"] != model:
        sentences.append(f"it serves {props['model_path']}, not {model}")
    if slots and runs_slots != slots:
        sentences.append(f"it has {runs_slots} slots, not {slots}")
    if context and slots:
        per_slot = context if {"--kv-unified", "-kvu"} & set(arguments) else context // slots
        if not per_slot <= runs_context < per_slot + _CONTEXT_STEP:
            sentences.append(f"it has {runs_context} tokens of context per slot, not {per_slot}")
    return sentences


def _value(arguments: list[str], *names: str) -> int:
    """The number that follows the last of these options; 0 where there is none, or a word such as `all`."""
    values = [value for argument, value in itertools.pairwise(arguments) if argument in names]
    return int(values[-1]) if values and values[-1].isdigit() else 0


def misplaced(load: dict[str, Any], arguments: list[str]) -> str:
    """What is wrong with the number of layers on the cards; empty where nothing is, or where the log does not reach back to the load."""
    asked = _value(arguments, "--n-gpu-layers", "--gpu-layers", "-ngl")
    if not load["whole"] or not asked:
        return ""
    offloaded, layers = load["offloaded"] or (0, asked)
    expected = min(asked, layers)
    return "" if offloaded == expected else f"it put {offloaded} layers on the cards, not {expected}"


def uses_gpu(pid: str, proc: Path = Path("/proc")) -> bool:
    """Whether a process has an NVIDIA card open."""
    with as_owner_of(pid):
        return any(re.fullmatch(r"/dev/nvidia\d+", str(link.readlink())) for link in (proc / pid / "fd").iterdir())
