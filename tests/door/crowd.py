#!/usr/bin/python3
"""Runs on a host as root: many people at a balancer that has three engines with one slot each.

    crowd.py KIND     one line of JSON

A KIND is `cached`, `queue`, `flood`, `killed` or `rolled`; the functions of these names say what each does.
"""

from __future__ import annotations

import csv
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

PORTS = (8001, 8002, 8003)
KEYS = ("ann", "bob")
CONVERSATIONS, TURNS, AT_ONCE = 6, 10, 3
CLIENTS = 50
ROUNDS = 5
SETTLED_S = 3
ENOUGH = Path("/root/enough")
TOPICS = ("gardens", "rivers", "bridges", "clocks", "bread", "stars")
MASTER = "/run/r1prov/balancer/master.sock"


def main() -> int:
    """Does what the command line says. Returns the exit code."""
    until(all_well, 60)
    told = {"cached": cached, "queue": queue, "flood": flood, "killed": killed, "rolled": rolled}[sys.argv[1]]()
    sys.stdout.write(f"{json.dumps(told)}\n")
    return 0


def cached() -> dict[str, Any]:
    """Conversations of ten turns, three at once: how many tokens of their prompts the engines had in their caches.

    First one engine has them all, then three share them, and then three have them without being told which request belongs to which.
    """
    one = conversations("one", engines="100")
    three = conversations("three", engines="111")
    unnamed = conversations("unnamed", engines="111", named=False)
    times = round(three["part"] / one["part"], 4)
    return {"one": one, "three": three, "three_without_header": unnamed, "three_of_one": times}


def conversations(name: str, *, engines: str, named: bool = True) -> dict[str, float]:
    """Some conversations, at the engines that have a 1: how many tokens of their prompts were cached, and how many computed."""
    for port, weight in zip(PORTS, engines, strict=True):
        subprocess.run(["systemctl", "restart", f"engine-{port}"], check=True)  # It forgets what it has cached.
        tell(f"set server engines/engine-{port} weight {weight}")
    time.sleep(SETTLED_S)
    until(all_well, 60)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        names = [f"{name} {number}" if named else "" for number in range(CONVERSATIONS)]
        turns = [turn for each in pool.map(conversation, names, TOPICS) for turn in each]
    cached, computed = (sum(turn[key] for turn in turns) for key in ("cache_n", "prompt_n"))
    return {"cached": cached, "computed": computed, "part": round(cached / (cached + computed), 4)}


def conversation(name: str, topic: str) -> list[dict[str, Any]]:
    """What the engine tells of each turn of a conversation. It begins with other words than those about another topic."""
    messages = [{"role": "system", "content": f"You know all about {topic}, and answer in one sentence."}]
    told = []
    for turn in range(TURNS):
        messages.append({"role": "user", "content": f"Question {turn}: tell me something new about {topic}."})
        text = ask("ann", messages, 32, conversation=name, ignore_eos=False).whole()
        events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        pieces = [choice["delta"].get("content") or "" for event in events for choice in event["choices"]]
        messages.append({"role": "assistant", "content": "".join(pieces)})
        told.append(events[-1]["timings"])
    return told


def queue() -> dict[str, Any]:
    """Many clients at once: whether all are answered, how far out of turn each begins, and what memory the balancer takes."""
    began: list[int] = []
    answered: list[int] = []
    idle_mib = memory_mib()
    most_mib = [idle_mib]

    def client(number: int) -> None:
        answer = ask("ann", story(), 16)
        answer.begins()
        began.append(number)
        most_mib.append(memory_mib())
        if answer.rest().endswith("[DONE]"):
            answered.append(number)

    together([lambda number=number: client(number) for number in range(CLIENTS)], apart_s=0.03)
    return {
        "clients": CLIENTS,
        "answered": len(answered),
        "most_places_out_of_turn": max(abs(number - place) for place, number in enumerate(began)),
        "idle_mib": idle_mib,
        "most_mib": max(most_mib),
    }


def flood() -> dict[str, Any]:
    """One key has as many clients as there are slots: how long it waits for each answer, alone and beside 50 clients of another key."""

    def bobs() -> dict[str, float]:
        waits: list[float] = []
        totals: list[float] = []

        def client() -> None:
            for _ in range(8):
                asked_s = time.monotonic()
                answer = ask("bob", story(), 24)
                answer.begins()
                waits.append(time.monotonic() - asked_s)
                answer.rest()
                totals.append(time.monotonic() - asked_s)

        together([client] * len(PORTS))
        return {"first_token_s": round(statistics.mean(waits), 2), "whole_s": round(statistics.mean(totals), 2)}

    alone = bobs()
    ended = threading.Event()
    anns: list[int] = []

    def client() -> None:
        while not ended.is_set():
            ask("ann", story(), 24).whole()
            anns.append(1)

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    until(lambda: waiting() > CLIENTS - 10, 60)
    beside = bobs()
    ended.set()
    for thread in threads:
        thread.join()
    return {
        "alone": alone,
        "beside_a_flood": beside,
        "times_as_long": round(beside["whole_s"] / alone["whole_s"], 2),
        "answers_of_the_flood": len(anns),
    }


def killed() -> dict[str, Any]:
    """An engine is killed while all answer and others wait: how many of those that wait are lost, and how many answers are cut off."""
    ends: list[str] = []
    for _ in range(ROUNDS):
        until(all_well, 60)
        threads = [threading.Thread(target=lambda: ends.append(end())) for _ in range(12)]
        for thread in threads:
            thread.start()
        until(lambda: sum(int(row["scur"]) for row in engines().values()) == len(PORTS), 30)
        time.sleep(0.3)
        subprocess.run(["systemctl", "kill", "--signal=KILL", f"engine-{PORTS[1]}"], check=True)
        for thread in threads:
            thread.join()
    return {"kills": ROUNDS} | {kind: ends.count(kind) for kind in ("lost", "cut", "whole")}


def rolled() -> dict[str, Any]:
    """More clients than slots ask until the file is there: what becomes of their answers."""
    ends: list[str] = []

    def client() -> None:
        while not ENOUGH.exists():
            ends.append(end())

    together([client] * (len(PORTS) + 2))
    return {kind: ends.count(kind) for kind in ("lost", "cut", "whole")}


def end() -> str:
    """Asks a question, and returns how its answer ends: `whole`, `cut` off, or `lost` before it began."""
    begun = False
    try:
        answer = ask("ann", story(), 64)
        answer.begins()
        begun = True
        return "whole" if answer.rest().endswith("[DONE]") else "cut"
    except (OSError, HTTPException):
        return "cut" if begun else "lost"


class Answer:
    """An answer that flows."""

    def __init__(self, opened: HTTPConnection) -> None:
        self._opened = opened
        self._response: Any = None

    def begins(self) -> None:
        """Waits for its first line."""
        self._response = self._opened.getresponse()
        if self._response.status != 200:
            raise HTTPException(f"{self._response.status} {self._response.read()[:200]!r}")
        self._response.readline()

    def rest(self) -> str:
        """Waits for its end, and returns what has come."""
        return str(self._response.read().decode().rstrip())

    def whole(self) -> str:
        """Waits for all of it, and returns that, but for the first line."""
        self.begins()
        return self.rest()


def ask(
    whose: str, messages: list[dict[str, str]], tokens: int, conversation: str = "", *, ignore_eos: bool = True
) -> Answer:
    """Asks a question, and returns what comes of it."""
    opened = HTTPConnection("127.0.0.1", 8010, timeout=600)
    body = {"messages": messages, "stream": True, "max_tokens": tokens, "ignore_eos": ignore_eos, "temperature": 0}
    headers = {"Authorization": f"Bearer the-key-of-{whose}", "X-Conversation-Id": conversation}
    opened.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    return Answer(opened)


def story() -> list[dict[str, str]]:
    """A question whose answer may be long."""
    return [{"role": "user", "content": "Tell a long story."}]


def together(calls: list[Any], apart_s: float = 0.0) -> None:
    """Calls all at once, each so long after the one before, and waits until all have ended."""
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
        time.sleep(apart_s)
    for thread in threads:
        thread.join()


def tell(command: str) -> str:
    """What the balancer says to a command."""
    with socket.socket(socket.AF_UNIX) as door:
        door.connect(MASTER)
        door.sendall(f"@1 {command}\n".encode())
        door.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: door.recv(65536), b"")).decode()


def rows() -> dict[str, dict[str, str]]:
    """The balancer's figures, by the name of the engine."""
    found = csv.DictReader(tell("show stat engines 6 -1").removeprefix("# ").strip().splitlines())
    return {row["svname"]: row for row in found}


def engines() -> dict[str, dict[str, str]]:
    """Its figures of single engines."""
    return {name: row for name, row in rows().items() if name != "BACKEND"}


def all_well() -> bool:
    """Whether the balancer reaches all of them."""
    return all(row["status"] == "UP" for row in engines().values())


def waiting() -> int:
    """How many requests wait."""
    return int(rows()["BACKEND"]["qcur"])


def memory_mib() -> float:
    """What the processes of the balancer take."""
    pids = Path("/sys/fs/cgroup").rglob("r1prov-balancer.service/cgroup.procs")
    named = {pid for path in pids for pid in path.read_text().split()}
    shown = [Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0] for pid in named]
    return round(sum(map(int, shown)) / 1024, 1)


def until(true: Any, limit_s: float) -> None:
    """Waits until something is true."""
    end_s = time.monotonic() + limit_s
    while not true():
        if time.monotonic() > end_s:
            raise TimeoutError(f"not within {limit_s:.0f} s: {rows()}")
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
