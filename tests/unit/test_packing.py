"""The most bytes of expert tensors that fit in a room, beside what every one of their subsets comes to."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from r1prov.offload.packing import Entry, _Sums, arranged
from r1prov.offload.setting import Setting

SIZES = st.sampled_from([3, 5, 7, 12, 40, 1_000_003])
ENTRIES = st.lists(st.lists(SIZES, max_size=3), min_size=1, max_size=4)


def brute_force(tensors: list[int], room: int) -> int:
    """The most bytes up to `room` of all subsets."""
    sums = (
        sum(size for size, taken in zip(tensors, which, strict=True) if taken)
        for which in product((0, 1), repeat=len(tensors))
    )
    return max(each for each in sums if each <= room)


@given(ENTRIES, st.integers(0, 100), st.data())
def test_a_room_is_filled_as_far_as_whole_tensors_fill_it(
    entries: list[list[int]], room: int, data: st.DataObject
) -> None:
    small = [[size for size in entry if size < 1_000] for entry in entries]
    start = data.draw(st.integers(0, len(small) - 1))
    end = data.draw(st.integers(start, len(small)))
    tensors = [size for entry in small[start:end] for size in entry]
    assert _Sums(small).most(start, end, room) == brute_force(tensors, room)


@given(ENTRIES, st.integers(0, 3_000_009))
def test_the_numbers_of_each_size_never_take_more_than_the_room_and_fill_it_but_for_the_unit(
    entries: list[list[int]], room: int
) -> None:
    tensors = sorted(size for entry in entries for size in entry)
    supply = [(size, tensors.count(size)) for size in sorted(set(tensors))]
    counts = _Sums(entries).counts(supply, room)
    taken = sum(size * count for (size, _), count in zip(supply, counts, strict=True))
    unit = -(-sum(tensors) // 2**16)
    assert all(0 <= count <= available for count, (_, available) in zip(counts, supply, strict=True))
    assert taken <= room
    assert taken >= brute_force(tensors, max(room - len(tensors) * max(unit, 1), 0)) or unit <= 1


def test_a_card_that_gets_entries_without_experts_takes_no_longer() -> None:
    """The room is 24 GiB, of which not a byte is asked for by an expert."""
    entries = [Entry(2**34, {"blk.0.ffn_up_exps.weight": 2**34}), Entry(2**30, {})]
    found = arranged(Setting(context=512), entries, [24 * 2**30, 2**34 - 1])
    assert found
    assert found.gpu_layers == 2
