"""Holds the plan's arithmetic against the order in which the real engine has put settings (tests/data/engine_order.json)."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest

from benchmarks import order

KEPT = json.loads(order.KEPT.read_text())


@functools.cache
def described() -> Any:
    return order.described()


def planned(name: str) -> dict[str, float]:
    known = order.speeds(KEPT["operations_per_second"], KEPT["bytes_per_second"])
    return {tried.label: order.planned_s(described(), tried, name, known) for tried in order.SETTINGS[name]}


@pytest.mark.parametrize("name", order.SETTINGS)
def test_the_plan_puts_settings_in_the_order_that_the_engine_has_found(name: str) -> None:
    seconds, foreseen = KEPT["seconds"][name], planned(name)
    assert KEPT["longest"] == order.LONGEST
    assert seconds.keys() == foreseen.keys(), "measure anew: make test-order"
    wrong = [pair for pair in order.apart(seconds) if foreseen[pair[0]] >= foreseen[pair[1]]]
    assert wrong == []


def test_the_settings_were_far_enough_apart_to_tell() -> None:
    told = {name: len(list(order.apart(KEPT["seconds"][name]))) for name in order.SETTINGS}
    assert min(told[name] for name in ("chat", "documents", "team")) >= 3, told


def test_lengths_are_divided_by_one_number() -> None:
    for workload in order.WORKLOADS.values():
        scaled = order.scaled(workload).exchanges
        assert abs(max(exchange.tokens for exchange in scaled) - order.LONGEST) <= 2
        assert [exchange.at_once for exchange in scaled] == [exchange.at_once for exchange in workload.exchanges]


def test_pairs_that_are_hardly_apart_are_left_out() -> None:
    assert list(order.apart({"a": 1.0, "b": 1.05, "c": 1.2})) == [("a", "c"), ("b", "c")]
