"""Parses sizes (`24564 MiB`), rates (`20 MB/s`), hours, durations (`20m`), shares (`25%`) and cards (`4x24GiB`), and writes figures."""

from __future__ import annotations

import re

_FACTORS: dict[str, int] = {"B": 1} | {
    prefix + suffix: base ** (power + 1)
    for suffix, base in (("B", 1000), ("iB", 1024))
    for power, prefix in enumerate(("k" if base == 1000 else "K", "M", "G", "T"))
}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*")

_DURATION = re.compile(r"(?:(?P<h>\d+) ?h ?)?(?:(?P<m>\d+) ?m ?)?(?:(?P<s>\d+) ?s)?", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600}
LONGEST_S = 7 * 24 * 3600
"""systemd, which is told of it, would refuse a number that is too large only on the host."""

_SHARE = re.compile(r"(\d{1,9}) ?(%?)", re.ASCII)

_TIME = re.compile(r"(\d\d?):([0-5]\d)", re.ASCII)
LEAST_RATE = 100_000
"""The least rate in bytes per second that is taken for one."""

KIB, MIB, GIB = 1024, 1024**2, 1024**3
GB = 10**9


def parse_size(text: str) -> int:
    """Parse a size into bytes. Only `0` may lack a unit, since `131 GB` and `131 GiB` differ by 10 GB.

    Raises:
        ValueError: the number or the unit is missing, or the unit is unknown.
    """
    if text.strip() == "0":
        return 0
    match = _SIZE.fullmatch(text)
    if not match or match[2] not in _FACTORS:
        raise ValueError(
            f"`{text}` is not a size: write a number and one of the units {', '.join(_FACTORS)}, e.g. `480 GB`"
        )
    return round(float(match[1]) * _FACTORS[match[2]])


def parse_rate(text: str) -> int:
    """Parse a rate such as `20 MB/s` into bytes per second.

    Raises:
        ValueError: the text has another form, or the rate is below 100 kB/s, at which a model of 131 GB would take two weeks.
    """
    size, slash, unit = text.strip().rpartition("/")
    try:
        rate = parse_size(size) if slash and unit.strip() == "s" else 0
    except ValueError:
        rate = 0
    if rate < LEAST_RATE:
        raise ValueError(f"`{text}` is not a rate of 100 kB/s or more: write for example `20 MB/s`")
    return rate


def parse_hours(text: str) -> str:
    """Parse hours such as `8:00 - 18:30`, `22:00-06:00` or `18:00-24:00` into `HH:MM-HH:MM`. Those of a whole day are `00:00-24:00`.

    Raises:
        ValueError: the text has another form, or both times are the same.
    """
    times = [_TIME.fullmatch(part.strip()) for part in text.split("-")]
    found = [f"{int(time[1]):02}:{time[2]}" for time in times if time and (int(time[1]) < 24 or time[0] == "24:00")]
    if len(times) != 2 or len(found) != 2 or found[0] == found[1] or found[0] == "24:00":
        raise ValueError(f"`{text}` are no hours: write for example `08:00-18:00` or `22:00-06:00`")
    return "-".join(found)


def parse_duration(text: str) -> int:
    """Parse a duration such as `90s`, `20m`, `1h` or `1m30s` into seconds. Blanks between its parts do not matter.

    Raises:
        ValueError: the text has another form, or the duration is 0 or longer than a week.
    """
    found = _DURATION.fullmatch(text.strip())
    if not found or not any(found.groups()):
        raise ValueError(f"`{text}` is not a duration: write whole numbers and h, m or s, e.g. `20m` or `1m30s`")
    seconds = sum(int(number or 0) * _SECONDS[unit] for unit, number in found.groupdict().items())
    if seconds == 0:
        raise ValueError(f"`{text}` is no time at all: write `1s` or more, e.g. `20m`")
    if seconds > LONGEST_S:
        raise ValueError(f"`{text}` is longer than a week: write `{LONGEST_S // _SECONDS['h']}h` or less")
    return seconds


def share_of(whole: int, text: str) -> int:
    """How many of a whole a number or a percentage such as `25%` comes to. A percentage is rounded down, and comes to one at least.

    Raises:
        ValueError: the text has another form, or it is none, or more than all.
    """
    found = _SHARE.fullmatch(text.strip())
    number = int(found[1]) if found else 0
    if not found or number == 0 or (found[2] and number > 100):
        raise ValueError(f"`{text}` is not so many at once: write a number from 1 on, or a share from `1%` to `100%`")
    return max(1, whole * number // 100) if found[2] else number


def gib(n_bytes: float) -> str:
    """Format a number of bytes in GiB, with one decimal and the unit."""
    return f"{n_bytes / GIB:,.1f} GiB"


def span(low: float, high: float) -> str:
    """Format a range with two digits, as `27-72`. What comes of estimates is no more exact than that."""
    return f"{_two_digits(low)}-{_two_digits(high)}"


def _two_digits(figure: float) -> str:
    return f"{figure:.1f}" if figure < 9.95 else f"{float(f'{figure:.2g}'):,.0f}"


def parse_cards(text: str) -> tuple[int, ...]:
    """Parse a set of cards such as `4x24GiB` or `1x24564MiB,1x48GiB` into the bytes of each card. `0` means no cards.

    Raises:
        ValueError: the text has another form, or there are more than 16 cards.
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
                f"`{text}` is not a set of cards: write how many and their size with its unit, e.g. `4x24GiB`, `1x24564MiB,1x48GiB` or `0`"
            )
        cards += [n_bytes] * int(count)
    if len(cards) > 16:
        raise ValueError(f"`{text}` is a set of {len(cards)} cards; the engine takes at most 16")
    return tuple(cards)
