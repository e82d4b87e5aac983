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
class End:
    """The end of an answer, with token counts and rates in tokens per second, as the server measured them.

    Attributes:
        reason: `stop` where the model ended it, `length` where it was cut off at the limit or at the end of the context.
        prompt_tokens: the length of the question.
        prompt_tokens_per_second: how fast the question was read.
        decode_tokens: the length of the answer and the thinking.
        decode_tokens_per_second: how fast they were written.
    """

    reason: str
    prompt_tokens: int
    prompt_tokens_per_second: float
    decode_tokens: int
    decode_tokens_per_second: float


def ask(http: HTTPConnection, where: str, question: str, *, key: str, max_tokens: int) -> Iterator[Piece | End]:
    """Ask llama-server; yield the pieces of the answer, and its end.

    Args:
        http: a connection to llama-server.
        where: the name of the host in errors.
        question: the text of one user message.
        key: the key of the API.
        max_tokens: where the answer is cut off, with the thinking before it.

    Raises:
        UnhealthyError: there is no answer or no end of it, or an error in its place.
    """
    # A prompt that is already in the cache would be read in no time, and its rate would mean nothing.
    messages = [{"role": "user", "content": question}]
    body = {"stream": True, "cache_prompt": False, "max_tokens": max_tokens, "messages": messages}
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        http.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = http.getresponse()
        if response.status != 200:
            raise _refusal(where, response.status, response.read().decode(errors="replace"))
        reason, timings = "", None
        for event in _events(response, where):
            if "error" in event:
                raise _refusal(where, 500, json.dumps(event["error"]))
            yield from _pieces(event)
            reason = next(
                (choice["finish_reason"] for choice in event.get("choices", []) if choice.get("finish_reason")), reason
            )
            timings = event.get("timings", timings)
        if not reason or not timings:
            raise _broken(where)
        yield End(
            reason,
            timings["prompt_n"],
            timings["prompt_per_second"],
            timings["predicted_n"],
            timings["predicted_per_second"],
        )
    except OSError as error:
        raise _silence(where, error) from None
    except (HTTPException, ValueError):  # a chunk or a document that was cut
        raise _broken(where) from None


def ask_ollama(
    http: HTTPConnection, where: str, question: str, *, model: str, max_tokens: int
) -> Iterator[Piece | End]:
    """Ask Ollama; yield the pieces of the answer, and its end. Ollama asks for no key.

    Thinking comes in a field of its own, or in the answer between `<think>` and `</think>`.

    Args:
        http: a connection to Ollama.
        where: the name of the host in errors.
        question: the text of one user message.
        model: the name under which the model is registered.
        max_tokens: where the answer is cut off, with the thinking before it.

    Raises:
        UnhealthyError: there is no answer or no end of it, or an error in its place.
    """
    messages = [{"role": "user", "content": question}]
    body = {"model": model, "stream": True, "options": {"num_predict": max_tokens}, "messages": messages}
    tags = ThinkTags()
    try:
        http.request("POST", "/api/chat", json.dumps(body), {"Content-Type": "application/json"})
        response = http.getresponse()
        if response.status != 200:
            raise _refusal(where, response.status, response.read().decode(errors="replace"))
        for line in _lines(response, where):
            event = json.loads(line)
            if "error" in event:
                raise _refusal(where, 500, event["error"])
            if text := event["message"].get("thinking"):
                yield Piece(text, thinking=True)
            yield from tags.pieces(event["message"]["content"], last=event["done"])
            if event["done"]:
                yield End(
                    event.get("done_reason", "stop"),
                    event.get("prompt_eval_count", 0),
                    _per_second(event.get("prompt_eval_count", 0), event.get("prompt_eval_duration", 0)),
                    event.get("eval_count", 0),  # Ollama leaves out what is nothing: the time of a single token.
                    _per_second(event.get("eval_count", 0), event.get("eval_duration", 0)),
                )
                return
        raise _broken(where)
    except OSError as error:
        raise _silence(where, error) from None
    except (HTTPException, ValueError):  # a chunk or a document that was cut
        raise _broken(where) from None


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
    """The JSON documents of a stream of server-sent events."""
    for line in _lines(response, where):
        data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
        if data and data != b"[DONE]":
            yield json.loads(data)


def _lines(response: HTTPResponse, where: str) -> Iterator[bytes]:
    """The lines of an answer that has begun."""
    try:
        yield from response
    except ConnectionError:
        raise _broken(where) from None


def _pieces(event: dict[str, Any]) -> Iterator[Piece]:
    """Yield the pieces of one event of llama-server."""
    for choice in event.get("choices", []):
        delta = choice.get("delta", {})
        if text := delta.get("reasoning_content"):
            yield Piece(text, thinking=True)
        if text := delta.get("content"):
            yield Piece(text, thinking=False)


def _broken(where: str) -> UnhealthyError:
    """The error of an answer whose end never came."""
    remedy = f"ask again; `r1prov status {where}` shows what is wrong"
    return UnhealthyError(Problem(where, "the answer broke off: the service or the way there has gone away", remedy))


def _silence(where: str, error: OSError) -> UnhealthyError:
    remedy = f"`r1prov status {where}` shows what is wrong"
    # A door listens at all times, and closes the connection while the service behind it is down.
    down = isinstance(error, (ConnectionResetError, ConnectionRefusedError))
    why = "it is down" if down else error
    return UnhealthyError(Problem(where, f"the service does not answer ({why})", remedy))


def _refusal(where: str, status: int, text: str) -> UnhealthyError:
    if status == 503:
        return UnhealthyError(
            Problem(where, "the model is still being loaded", "wait until `r1prov status` says that it is ready")
        )
    if status in {502, 504}:  # A proxy finds nobody behind it.
        return _broken(where)
    if status == 401:
        return UnhealthyError(
            Problem(where, "the API refuses this site's key", "`r1prov up` gives the host the key of this site again")
        )
    return UnhealthyError(
        Problem(
            where, f"the API answers {status}: {text.strip()[:300]}", f"`r1prov status {where}` shows what is wrong"
        )
    )
