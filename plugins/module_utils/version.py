"""The version of r1prov, for what lies on hosts and is read by another version later."""

from __future__ import annotations

import re

VERSION = "0.1.0"


def is_newer(other: str) -> bool:
    """Whether another version is newer than this one. What is no version is not."""
    return _numbers(other) > _numbers(VERSION)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]
