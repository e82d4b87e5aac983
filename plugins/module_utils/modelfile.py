"""An Ollama Modelfile as the role `ollama` renders it: FROM, PARAMETER and TEMPLATE."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Modelfile:
    """What a Modelfile says.

    Attributes:
        file: the model's file.
        parameters: by name; numbers are numbers, as the API wants them.
        template: empty where the model's own counts.
    """

    file: str
    parameters: dict[str, Any] = field(default_factory=dict)
    template: str = ""


def parse(text: str) -> Modelfile:
    """Reads a Modelfile.

    Raises:
        ValueError: there is something in it that the role does not write.
    """
    text, template = _take(r'^TEMPLATE """(.*?)"""$', text)
    text, file = _take(r"^FROM (\S+)$", text)
    parameters = {}
    for line in text.splitlines():
        match = re.fullmatch(r"PARAMETER (\w+) (\S+)", line)
        if match:
            parameters[match[1]] = json.loads(match[2])
        elif line and not line.startswith("#"):
            raise ValueError(f"{line!r} is not understood")
    if not file:
        raise ValueError("it has no line FROM")
    return Modelfile(file, parameters, template)


def _take(pattern: str, text: str) -> tuple[str, str]:
    """The text without the first match of a pattern, and the match's group; empty where there is none."""
    match = re.search(pattern, text, re.MULTILINE | re.DOTALL)
    return (text[: match.start()] + text[match.end() :], match[1]) if match else (text, "")
