"""Looks at an engine: llama-server by its counters, Ollama by what its processes use. Both can be asked for a token."""

from __future__ import annotations

import re
import socket
import sys
import threading
from abc import ABC, abstractmethod
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.r1.prov.plugins.module_utils.http_api import Api, ApiError, AwayError
from living import effort
from living.judge import Effort, Rules, Seen, State, Token

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ANSWER_S = 5.0
"""An engine that has not said anything after so long is silent."""
TOKEN_S = 3600.0
"""The judge is done with a token before that."""
KNOWN_FROM = 64
"""So many tokens of prompts between two looks say how long one takes. The watcher's own prompts are shorter, and slower."""
FINE = 5000
"""llama-server shows six digits of a counter. What it has grown by counts from this part of it on."""
SELF = Path("/proc/self/net")
ESTABLISHED = "01"
WORD = "1"
"""A prompt of one token or two."""
_FIGURE = re.compile(r"^llamacpp:(\w+) (\S+)$", re.MULTILINE)
_WORK = ("n_decode_total", "prompt_tokens_total", "tokens_predicted_total")


class Engine(ABC):
    """One engine of this host.

    Args:
        url: where it listens.
        key_file: the file with its key; empty for none.
        user: as whom its processes run.
    """

    rules: Rules

    def __init__(self, url: str, key_file: str, user: str) -> None:
        self._quick = Api(url, key_file, ANSWER_S)
        self._slow = Api(url, key_file, TOKEN_S)
        self._user = user
        self._token = Token.NONE
        self._why = ""

    def look(self, at_s: float) -> Seen:
        """What it shows of itself. A token that has come, or failed, is told once."""
        used, token = effort.of(self._user), self._token
        if token in (Token.CAME, Token.FAILED):
            self._token = Token.NONE
        if why := self._why:
            self._why = ""
            return Seen(at_s, State.UNKNOWN, why)
        try:
            return self._look(at_s, token, used)
        except AwayError as error:
            return Seen(at_s, State.LOADING if error.status else State.DOWN)
        except ApiError as error:
            if error.status:
                return Seen(at_s, State.UNKNOWN, why=f"cannot be judged: {error}")
        except (OSError, HTTPException):  # It says the head of an answer and no more.
            pass
        return Seen(at_s, State.SILENT, token=token, effort=used)

    def ask(self) -> None:
        """Asks for a token, and does not wait for it."""
        if self._token == Token.NONE:
            self._token = Token.ASKED
            threading.Thread(target=self._asks, daemon=True).start()

    def _asks(self) -> None:
        try:
            self._generate()
        except ApiError as error:
            is_refused = 400 <= error.status < 500
            self._why = f"cannot be judged: {error}" if is_refused else ""
            # One that went away is found by the next look.
            is_its_own = error.status >= 500 and not isinstance(error, AwayError)
            self._token = Token.FAILED if is_its_own else Token.NONE
        except (OSError, HTTPException):
            self._token = Token.NONE
        else:
            self._token = Token.CAME

    @abstractmethod
    def _look(self, at_s: float, token: Token, used: Effort) -> Seen:
        """What it shows of itself.

        Raises:
            ApiError: it does not.
        """

    @abstractmethod
    def _generate(self) -> None:
        """Lets it generate one token.

        Raises:
            ApiError: it does not.
        """


class LlamaServer(Engine):
    """llama.cpp's server. What it counts is seen without a slot, and also while it computes.

    Args:
        url: where it listens.
        key_file: the file with its key.
        user: as whom it runs.
        rules: what holds for it.
        workers: where it reaches the other machines that hold parts of the model, each as `127.0.0.2:7444`.
        net: where the kernel lists connections.
    """

    def __init__(
        self, url: str, key_file: str, user: str, rules: Rules, *, workers: Iterable[str] = (), net: Path = SELF
    ) -> None:
        super().__init__(url, key_file, user)
        self.rules = rules
        self._workers, self._net = frozenset(map(_in_hex, workers)), net
        self._prompts: tuple[float, float] | None = None

    def _look(self, at_s: float, token: Token, used: Effort) -> Seen:
        told = {name: float(figure) for name, figure in _FIGURE.findall(self._quick.text("/metrics"))}
        if _WORK[0] not in told:
            return Seen(at_s, State.UNKNOWN, why=f"cannot be judged: its /metrics has no {_WORK[0]}")
        return Seen(
            at_s,
            State.ANSWERS,
            work=tuple(told.get(name, 0.0) for name in _WORK),
            requests=int(told.get("requests_processing", 0) + told.get("requests_deferred", 0)),
            prompt_s=self._prompt_s(told.get("prompt_tokens_total", 0.0), told.get("prompt_seconds_total", 0.0)),
            token=token,
            effort=used,
            is_severed=not self._workers <= {their for _, their in _connections(self._net)},
        )

    def _prompt_s(self, tokens: float, seconds: float) -> float | None:
        """How long a token of the prompts took that were read since the last look; None where there were too few."""
        before, self._prompts = self._prompts, (tokens, seconds)
        if not before or tokens - before[0] < max(KNOWN_FROM, tokens / FINE):
            return None
        return (seconds - before[1]) / (tokens - before[0])

    def _generate(self) -> None:
        self._slow.post("/completion", {"prompt": WORD, "n_predict": 1, "cache_prompt": False})


class Ollama(Engine):
    """Ollama. It counts nothing, so what its processes use has to do for its work.

    Args:
        url: where it listens.
        user: as whom it runs.
        model: the model that it serves.
        rules: what holds for it.
        net: where the kernel lists connections.
    """

    def __init__(self, url: str, user: str, model: str, rules: Rules, net: Path = SELF) -> None:
        super().__init__(url, "", user)
        self._model, self._net = model, net
        self._port = int(url.rpartition(":")[2])
        self.rules = rules

    def _look(self, at_s: float, token: Token, used: Effort) -> Seen:
        self._quick.get("/api/version")
        own = token == Token.ASKED
        return Seen(at_s, State.ANSWERS, requests=self._connections() - own, token=token, effort=used)

    def _connections(self) -> int:
        """How many connections others have to it: each carries one request, or has carried one just now."""
        return sum(own.endswith(f":{self._port:04X}") for own, _ in _connections(self._net))

    def _generate(self) -> None:
        options = {"num_predict": 1}
        body = {"model": self._model, "prompt": WORD, "raw": True, "stream": False, "options": options}
        self._slow.post("/api/generate", body)


def _connections(net: Path) -> Iterator[tuple[str, str]]:
    """The two ends of each connection that stands, as the kernel lists them: the own one and the other."""
    for name in ("tcp", "tcp6"):
        for line in effort.text_of(net / name).splitlines()[1:]:
            _, own, their, state, *_ = line.split()
            if state == ESTABLISHED:
                yield own, their


def _in_hex(address: str) -> str:
    """An IPv4 address with its port, as the kernel lists it."""
    host, _, port = address.rpartition(":")
    return f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}:{int(port):04X}"
