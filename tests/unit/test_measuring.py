"""Tests of the program that compares modes, with servers that are real processes and answer like llama-server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from measuring import load, memory, modes, servers, work

SAYS = """
    def say(self, content):
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
"""
"""How both made-up servers answer."""

SERVER = """#!{python}
import json, os, signal, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
words = sys.argv[1:]
open({calls!r}, "a").write(str(os.getpid()) + "\\n")
if "--crash" in words:
    sys.exit("cannot allocate")
if "--stubborn" in words:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "--hang" in words:
    time.sleep(60)

class Handler(BaseHTTPRequestHandler):
    kept = []
    def log_message(self, *words): pass
    def do_GET(self): self.say({{"status": "ok"}})
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            return self.say({{"tokens": list(range(50))}})
        prompt = body["prompt"]
        same = len(os.path.commonprefix([prompt, Handler.kept])) if body["cache_prompt"] else 0
        Handler.kept = prompt
        if "--dies" in words and len(prompt) > 100:
            os.kill(os.getpid(), 9)
        if "--sleeps" in words and len(prompt) > 100:
            time.sleep(60)
        time.sleep(body["n_predict"] / 1000 + ("--reads" in words) * 0.3)
        self.say({{"timings": {{"prompt_n": len(prompt) - same, "prompt_per_second": 2000.0,
                  "predicted_n": body["n_predict"], "predicted_per_second": 1000.0}}}})
{says}
ThreadingHTTPServer.request_queue_size = 64
ThreadingHTTPServer(("127.0.0.1", int(words[words.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a llama-server and a model, and with what a run of the program leaves."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setattr(servers, "PORT", free.getsockname()[1])
    monkeypatch.setattr(servers, "PATIENCE_S", 0.5)
    monkeypatch.setattr(work, "PROGRESS", tmp_path / "progress.json")
    (tmp_path / "calls").touch()
    (tmp_path / "model.gguf").touch()
    server = tmp_path / "llama-server"
    server.write_text(SERVER.format(python=sys.executable, says=SAYS, calls=str(tmp_path / "calls")))
    server.chmod(0o755)
    return tmp_path


def mode(name: str, *arguments: str, **more: Any) -> dict[str, Any]:
    return {
        "mode": name,
        "engine": "llama-server",
        "arguments": [*arguments],
        "slots": 2,
        "context_per_slot": 512,
    } | more


def run(folder: Path, *asked: dict[str, Any], limit_s: float = 20) -> dict[str, Any]:
    job = {
        "kind": "modes",
        "modes": [{"model": str(folder / "model.gguf")} | each for each in asked],
        "llama_server": str(folder / "llama-server"),
        "ollama": str(folder / "no-ollama"),
        "ollama_models_dir": str(folder),
        "limit_s": limit_s,
        "result": str(folder / "result.json"),
    }
    assert modes.run(job) == 0
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    for pid in (folder / "calls").read_text().split():
        assert not Path("/proc", pid).exists(), "a server lives on"
    return found


def test_each_mode_has_its_rates_and_its_memory(folder: Path) -> None:
    found = run(folder, mode("cpu"), mode("hybrid", slots=1))
    assert (found["state"], found["untried"]) == ("done", [])
    cpu, hybrid = found["modes"]
    assert [rate["users"] for rate in cpu["rates"]] == [1, 1, 2, 4]
    assert [rate["users"] for rate in hybrid["rates"]] == [1, 1, 2]
    empty, full, *_ = cpu["rates"]
    assert (empty["depth_tokens"], empty["prompt_tokens"]) == (0, 64)
    # The slot is filled as far as what is decoded leaves room, and what it held before is not counted again.
    assert full["depth_tokens"] + full["prompt_tokens"] + full["decode_tokens"] == 511
    assert full["prompt_tokens"] == 64
    assert empty["decode_tokens_per_second"] == 1000
    assert cpu["memory"]["ram_bytes"] >= cpu["memory"]["ram_anonymous_bytes"] > 10**6
    progress = json.loads((folder / "progress.json").read_text())
    assert (progress["state"], progress["done"], progress["total"]) == ("done", 9, 9)


def test_what_all_users_get_is_counted_from_the_first_token_on(folder: Path) -> None:
    """So it can be held against what one user gets: reading the prompts does not count, which takes 0.3 s here, and decoding 0.06 s."""
    (found,) = run(folder, mode("cpu", "--reads"))["modes"]
    alone, full, pair, crowd = (rate["decode_tokens_per_second_total"] for rate in found["rates"])
    assert alone == pytest.approx(1000, rel=0.01)
    assert full == pytest.approx(1000, rel=0.01)
    assert 1000 < pair <= 2001
    assert pair < crowd <= 4001
    assert found["rates"][2]["wall_s"] > 0.3


def test_who_else_keeps_the_processors_busy_is_seen() -> None:
    """What this process and its children compute is not somebody else's."""
    spin = "import time\nwhile time.process_time() < 0.5: pass"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as idle:
        mine, others = load.Load(os.getpid()), load.Load(idle.pid)
        began_s = time.monotonic()
        subprocess.run([sys.executable, "-c", spin], check=True)
        own, foreign, took_s = mine.so_far(), others.so_far(), time.monotonic() - began_s
        idle.communicate(b"\n")
    # The same time, looked at from the process that computes, and from one that does not.
    assert (foreign["others_cores"] - own["others_cores"]) * took_s > 0.3
    assert foreign["foreign"] or took_s > 1
    assert foreign["cores"] == os.cpu_count()


def test_it_says_what_is_measured_and_how_long_that_may_still_take(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On lines that a terminal of 80 columns has room for."""
    said = []
    replace = work.replace

    def watched(path: Path, content: dict[str, Any]) -> None:
        if path == work.PROGRESS:
            said.append(f"  {content['done']} of {content['total']}: {content['label']}")
        replace(path, content)

    monkeypatch.setattr(work, "replace", watched)
    run(folder, mode("experts-in-ram", context_per_slot=32_768, slots=16), limit_s=1200)
    assert [line.partition("; at most 20 min more")[0] for line in said] == [
        "  0 of 5: experts-in-ram, loading the model",
        "  1 of 5: experts-in-ram, one user, an empty slot",
        "  2 of 5: experts-in-ram, one user, 32639 tokens deep",
        "  3 of 5: experts-in-ram, 16 users on 16 slots",
        "  4 of 5: experts-in-ram, 32 users on 16 slots",
        "  5 of 5: measured",
    ]
    assert max(map(len, said)) < 80


def test_what_cannot_be_measured_has_a_reason_and_the_others_go_on(folder: Path) -> None:
    found = run(
        folder,
        mode("rule", "--crash"),
        mode("legacy", model=str(folder / "away.gguf"), absent="not there any more"),
        mode("fit", "--dies"),
        mode("ollama", engine="ollama", ollama_model="demo", absent="Ollama is not there"),
        mode("cpu"),
    )
    rule, legacy, fit, ollama, cpu = found["modes"]
    assert "it ended with 1: cannot allocate" in rule["failed"]
    assert (legacy["skipped"], legacy["failed"]) == ("not there any more", "")
    assert "it ended with -9" in fit["failed"]
    assert len(fit["rates"]) == 1  # what was measured before stays
    assert ollama["skipped"] == "Ollama is not there"
    assert not cpu["failed"]


OLLAMA = r"""#!{python}
# Four tokens to a word, and no prompt is longer than a slot.
import json, os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *words): pass
    def do_GET(self): self.say({{"models": [{{"name": "demo:latest"}}]}})
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        tokens = min(4 * len(body.get("prompt", "").split()), 512)
        self.say({{"prompt_eval_count": tokens, "prompt_eval_duration": 1000,
                  "eval_count": body.get("options", {{}}).get("num_predict", 0), "eval_duration": 1000}})
{says}
ThreadingHTTPServer(("127.0.0.1", int(os.environ["OLLAMA_HOST"].partition(":")[2])), Handler).serve_forever()
"""


def test_ollama_is_asked_as_many_tokens_as_the_others_whatever_a_word_has(folder: Path) -> None:
    (folder / "no-ollama").write_text(OLLAMA.format(python=sys.executable, says=SAYS))
    (folder / "no-ollama").chmod(0o755)
    (found,) = run(folder, mode("ollama", engine="ollama", ollama_model="demo"))["modes"]
    assert not found["failed"]
    empty, full, *_ = found["rates"]
    assert empty["prompt_tokens"] == 64
    assert 300 < full["depth_tokens"] < 512 - 64
    assert full["depth_tokens"] + full["prompt_tokens"] < 512


def test_of_a_log_the_words_of_errors_are_repeated_whole_or_marked_as_cut(folder: Path) -> None:
    crashing = folder / "llama-server"
    crashing.write_text(
        f"#!/bin/sh\necho 'loading {'x ' * 200}'\necho 'mkdir: no space left {'x ' * 200}'\necho bye\nexit 3\n"
    )
    (found,) = run(folder, mode("cpu"))["modes"]
    assert found["failed"].startswith("it ended with 3: mkdir: no space left x x")
    assert found["failed"].endswith(" ...")
    assert "loading" not in found["failed"]


def test_a_result_that_cannot_be_written_names_the_file(folder: Path) -> None:
    with pytest.raises(SystemExit, match=f"{folder}/none/result.json cannot be written: No such file"):
        work.replace(folder / "none" / "result.json", {})


def test_one_that_hangs_takes_its_share_alone_and_one_that_does_not_end_is_killed(folder: Path) -> None:
    began_s = time.monotonic()
    found = run(folder, mode("gpu", "--hang"), mode("cpu", "--stubborn"), limit_s=6)
    gpu, cpu = found["modes"]
    assert "was not ready within 3 s, its share of the time limit" in gpu["failed"]
    assert (cpu["failed"], len(cpu["rates"])) == ("", 4)
    assert time.monotonic() - began_s < 9


def test_one_that_is_slower_than_foreseen_leaves_time_to_the_others(folder: Path) -> None:
    found = run(folder, mode("cpu", "--sleeps"), mode("hybrid"), limit_s=8)
    cpu, hybrid = found["modes"]
    assert "not over within the time limit" in cpu["failed"]
    assert len(cpu["rates"]) == 1
    assert (hybrid["failed"], len(hybrid["rates"])) == ("", 4)


def test_no_mode_begins_after_the_limit(folder: Path) -> None:
    found = run(folder, mode("gpu", "--hang"), mode("cpu"), limit_s=0)
    assert (found["modes"], found["untried"], found["state"]) == ([], ["gpu", "cpu"], "done")


def test_one_that_was_stopped_goes_on_where_it_was(folder: Path) -> None:
    asked = mode("cpu"), mode("hybrid")
    whole = run(folder, *asked)
    (folder / "result.json").write_text(json.dumps(whole | {"state": "running", "modes": whole["modes"][:1]}))
    (folder / "calls").write_text("")
    again = run(folder, *asked)
    assert again["modes"][0] == whole["modes"][0] | {"earlier": True}
    assert [found["earlier"] for found in again["modes"]] == [True, False]
    assert len((folder / "calls").read_text().split()) == 1


def test_a_slow_one_gets_short_measurements(folder: Path) -> None:
    found = run(folder, mode("cpu", decode_estimate=0.5), limit_s=20)
    assert found["modes"][0]["rates"][0]["decode_tokens"] == modes.FEWEST


def test_the_memory_of_a_process_is_that_of_its_family() -> None:
    script = "import subprocess, sys; x = b'x' * 50_000_000; subprocess.run([sys.executable, '-c', 'y = bytes(1) * 9; input()'])"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as parent:
        deadline = time.monotonic() + 10
        while len(memory.family(parent.pid)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        total, anonymous = memory.resident(memory.family(parent.pid))
        assert 50_000_000 < anonymous < total
        assert parent.pid in memory.family(os.getpid())
        assert parent.stdin
        parent.stdin.close()


def test_what_the_cards_hold_of_other_processes_does_not_count() -> None:
    processes = "10, GPU-b, 2048\n11, GPU-b, 1\n99, GPU-a, 500\n10, GPU-a, [N/A]\n"
    assert memory.on_cards({10, 11}, "GPU-a\nGPU-b\n", processes) == [0, 2049 * 2**20]
    assert memory.on_cards({10}, "", "") == []
