import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1prov.common.units import GB, GIB, gib, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("24564 MiB", 24564 * 1024**2),
        ("480 GB", 480 * GB),
        ("1.8 TB", 1_800_000_000_000),
        ("131GiB", 131 * GIB),
        ("7 B", 7),
        ("0", 0),
    ],
)
def test_sizes_are_read_with_their_unit(text: str, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize("text", ["131", "GB", "12 gigs", "-3 GB", "1,5 GB", ""])
def test_a_size_without_a_clear_unit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("20m", 1200), ("1h", 3600), ("1m30s", 90), ("15 s", 15), (" 1h 5 m 2s", 3902), ("0h10s", 10)],
)
def test_durations_are_read_with_their_units(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "90", "0.5s", "-3m", "5s1m", "1d", "1m30", "٣s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["0s", "0h 0m", " 0m0s "])
def test_a_duration_is_a_second_at_least(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"`{text}` is no time at all: write `1s` or more, e.g. `20m`")):
        parse_duration(text)


def test_a_duration_is_a_week_at_most() -> None:
    assert parse_duration("168h") == 7 * 24 * 3600
    with pytest.raises(ValueError, match="`168h1s` is longer than a week: write `168h` or less"):
        parse_duration("168h1s")


@given(st.integers(min_value=0, max_value=2**50))
def test_a_size_in_bytes_comes_back_exactly(n_bytes: int) -> None:
    assert parse_size(f"{n_bytes} B") == n_bytes


def test_gib_names_its_unit() -> None:
    assert gib(140_231_438_464) == "130.6 GiB"
