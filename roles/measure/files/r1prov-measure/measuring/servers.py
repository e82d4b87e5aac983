"""The servers that are compared: each is started, loaded, asked for tokens, and stopped. They answer with their own timings."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import tempfile
import textwrap
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measuring.work import FailedError

if TYPE_CHECKING:
    from collections.abc import Callable

PORT = 8000
LOOK_EVERY_S = 0.2
PATIENCE_S = 5.0
"""So long a server may take to end when it is asked to. Then it is killed."""
ERROR = re.compile(r"error|fail|fatal|cannot|unable|denied|no space|out of memory", re.IGNORECASE)
LONGEST_WORDS = 200
"""The most letters that are repeated of a line of a log."""
SAMPLE_WORDS = 16
"""As many words show how many tokens a word has. They find room in every slot."""
TEXT = (
    "the of and river mountain city people water light answer question because under between history science music"
    " garden window market winter summer engine letter number reason village animal kitchen doctor teacher morning"
    " evening journey island forest bridge colour paper silver machine memory language country weather picture"
)
"""Of these words prompts are made."""


@dataclass(frozen=True)
class Timing:
    """What a server says about one answer: tokens, and tokens/s."""

    prompt_tokens: int
    prompt_rate: float
    decode_tokens: int
    decode_rate: float


class SkippedError(Exception):
    """A server cannot be measured there; the message says why, and nothing has gone wrong."""


class Server(ABC):
    """A program that serves one model.

    Args:
        mode: of the job (see modes.py).
        job: the job.
    """

    def __init__(self, mode: dict[str, Any], job: dict[str, Any]) -> None:
        self.mode, self.job = mode, job
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - `stop` closes it
        self._process: subprocess.Popen[str] | None = None
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    @property
    def pid(self) -> int:
        """The process that was started; 0 before."""
        return self._process.pid if self._process else 0

    @abstractmethod
    def start(self, ends_s: float) -> None:
        """Starts it, and loads the model.

        Args:
            ends_s: until when, by time.monotonic().

        Raises:
            SkippedError: the model is not there.
            FailedError: it does not start, or is not ready in time.
        """

    @abstractmethod
    def prompt(self, tokens: int, seed: int) -> Any:
        """A text of about so many tokens, which begins otherwise with each seed. Longer ones of a seed begin as shorter ones do."""

    @abstractmethod
    def ask(self, prompt: Any, tokens: int, ends_s: float, *, keep: bool = False) -> Timing:
        """Has it write so many tokens after a prompt.

        Args:
            prompt: of `prompt`.
            tokens: how many.
            ends_s: until when, by time.monotonic().
            keep: what the slot holds of the beginning of the prompt is not computed again, and does not count.

        Raises:
            FailedError: there is no answer.
        """

    def stop(self) -> None:
        """Ends it with all its descendants, also where it does not want to."""
        if self._process:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(PATIENCE_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._log.close()

    def _spawn(self, argv: list[str], environment: dict[str, str]) -> None:
        own = {**os.environ, **{key: str(value) for key, value in environment.items()}}
        try:
            self._process = subprocess.Popen(
                argv, stdout=self._log, stderr=subprocess.STDOUT, env=own, text=True, start_new_session=True
            )
        except OSError as error:
            raise FailedError(f"it does not start: {error}") from None

    def _await(self, ready: Callable[[], bool], ends_s: float) -> None:
        began_s = time.monotonic()
        while not ready():
            self._expect_life()
            if time.monotonic() > ends_s:
                raise FailedError(
                    f"it was not ready within {time.monotonic() - began_s:.0f} s, its share of the time limit"
                )
            time.sleep(LOOK_EVERY_S)

    def _expect_life(self) -> None:
        code = self._process.poll() if self._process else None
        if code is not None:
            raise FailedError(f"it ended with {code}: {self._words()}")

    def _words(self) -> str:
        """The last words of its log, of errors where it names some."""
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().splitlines() if line.strip()]
        told = [line for line in lines if ERROR.search(line)] or lines
        return (
            " / ".join(textwrap.shorten(line, LONGEST_WORDS, placeholder=" ...") for line in told[-2:])
            or "it said nothing"
        )

    def _call(self, path: str, body: dict[str, Any] | None, timeout_s: float) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", data, {"Content-Type": "application/json"})
        with self._opener.open(request, timeout=timeout_s) as answer:
            return json.loads(answer.read())

    def _answer(self, path: str, body: dict[str, Any], ends_s: float) -> Any:
        left_s = ends_s - time.monotonic()
        if left_s <= 0:
            raise FailedError("no time was left for it")
        try:
            return self._call(path, body, left_s)
        except urllib.error.HTTPError as error:
            raise FailedError(f"it answers {error.code}: {error.read(300).decode(errors='replace')}") from None
        except (OSError, HTTPException, ValueError) as error:
            if isinstance(getattr(error, "reason", error), TimeoutError):
                raise FailedError("an answer was not over within the time limit") from None
            time.sleep(LOOK_EVERY_S)  # A program that has crashed is gone a moment later.
            self._expect_life()
            raise FailedError(f"it does not answer: {error}") from None

    def _answers(self, path: str) -> bool:
        try:
            self._call(path, None, 10)
        except (OSError, HTTPException, ValueError):
            return False
        return True


class LlamaServer(Server):
    """llama-server with the arguments of a mode."""

    def start(self, ends_s: float) -> None:
        """See `Server.start`."""
        mode = self.mode
        if not Path(mode["model"]).exists():
            raise SkippedError(mode["absent"])
        own = ["--model", mode["model"], "--host", "127.0.0.1", "--port", str(PORT), "--no-ui", "--offline"]
        self._spawn([self.job["llama_server"], *own, *mode["arguments"]], mode["environment"])
        self._await(lambda: self._answers("/health"), ends_s)
        self._tokens = self._answer("/tokenize", {"content": TEXT}, ends_s)["tokens"]

    def prompt(self, tokens: int, seed: int) -> Any:
        """See `Server.prompt`."""
        return random.Random(seed).choices(self._tokens, k=tokens)  # noqa: S311 - no secret

    def ask(self, prompt: Any, tokens: int, ends_s: float, *, keep: bool = False) -> Timing:
        """See `Server.ask`."""
        body = {"prompt": prompt, "n_predict": tokens, "ignore_eos": True, "temperature": 0, "cache_prompt": keep}
        told = self._answer("/completion", body | ({"id_slot": 0} if keep else {}), ends_s)["timings"]
        return Timing(told["prompt_n"], told["prompt_per_second"], told["predicted_n"], told["predicted_per_second"])


class Ollama(Server):
    """Ollama with the model as it is registered there."""

    def __init__(self, mode: dict[str, Any], job: dict[str, Any]) -> None:
        super().__init__(mode, job)
        self._kept = 0
        self._tokens_per_word = 1.0

    def start(self, ends_s: float) -> None:
        """See `Server.start`."""
        environment = {
            **self.mode["environment"],
            "HOME": os.environ.get("STATE_DIRECTORY", "/tmp"),  # noqa: S108 - only where no unit has started this
            "OLLAMA_HOST": f"127.0.0.1:{PORT}",
            "OLLAMA_MODELS": self.job["ollama_models_dir"],
            "OLLAMA_NOPRUNE": "1",  # it would remove what no model uses
            "OLLAMA_KEEP_ALIVE": "-1",
            "OLLAMA_LOAD_TIMEOUT": f"{max(1, ends_s - time.monotonic()):.0f}s",
            "OLLAMA_NUM_PARALLEL": self.mode["slots"],
            "OLLAMA_MAX_LOADED_MODELS": "1",
            "OLLAMA_NO_CLOUD": "1",
        }
        if not Path(self.job["ollama"]).exists():
            raise SkippedError(self.mode["absent"])
        self._spawn([self.job["ollama"], "serve"], environment)
        self._await(lambda: self._answers("/api/version"), ends_s)
        name = self.mode["ollama_model"]
        names = {model["name"] for model in self._call("/api/tags", None, 30)["models"]}
        if not names & {name, f"{name}:latest"}:
            raise SkippedError(self.mode["absent"])
        self._answer("/api/generate", {"model": name, "stream": False}, ends_s)
        sample = self.ask(self.prompt(SAMPLE_WORDS, -1), 1, ends_s)
        # Ollama has no way to ask for tokens. A model with a small vocabulary has several for a word.
        self._tokens_per_word = max(sample.prompt_tokens / SAMPLE_WORDS, 1.0)

    def prompt(self, tokens: int, seed: int) -> Any:
        """See `Server.prompt`."""
        words = max(int(tokens / self._tokens_per_word), 1)
        return " ".join(random.Random(seed).choices(TEXT.split(), k=words))  # noqa: S311 - no secret

    def ask(self, prompt: Any, tokens: int, ends_s: float, *, keep: bool = False) -> Timing:
        """See `Server.ask`. It may end sooner than asked, because nothing makes Ollama go on."""
        options = {"num_predict": tokens, "temperature": 0.8, "seed": 1}
        body = {"model": self.mode["ollama_model"], "prompt": prompt, "raw": True, "stream": False, "options": options}
        told = self._answer("/api/generate", body, ends_s)
        asked, decoded = told.get("prompt_eval_count", 0), told.get("eval_count", 0)
        # It counts the whole prompt, and measures the time of what it has not kept.
        new = asked - self._kept if keep and asked > self._kept else asked
        self._kept = asked if keep else self._kept
        return Timing(
            new,
            _rate(new, told.get("prompt_eval_duration", 0)),
            decoded,
            _rate(decoded, told.get("eval_duration", 0)),
        )


def _rate(tokens: int, nanoseconds: int) -> float:
    return tokens * 1e9 / nanoseconds if nanoseconds else 0.0


ENGINES: dict[str, type[Server]] = {"llama-server": LlamaServer, "ollama": Ollama}
