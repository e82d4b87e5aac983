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
from r1prov.hosts.chat import End, Piece


@pytest.fixture
def api():
    class Api(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.asked = (self.path, self.headers["Authorization"], body)
            if self.path == "/api/chat":
                self.send_response(200)
                self.end_headers()
                self.wfile.write("".join(f"{json.dumps(line)}\n" for line in self.server.lines).encode())
                return
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
    connection = http.client.HTTPConnection("127.0.0.1", api.server_port)
    return list(chat.ask(connection, "gpu1", "1+1?", key="k3y", max_tokens=77))


def delta(**fields):
    return {"choices": [{"delta": fields, "finish_reason": None}]}


def end(reason):
    return {"choices": [{"delta": {}, "finish_reason": reason}]}


TIMINGS = {"prompt_n": 9, "prompt_per_second": 100.5, "predicted_n": 3, "predicted_per_second": 7.25}


def test_thinking_answer_and_rates_come_apart(api):
    pieces = ask(
        api,
        200,
        delta(role="assistant", content=None),
        delta(reasoning_content="Well, "),
        delta(content="2"),
        end("stop"),
        {"choices": [], "timings": TIMINGS},
    )
    assert pieces == [Piece("Well, ", thinking=True), Piece("2", thinking=False), End("stop", 9, 100.5, 3, 7.25)]
    path, key, body = api.asked
    assert (path, key) == ("/v1/chat/completions", "Bearer k3y")
    messages = [{"role": "user", "content": "1+1?"}]
    assert body == {"stream": True, "cache_prompt": False, "max_tokens": 77, "messages": messages}


def test_an_answer_that_is_cut_off_says_so(api):
    assert ask(api, 200, delta(content="2 2 2"), {**end("length"), "timings": TIMINGS})[-1].reason == "length"


def test_an_answer_without_its_end_is_an_error(api):
    with pytest.raises(UnhealthyError, match="the answer broke off"):
        ask(api, 200, delta(content="2"))


OLLAMA_END = {"prompt_eval_count": 9, "prompt_eval_duration": 9e7, "eval_count": 3, "eval_duration": 1e9}


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_ollama_is_given_the_limit_and_says_why_it_ended(api, reason):
    message = {"content": "<think>Well</think>2"}
    last = {"message": {"content": ""}, "done": True, "done_reason": reason, **OLLAMA_END}
    api.lines = [{"message": message, "done": False}, last]
    connection = http.client.HTTPConnection("127.0.0.1", api.server_port)
    pieces = list(chat.ask_ollama(connection, "gpu1", "1+1?", model="m", max_tokens=77))
    assert pieces == [Piece("Well", thinking=True), Piece("2", thinking=False), End(reason, 9, 100.0, 3, 3.0)]
    assert api.asked[2]["options"] == {"num_predict": 77}


def test_ollama_names_no_time_for_a_single_token(api):
    last = {"message": {"content": "2"}, "done": True, "done_reason": "length", "eval_count": 1}
    api.lines = [last]
    connection = http.client.HTTPConnection("127.0.0.1", api.server_port)
    pieces = list(chat.ask_ollama(connection, "gpu1", "1+1?", model="m", max_tokens=1))
    assert pieces == [Piece("2", thinking=False), End("length", 0, 0.0, 1, 0.0)]


def test_ollamas_answer_without_its_end_is_an_error(api):
    api.lines = [{"message": {"content": "2"}, "done": False}]
    connection = http.client.HTTPConnection("127.0.0.1", api.server_port)
    with pytest.raises(UnhealthyError, match="the answer broke off"):
        list(chat.ask_ollama(connection, "gpu1", "1+1?", model="m", max_tokens=77))


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
        list(chat.ask(http.client.HTTPConnection("127.0.0.1", 1), "gpu1", "?", key="", max_tokens=1))


@pytest.mark.parametrize("what", sorted(cutting.CUT.keys() - {"no byte comes"}))
def test_an_answer_without_its_end_is_a_service_that_went_away(what):
    with (
        cutting.answering(cutting.CUT[what]) as port,
        pytest.raises(UnhealthyError, match="the answer broke off"),
    ):
        list(chat.ask(http.client.HTTPConnection("127.0.0.1", port), "gpu1", "?", key="", max_tokens=1))


@pytest.mark.parametrize("reset", [False, True])
def test_an_answer_of_ollama_without_its_end(reset):
    begun = cutting.UNTIL_CLOSED + json.dumps({"message": {"content": "Par"}, "done": False}) + "\n"
    with (
        cutting.answering(begun, reset=reset) as port,
        pytest.raises(UnhealthyError, match="the answer broke off"),
    ):
        list(chat.ask_ollama(http.client.HTTPConnection("127.0.0.1", port), "gpu1", "?", model="m", max_tokens=1))


def test_a_connection_that_is_reset_in_the_middle():
    with (
        cutting.answering(cutting.UNTIL_CLOSED + cutting.SAYS[0], reset=True) as port,
        pytest.raises(UnhealthyError, match="the answer broke off"),
    ):
        list(chat.ask(http.client.HTTPConnection("127.0.0.1", port), "gpu1", "?", key="", max_tokens=1))
