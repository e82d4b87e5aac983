from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType

from benchmarks import greedy, mla_quality
from tests.fixtures import tinymodel

SIZES = tinymodel.Sizes(layers=2, width=64, heads=2, q_rank=32, dense_ff=64, expert_ff=32, experts=4)


def test_exact_values_are_those_of_the_quantised_file(tmp_path: Path) -> None:
    values = tinymodel.random_values(SIZES, 1, mla=False)
    kinds = dict.fromkeys(values, GGMLQuantizationType.Q8_0)
    legacy = tinymodel.save(tmp_path / "legacy.gguf", SIZES, values, kinds)
    exact = mla_quality.exact_values(legacy, tmp_path / "exact.gguf")
    before, after = ({tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors} for path in (legacy, exact))
    assert before.keys() == after.keys()
    for name, old in before.items():
        new = after[name]
        if "attn_kv_b" in name:
            assert new.tensor_type.name == "F32"
            assert np.array_equal(new.data, gguf.quants.dequantize(old.data, old.tensor_type))
            assert not np.array_equal(new.data, values[name])
        else:
            assert new.tensor_type == old.tensor_type
            assert np.array_equal(new.data, old.data)


def test_answers_are_alike_until_they_part() -> None:
    assert greedy.alike([1, 2, 3, 4], [1, 2, 5, 4]) == 2
    assert greedy.alike([1, 2], [1, 2, 3]) == 2
    assert greedy.alike([], [1]) == 0


def test_a_column_for_each_type() -> None:
    columns = {"F16": {"flash": "0.1", "MLA": "0.2"}, "Q8_0": {"flash": "0.3", "MLA": "0.4"}}
    assert mla_quality.table(columns) == (
        "|  | F16 | Q8_0 |\n| --- | --- | --- |\n| flash | 0.1 | 0.3 |\n| MLA | 0.2 | 0.4 |\n"
    )
