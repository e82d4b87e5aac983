"""Filters for vectors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def cosine(one: list[float], other: list[float]) -> float:
    """How alike two vectors of the same length are: 1 for the same direction, 0 for directions at a right angle or a vector of zeros."""
    lengths = math.hypot(*one) * math.hypot(*other)
    return sum(a * b for a, b in zip(one, other, strict=True)) / lengths if lengths else 0.0


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[[list[float], list[float]], float]]:
        """The filters by their names."""
        return {"cosine": cosine}
