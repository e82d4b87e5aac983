"""Greedy answers of a model, which takes the most probable token at each step; llama-server computes them."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from contextlib import contextmanager
from http.client import HTTPConnection
from itertools import takewhile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from r1prov.models.perplexity import Run

PATIENCE_S = 120


def answers(engine: Path, run: Run, prompts: Sequence[str], n_tokens: int) -> list[list[int]]:
    """The tokens of the model's answer to each prompt. An answer has `n_tokens` tokens, or fewer where the model ends it earlier."""
    with _server(engine, run) as http:
        body = {"n_predict": n_tokens, "temperature": 0, "cache_prompt": False, "return_tokens": True}
        return [_post(http, "/completion", body | {"prompt": prompt})["tokens"] for prompt in prompts]


def alike(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of tokens that two answers have in common from their start."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


@contextmanager
def _server(engine: Path, run: Run) -> Iterator[HTTPConnection]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        engine / "llama-server",
        "--model",
        run.model,
        "--port",
        str(port),
        "--ctx-size",
        "1024",
        "--parallel",
        "1",
    ]
    with subprocess.Popen([*command, *run.arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            http = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
            deadline = time.monotonic() + PATIENCE_S
            while not _healthy(http):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"llama-server does not start: {' '.join(map(str, command))}")
                time.sleep(0.2)
            yield http
        finally:
            process.terminate()


def _healthy(http: HTTPConnection) -> bool:
    try:
        http.request("GET", "/health")
        response = http.getresponse()
        response.read()
    except OSError:
        http.close()
        return False
    return response.status == 200


def _post(http: HTTPConnection, path: str, body: dict[str, Any]) -> dict[str, Any]:
    http.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = http.getresponse()
    said = response.read().decode()
    if response.status != 200:
        raise SystemExit(f"llama-server refuses: {said}")
    answer: dict[str, Any] = json.loads(said)
    return answer
