"""Tests of the limit of the transfer's rate: which rate holds when, how a site names it, and that no more comes."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transfer.limit import LEAST_BLOCK_BYTES, MOST_BLOCK_BYTES, Limit

from r1prov.site.sources import Sources

MINUTES = st.integers(0, 24 * 60 - 1)


def at(minute: int) -> time.struct_time:
    return time.struct_time((2026, 11, 30, minute // 60, minute % 60, 59, 0, 334, 0))


def text(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


@given(begin=MINUTES, end=MINUTES, now=MINUTES)
def test_hours_hold_from_their_first_minute_to_the_one_before_their_last(begin: int, end: int, now: int) -> None:
    if begin == end:
        return
    limit = Limit({f"{text(begin)}-{text(end)}": 7_000_000}, lambda: at(now))
    day = 24 * 60
    assert bool(limit.rate()) == ((now - begin) % day < (end - begin) % day)


def test_of_hours_that_overlap_the_least_rate_holds_and_at_other_times_none() -> None:
    hours = {"08:00-18:00": 30_000_000, "17:00-24:00": 10_000_000}
    rates = {hour: Limit(hours, partial(at, hour * 60)).rate() for hour in (3, 9, 17, 23)}
    assert rates == {3: 0, 9: 30_000_000, 17: 10_000_000, 23: 10_000_000}


def test_with_a_low_rate_little_is_read_at_once() -> None:
    sizes = [Limit({"00:00-24:00": rate} if rate else {}).block_bytes() for rate in (0, 100_000, 30_000_000, 10**10)]
    assert sizes == [MOST_BLOCK_BYTES, LEAST_BLOCK_BYTES, 468_750, MOST_BLOCK_BYTES]


def test_connections_share_the_rate_and_one_that_is_cancelled_does_not_wait() -> None:
    limit = Limit({"00:00-24:00": 1_000_000})
    began = time.monotonic()
    threads = [threading.Thread(target=limit.wait, args=(100_000, lambda: False)) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began >= 0.95
    began = time.monotonic()
    limit.wait(10**9, lambda: True)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("named", "means"),
    [
        ("20 MB/s", {"00:00-24:00": 20_000_000}),
        ("1.5MiB/s", {"00:00-24:00": 1_572_864}),
        ({"8:00 - 18:30": "20MB/s", "22:00-06:00": "1 GB/s"}, {"08:00-18:30": 20_000_000, "22:00-06:00": 10**9}),
    ],
)
def test_a_site_names_one_rate_or_several_by_hours(named: object, means: dict[str, int]) -> None:
    assert Sources.model_validate({"rate_limit": named}).rate_limit == means


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("20", "`20` is not a rate of 100 kB/s or more"),
        ("20MB", "`20MB` is not a rate"),
        ("0 MB/s", "not a rate"),
        ("50 kB/s", "not a rate"),
        ("20 Mbit/s", "not a rate"),
        ({"8-18": "20MB/s"}, "`8-18` are no hours"),
        ({"08:00-08:00": "20MB/s"}, "are no hours"),
        ({"08:00-25:00": "20MB/s"}, "are no hours"),
        ({"24:00-06:00": "20MB/s"}, "are no hours"),
        ({"08:00": "20MB/s"}, "are no hours"),
        ([{"08:00-18:00": "20MB/s"}], "not a rate"),
    ],
)
def test_what_is_no_rate_is_refused_with_an_example(named: object, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Sources.model_validate({"rate_limit": named})
