"""The doors through which a model is asked: llama-server, Ollama, the chat page. All answer with the same figures."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ansible_collections.r1.prov.plugins.module_utils.http_api import Api, ApiError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SEED = 3407
SAMPLE_WORDS = 64
"""The words of a text by which Ollama's number of tokens for a word is known."""


@dataclass(frozen=True)
class Limits:
    """The limits of a question: the most tokens of its answer, the seconds until it has failed, the temperature of the sampling."""

    tokens: int
    seconds: float
    temperature: float


@dataclass
class Reply:
    """An answer. Times are of time.monotonic(). Rates are the engine's own, in tokens/s; they are 0 where a door does not tell them."""

    started_s: float
    content: str = ""
    reasoning: str = ""
    finish: str = ""
    first_s: float = 0.0
    last_s: float = 0.0
    prompt_tokens: int = 0
    prompt_tokens_per_second: float = 0.0
    decode_tokens: int = 0
    decode_tokens_per_second: float = 0.0

    def add(self, content: str, reasoning: str) -> bool:
        """Adds a piece of the answer, and returns whether the piece held any text."""
        self.content += content
        self.reasoning += reasoning
        self.last_s = time.monotonic()
        self.first_s = self.first_s or self.last_s
        return bool(content or reasoning)

    def take_timings(self, timings: dict[str, Any]) -> None:
        """Takes llama-server's own figures, which come with the last event."""
        if timings:
            self.prompt_tokens, self.decode_tokens = timings["prompt_n"], timings["predicted_n"]
            self.prompt_tokens_per_second = timings["prompt_per_second"]
            self.decode_tokens_per_second = timings["predicted_per_second"]


class LlamaServer:
    """llama-server's own API."""

    unit, release = "r1prov-llama-server", "/opt/r1prov/llama.cpp/current"

    def __init__(self, api: Api, model: str) -> None:
        self._api, self._model, self._context = api, model, 0

    def facts(self) -> dict[str, Any]:
        """Returns what serves: `build`, `model` (a path), `context_per_slot` (tokens), `slots`."""
        props = self._api.get("/props")
        self._context = props["default_generation_settings"]["n_ctx"]
        served = {"build": props["build_info"], "model": props["model_path"], "slots": props["total_slots"]}
        return {**served, "context_per_slot": self._context}

    def ask(self, question: str, limits: Limits, report: Callable[[int], None]) -> Reply:
        """Asks a question in a chat, as a user would. `report` is called with the number of pieces that have come."""
        body = {"max_tokens": limits.tokens, "cache_prompt": False, "temperature": limits.temperature, "seed": SEED}
        return _chat(self._api, "/v1/chat/completions", body | _messages(self._model, question), limits, report)

    def generate(self, text: str, seed: int, limits: Limits, report: Callable[[int], None]) -> Reply:
        """Has the engine write so many tokens after a text, whatever they say."""
        # A tokenizer may make many tokens of the text, and a context may be small. So no more is sent than fits.
        prompt = self._api.post("/tokenize", {"content": text, "add_special": True})["tokens"]
        tokens = min(limits.tokens, self._context // 2)
        body = {"prompt": prompt[: self._context - tokens], "n_predict": tokens, "ignore_eos": True}
        body |= {"temperature": limits.temperature, "seed": seed, "cache_prompt": False}
        reply, pieces = Reply(time.monotonic()), 0
        for event in _within(limits, reply, self._api.stream("/completion", body)):
            pieces += reply.add(event.get("content", ""), "")
            report(pieces)
            reply.take_timings(event.get("timings") or {})
        return reply

    def prompt(self, text: str, tokens: int) -> list[int]:
        """Returns the first so many tokens of a text."""
        found: list[int] = self._api.post("/tokenize", {"content": text, "add_special": True})["tokens"]
        return found[:tokens]

    def first_token(self, prompt: Any, seed: int, limits: Limits, report: Callable[[int], None]) -> Reply:
        """Lets the engine begin an answer to what `prompt` returned. `report` is told how many tokens of that are computed."""
        body = {"prompt": prompt, "n_predict": limits.tokens, "ignore_eos": True, "return_progress": True}
        body |= {"temperature": limits.temperature, "seed": seed, "cache_prompt": False}
        reply = Reply(time.monotonic())
        for event in _within(limits, reply, self._api.stream("/completion", body)):
            if computed := event.get("prompt_progress"):
                report(computed["processed"])
            else:
                reply.add(event.get("content", ""), "")
            reply.take_timings(event.get("timings") or {})
        return reply


class Ollama:
    """Ollama's own API."""

    unit, release = "r1prov-ollama", "/opt/r1prov/ollama/current"

    def __init__(self, api: Api, model: str, slots: int) -> None:
        self._api, self._model, self._slots = api, model, slots

    def facts(self) -> dict[str, Any]:
        """Returns what serves, as `LlamaServer.facts` does. The model is named by its name and its digest."""
        models = self._api.get("/api/tags")["models"]
        listed = [model for model in models if model["name"] in (self._model, f"{self._model}:latest")]
        if not listed:
            raise ApiError(f"Ollama has no model {self._model}: the role ollama registers it")
        parameters = self._api.post("/api/show", {"model": self._model})["parameters"].splitlines()
        return {
            "build": self._api.get("/api/version")["version"],
            "model": f"{listed[0]['name']}@{listed[0]['digest']}",
            "context_per_slot": next((int(line.split()[1]) for line in parameters if line.startswith("num_ctx")), 0),
            "slots": self._slots,
        }

    def ask(self, question: str, limits: Limits, report: Callable[[int], None]) -> Reply:
        """See `LlamaServer.ask`."""
        return self._stream("/api/chat", _messages(self._model, question), SEED, limits, report)

    def generate(self, text: str, seed: int, limits: Limits, report: Callable[[int], None]) -> Reply:
        """See `LlamaServer.generate`. The model may end sooner, because Ollama cannot make it go on."""
        body = {"model": self._model, "prompt": text, "raw": True}
        return self._stream("/api/generate", body, seed, limits, report)

    def prompt(self, text: str, tokens: int) -> str:
        """Returns about so many tokens of a text. Ollama tells how many tokens a text has when it has computed it."""
        words = text.split()
        sample = self.generate(" ".join(words[:SAMPLE_WORDS]), SEED, Limits(1, math.inf, 0), lambda _: None)
        return " ".join(words[: max(tokens * min(SAMPLE_WORDS, len(words)) // max(sample.prompt_tokens, 1), 1)])

    def first_token(self, prompt: Any, seed: int, limits: Limits, report: Callable[[int], None]) -> Reply:
        """See `LlamaServer.first_token`. Ollama does not tell how far it is."""
        del report
        return self.generate(prompt, seed, limits, lambda _: None)

    def _stream(
        self, path: str, body: dict[str, Any], seed: int, limits: Limits, report: Callable[[int], None]
    ) -> Reply:
        options = {"num_predict": limits.tokens, "temperature": limits.temperature, "seed": seed}
        reply, pieces = Reply(time.monotonic()), 0
        for event in _within(limits, reply, self._api.stream(path, body | {"options": options})):
            message = event.get("message", {"content": event.get("response", "")})
            pieces += reply.add(message["content"], message.get("thinking") or "")
            report(pieces)
            if event["done"]:
                reply.finish = event.get("done_reason", "")
                reply.prompt_tokens, reply.decode_tokens = event.get("prompt_eval_count", 0), event.get("eval_count", 0)
                reply.prompt_tokens_per_second = _rate(reply.prompt_tokens, event.get("prompt_eval_duration", 0))
                reply.decode_tokens_per_second = _rate(reply.decode_tokens, event.get("eval_duration", 0))
        return reply


class Page:
    """The chat page's API, used with a login."""

    unit, what = "r1prov-open-webui", "the chat page"
    _models, _chat = "/api/models", "/api/chat/completions"

    def __init__(self, api: Api, model: str) -> None:
        self._api, self._model = api, model

    def facts(self) -> dict[str, Any]:
        """Returns under which `model` it offers the engine's."""
        models = [model["id"] for model in self._api.get(self._models)["data"]]
        matching = [name for name in models if name in (self._model, f"{self._model}:latest")]
        if not matching:
            raise ApiError(f"{self.what} offers {', '.join(models) or 'no model'}, not {self._model}")
        return {"model": matching[0]}

    def ask(self, question: str, limits: Limits, report: Callable[[int], None]) -> Reply:
        """See `LlamaServer.ask`. Tokens are counted as they come, because the chat page does not tell their number."""
        body = {"max_tokens": limits.tokens, "temperature": limits.temperature, "seed": SEED}
        body |= _messages(self.facts()["model"], question)
        reply = _chat(self._api, self._chat, body, limits, report)
        seconds = reply.last_s - reply.first_s
        if not reply.decode_tokens_per_second and seconds:
            reply.decode_tokens_per_second = reply.decode_tokens / seconds
        return reply


class Balancer(Page):
    """The API of the balancer, behind which there are engines of several hosts."""

    unit, what, release = "r1prov-balancer", "the balancer", ""
    _models, _chat = "/v1/models", "/v1/chat/completions"

    def facts(self) -> dict[str, Any]:
        """Returns what serves, as `LlamaServer.facts` does. What differs from engine to engine is no fact of all of them."""
        return {"build": "", "model": self._model, "slots": 1, "context_per_slot": 0} | super().facts()

    def generate(self, text: str, seed: int, limits: Limits, report: Callable[[int], None]) -> Reply:
        """See `LlamaServer.generate`. It asks for that, because not every engine can be made to go on."""
        del seed
        return self.ask(text, limits, report)


def _messages(model: str, question: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": question}]}


def _chat(api: Api, path: str, body: dict[str, Any], limits: Limits, report: Callable[[int], None]) -> Reply:
    """Asks through an API that is like OpenAI's."""
    reply = Reply(time.monotonic())
    for event in _within(limits, reply, api.stream(path, body)):
        for choice in event.get("choices", [])[:1]:
            delta = choice.get("delta", {})
            if delta.get("content") or delta.get("reasoning_content"):
                reply.decode_tokens += reply.add(delta.get("content") or "", delta.get("reasoning_content") or "")
                report(reply.decode_tokens)
            reply.finish = choice.get("finish_reason") or reply.finish
        reply.take_timings(event.get("timings") or {})
    return reply


def _within(limits: Limits, reply: Reply, events: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The events, as long as the answer is within its limit of time."""
    for event in events:
        if time.monotonic() - reply.started_s > limits.seconds:
            raise ApiError(
                f"it took longer than {limits.seconds:.0f} s. Raise smoke_bench_timeout_s if this server is that slow"
            )
        yield event


def _rate(tokens: int, nanoseconds: int) -> float:
    return tokens * 1e9 / nanoseconds if nanoseconds else 0.0
