"""The ssh host keys that are known: OpenSSH's files read the way OpenSSH reads them, and the site's own file written.

paramiko's reader is not used: it stops at `@cert-authority` lines and knows neither patterns nor `@revoked`.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import hmac
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_writing = threading.Lock()


@dataclass(frozen=True)
class KnownKey:
    """One line that speaks of a host: key type, key in base64, where it stands, whether it is revoked."""

    type: str
    key: str
    file: Path
    line: int
    revoked: bool


def entry_name(host: str, port: int) -> str:
    """The name under which a host key is listed: the host, with the port where it is not 22."""
    return host.lower() if port == 22 else f"[{host.lower()}]:{port}"


def lookup(files: Iterable[Path], name: str) -> list[KnownKey]:
    """All keys that `files` list for `name`; files that do not exist list none."""
    return [known for file in files for known in _entries(file, name)]


def remember(file: Path, name: str, key_type: str, key: str) -> None:
    """Append a key to `file`, which is made 0600 if need be."""
    with _writing:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(f"{name} {key_type} {key}\n")


def _entries(file: Path, name: str) -> Iterator[KnownKey]:
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        marker = fields.pop(0) if fields[0].startswith("@") else ""
        if marker in {"", "@revoked"} and len(fields) >= 3 and _matches(fields[0], name):
            yield KnownKey(fields[1], fields[2], file, number, revoked=marker == "@revoked")


def _matches(patterns: str, name: str) -> bool:
    found = False
    for pattern in patterns.split(","):
        if pattern.startswith("|1|"):
            found = found or _hash_matches(pattern, name)
        elif pattern.startswith("!"):
            if _glob(pattern[1:], name):
                return False
        else:
            found = found or _glob(pattern, name)
    return found


def _glob(pattern: str, name: str) -> bool:
    """`*` and `?` are wild, brackets are not: `[host]:2222` is literal."""
    return fnmatch.fnmatchcase(name, pattern.lower().replace("[", "[[]"))


def _hash_matches(hashed: str, name: str) -> bool:
    try:
        salt, digest = (base64.b64decode(part) for part in hashed[3:].split("|"))
    except ValueError:
        return False
    return hmac.compare_digest(hmac.new(salt, name.encode(), hashlib.sha1).digest(), digest)
