"""The chat page as a person's program sees it: its API with a login."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any


@dataclass
class Page:
    """One chat page; `token` is there after a login, `trust` is the authority of one behind TLS."""

    url: str
    token: str = ""
    trust: str | None = None

    def call(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """HTTP status and decoded JSON of a GET, or of a POST where there is a body."""
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {self.token}"} if self.token else {}
        )
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=self.trust)),
        )
        try:
            with opener.open(request, timeout=120) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, None

    def log_in(self, email: str, password: str) -> int:
        """The status of the attempt."""
        status, found = self.call("/api/v1/auths/signin", {"email": email, "password": password})
        self.token = found["token"] if found else ""
        return status

    def models(self) -> list[str]:
        """What the page offers to whoever is logged in."""
        return [model["id"] for model in self.call("/api/models")[1]["data"]]

    def ask(self, model: str, question: str) -> str:
        """The answer of a model, as a whole; the same each time, for a small model says odd things now and then."""
        body = {"model": model, "stream": False, "messages": [{"role": "user", "content": question}], "temperature": 0}
        status, found = self.call("/api/chat/completions", body)
        assert status == 200, status
        return found["choices"][0]["message"]["content"]
