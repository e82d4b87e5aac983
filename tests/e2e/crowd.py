"""People who ask all the time, each as soon as the last answer has come."""

from __future__ import annotations

import json
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Crowd:
    """What came of the requests of all of them.

    Attributes:
        url: of the API, without a path.
        key: of the API.
        trust: the authority of the gateway.
        whole: how many answers came to their end.
        failed: what went wrong with the others, in words.
    """

    url: str
    key: str
    trust: str
    whole: int = 0
    failed: list[str] = field(default_factory=list)

    @contextmanager
    def asking(self, people: int, tokens: int = 16) -> Iterator[None]:
        """So many people ask as long as this lasts, and are then answered to the end."""
        over, lock = threading.Event(), threading.Lock()

        def one() -> None:
            while not over.is_set():
                wrong = self._ask(tokens)
                with lock:
                    self.whole += not wrong
                    self.failed += [f"{time.strftime('%H:%M:%S')} {wrong}"] if wrong else []

        threads = [threading.Thread(target=one) for _ in range(people)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()

    def _ask(self, tokens: int) -> str:
        """Ask for an answer of so many tokens. Returns what went wrong, if anything did."""
        body = {"messages": [{"role": "user", "content": "Tell me of Paris."}], "max_tokens": tokens, "stream": True}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        request = urllib.request.Request(f"{self.url}/v1/chat/completions", json.dumps(body).encode(), headers)
        tls = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=self.trust))
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({}), tls).open(request, timeout=300) as answer:
                said = answer.read().decode()
        except (OSError, ValueError) as error:
            return repr(error)
        return "" if said.rstrip().endswith("[DONE]") else f"it was cut: {said[-80:]!r}"
