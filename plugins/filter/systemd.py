"""Jinja filters r1.prov.systemd_*: values in systemd's unit and environment files, taken literally."""

from __future__ import annotations

import re
from typing import Any

_PLAIN = re.compile(r"[A-Za-z0-9_./:=@,+-]+")
_ESCAPED = re.compile(r'["\\`$]')
_BACKSLASHED = r"\\\g<0>"
_CREDENTIALS = "${CREDENTIALS_DIRECTORY}"


def systemd_text(value: object, *, quote: bool = False) -> str:
    """A value of a setting.

    Args:
        value: what the setting shall mean.
        quote: for settings that take a list of words: makes this one word.
    """
    text = str(value).replace("%", "%%")
    if not quote:
        return " ".join(text.split())  # a line break would begin another setting
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


def systemd_word(value: object) -> str:
    """A word of a command line. Only `${CREDENTIALS_DIRECTORY}` is left for systemd to expand (`%d` is newer than Ubuntu 22.04)."""
    text = str(value)
    if _PLAIN.fullmatch(text):
        return text
    return systemd_text(text.replace("$", "$$").replace("$" + _CREDENTIALS, _CREDENTIALS), quote=True)


def systemd_environment(variables: dict[str, object]) -> str:
    """The text of an `EnvironmentFile=`, from which each variable comes out as it is: systemd expands nothing there."""
    return "".join(f'{name}="{_ESCAPED.sub(_BACKSLASHED, str(value))}"\n' for name, value in variables.items())


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Any]:
        """The filters by name."""
        return {
            "systemd_environment": systemd_environment,
            "systemd_text": systemd_text,
            "systemd_word": systemd_word,
        }
