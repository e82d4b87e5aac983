"""Reads the argument spec of a module from its documentation, so that each option is described once."""

from __future__ import annotations

import json
from typing import Any


def arguments(documentation: str, **no_log: bool) -> dict[str, Any]:
    """The argument spec that a documentation describes.

    Args:
        documentation: a module's `DOCUMENTATION`. Its last key is `options`, which is written in JSON. JSON is YAML too, and a host
            reads it without PyYAML, which it may not have.
        no_log: options whose values are secrets (True), and options whose names only look as if they were (False).
    """
    spec = _spec(json.loads(documentation.partition("\noptions:")[2], strict=False))  # a text may go over several lines
    for name, is_secret in no_log.items():
        spec[name]["no_log"] = is_secret
    return spec


def _spec(options: dict[str, Any]) -> dict[str, Any]:
    for option in options.values():
        del option["description"]
        if "suboptions" in option:
            option["options"] = _spec(option.pop("suboptions"))
    return options
