"""Tests how the time to the first token is measured: with a server that is as slow as it is told to be, and in what people are shown."""

from __future__ import annotations

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.r1.prov.plugins.module_utils.doors import LlamaServer
from ansible_collections.r1.prov.plugins.module_utils.first_tokens import FirstTokens
from ansible_collections.r1.prov.plugins.module_utils.http_api import Api, ApiError
from ansible_collections.r1.prov.plugins.module_utils.progress import Progress

from r1prov import site
from r1prov.cli import show
from r1prov.decision import decide
from r1prov.runs import prompts
from r1prov.runs.report import HostReport, RunReport

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROPS = {
    "default_generation_settings": {"n_ctx": 4096},
    "total_slots": 2,
    "build_info": "b1",
    "model_path": "/m.gguf",
}
RATE = 4000.0
"""The tokens of prompt that the server below computes in a second, for all who ask."""
ANSWERING_S = 0.4
"""How long it goes on after the first token, so that the end is not taken for the beginning."""


class Engine(BaseHTTPRequestHandler):
    """Answers as llama-server does: one prompt after the other, with events while it computes and for each token of the answer."""

    computing = threading.Lock()
    seen: list[list[int]]

    def do_GET(self) -> None:
        """Says what serves."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(PROPS).encode())

    def do_POST(self) -> None:
        """Answers a request."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()
        if self.path == "/tokenize":
            words = body["content"].split()
            self.wfile.write(json.dumps({"tokens": [hash(word) for word in words]}).encode())
            return
        self.seen.append(body["prompt"])
        total, done = len(body["prompt"]), 0
        with self.computing:
            while done < total:
                time.sleep(min(256, total - done) / RATE)
                done = min(done + 256, total)
                self.say({"content": "", "prompt_progress": {"total": total, "cache": 0, "processed": done}})
            self.say({"content": "a"})
        time.sleep(ANSWERING_S)
        timings = {"prompt_n": total, "predicted_n": 2, "prompt_per_second": RATE, "predicted_per_second": 9.0}
        self.say({"content": "b", "stop": True, "timings": timings})

    def say(self, event: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def engine() -> Iterator[LlamaServer]:
    Engine.seen = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Engine) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield LlamaServer(Api(f"http://127.0.0.1:{server.server_port}"), "model")
        server.shutdown()


def measured(engine: LlamaServer, run: Path, *points: tuple[int, int], limit_s: float = 60, rate: float = RATE) -> list:
    asked = [{"length": length, "users": users, "planned_s": [0.1, 0.2]} for length, users in points]
    return FirstTokens(engine, ["a", "b", "c"], 0.6, Progress("smoke_bench", run)).measure(asked, rate, limit_s)


def test_it_is_the_first_token_and_not_the_end_or_the_begin_of_the_answer(engine: LlamaServer, tmp_path: Path) -> None:
    began_s = time.monotonic()
    (found,) = measured(engine, tmp_path, (3000, 1))
    took_s = time.monotonic() - began_s
    assert 3000 / RATE <= found["time_to_first_token_s"] <= took_s - ANSWERING_S
    assert (found["evaluated_tokens"], found["prompt_tokens_per_second_each"]) == (3000, RATE)
    assert (found["planned_s"], found["left_out"]) == ([0.1, 0.2], "")
    progress = json.loads((tmp_path / "smoke_bench" / "progress.json").read_text())
    assert progress["label"] == "measuring the first token after 3,000 tokens, one user"
    assert 0 < progress["done"] <= progress["total"] == 3000


def test_of_several_the_last_one_counts_and_each_has_a_prompt_of_its_own(engine: LlamaServer, tmp_path: Path) -> None:
    (found,) = measured(engine, tmp_path, (1000, 2))
    assert found["last_first_token_s"] >= 2000 / RATE
    assert found["last_first_token_s"] - found["time_to_first_token_s"] >= 500 / RATE * 0.9
    one, other = Engine.seen
    assert (len(one), len(other)) == (1000, 1000)
    assert one[0] != other[0]  # a cache of prompts knows a prompt by its beginning


def test_cheap_ones_come_first_and_what_would_take_too_long_is_left_out_with_the_reason(
    engine: LlamaServer, tmp_path: Path
) -> None:
    found = measured(engine, tmp_path, (4000, 2), (200, 1), (4095, 1), (200, 3), (1000, 1), limit_s=2)
    assert [(each["prompt_tokens"], each["users"], each["left_out"]) for each in found] == [
        (200, 1, ""),
        (200, 3, "there are 2 slots"),
        (1000, 1, ""),
        (4095, 1, "a slot holds 4,096 tokens"),
        (4000, 2, found[-1]["left_out"]),
    ]
    assert re.fullmatch(r"it would take about \d s, and [12] s are left", found[-1]["left_out"])


def test_what_takes_longer_than_foreseen_ends_with_the_limit(engine: LlamaServer, tmp_path: Path) -> None:
    began_s = time.monotonic()
    (found,) = measured(engine, tmp_path, (4000, 1), limit_s=0.4, rate=1e6)
    assert found["left_out"] == "it was not over after the 0 s that were left"
    assert found["for_want_of_time"]
    assert time.monotonic() - began_s < 4000 / RATE


def test_an_engine_that_goes_away_is_no_slow_one(tmp_path: Path) -> None:
    with pytest.raises(ApiError, match="does not answer"):
        measured(LlamaServer(Api("http://127.0.0.1:9"), "model"), tmp_path, (10, 1))


def test_one_person_and_all_of_them_are_asked_beside_what_is_planned() -> None:
    decision = decide(site.load(None, profile="4xh800", hosts=["gpu1"]))
    asked = prompts.asked(decision, "gpu1")
    assert [(each["length"], each["users"]) for each in asked] == [
        (length, users) for length in (512, 2000, 8000) for users in (1, 16)
    ]
    alone, together = asked[:2]
    assert 0 < alone["planned_s"][0] < alone["planned_s"][1] < together["planned_s"][1]
    short = decide(site.load(None, profile="4xh800", hosts=["gpu1"], context_per_slot=4096))
    assert [bool(each["planned_s"]) for each in prompts.asked(short, "gpu1")] == [True] * 4 + [False] * 2


def test_the_table_says_what_was_measured_what_was_planned_and_what_was_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = {"users": 16, "prompt_tokens": 8000, "planned_s": [100.0, 200.0], "left_out": "a slot holds 4,096 tokens"}
    told["for_want_of_time"] = False
    late = {**told, "left_out": "it would take about 95 s, and 40 s are left", "for_want_of_time": True}
    done = {
        **told,
        "users": 1,
        "prompt_tokens": 2000,
        "planned_s": [8.126, 19.7],
        "left_out": "",
        "last_first_token_s": 12.345,
    }
    gpu1 = HostReport("ok")
    gpu1.benchmark = {"first_tokens": [done, told, late]}
    report = RunReport("r1prov bench", "default", "4x4090", "UD-IQ1_S", "", {"gpu1": gpu1})
    show.first_tokens(report, "2m")
    out, err = capsys.readouterr()
    assert [re.sub(" +", " ", line) for line in out.splitlines() if line] == [
        "first token users prompt seconds planned",
        "gpu1 1 2,000 12 8.1-20",
    ]
    assert err.split("\n")[-4:-1] == [
        "gpu1: 8,000 tokens from 16 users at once not measured: a slot holds 4,096 tokens",
        "gpu1: 8,000 tokens from 16 users at once not measured: it would take about 95 s, and 40 s are left",
        "More than 2m for that: --limit",
    ]
