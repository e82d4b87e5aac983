"""The private keys that a login tries: those of the ssh-agent, and those in files."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import paramiko
from paramiko.agent import AgentSSH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from r1prov.hosts.target import Target

AGENT_LIMIT_S = 10.0


def candidates(target: Target, locked: list[Path]) -> Iterator[paramiko.PKey]:
    """Yield the keys to try: first those that the agent holds, then those in files.

    Of the agent's keys, those that the configuration names come first. The paths of encrypted files that no agent holds are
    appended to `locked`.
    """
    files = [path for path in target.identity_files if path.is_file()]
    public = {path: _public_part(path) for path in target.identity_files}
    agent = _Agent(target.agent_socket)
    try:
        held = {key.get_base64(): key for key in agent.get_keys()}
        named = [held[blob] for blob in public.values() if blob in held]
        yield from named
        if not target.identities_only:
            yield from (key for key in held.values() if key not in named)
        for path in files:
            if public[path] in held:
                continue
            try:
                yield paramiko.PKey.from_path(path)
            except (paramiko.PasswordRequiredException, TypeError):
                # cryptography raises TypeError where a key needs a password and none was given
                locked.append(path)
            except (paramiko.SSHException, ValueError, OSError):
                continue  # paramiko cannot read keys that hardware holds, nor damaged ones
    finally:
        agent.close()


class _Agent(AgentSSH):
    """The ssh-agent behind one socket. Where there is no socket, it has no keys.

    paramiko's own class knows no socket but SSH_AUTH_SOCK.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        if not path:
            return
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(AGENT_LIMIT_S)
        with contextlib.suppress(OSError, paramiko.SSHException):
            connection.connect(path)
            self._connect(connection)  # type: ignore[attr-defined]  # paramiko has no public method for it

    def close(self) -> None:
        self._close()  # type: ignore[attr-defined]


def _public_part(path: Path) -> str:
    """The key in base64 from the .pub file beside a private key; empty where there is none."""
    try:
        fields = Path(f"{path}.pub").read_text().split()
    except (OSError, UnicodeDecodeError):
        return ""
    return fields[1] if len(fields) > 1 else ""
