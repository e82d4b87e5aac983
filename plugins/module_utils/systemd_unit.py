"""What systemd and its journal say of a unit."""

from __future__ import annotations

import subprocess


def show(unit: str, *keys: str) -> dict[str, str]:
    """These properties of a unit; one that systemd leaves out is missing."""
    command = ["systemctl", "show", unit, f"--property={','.join(keys)}"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(line.split("=", 1) for line in shown.splitlines())


def last_words(invocation: str) -> str:
    """The last line that a start of a unit wrote."""
    command = ["journalctl", f"_SYSTEMD_INVOCATION_ID={invocation}", "--output=cat", "--no-pager", "--lines=1"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
