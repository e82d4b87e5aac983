"""Tests that a foreign load is seen: by real processes on this machine, and by what nvidia-smi says of others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ansible_collections.r1.prov.plugins.module_utils import host_load

BUSY = "import time\nend = time.monotonic() + 20\nwhile time.monotonic() < end: pass"
PARENT = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BUSY!r}])"
PMON = """\
#Time        gpu         pid   type     sm    mem    enc    dec    jpg    ofa    command
#HH:MM:SS    Idx           #    C/G      %      %      %      %      %      %    name
 11:05:29      0       1000     C     80     40      -      -      -      -    llama-server
 11:05:29      0       2000     C     30     10      -      -      -      -    python3
 11:05:29      1          -     -      -      -      -      -      -      -    -
 11:05:30      0       1000     C     90     40      -      -      -      -    llama-server
 11:05:30      1       2000     C      -      -      -      -      -      -    python3
"""


def ticks_of(pid: int) -> int:
    return sum(int(field) for field in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])


def test_who_is_measured_is_not_the_foreign_load() -> None:
    # The shell ends at once, so what it started is no descendant of this process, whose own work is never foreign.
    script = '"$0" -c "$1" > /dev/null 2>&1 & echo $!'
    parent = int(subprocess.run(["sh", "-c", script, sys.executable, PARENT], capture_output=True, check=True).stdout)
    while len(host_load.family([parent])) < 2:
        time.sleep(0.05)
    (child,) = host_load.family([parent]) - {parent}
    loads = {}
    # Other work on this machine counts in both figures, so only their difference tells.
    for name, own in (("own", [parent]), ("foreign", [])):
        before, started_s = ticks_of(child), time.monotonic()
        with host_load.watched_load(own) as loads[name]:
            time.sleep(1.5)
        loads[name]["child"] = (ticks_of(child) - before) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - started_s)
    os.kill(child, signal.SIGKILL)
    busy = (os.cpu_count() or 1) - 0.2
    assert loads["foreign"]["foreign"]
    assert loads["foreign"]["others_cores"] >= min(loads["foreign"]["child"], busy) - 0.2
    assert loads["own"]["others_cores"] <= busy - loads["own"]["child"] + 0.6
    assert loads["own"]["loadavg_1m"] >= 0


def test_a_family_that_has_ended_is_empty() -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    assert host_load.family([ended.pid]) == set()


def test_others_on_a_gpu_are_counted() -> None:
    assert host_load.others_on_gpus(PMON, {1000}) == 15.0
    assert host_load.others_on_gpus(PMON, {1000, 2000}) == 0.0
    assert host_load.others_on_gpus("# gpu pid\n", set()) is None
    assert host_load.others_on_gpus("Not supported on the device(s)\n", set()) is None


def test_a_load_is_said_in_words() -> None:
    load = {"others_cores": 3.21, "cores": 8, "others_gpu_percent": None}
    assert host_load.in_words(load) == "other processes kept 3.2 of 8 cores busy"
    assert (
        host_load.in_words(load | {"others_gpu_percent": 15.0})
        == "other processes kept 3.2 of 8 cores and 15 % of a GPU busy"
    )
