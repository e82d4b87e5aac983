"""Has conversations with llama-server, and compares the tokens that it computed of each prompt with those that were expected.

The arguments are the model, and a list of conversations in JSON (tests/data/turns.json).
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

PORT = 18999
TURNS = 10


def ask(path: str, **body: Any) -> Any:
    """What the server says to a request."""
    data = json.dumps(body).encode() if body else None
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}", data, timeout=60) as answer:
        return json.load(answer)


def completion(prompt: list[int], length: int) -> Any:
    """An answer of so many random tokens: if they repeated themselves, prompts would be alike by chance."""
    asked = {"prompt": prompt, "n_predict": length, "temperature": 5.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    return ask("/completion", ignore_eos=True, return_tokens=True, seed=len(prompt), **asked)


def some(words: random.Random, count: int) -> list[int]:
    """New tokens, none of them special."""
    return [words.randrange(100, 40000) for _ in range(count)]


def computed(talk: dict[str, Any], words: random.Random) -> list[int | str]:
    """The tokens that the server computes of each prompt, until it ends."""
    prompt = some(words, talk["first"])
    counted: list[int | str] = []
    try:
        for _ in range(TURNS):
            answer = completion(prompt, talk["thought"] + talk["said"])
            counted.append(answer["timings"]["prompt_n"])
            prompt = prompt + answer["tokens"][talk["thought"] :] + some(words, talk["question"])
            if talk["kept"] != "slot":
                completion(some(words, 12), 1)
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError):
        counted.append("the server has ended")
    return counted


def main(model: str, talks: list[dict[str, Any]]) -> None:
    """Starts a server for each set of arguments, and says which conversations went another way than expected."""
    wrong, words = [], random.Random(7)  # noqa: S311 - tokens are no secrets
    for arguments, alike in itertools.groupby(talks, key=lambda talk: talk["arguments"]):
        program = ["/opt/r1prov/llama.cpp/current/bin/llama-server", "--model", model, "--port", str(PORT)]
        program += ["--threads", "1", "--parallel", "1", "--ctx-size", "512", "--no-warmup", *arguments]
        server = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            for _ in range(600):
                try:
                    ask("/health")
                    break
                except OSError:
                    time.sleep(0.1)
            for talk in alike:
                found = computed(talk, words)
                expected = talk["computed"] + ["the server has ended"] * (len(talk["computed"]) < TURNS)
                if found != expected:
                    wrong.append(f"{talk}: {found}")
        finally:
            server.kill()
            server.wait()
    sys.exit("\n".join(wrong) or 0)


main(sys.argv[1], json.loads(sys.argv[2]))
