from __future__ import annotations

import pytest

from r1prov.output.pace import Pace, clock


def test_rate_and_time_left():
    pace = Pace()
    assert (pace.per_second, pace.left_s(100)) == (None, None)
    for second in range(5):
        pace.add(second * 10, 1000 + second)
    assert pace.per_second == 10
    assert pace.left_s(100) == 6
    assert pace.left_s(0) is None


def test_the_rate_follows_a_link_that_changed():
    pace = Pace()
    done = 0
    for second in range(100):
        done += 100 if second < 50 else 1
        pace.add(done, second)
    assert pace.per_second == 1


def test_a_count_that_goes_back_begins_anew():
    pace = Pace()
    for done, at in ((100, 0), (200, 10), (0, 11), (5, 16)):
        pace.add(done, at)
    assert pace.per_second == 1


def test_nothing_moves():
    pace = Pace()
    pace.add(5, 0)
    pace.add(5, 10)
    assert pace.left_s(10) is None


def test_clock():
    assert [clock(s) for s in (0, 7.9, 754, 7384)] == ["0:00", "0:07", "12:34", "2:03:04"]


def test_a_slow_count_is_judged_by_many_changes():
    pace = Pace()
    for done in range(30):
        for wait in (0, 7):
            pace.add(done, done * 14 + wait)
    assert pace.per_second == pytest.approx(1 / 14, rel=0.2)
