"""Asks a running engine one question and yields the answer while it is being written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

from r1prov.common.errors import Problem, UnhealthyError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.client import HTTPConnection, HTTPResponse


@dataclass(frozen=True)
class Piece:
    """A piece of the answer, or of the thinking before it.

    Attributes:
        text: the piece.
        thinking: whether it belongs to the thinking.
    """

    text: str
    thinking: bool


@dataclass(frozen=True)
class Rates:
    """Token counts and rates in tokens per second, as the server measured them. Decoding includes the thinking."""

    prompt_tokens: int
    prompt_tokens_per_second: float
    decode_tokens: int
    decode_tokens_per_second: float


def ask(http: HTTPConnection, where: str, question: str, *, key: str) -> Iterator[Piece | Rates]:
    """Ask llama-server; yield the pieces of the answer, and the rates at the end.

    Args:
        http: a connection to llama-server.
        where: the name of the host in errors.
        question: the text of one user message.
        key: the key of the API.

    Raises:
        UnhealthyError: there is no answer, or an error in its place.
    """
    # A prompt that is already in the cache would be read in no time, and its rate would mean nothing.
    body = {"stream": True, "cache_prompt": False, "messages": [{"role": "user", "content": question}]}
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        http.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = http.getresponse()
        if response.status != 200:
            raise _refusal(where, response.status, response.read().decode(errors="replace"))
        for event in _events(response, where):
            if "error" in event:
                raise _refusal(where, 500, json.dumps(event["error"]))
            yield from _pieces(event)
    except (OSError, HTTPException, ValueError) as error:
        raise _silence(where, error) from None


def ask_ollama(http: HTTPConnection, where: str, question: str, *, model: str) -> Iterator[Piece | Rates]:
    """Ask Ollama; yield the pieces of the answer, and the rates at the end. Ollama asks for no key.

    Thinking comes in a field of its own, or in the answer between `<think>` and `</think>`.

    Args:
        http: a connection to Ollama.
        where: the name of the host in errors.
        question: the text of one user message.
        model: the name under which the model is registered.

    Raises:
        UnhealthyError: there is no answer, or an error in its place.
    """
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": question}]}
    tags = ThinkTags()
    try:
        http.request("POST", "/api/chat", json.dumps(body), {"Content-Type": "application/json"})
        response = http.getresponse()
        if response.status != 200:
            raise _refusal(where, response.status, response.read().decode(errors="replace"))
        done = False
        for line in _lines(response, where):
            event = json.loads(line)
            done = event.get("done", False)
            if "error" in event:
                raise _refusal(where, 500, event["error"])
            if text := event["message"].get("thinking"):
                yield Piece(text, thinking=True)
            yield from tags.pieces(event["message"]["content"], last=event["done"])
            if event["done"]:
                yield Rates(
                    event.get("prompt_eval_count", 0),
                    _per_second(event.get("prompt_eval_count", 0), event.get("prompt_eval_duration", 0)),
                    event["eval_count"],
                    _per_second(event["eval_count"], event["eval_duration"]),
                )
        if not done:
            raise _gone(where)
    except (OSError, HTTPException, ValueError) as error:
        raise _silence(where, error) from None


class ThinkTags:
    """Separates thinking from the answer in a text that comes in pieces. A tag may be cut in two between pieces."""

    def __init__(self) -> None:
        self._rest = ""
        self._thinking = False

    def pieces(self, text: str, *, last: bool = False) -> Iterator[Piece]:
        """Yield the pieces that are certain once `text` has come. `last` says that no more text will come."""
        self._rest += text
        while self._rest:
            tag = "</think>" if self._thinking else "<think>"
            before, tag_found, after = self._rest.partition(tag)
            # An end that may be the beginning of a tag waits for the text that follows.
            waiting = 0
            if not tag_found and not last:
                waiting = next((n for n in range(len(tag) - 1, 0, -1) if before.endswith(tag[:n])), 0)
            if certain := before[: len(before) - waiting]:
                yield Piece(certain, self._thinking)
            self._rest = after if tag_found else before[len(before) - waiting :]
            if not tag_found:
                return
            self._thinking = not self._thinking


def _per_second(tokens: int, nanoseconds: int) -> float:
    return tokens * 1e9 / nanoseconds if nanoseconds else 0.0


def _events(response: HTTPResponse, where: str) -> Iterator[dict[str, Any]]:
    """The JSON documents of a stream of server-sent events.

    Raises:
        UnhealthyError: the stream has no end, so who wrote it went away.
    """
    for line in _lines(response, where):
        data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
        if data == b"[DONE]":
            return
        if data:
            yield json.loads(data)
    raise _gone(where)


def _lines(response: HTTPResponse, where: str) -> Iterator[bytes]:
    try:
        yield from response
    except TimeoutError:
        raise
    except OSError:
        raise _gone(where) from None


def _pieces(event: dict[str, Any]) -> Iterator[Piece | Rates]:
    """Yield the pieces, and the rates where there are any, of one event of llama-server."""
    for choice in event.get("choices", []):
        delta = choice.get("delta", {})
        if text := delta.get("reasoning_content"):
            yield Piece(text, thinking=True)
        if text := delta.get("content"):
            yield Piece(text, thinking=False)
    if timings := event.get("timings"):
        yield Rates(
            timings["prompt_n"], timings["prompt_per_second"], timings["predicted_n"], timings["predicted_per_second"]
        )


def _gone(where: str) -> UnhealthyError:
    remedy = f"`r1prov status {where}` shows what is wrong; ask again when it is back"
    return UnhealthyError(Problem(where, "the service went away in the middle of the answer", remedy))


def _silence(where: str, error: OSError | HTTPException | ValueError) -> UnhealthyError:
    if not isinstance(error, OSError):  # a chunk or a document that was cut
        return _gone(where)
    remedy = f"`r1prov status {where}` shows what is wrong"
    # A door listens at all times, and closes the connection while the service behind it is down.
    why = "it is down" if isinstance(error, ConnectionResetError) else error
    return UnhealthyError(Problem(where, f"the service does not answer ({why})", remedy))


def _refusal(where: str, status: int, text: str) -> UnhealthyError:
    if status == 503:
        return UnhealthyError(
            Problem(where, "the model is still being loaded", "wait until `r1prov status` says that it is ready")
        )
    if status in {502, 504}:
        return _gone(where)
    if status == 401:
        return UnhealthyError(
            Problem(where, "the API refuses this site's key", "`r1prov up` gives the host the key of this site again")
        )
    return UnhealthyError(
        Problem(
            where, f"the API answers {status}: {text.strip()[:300]}", f"`r1prov status {where}` shows what is wrong"
        )
    )
