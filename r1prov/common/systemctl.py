"""The commands about a host's units, whoever runs them there. The collection knows them; this is the way to what it knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from r1prov.common.paths import module_util

if TYPE_CHECKING:
    from pathlib import Path


def systemctl(*words: str) -> list[str]:
    """The command with which a host is asked what `systemctl WORDS...` answers."""
    command: list[str] = module_util("units").anywhere(*words)
    return command


def sign_of_systemd() -> Path:
    """The folder that is there where systemd runs a host."""
    folder: Path = module_util("units").SYSTEMD
    return folder


def in_words(verb: str, unit: str, *, systemd: bool = True) -> str:
    """The command that a person types on a host, e.g. `systemctl stop r1prov-ollama`. The verb `log` shows the log of a unit."""
    words: str = module_util("units").in_words(verb, unit, systemd=systemd)
    return words
