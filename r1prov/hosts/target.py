"""Asks `ssh -G` how OpenSSH would reach a host, so that the first contact goes the same way as Ansible's ssh."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from r1prov.common.errors import Problem, UnreachableError
from r1prov.hosts import known_hosts

LIMIT_S = 10.0


@dataclass(frozen=True)
class Target:
    """One ssh server as OpenSSH's configuration describes it. `alias` is the name that the operator wrote."""

    alias: str
    host: str
    port: int
    user: str
    host_key_alias: str
    identity_files: tuple[Path, ...]
    identities_only: bool
    agent_socket: str
    known_hosts: tuple[Path, ...]
    revoked_keys: tuple[Path, ...]
    accepts_new_keys: bool
    proxy_jump: str
    proxy_command: str

    @property
    def key_name(self) -> str:
        """The name of the server in known_hosts files."""
        return known_hosts.entry_name(self.host_key_alias or self.host, 22 if self.host_key_alias else self.port)


def describe(
    alias: str, user: str | None, port: int | None, config: Path | None, identity_file: str | None = None
) -> Target:
    """Ask OpenSSH how it would reach a server.

    Args:
        alias: the name that the operator wrote.
        user: the user who logs in, instead of the one that the configuration names.
        port: the port, instead of the one that the configuration names.
        config: the file to read instead of ~/.ssh/config.
        identity_file: a private key that is tried before those that the configuration names.

    Raises:
        UnreachableError: this machine has no ssh client, or the configuration is wrong or too slow.
    """
    argv = [
        "ssh",
        *(["-F", str(config)] if config else []),
        *(["-l", user] if user else []),
        *(["-p", str(port)] if port else []),
        *(["-i", identity_file] if identity_file else []),
        "-G",
        "--",
        alias,
    ]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=LIMIT_S
        )
    except FileNotFoundError:
        _fail(alias, "this machine has no ssh client", "install one (Debian, Ubuntu: apt install openssh-client)")
    except subprocess.TimeoutExpired:
        _fail(
            alias,
            f"`ssh -G {alias}` did not answer in {LIMIT_S:.0f} s",
            "check the commands of `Match exec` in your ssh configuration",
        )
    if done.returncode:
        _fail(alias, f"your ssh configuration is not usable: {done.stderr.strip()}", "correct it; `ssh -G` checks it")
    settings: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        key, _, value = line.partition(" ")
        settings.setdefault(key, []).append(value)

    def first_value(key: str, default: str = "") -> str:
        value = settings.get(key, [default])[0]
        return "" if value == "none" else value

    tokens = {
        "%": "%",
        "d": str(Path.home()),
        "h": first_value("hostname"),
        "n": alias,
        "p": first_value("port"),
        "r": first_value("user"),
        "u": Path.home().name,
    }
    files = f"{first_value('userknownhostsfile')} {first_value('globalknownhostsfile')}".split()
    return Target(
        alias=alias,
        host=first_value("hostname"),
        port=int(first_value("port", "22")),
        user=first_value("user"),
        host_key_alias=first_value("hostkeyalias"),
        identity_files=tuple(Path(_expand(path, tokens)).expanduser() for path in settings.get("identityfile", [])),
        identities_only=first_value("identitiesonly") == "yes",
        agent_socket=_agent_socket(settings.get("identityagent", ["SSH_AUTH_SOCK"])[0]),
        known_hosts=tuple(Path(_expand(file, tokens)).expanduser() for file in files),
        revoked_keys=(Path(_expand(revoked, tokens)).expanduser(),)
        if (revoked := first_value("revokedhostkeys"))
        else (),
        accepts_new_keys=first_value("stricthostkeychecking") in {"false", "no", "off", "accept-new"},
        proxy_jump=first_value("proxyjump"),
        proxy_command=_expand(first_value("proxycommand"), tokens),
    )


def split_jump(text: str) -> tuple[str | None, int | None, str]:
    """Split a jump host, written as `user@host:port`, `[v6]:port` or `ssh://...`, into user, port and host."""
    user, at, rest = text.strip().removeprefix("ssh://").rpartition("@")
    if rest.startswith("["):
        host, _, port = rest[1:].partition("]")
        port = port.removeprefix(":")
    elif rest.count(":") == 1:
        host, _, port = rest.partition(":")
    else:
        host, port = rest, ""
    return user if at else None, int(port) if port else None, host


def _agent_socket(setting: str) -> str:
    """The path of the agent's socket that IdentityAgent names; empty for none."""
    if setting == "none":
        return ""
    if setting == "SSH_AUTH_SOCK":
        return os.environ.get("SSH_AUTH_SOCK", "")
    return os.environ.get(setting[1:], "") if setting.startswith("$") else str(Path(setting).expanduser())


def _expand(text: str, tokens: dict[str, str]) -> str:
    """Replace OpenSSH's percent tokens in a setting. Unknown ones stay as they are."""
    out, rest = "", text
    while "%" in rest:
        head, _, rest = rest.partition("%")
        out += head + tokens.get(rest[:1], f"%{rest[:1]}")
        rest = rest[1:]
    return out + rest


def _fail(where: str, what: str, remedy: str) -> NoReturn:
    raise UnreachableError(Problem(where, what, remedy)) from None
