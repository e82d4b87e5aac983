"""Tests of which range comes next and how many connections there are, which is arithmetic of the program of the role weights."""

from __future__ import annotations

import itertools
import random
import time

import pytest
from transfer.errors import UnreachableError
from transfer.pace import LEVELS, LEVELS_OF_A_DISK_THAT_TURNS, Pace
from transfer.sources import Folder
from transfer.spans import LEAST_SPLIT_BYTES, Held, Spans, next_range, split
from transfer.turns import Supplier, Turn

MB = 1_000_000
MIB = 1 << 20
ENOUGH = 1e12


def test_spans_are_a_set_of_bytes() -> None:
    chance = random.Random(19)
    for _ in range(300):
        spans, there = Spans(), set[int]()
        for _ in range(30):
            start = chance.randrange(60)
            end = start + chance.randrange(12)
            if chance.random() < 0.7:
                spans.add(start, end)
                there |= set(range(start, end))
            else:
                spans.remove(start, end)
                there -= set(range(start, end))
            assert {number for begin, stop in spans for number in range(begin, stop)} == there
            assert spans.bytes == len(there)
            assert spans.prefix == next(number for number in range(99) if number not in there)
            rows = list(spans)
            assert all(stop < begin for (_, stop), (begin, _) in itertools.pairwise(rows))
            low, high = sorted((chance.randrange(70), chance.randrange(70)))
            inside = {number for begin, stop in spans.within(low, high) for number in range(begin, stop)}
            outside = {number for begin, stop in spans.missing(low, high) for number in range(begin, stop)}
            assert (inside, outside) == (there & set(range(low, high)), set(range(low, high)) - there)


def spans(*rows: tuple[int, int]) -> Spans:
    found = Spans()
    for start, end in rows:
        found.add(start, end)
    return found


@pytest.mark.parametrize(
    ("there", "held", "before", "found"),
    [
        ([], [], 1000, (0, 100)),
        ([], [(0, 100)], 1000, (100, 200)),
        ([(0, 50)], [(50, 100)], 1000, (100, 200)),
        ([(0, 50), (70, 1000)], [], 1000, (50, 70)),
        ([(0, 860)], [], 1000, (860, 1000)),  # A piece that is a little longer is not split.
        ([(0, 840)], [], 1000, (840, 940)),
        ([], [(0, 100)], 100, None),  # What comes behind the look-ahead waits,
        ([], [(0, 100)], 101, (100, 200)),  # and a piece that begins before its end is a whole one.
        ([(0, 1000)], [], 1000, None),
    ],
)
def test_the_next_range_is_the_first_that_nobody_brings(there: list, held: list, before: int, found: object) -> None:
    assert next_range(spans(*there), held, 1000, before, 100) == found


def test_ranges_in_turn_cover_a_file_once() -> None:
    chance, size = random.Random(1), 5000
    there, held, seen = Spans(), [], []
    while there.bytes < size:
        wanted = next_range(there, held, size, there.prefix + 900, 100)
        if wanted and len(held) < 6:
            held.append(wanted)
            seen.append(wanted)
        else:
            there.add(*held.pop(chance.randrange(len(held))))
    assert sum(end - start for start, end in seen) == size
    assert min(seen)[0] == 0


def test_the_slowest_connection_gives_up_as_much_as_makes_both_end_together() -> None:
    slow, fast = Held(0, 64 * MIB, 1 * MB, 0), Held(0, 64 * MIB, 10 * MB, 0)
    found = split([fast, slow], 9 * MB)
    assert found
    assert found[0] == 1
    assert found[1] == pytest.approx(6.4 * MIB, rel=0.01)


def test_a_connection_that_has_stopped_gives_up_all() -> None:
    assert split([Held(5, 64 * MIB, 10 * MB, 6)], MB) == (0, 5)


@pytest.mark.parametrize(
    "held", [[], [Held(0, 20 * MIB, 20 * MB, 0)], [Held(0, 2 * LEAST_SPLIT_BYTES - 1, 1, 0)], [Held(9, 9, 1, 60)]]
)
def test_what_ends_soon_or_is_small_is_not_split(held: list[Held]) -> None:
    assert split(held, MB) is None


class Link:
    """A link and sources of which it is known what they can do."""

    def __init__(self, each: list[float], total: list[float], link: float = ENOUGH) -> None:
        self.each, self.total, self.link, self.chance = each, total, link, random.Random(3)

    def rates(self, counts: list[int]) -> list[float]:
        rates = [min(count * each, total) for count, each, total in zip(counts, self.each, self.total, strict=True)]
        share = min(1, self.link / max(sum(rates), 1))
        return [rate * share for rate in rates]

    def settle(self, pace: Pace, begin_s: float = 0, seconds: float = 40) -> list[int]:
        received, now = [0.0] * len(self.each), begin_s
        while now < begin_s + seconds:
            now += 0.1
            for number, rate in enumerate(self.rates(pace.counts)):
                received[number] += rate * 0.1 * self.chance.uniform(0.98, 1.02)
            pace.observe(now, [int(count) for count in received], pace.counts, is_busy=True, left_bytes=ENOUGH)
        return pace.counts


def settled(link: Link, levels: tuple[int, ...] = LEVELS) -> list[int]:
    pace = Pace([1000] * len(link.each), [True] * len(link.each), levels)
    pace.lead(0, 0)
    return link.settle(pace)


@pytest.mark.parametrize(
    ("link", "counts"),
    [
        (Link([10 * MB], [ENOUGH]), [24]),  # each connection is limited
        (Link([10 * MB], [ENOUGH], 125 * MB), [16]),  # the link is, at thirteen connections
        (Link([10 * MB], [ENOUGH], 40 * MB), [4]),
        (Link([10 * MB], [1 * MB]), [4]),  # the server is
        (Link([10 * MB, 50 * MB], [1 * MB, ENOUGH]), [0, 24]),  # a slow source is left for a fast one
        (Link([10 * MB, 10 * MB], [100 * MB, 100 * MB], 100 * MB), [16, 0]),  # a second one does not help
    ],
)
def test_there_are_as_many_connections_as_help(link: Link, counts: list[int]) -> None:
    assert settled(link) == counts


def test_a_second_source_is_used_where_that_is_faster() -> None:
    link = Link([10 * MB, 10 * MB], [100 * MB, 100 * MB])
    counts = settled(link)
    assert sum(link.rates(counts)) >= 170 * MB
    assert sum(counts) <= 24


def test_a_disk_that_turns_has_few_connections() -> None:
    assert settled(Link([10 * MB], [ENOUGH]), LEVELS_OF_A_DISK_THAT_TURNS) == [8]


def test_what_was_found_is_tried_again_after_a_while() -> None:
    link, pace = Link([10 * MB], [ENOUGH], 40 * MB), Pace([1000], [True])
    pace.lead(0, 0)
    assert link.settle(pace) == [4]
    link.link = ENOUGH
    assert link.settle(pace, 40, 60) == [24]


def test_a_server_that_wants_few_connections_has_few() -> None:
    link, pace = Link([10 * MB], [ENOUGH]), Pace([1000], [True])
    pace.lead(0, 0)
    pace.cap(0, 3, 1)
    assert link.settle(pace, 1) == [3]


def test_a_folder_is_read_by_one_connection_and_not_helped_by_the_network() -> None:
    link, pace = Link([10 * MB, 50 * MB], [ENOUGH, ENOUGH]), Pace([1, 1000], [False, True])
    pace.lead(0, 0)
    assert link.settle(pace) == [1, 0]


def test_without_work_for_all_only_other_sources_are_tried() -> None:
    link, pace = Link([1 * MB, 10 * MB], [1 * MB, ENOUGH]), Pace([1000, 1000], [True, True])
    pace.lead(0, 0)
    received, now = [0.0, 0.0], 0.0
    while now < 20:
        now += 0.1
        for number, rate in enumerate(link.rates(pace.counts)):
            received[number] += rate * 0.1
        pace.observe(now, [int(count) for count in received], pace.counts, is_busy=False, left_bytes=ENOUGH)
        assert pace.counts[0] in (8, 0)
    assert pace.counts[0] == 0
    assert pace.counts[1] >= 4


def test_shortly_before_the_end_nothing_is_tried() -> None:
    pace = Pace([1000, 1000], [True, True])
    pace.lead(0, 0)
    for tick in range(300):
        pace.observe(tick / 10, [tick * MB, 0], [1, 0], is_busy=False, left_bytes=MB)
    assert pace.counts == [8, 0]


def test_connections_that_fail_together_are_one_failure() -> None:
    turn, asked_s = Turn(Supplier(Folder("/mnt"), 0)), time.monotonic()
    for _ in range(24):
        turn.fail(UnreachableError("is restarted"), gained=False, asked_s=asked_s)
    assert turn.ready_at - asked_s < 3
    turn.fail(UnreachableError("is restarted"), gained=False, asked_s=time.monotonic())
    assert turn.ready_at - asked_s > 3
