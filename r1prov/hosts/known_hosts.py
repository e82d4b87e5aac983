"""Reads known_hosts files the way OpenSSH does, and adds host keys to the site's own file.

paramiko's reader would not do: it stops at `@cert-authority` lines and knows neither patterns nor `@revoked`.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import hmac
import os
import subprocess
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import paramiko

_writing = threading.Lock()


@dataclass(frozen=True)
class KnownKey:
    """One line of a known_hosts file that holds for a host. `key` is in base64, and `line` counts from 1."""

    type: str
    key: str
    file: Path
    line: int
    revoked: bool


def entry_name(host: str, port: int) -> str:
    """The name under which known_hosts files list a host: the host, with the port where that is not 22."""
    return host.lower() if port == 22 else f"[{host.lower()}]:{port}"


def lookup(files: Iterable[Path], name: str) -> list[KnownKey]:
    """All keys that `files` list for `name`. A file that does not exist lists none."""
    return [known for file in files for known in _entries(file, name)]


def remember(file: Path, name: str, key_type: str, key: str) -> None:
    """Append a key to `file`, which is made with mode 0600 where it does not exist."""
    with _writing:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            # A person may have left the last line without an end.
            start = "" if not file.stat().st_size or file.read_bytes().endswith(b"\n") else "\n"
            stream.write(f"{start}{name} {key_type} {key}\n")


def revokes(file: Path, key: paramiko.PKey) -> bool:
    """Whether a file that RevokedHostKeys names lists a key. A file that cannot be read revokes all keys, as it does for ssh."""
    argv = ["ssh-keygen", "-Q", "-f", str(file), "/dev/stdin"]
    line = f"{key.get_name()} {key.get_base64()}\n"
    return subprocess.run(argv, input=line, text=True, capture_output=True, check=False).returncode != 0


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
    """Whether a list of patterns names a host. A negated pattern (`!`) that fits outweighs all others."""
    matched = False
    for pattern in patterns.split(","):
        if pattern.startswith("|1|"):
            matched = matched or _hash_matches(pattern, name)
        elif pattern.startswith("!"):
            if _glob(pattern[1:], name):
                return False
        else:
            matched = matched or _glob(pattern, name)
    return matched


def _glob(pattern: str, name: str) -> bool:
    """Whether a pattern fits a name. `*` and `?` are wildcards; brackets are literal, as in `[host]:2222`."""
    return fnmatch.fnmatchcase(name, pattern.lower().replace("[", "[[]"))


def _hash_matches(hashed: str, name: str) -> bool:
    """Whether `|1|SALT|DIGEST` is the HMAC-SHA1 of a name, as ssh-keygen -H writes it."""
    try:
        salt, digest = (base64.b64decode(part) for part in hashed[3:].split("|"))
    except ValueError:
        return False
    return hmac.compare_digest(hmac.new(salt, name.encode(), hashlib.sha1).digest(), digest)
