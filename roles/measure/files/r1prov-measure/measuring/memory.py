"""How much memory a server takes while it is measured: resident in RAM, and on each card."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

PROC = Path("/proc")
EVERY_S = 0.5
_FIELDS = re.compile(r"^Rss(Anon|File|Shmem):\s+(\d+) kB$", re.MULTILINE)


def family(root: int, proc: Path = PROC) -> set[int]:
    """A process and all its descendants that live."""
    parents = {}
    for folder in proc.iterdir():
        if folder.name.isdigit():
            try:
                # After the name of the program, which may hold blanks, come the state and the parent.
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def resident(pids: set[int], proc: Path = PROC) -> tuple[int, int]:
    """The bytes of RAM that processes hold, and how many of them are anonymous. A page that two of them map counts twice."""
    total = anonymous = 0
    for pid in pids:
        try:
            fields = dict(_FIELDS.findall((proc / str(pid) / "status").read_text()))
        except OSError:
            continue
        total += sum(map(int, fields.values())) * 1024
        anonymous += int(fields.get("Anon", 0)) * 1024
    return total, anonymous


def on_cards(pids: set[int], cards: str, processes: str) -> list[int]:
    """The bytes that processes take of each card.

    Args:
        pids: the processes.
        cards: a card's UUID in each line, in the order of the driver.
        processes: process, UUID and MiB in each line.
    """
    taken = dict.fromkeys(cards.split(), 0)
    for line in processes.splitlines():
        pid, uuid, mib = ([word.strip() for word in line.split(",")] + ["", "", ""])[:3]
        if pid.isdigit() and int(pid) in pids and uuid in taken and mib.isdigit():
            taken[uuid] += int(mib) * 2**20
    return list(taken.values())


class Sampler:
    """Looks at a process and its descendants until it is told to stop.

    Args:
        root: the process.
    """

    def __init__(self, root: int) -> None:
        self._root, self._over = root, threading.Event()
        self._most: dict[str, Any] = {"devices_bytes": [], "ram_bytes": 0, "ram_anonymous_bytes": 0}
        self._smi = shutil.which("nvidia-smi")
        self._cards = self._ask("--query-gpu=uuid", "--format=csv,noheader")
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, Any]:
        """The most that was seen: `devices_bytes` (by card), `ram_bytes`, `ram_anonymous_bytes`."""
        self._over.set()
        self._thread.join()
        return self._most

    def _watch(self) -> None:
        while True:
            pids = family(self._root)
            total, anonymous = resident(pids)
            self._most["ram_bytes"] = max(self._most["ram_bytes"], total)
            self._most["ram_anonymous_bytes"] = max(self._most["ram_anonymous_bytes"], anonymous)
            if self._cards:
                processes = self._ask("--query-compute-apps=pid,gpu_uuid,used_memory", "--format=csv,noheader,nounits")
                now = on_cards(pids, self._cards, processes)
                before = self._most["devices_bytes"] or [0] * len(now)
                self._most["devices_bytes"] = [max(pair) for pair in zip(before, now, strict=True)]
            if self._over.wait(EVERY_S):
                return

    def _ask(self, *words: str) -> str:
        if not self._smi:
            return ""
        try:
            return subprocess.run([self._smi, *words], capture_output=True, text=True, check=False, timeout=20).stdout
        except (OSError, subprocess.TimeoutExpired):
            return ""
