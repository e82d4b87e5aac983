#!/usr/bin/python3
"""Runs on a host as root: wedges the real engine, and measures how long it takes until another one answers.

    wedge.py load SECONDS     full load, and how often the engine was restarted meanwhile
    wedge.py KIND...          one line of JSON for each

A KIND is `stop` (SIGSTOP), `hold` (its main thread held by ptrace, as a debugger does) or `hold-worker` (one of the threads that compute).
With `-busy` behind it all slots have answers in hand. A held engine must go on saying at /health that it is well.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

UNIT, WATCHER = "r1prov-llama-server.service", "r1prov-liveness.service"
URL = "http://127.0.0.1:8000"
KEY = Path("/etc/r1prov/llama-server/api-key").read_text(encoding="utf-8").strip()
KEPT = Path("/var/lib/r1prov/liveness/kept.json")
SEEN = Path("/run/r1prov/liveness/last.json")
SLOTS = 2
LIMIT_S = 400.0
LOOKS_S = 12.0
PROMPT = "Once upon a time there was a word, and another one. " * 12
ATTACH, DETACH, ALL = 16, 17, 0x40000000


def main() -> int:
    """Does what the command line says. Returns the exit code."""
    if sys.argv[1] == "load":
        say(load(float(sys.argv[2])))
        return 0
    for kind in sys.argv[1:]:
        say(wedge(kind))
    return 0


def say(told: dict[str, Any]) -> None:
    """Prints a line."""
    sys.stdout.write(f"{json.dumps(told)}\n")
    sys.stdout.flush()


def wedge(kind: str) -> dict[str, Any]:
    """Wedges the engine, and returns how long it took until another one answered."""
    allow_more()
    subprocess.run(["systemctl", "restart", WATCHER], check=True)
    until(lambda: token() and seen("state") in ("alive", "idle"), 180)
    ask({"prompt": PROMPT, "n_predict": 1}, 60).close()  # From now on it is known how fast it reads.
    time.sleep(LOOKS_S)
    if kind.endswith("-busy"):
        busy()
    time.sleep(random.uniform(0, 40))
    before, used = show(UNIT), cpu_seconds()
    pid, how = int(before["MainPID"]), kind.removesuffix("-busy")
    began_s = time.monotonic()
    if how == "stop":
        os.kill(pid, signal.SIGSTOP)
    else:
        hold(pid if how == "hold" else worker(pid))
        time.sleep(1)
        assert get("/health") == 200, "a held engine says that it is well"
    until(lambda: bury() and show(UNIT)["InvocationID"] != before["InvocationID"], LIMIT_S)
    stopped_s = time.monotonic()
    until(token, LIMIT_S)
    now_s = time.monotonic()
    return {
        "kind": kind,
        "found_s": round(stopped_s - began_s, 1),
        "seconds": round(now_s - began_s, 1),
        "cpu_s": round(used, 2),
    }


def allow_more() -> None:
    """Forgets that the engine was restarted today. More than five a day are wanted here."""
    try:
        kept = json.loads(KEPT.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    KEPT.write_text(json.dumps(kept | {"restarts": []}), encoding="utf-8")


def load(seconds: float) -> dict[str, Any]:
    """Keeps all slots busy, and returns how often the engine was restarted meanwhile."""
    before, began_s, used = show(UNIT)["InvocationID"], time.monotonic(), cpu_seconds()
    restarts = 0
    streams = busy(seconds)
    while time.monotonic() - began_s < seconds:
        time.sleep(1)
        now = show(UNIT)["InvocationID"]
        restarts, before = restarts + (now != before), now
    return {
        "seconds": seconds,
        "restarts": restarts,
        "tokens": sum(each["tokens"] for each in streams),
        "longest_answer_s": round(max(each["longest_s"] for each in streams)),
        "watcher_cpu_s": round(cpu_seconds() - used, 2),
    }


def busy(answer_s: float = 3600.0) -> list[dict[str, float]]:
    """Begins a stream for each slot, and one that waits for its turn. Returns what comes of each, when all slots have begun to answer."""
    streams: list[dict[str, float]] = [{"tokens": 0, "longest_s": 0} for _ in range(SLOTS + 1)]
    for each in streams:
        threading.Thread(target=stream, args=(each, answer_s), daemon=True).start()
    until(lambda: sum(each["tokens"] > 0 for each in streams) >= SLOTS, 60)
    return streams


def stream(told: dict[str, float], answer_s: float) -> None:
    """Reads answers of ten minutes at most, one after the other."""
    end_s = time.monotonic() + answer_s
    while time.monotonic() < end_s:
        began_s = time.monotonic()
        try:
            with ask({"prompt": PROMPT, "n_predict": -1, "ignore_eos": True, "stream": True}, 600) as answer:
                for line in answer:
                    told["tokens"] += line.startswith(b"data:")
                    told["longest_s"] = max(told["longest_s"], time.monotonic() - began_s)
                    if time.monotonic() - began_s > 600:
                        break
        except (OSError, HTTPException):
            return  # It was wedged, and is gone.


def ask(body: dict[str, Any], limit_s: float) -> Any:
    """Asks the engine."""
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    asked = urllib.request.Request(f"{URL}/completion", json.dumps(body).encode(), headers)
    return urllib.request.urlopen(asked, timeout=limit_s)


def token() -> bool:
    """Whether the engine generates one."""
    try:
        ask({"prompt": "One", "n_predict": 1}, 20).close()
    except (OSError, HTTPException):
        return False
    return True


def get(path: str) -> int:
    """The status with which the engine answers; 0 where it does not."""
    try:
        with urllib.request.urlopen(f"{URL}{path}", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def hold(thread: int) -> None:
    """Stops a thread as a debugger does. It goes on when this process ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(ATTACH, thread, 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.waitpid(thread, ALL)


def bury() -> bool:
    """Takes note of the end of what was held, as a debugger does. Until then nobody else is told of it. Returns True."""
    with suppress(ChildProcessError):
        os.waitpid(-1, os.WNOHANG | ALL)
    return True


def worker(pid: int) -> int:
    """The thread of a process that has computed most beside its main one."""

    def used(thread: int) -> int:
        fields = Path(f"/proc/{pid}/task/{thread}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return int(fields[11])

    threads = [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
    return max((each for each in threads if each != pid), key=used)


def show(unit: str) -> dict[str, str]:
    """Some properties of a unit."""
    keys = "InvocationID,MainPID,ActiveState"
    shown = subprocess.run(
        ["systemctl", "show", unit, f"--property={keys}"], capture_output=True, text=True, check=True
    )
    return dict(line.split("=", 1) for line in shown.stdout.splitlines())


def cpu_seconds() -> float:
    """What the watcher has used of the processors since it was started."""
    pid = show(WATCHER)["MainPID"]
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def seen(key: str) -> Any:
    """What the watcher says that it has seen last."""
    try:
        return json.loads(SEEN.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError):
        return None


def until(true: Any, limit_s: float) -> None:
    """Waits until something is true."""
    end_s = time.monotonic() + limit_s
    while not true():
        if time.monotonic() > end_s:
            raise TimeoutError(f"not within {limit_s:.0f} s; the watcher says {seen('state')!r}")
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
