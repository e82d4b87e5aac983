"""The piece `cards`: what nvidia-smi says of the cards and their driver."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

FIELDS = (
    "index",
    "name",
    "compute_cap",
    "driver_version",
    "memory.total",
    "memory.used",
    "memory.reserved",
    "mig.mode.current",
)
_MIB = 1 << 20


def found() -> list[dict[str, Any]]:
    """The cards. There are none where the machine has no nvidia-smi.

    Raises:
        RuntimeError: nvidia-smi is there and fails, or says something that is not a row of facts.
    """
    command = ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        return []
    if done.returncode:
        raise RuntimeError(f"nvidia-smi ended with {done.returncode}: {(done.stdout + done.stderr).strip()}")
    rows = [[value.strip() for value in row] for row in csv.reader(done.stdout.splitlines()) if row]
    strange = [row for row in rows if len(row) != len(FIELDS)]
    if strange:
        raise RuntimeError(f"nvidia-smi says {strange[0]} where {len(FIELDS)} values were asked for")
    return [_card(dict(zip(FIELDS, row))) for row in rows]  # noqa: B905  # the lengths were compared


def piece(_options: argparse.Namespace) -> dict[str, Any]:
    """The facts of the machine."""
    return {
        "cards": found(),
        "cpus": len(os.sched_getaffinity(0)),
        "ram_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _card(row: dict[str, str]) -> dict[str, Any]:
    return {
        "name": row["name"],
        "compute_capability": row["compute_cap"],
        "driver": row["driver_version"],
        "memory_bytes": _bytes(row["memory.total"]),
        "used_bytes": _bytes(row["memory.used"]),
        "reserved_bytes": _bytes(row["memory.reserved"]),
        "mig": row["mig.mode.current"] == "Enabled",
    }


def _bytes(text: str) -> int | None:
    """MiB as bytes. Some drivers say `[N/A]` of a field."""
    return int(text) * _MIB if text.isdigit() else None
