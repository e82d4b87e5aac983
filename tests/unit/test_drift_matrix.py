"""The matrix of what is put wrong on a host: its entries, and which of them are tried together."""

from __future__ import annotations

import re
from collections import Counter

from tests.drift.matrix import Mutation, batches, matrix, sample


def entry(do: str, says: str = "x", **more: str) -> Mutation:
    return Mutation(name=do, do=do, says=says, healed="true", **more)  # type: ignore[arg-type]


def test_each_entry_has_a_name_of_its_own_and_a_pattern_that_can_be_read() -> None:
    entries = matrix()
    assert max(Counter(each.name for each in entries).values()) == 1
    for each in entries:
        re.compile(each.says)


def test_each_entry_is_tried_once() -> None:
    entries = matrix()
    tried = [each.name for batch in batches(entries, 16) for each in batch]
    assert sorted(tried) == sorted(each.name for each in entries)


def test_entries_that_concern_one_thing_are_tried_apart() -> None:
    both = [entry("chmod 666 /etc/r1prov-x", "r1prov-x"), entry("rm /etc/r1prov-x", "r1prov-x")]
    assert [len(batch) for batch in batches(both, 16)] == [1, 1]


def test_a_process_and_the_network_are_put_wrong_apart() -> None:
    """A restart of any service may bring the network back with all its rules, and a network that goes takes all services with it."""
    process = entry("systemctl restart r1prov-embeddings")
    flushed = entry("ip netns exec r1prov nft flush ruleset")
    stopped = entry("systemctl stop r1prov-network")
    file = entry("chmod 777 /etc/somewhere")
    assert [len(batch) for batch in batches([process, flushed, stopped, file], 16)] == [2, 1, 1]


def test_the_network_is_put_wrong_in_one_way_at_a_time() -> None:
    address, table = (
        entry("ip -n r1prov address add 10.9.9.9/24 dev lo"),
        entry("ip netns exec r1prov nft add table inet x"),
    )
    assert [len(batch) for batch in batches([address, table], 16)] == [1, 1]


def test_what_a_run_refuses_is_tried_alone() -> None:
    refused = entry("systemctl stop a", remedy="systemctl start a")
    assert [len(batch) for batch in batches([refused, entry("chmod 777 /b")], 16)] == [1, 1]
    assert [len(batch) for batch in batches([entry("chmod 777 /b"), refused], 16)] == [1, 1]


def test_a_sample_is_as_large_as_asked_for_and_is_healed_by_a_run_alone() -> None:
    for seed in range(50):
        chosen = sample(seed, 10)
        assert len({each.name for each in chosen}) == 10
        assert not any(each.remedy for each in chosen)
