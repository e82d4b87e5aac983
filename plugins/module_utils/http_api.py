"""A small client of the HTTP APIs of r1prov's services. It needs the standard library only, and never asks a proxy."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.client import HTTPResponse

_NOBODY_BEHIND = (502, 503, 504)
"""With these a proxy, or a server that still loads, says that the service itself is not there."""


class ApiError(Exception):
    """The server does not answer, or answers with an error. `status` is the HTTP status, or 0 where there was no answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class AwayError(ApiError):
    """The service is not there, or went away in the middle of its answer."""


class Api:
    """One server.

    Args:
        url: without a path, e.g. `http://127.0.0.1:8000`.
        key_file: a file on this host with the API key; empty for none.
        timeout_s: the longest silence of the server that is tolerated.
    """

    def __init__(self, url: str, key_file: str = "", timeout_s: float = 30.0) -> None:
        self._url, self._timeout_s = url.rstrip("/"), timeout_s
        self._headers = {"Content-Type": "application/json"}
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        if key_file:
            try:
                self.use_key(Path(key_file).read_text(encoding="utf-8").strip())
            except OSError as error:
                raise ApiError(f"the API key cannot be read: {error}") from error

    def use_key(self, key: str) -> None:
        """Sends this key with every request from now on."""
        self._headers["Authorization"] = f"Bearer {key}"

    def get(self, path: str) -> Any:
        """The JSON at a path."""
        return self._json(path, None)

    def text(self, path: str) -> str:
        """The text at a path."""
        with self._open(path, None) as answer:
            return answer.read().decode("utf-8", errors="replace")

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Posts JSON and returns the JSON of the answer."""
        return self._json(path, body)

    def delete(self, path: str, body: dict[str, Any]) -> None:
        """Deletes what the JSON names."""
        self._open(path, body, "DELETE").close()

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Posts JSON and yields the events of the answer as they come: server-sent events, or a line of JSON each (Ollama).

        Raises:
            AwayError: the answer has no end, so who wrote it went away.
        """
        whole = False
        with self._open(path, body | {"stream": True}) as answer:
            try:
                for raw in answer:
                    line = raw.decode("utf-8", errors="replace").strip()
                    if line.startswith("error:"):
                        raise ApiError(f"{path} broke off: {line}")
                    data = line.removeprefix("data:").strip()
                    whole = whole or data == "[DONE]"
                    if data.startswith("{"):
                        event = json.loads(data)
                        if "error" in event:
                            raise ApiError(f"{path} broke off: {event['error']}")
                        yield event
                        whole = whole or _is_last(event)
            except TimeoutError as error:
                raise ApiError(f"{path} broke off: {error}") from error
            except (OSError, HTTPException, ValueError) as error:
                if not whole:
                    raise AwayError(f"{path} broke off in the middle of the answer: {error!r}") from error
        if not whole:
            raise AwayError(f"{path} ended in the middle of the answer")

    def _json(self, path: str, body: dict[str, Any] | None) -> Any:
        with self._open(path, body) as answer:
            try:
                return json.load(answer)
            except TimeoutError as error:
                raise ApiError(f"{path} broke off: {error}") from error
            except (OSError, HTTPException, ValueError) as error:
                raise AwayError(f"{path} broke off in the middle of the answer: {error!r}") from error

    def _open(self, path: str, body: dict[str, Any] | None, method: str | None = None) -> HTTPResponse:
        data, url = None if body is None else json.dumps(body).encode(), self._url + path
        request = urllib.request.Request(url, data, self._headers, method=method)  # noqa: S310 - the operator's own URL
        try:
            answer: HTTPResponse = self._opener.open(request, timeout=self._timeout_s)
        except urllib.error.HTTPError as error:
            text = error.read(500).decode("utf-8", errors="replace")
            kind = AwayError if error.code in _NOBODY_BEHIND else ApiError
            raise kind(f"{url} answers HTTP {error.code}: {text}", error.code) from error
        except (OSError, HTTPException) as error:
            # A door listens at all times, and closes the connection while the service behind it is down.
            down = "the service behind it is down" if isinstance(error, ConnectionResetError) else ""
            reason = getattr(error, "reason", error)
            kind = ApiError if isinstance(reason, TimeoutError) else AwayError
            raise kind(f"{url} does not answer: {down or reason}") from error
        return answer


def _is_last(event: dict[str, Any]) -> bool:
    """Whether an event says that the answer ends with it: of Ollama, of llama-server's own API, of one like OpenAI's."""
    ends = (choice.get("finish_reason") for choice in event.get("choices") or ())
    return event.get("done") is True or event.get("stop") is True or any(ends)
