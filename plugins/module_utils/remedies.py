"""What to do about a program's words: the option `remedies` of modules that start one."""

from __future__ import annotations

import re
from typing import Any


def first(words: str, remedies: list[dict[str, Any]]) -> str:
    """The first remedy whose pattern is found in the words of a program; empty where none is."""
    return next((str(known["remedy"]) for known in remedies if re.search(known["pattern"], words)), "")
