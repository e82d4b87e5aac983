"""What else keeps a host busy while an engine is measured: processors by /proc, GPUs by nvidia-smi."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PROC = Path("/proc")
FOREIGN_SHARE = 0.1
"""Whoever else takes this part of the processors, or of one GPU, is a foreign load: the rate is then not the engine's own."""
_IDLE = (3, 4)
"""The places of `idle` and `iowait` among the figures of /proc/stat."""


@contextlib.contextmanager
def watched_load(own: Iterable[int], proc: Path = PROC) -> Iterator[dict[str, Any]]:
    """Measures what others do on this host meanwhile. What is yielded is filled at the end.

    Args:
        own: the processes that are measured. They and their descendants, and this process, are not the others.
        proc: the proc file system.
    """
    roots, load = {*own, os.getpid()}, dict[str, Any]()
    gpus, start = _GpuWatch(), _ticks(roots, proc)
    try:
        yield load
    finally:
        busy, idle, ours = (now - before for now, before in zip(_ticks(roots, proc), start, strict=True))
        cores, gpu = os.cpu_count() or 1, gpus.stop(family(roots, proc))
        # The figures are read one after the other, so those of a short time may come out a little below nothing.
        others = max(0.0, (busy - ours) / (busy + idle)) if busy + idle else 0.0
        load["loadavg_1m"] = float((proc / "loadavg").read_text().split()[0])
        load["cores"], load["others_cores"] = cores, round(others * cores, 2)
        load["others_gpu_percent"] = gpu
        load["foreign"] = others >= FOREIGN_SHARE or (gpu or 0) >= FOREIGN_SHARE * 100


def _ticks(roots: Iterable[int], proc: Path) -> tuple[int, int, int]:
    """The ticks since the boot: busy and idle ones of all processors, and those that `roots` and their descendants had."""
    figures = [int(word) for word in (proc / "stat").read_text().splitlines()[0].split()[1:9]]
    idle = sum(figures[place] for place in _IDLE)
    # A child that has ended counts among its parent's figures (the last two) once the parent has waited for it.
    own = sum(sum(map(int, _fields(proc, pid)[11:15])) for pid in family(roots, proc))
    return sum(figures) - idle, idle, own


def used_ticks(roots: Iterable[int], proc: Path = PROC) -> int:
    """The ticks that these processes and their descendants have used of the processors."""
    return sum(sum(map(int, _fields(proc, pid)[11:13])) for pid in family(roots, proc))


def in_words(load: dict[str, Any]) -> str:
    """Who else was busy, e.g. `other processes kept 3.2 of 8 cores busy`."""
    gpu = load["others_gpu_percent"]
    on_gpu = f" and {gpu:.0f} % of a GPU" if gpu else ""
    return f"other processes kept {load['others_cores']:.1f} of {load['cores']} cores{on_gpu} busy"


def family(roots: Iterable[int], proc: Path = PROC) -> set[int]:
    """The processes among `roots` that live, and all their descendants."""
    parents = {}
    for folder in proc.iterdir():
        if folder.name.isdigit() and (fields := _fields(proc, int(folder.name))):
            parents[int(folder.name)] = int(fields[1])
    found = {pid for pid in roots if pid in parents}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _fields(proc: Path, pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name of the program, which may hold blanks; none where the process has ended."""
    try:
        return (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


class _GpuWatch:
    """nvidia-smi says once a second which process uses which part of a GPU."""

    def __init__(self) -> None:
        program = shutil.which("nvidia-smi")
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - `stop` closes it
        watch = [program, "pmon", "-s", "u", "-o", "T"] if program else ["true"]
        self._process = subprocess.Popen(watch, stdout=self._said, stderr=subprocess.DEVNULL)

    def stop(self, own: set[int]) -> float | None:
        """The part of one GPU in percent that others have used, of the GPU where that is most; None where nothing tells."""
        self._process.terminate()
        self._process.wait()
        self._said.seek(0)
        with self._said as said:
            return others_on_gpus(said.read(), own)


def others_on_gpus(said: str, own: set[int]) -> float | None:
    """The same from what `nvidia-smi pmon -s u -o T` has said. A sample has a line for each process, or one for a GPU without any."""
    times: dict[str, set[str]] = {}
    others: dict[str, float] = {}
    for line in said.splitlines():
        time, gpu, pid, _, busy = [*line.split()[:5], "", "", "", "", ""][:5]
        if gpu.isdigit():
            times.setdefault(gpu, set()).add(time)
            if pid.isdigit() and busy.isdigit() and int(pid) not in own:
                others[gpu] = others.get(gpu, 0.0) + float(busy)
    return round(max(others.get(gpu, 0.0) / len(its) for gpu, its in times.items()), 1) if times else None
