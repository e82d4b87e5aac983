"""Sizes as people write them: `24564 MiB`, `480 GB`, `1.8 TB`. Inside, bytes are bytes."""

from __future__ import annotations

import re

_FACTORS: dict[str, int] = {"B": 1} | {
    prefix + suffix: base ** (power + 1)
    for suffix, base in (("B", 1000), ("iB", 1024))
    for power, prefix in enumerate(("k" if base == 1000 else "K", "M", "G", "T"))
}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*")

KIB, MIB, GIB = 1024, 1024**2, 1024**3
GB = 10**9


def parse_size(text: str) -> int:
    """Bytes of a size with its unit; the unit is required, for `131 GB` and `131 GiB` differ by 10 GB.

    Raises:
        ValueError: no number, no unit, or an unknown unit.
    """
    match = _SIZE.fullmatch(text)
    if not match or match[2] not in _FACTORS:
        raise ValueError(f"`{text}` is no size: write a number and a unit of {', '.join(_FACTORS)}, e.g. `480 GB`")
    return round(float(match[1]) * _FACTORS[match[2]])


def gib(n_bytes: float) -> str:
    """`n_bytes` in GiB with one decimal, unit included."""
    return f"{n_bytes / GIB:,.1f} GiB"
