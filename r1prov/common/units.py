"""Sizes as people write them: `24564 MiB`, `480 GB`, `1.8 TB`. Inside, bytes are bytes."""

from __future__ import annotations

import re

_FACTORS: dict[str, int] = {"B": 1} | {
    prefix + suffix: base ** (power + 1)
    for suffix, base in (("B", 1000), ("iB", 1024))
    for power, prefix in enumerate(("k" if base == 1000 else "K", "M", "G", "T"))
}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*")

_SECONDS = {"s": 1, "m": 60, "h": 3600}

KIB, MIB, GIB = 1024, 1024**2, 1024**3
GB = 10**9


def parse_size(text: str) -> int:
    """Bytes of a size with its unit; the unit is required, for `131 GB` and `131 GiB` differ by 10 GB, but not of `0`.

    Raises:
        ValueError: no number, no unit, or an unknown unit.
    """
    if text.strip() == "0":
        return 0
    match = _SIZE.fullmatch(text)
    if not match or match[2] not in _FACTORS:
        raise ValueError(f"`{text}` is no size: write a number and a unit of {', '.join(_FACTORS)}, e.g. `480 GB`")
    return round(float(match[1]) * _FACTORS[match[2]])


def parse_duration(text: str) -> int:
    """Seconds of a time as `90s`, `20m`, `1h`.

    Raises:
        ValueError: not of this form, or nothing.
    """
    number, unit = text[:-1], text[-1:]
    if not number.isdigit() or int(number) == 0 or unit not in _SECONDS:
        raise ValueError(f"`{text}` is no time: write a number and s, m or h, e.g. `20m`")
    return int(number) * _SECONDS[unit]


def gib(n_bytes: float) -> str:
    """`n_bytes` in GiB with one decimal, unit included."""
    return f"{n_bytes / GIB:,.1f} GiB"


def parse_cards(text: str) -> tuple[int, ...]:
    """Bytes of each card of a set as `4x24GiB`, `1x24564MiB,1x48GiB`, or `0` for none.

    Raises:
        ValueError: not of this form, or more than 16 cards.
    """
    if text.strip() == "0":
        return ()
    cards: list[int] = []
    for part in text.split(","):
        count, _, size = part.strip().partition("x")
        try:
            n_bytes = parse_size(size)
        except ValueError:
            n_bytes = 0
        if not count.isdigit() or not 1 <= int(count) <= 16 or not n_bytes:
            raise ValueError(
                f"`{text}` are no cards: write how many and how large, with the unit, e.g. `4x24GiB` or `1x24564MiB,1x48GiB`, or `0`"
            )
        cards += [n_bytes] * int(count)
    if len(cards) > 16:
        raise ValueError(f"`{text}` are {len(cards)} cards; the engine takes 16")
    return tuple(cards)
