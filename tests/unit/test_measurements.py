"""Tests of which measurements are kept, and of what a new rate is held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.r1.prov.plugins.module_utils import measurements

DAY_S = 86400


def measured(rate: float, *, foreign: bool = False, day: int = 0, **subject: Any) -> dict:
    own = {"engine": "llama-server", "model": "/m.gguf", "model_file": [1, 2], "context_per_slot": 2048, "slots": 2}
    own |= {"command": "server -t 4", "declared": {"quant": "demo"}, "release": "1"}
    return {
        "schema": measurements.SCHEMA,
        "measured_unix_s": day * DAY_S,
        "subject": own | subject,
        "sweep": [{"decode_tokens_per_second_each": rate, "decode_tokens": 64}],
        "load": {"cores": 8, "others_cores": 3.2 if foreign else 0.1, "others_gpu_percent": None, "foreign": foreign},
    }


def test_the_last_results_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "smoke_bench"
    for number in range(measurements.KEPT + 2):
        measurements.keep(folder, measured(1.0, day=number))
    assert measurements.read_result(folder / "last.json")["measured_unix_s"] == 11 * DAY_S
    assert [result["measured_unix_s"] // DAY_S for result in measurements.history(folder)] == [*range(2, 12)]


def test_a_result_of_another_schema_is_none(tmp_path: Path) -> None:
    measurements.keep(tmp_path, {"schema": 0})
    assert measurements.read_result(tmp_path / "last.json") == {}
    assert measurements.read_result(tmp_path / "missing.json") == {}
    assert measurements.history(tmp_path) == measurements.history(tmp_path / "missing") == []


def test_a_rate_under_foreign_load_is_no_guard() -> None:
    # One slow measurement was taken while a compiler ran. A release that is half as fast as usual must not pass because of it.
    earlier = [measured(10.0), measured(9.8, day=1), measured(2.0, foreign=True, day=2)]
    good, told = measurements.compare(measured(5.0, release="2", day=3), earlier, 0.7)
    assert not good
    assert told == (
        "decodes 5.00 tokens/s where the median of 2 measurements (of 1970-01-01 to 1970-01-02; 1 under foreign load left out)"
        " is 9.90; at least 70 % of that is wanted"
    )
    assert measurements.compare(measured(7.0, release="2"), earlier, 0.7)[0]


def test_one_lucky_or_unlucky_measurement_does_not_decide() -> None:
    earlier = [measured(10.0), measured(30.0), measured(10.2), measured(1.0), measured(9.9)]
    assert measurements.compare(measured(7.1), earlier, 0.7)[0]
    assert not measurements.compare(measured(6.9), earlier, 0.7)[0]


@pytest.mark.parametrize(
    "other",
    [
        {"engine": "ollama"},
        {"model_file": [3, 4]},
        {"command": "server -t 8"},
        {"slots": 4},
        {"declared": {"quant": "another"}},
    ],
)
def test_rates_of_another_setting_are_not_compared(other: dict) -> None:
    good, told = measurements.compare(measured(1.0, **other), [measured(10.0)], 0.7)
    assert good
    assert (
        told
        == "decodes 1.00 tokens/s. That is not checked, because no measurement of this setting can be compared with"
    )


def test_where_all_was_under_load_nothing_is_claimed() -> None:
    good, told = measurements.compare(measured(1.0, foreign=True), [measured(10.0, foreign=True)], 0.7)
    assert good
    assert told == (
        "decodes 1.00 tokens/s, while other processes kept 3.2 of 8 cores busy."
        " That is not checked, because no measurement of this setting can be compared with; 1 under foreign load left out"
    )
