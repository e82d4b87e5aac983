"""What others say, fit for a log, and what something wrong is, by its first bytes."""

from __future__ import annotations

import html
import http.client
import re
import time
from typing import IO

HEAD_BYTES = 4096  # enough to tell what a wrong file is, with the title of a page
HEAD_S = 60
PAGE, LFS, TEXT = "a web page", "a Git LFS pointer", "text"
TEXT_CHARS = 80  # of a wrong file, which say what it is


def beginning(stream: IO[bytes]) -> bytes:
    """The first bytes of an answer, which tell what it is."""
    head, until = b"", time.monotonic() + HEAD_S
    while len(head) < HEAD_BYTES and time.monotonic() < until:
        try:
            block: bytes = stream.read(HEAD_BYTES - len(head))
        except (OSError, http.client.HTTPException):
            break
        if not block:
            break
        head += block
    return head


def kind_of(head: bytes, content_type: str = "") -> str:
    """What something wrong is, by its first bytes and by what its server calls it. Empty where that cannot be told."""
    text = head.decode("utf-8", "replace").lstrip("\ufeff")
    # Comments and declarations say nothing of what follows.
    text = re.sub(r"\A(\s|<!--.*?-->|<\?.*?\?>)+", "", text, flags=re.DOTALL)
    if text.startswith("version https://git-lfs"):
        return LFS
    if "html" in content_type.lower() or re.match(
        r"<(!doctype html|html|head|body|script|meta)\b", text, re.IGNORECASE
    ):
        title = re.search(r"<title[^>]*>(.*?)</title", text, re.IGNORECASE | re.DOTALL)
        return f'{PAGE} with the title "{plain(html.unescape(title[1]))}"' if title else PAGE
    if head.startswith(b"\x1f\x8b"):
        return "a gzip archive"
    # No model is without these bytes at its beginning.
    if not head or re.search(rb"[\x00-\x08\x0e-\x1a]", head):
        return ""
    first = plain(text)[:TEXT_CHARS]
    return f'{TEXT} that begins with "{first}"' if first else TEXT


def wrong_file(wanted_bytes: int, size: int | None, kind: str = "", whence: str = "") -> str:
    """Why something of that size and kind is refused."""
    if kind == LFS:
        return f"has only {LFS} in its place: fetch the file itself there with `git lfs pull`"
    if kind.startswith(PAGE):
        return f"sends {kind}{whence} instead of the file: a login, a proxy or a filter may stand in between"
    if kind:
        return f"sends {kind}{whence} instead of the file"
    return f"has {size} bytes{whence} where {wanted_bytes} are wanted: another file, or another revision of it"


def plain(text: str) -> str:
    """The beginning of a text of others, fit for one line of a log."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())[:100]


def words(error: object) -> str:
    """The message of an exception, without its number."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def clock(monotonic_s: float) -> str:
    """A moment of this run as a time of day."""
    return time.strftime("%H:%M:%S UTC", time.gmtime(time.time() + monotonic_s - time.monotonic()))


def listed(names: list[str]) -> str:
    """Names as people write them one after the other."""
    return " and ".join(names)
