"""Watches whether an engine lives, and ends with a verdict where it does not.

    /usr/bin/python3 /usr/local/lib/r1prov-liveness/watch_engine.py --engine llama-server --url http://127.0.0.1:8000 ...

Runs as r1prov-liveness.service, with the key of the engine and no other right. The exit code is the verdict: 70 says that the engine is to
be restarted, 71 that it is to be stopped, and 72 that it is to be restarted because another machine has failed it, which is not counted.
Root acts on it (act.py), and then this program is started again. Python 3.10 will do.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from living.book import A_DAY, Book
from living.engines import Engine, LlamaServer, Ollama
from living.judge import Judge, Rules, State

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LOOK_EVERY_S = 10.0
RESTART, STOP, RESTART_UNCOUNTED = 70, 71, 72


def clock() -> float:
    """Seconds since the host began to run. They go on while it sleeps, and nobody sets them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def say(text: str) -> None:
    """Writes a line to the journal."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def watch(name: str, engine: Engine, book: Book, pause: Callable[[], None], now: Callable[[], float] = clock) -> int:
    """Looks until the engine does not live. Returns the verdict.

    Args:
        name: what the engine is called.
        engine: who is watched.
        book: what is kept.
        pause: waits until the next look.
        now: the time.
    """
    judge, said = Judge(engine.rules, book.kept.prompt_s), ""
    while True:
        seen = engine.look(now())
        finding = judge.look(seen)
        book.learn(judge.prompt_s)
        if seen.state == State.ANSWERS and book.begins_anew():
            say(f"{name} was started again by somebody: its restarts are counted anew")
        if finding.is_dead:
            may = book.may_restart()
            verdict = f"{name} {finding.state}"
            book.tell(seen.at_s, state=verdict, by=judge.by, alive_s=judge.alive_s)
            count = len(book.kept.restarts)
            if may:
                say(f"{verdict}: it is restarted, {count} of {A_DAY} times in 24 hours at most")
                return RESTART
            say(f"{verdict} after {A_DAY} restarts in 24 hours: it is stopped and stays down until somebody starts it")
            return STOP
        if finding.is_severed:
            # It would end by itself with the next question. Until its worker is back it ends at each start, so this comes once.
            book.tell(seen.at_s, state=f"{name} {finding.state}", by=judge.by, alive_s=judge.alive_s)
            say(f"{name} {finding.state}: it is restarted, which is not counted")
            return RESTART_UNCOUNTED
        if finding.asks:
            engine.ask()
        if finding.state != said and (finding.misses or said):
            say(f"{name}: {finding.state}")
        said = finding.state if finding.misses else ""
        book.tell(seen.at_s, state=finding.state, by=judge.by, alive_s=judge.alive_s)
        pause()


def main(arguments: Sequence[str]) -> int:
    """Watches the engine that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=["llama-server", "ollama"], required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--user", required=True)
    parser.add_argument("--model", default="")
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--idle-s", type=float, required=True)
    parser.add_argument("--start-s", type=float, required=True)
    parser.add_argument("--workers", default="")
    asked = parser.parse_args(arguments)
    counts = asked.engine == "llama-server"
    workers = list(filter(None, asked.workers.split(",")))
    rules = Rules(counts, asked.idle_s, asked.batch, asked.start_s, is_spread=bool(workers))
    engine: Engine
    if counts:
        engine = LlamaServer(
            asked.url, f"{os.environ['CREDENTIALS_DIRECTORY']}/api-key", asked.user, rules, workers=workers
        )
    else:
        engine = Ollama(asked.url, asked.user, asked.model, rules)
    kept, last = (Path(os.environ[f"{kind}_DIRECTORY"]) for kind in ("STATE", "RUNTIME"))
    book = Book(kept / "kept.json", last / "last.json")
    return watch(asked.engine, engine, book, lambda: time.sleep(LOOK_EVERY_S))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
