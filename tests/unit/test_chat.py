"""Tests of a chat question, sent to a small server in this process that answers as llama-server does."""

from __future__ import annotations

import http.client
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import cutting
import pytest

from r1prov.common.errors import UnhealthyError
from r1prov.hosts import chat
from r1prov.hosts.chat import Piece, Rates


@pytest.fixture
def api():
    class Api(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.asked = (self.path, self.headers["Authorization"], body)
            status, lines = self.server.answer
            self.send_response(status)
            self.end_headers()
            self.wfile.write("".join(f"data: {line}\n\n" for line in lines).encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def ask(api, status, *documents):
    api.answer = (status, [json.dumps(document) for document in documents] + ["[DONE]"])
    return list(chat.ask(http.client.HTTPConnection("127.0.0.1", api.server_port), "gpu1", "1+1?", key="k3y"))


def delta(**fields):
    return {"choices": [{"delta": fields}]}


def test_thinking_answer_and_rates_come_apart(api):
    timings = {"prompt_n": 9, "prompt_per_second": 100.5, "predicted_n": 3, "predicted_per_second": 7.25}
    pieces = ask(
        api,
        200,
        delta(role="assistant", content=None),
        delta(reasoning_content="Well, "),
        delta(content="2"),
        {"choices": [], "timings": timings},
    )
    assert pieces == [Piece("Well, ", thinking=True), Piece("2", thinking=False), Rates(9, 100.5, 3, 7.25)]
    path, key, body = api.asked
    assert (path, key) == ("/v1/chat/completions", "Bearer k3y")
    assert body == {"stream": True, "cache_prompt": False, "messages": [{"role": "user", "content": "1+1?"}]}


@pytest.mark.parametrize(
    ("status", "document", "what"),
    [
        (503, {}, "the model is still being loaded"),
        (401, {}, "the API refuses this site's key"),
        (500, {"error": "boom"}, "the API answers 500"),
        (200, {"error": {"message": "context full"}}, "context full"),
    ],
)
def test_refusals_are_plain(api, status, document, what):
    with pytest.raises(UnhealthyError, match=what):
        ask(api, status, document)


def test_nobody_there():
    with pytest.raises(UnhealthyError, match="does not answer"):
        list(chat.ask(http.client.HTTPConnection("127.0.0.1", 1), "gpu1", "?", key=""))


@pytest.mark.parametrize("what", sorted(cutting.CUT.keys() - {"no byte comes"}))
def test_an_answer_without_its_end_is_a_service_that_went_away(what):
    with (
        cutting.answering(cutting.CUT[what]) as port,
        pytest.raises(UnhealthyError, match="the service went away in the middle of the answer"),
    ):
        list(chat.ask(http.client.HTTPConnection("127.0.0.1", port), "gpu1", "?", key=""))


@pytest.mark.parametrize("reset", [False, True])
def test_an_answer_of_ollama_without_its_end(reset):
    begun = cutting.UNTIL_CLOSED + json.dumps({"message": {"content": "Par"}, "done": False}) + "\n"
    with (
        cutting.answering(begun, reset=reset) as port,
        pytest.raises(UnhealthyError, match="the service went away in the middle of the answer"),
    ):
        list(chat.ask_ollama(http.client.HTTPConnection("127.0.0.1", port), "gpu1", "?", model="m"))


def test_a_connection_that_is_reset_in_the_middle():
    with (
        cutting.answering(cutting.UNTIL_CLOSED + cutting.SAYS[0], reset=True) as port,
        pytest.raises(UnhealthyError, match="the service went away in the middle of the answer"),
    ):
        list(chat.ask(http.client.HTTPConnection("127.0.0.1", port), "gpu1", "?", key=""))
