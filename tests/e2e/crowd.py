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
from http.client import HTTPException


@dataclass
class Crowd:
    """What came of the requests of all of them.

    Attributes:
        url: of the API, without a path.
        key: of the API.
        trust: the authority of the gateway.
        whole: how many answers came to their end.
        failed: what went wrong with the others, in words.
        cut: of these, those of which a part had come already.
    """

    url: str
    key: str
    trust: str
    whole: int = 0
    failed: list[str] = field(default_factory=list)
    cut: int = 0

    @contextmanager
    def asking(self, people: int, tokens: int = 16) -> Iterator[None]:
        """So many people ask as long as this lasts, and are then answered to the end."""
        over, lock = threading.Event(), threading.Lock()

        def one() -> None:
            while not over.is_set():
                wrong, has_begun = self._ask(tokens)
                with lock:
                    self.whole += not wrong
                    self.cut += bool(wrong) and has_begun
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

    def _ask(self, tokens: int) -> tuple[str, bool]:
        """Ask for an answer of so many tokens. Returns what went wrong, if anything did, and whether a part of it had come."""
        body = {"messages": [{"role": "user", "content": "Tell me of Paris."}], "max_tokens": tokens, "stream": True}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        request = urllib.request.Request(f"{self.url}/v1/chat/completions", json.dumps(body).encode(), headers)
        tls = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=self.trust))
        said = b""
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({}), tls).open(request, timeout=300) as answer:
                for line in answer:
                    said += line
        except (OSError, ValueError, HTTPException) as error:
            return repr(error), bool(said)
        return "" if said.rstrip().endswith(b"[DONE]") else f"it was cut: {said[-80:]!r}", bool(said)
