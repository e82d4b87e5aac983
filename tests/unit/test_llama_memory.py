"""Tests of reading the engine's figures of memory: the output of llama-fit-params, and the logs of real loads."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.r1.prov.plugins.module_utils.llama_fit import FitError, advice, remedy, run
from ansible_collections.r1.prov.plugins.module_utils.llama_memory import (
    GIB,
    MIB,
    fit_arguments,
    fit_devices,
    load_surprises,
    loaded,
    misfits,
    surprises,
)
from ansible_collections.r1.prov.plugins.module_utils.llama_props import misplaced

HELP = """
-c,    --ctx-size N                     size of the prompt context (default: 0, 0 = loaded from model)
-np,   --parallel N                     number of parallel sequences to decode (default: 1)
-ts,   --tensor-split N0,N1,N2,...      fraction of the model to offload to each GPU
-fit,  --fit [on|off]                   whether to adjust unset arguments
"""
TOLD = """CUDA0 15521 6552 1403
CUDA1 16022 6916 555
Host 65120 0 27
"""
# ON_CPU is a log of the llama.cpp of llama-cpp-python 0.3.36 on a host without cards. ON_CARDS is the log of unslothai/unsloth#1591
# (two A100), in today's format.
ON_CPU = """0.00.003.203 I cmn  common_param: common_params_print_info: verbosity = 4 (adjust with the `-lv N` CLI arg)
0.00.145.862 I load_tensors: loading model tensors, this can take a while... (load_mode = mmap)
0.00.167.235 I load_tensors:   CPU_Mapped model buffer size =    51.94 MiB
0.00.169.023 I load_tensors:   CPU_Mapped model buffer size =    23.25 MiB
0.00.173.238 I llama_context:        CPU  output buffer size =     0.38 MiB
0.00.173.342 I llama_kv_cache:        CPU KV buffer size =    90.00 MiB
0.00.275.030 I sched_reserve:        CPU compute buffer size =    15.51 MiB
0.02.506.790 I srv  llama_server: model loaded"""
ON_CARDS = """I load_tensors: offloading output layer to GPU
I load_tensors: offloaded 61/62 layers to GPU
I load_tensors:    CUDA_Host model buffer size =  1222.09 MiB
I load_tensors:        CUDA0 model buffer size = 65208.70 MiB
I load_tensors:        CUDA1 model buffer size = 67299.27 MiB
I llama_kv_cache:      CUDA0 KV buffer size = 11760.00 MiB
I sched_reserve:      CUDA0 compute buffer size =  2218.00 MiB
I sched_reserve:  CUDA_Host compute buffer size =    78.01 MiB
I srv  llama_server: model loaded"""


def device(name: str, weights: int, kv: int = 0, compute: int = 0) -> dict:
    return {"name": name, "weights_bytes": weights * MIB, "kv_bytes": kv * MIB, "compute_bytes": compute * MIB}


def test_llama_fit_params_is_asked_what_it_knows() -> None:
    given = [
        "--ctx-size",
        "8192",
        "--no-kv-unified",
        "-np",
        "1",
        "--metrics",
        "--tensor-split",
        "7,8",
        "--fit",
        "off",
        "--temp",
        "-1",
    ]
    assert fit_arguments(given, HELP) == [
        "--no-repack",
        *given[:2],
        "-np",
        "1",
        "--tensor-split",
        "7,8",
        "--fit",
        "off",
    ]
    assert fit_arguments(["--ctx-size=8192", "--port=1"], HELP) == ["--no-repack", "--ctx-size=8192"]


def test_llama_fit_params_tells_a_line_per_device() -> None:
    assert fit_devices(TOLD) == [
        device("CUDA0", 15521, 6552, 1403),
        device("CUDA1", 16022, 6916, 555),
        device("host", 65120, 0, 27),
    ]
    assert fit_devices("0.00.009.198 I llama_fit_params: printing\nnothing of the kind\n") == []


def test_room_is_the_whole_of_a_card_less_its_reserve() -> None:
    rooms, reserves = {"CUDA0": 24564 * MIB, "host": 64 * GIB}, {"CUDA0": GIB, "host": GIB}
    assert misfits([device("CUDA0", 15521, 6552, 1403)], rooms, reserves) == []
    [one_too_much] = misfits([device("CUDA0", 15521, 6552, 1468)], rooms, reserves)
    assert one_too_much.startswith("CUDA0 is 1 MiB short: weights 15.2 GiB, KV cache 6.4 GiB, compute 1.4 GiB")
    cards, host = misfits([device("CUDA4", 1), device("host", 65120)], rooms, reserves)
    assert "CUDA4 is a device that nvidia-smi does not show" in cards
    assert "host is 608 MiB short" in host
    assert "CUDA0 has 24,564 MiB" in advice(rooms)


def test_the_real_file_may_differ_from_the_plan_by_its_margin() -> None:
    plan = [device("CUDA0", 15521, 6552, 100), device("host", 65000)]
    assert surprises([device("CUDA0", 15600, 6552, 164), device("host", 65120, 0, 27)], plan) == []
    assert surprises([device("CUDA0", 17000, 6552, 165)], plan) == [
        "CUDA0 takes 17,000 MiB of weights, the plan foresaw 15,521 MiB",
        "CUDA0 takes 165 MiB of compute, the plan foresaw 100 MiB",
    ]
    assert surprises([device("CUDA0", 1)], []) == []


def test_a_log_on_a_host_without_cards() -> None:
    load = loaded(ON_CPU.splitlines())
    assert (load["offloaded"], load["whole"], load["unlocked"]) == (None, True, False)
    # The lines of mapped files also count the bytes between tensors, so the result gives no figure for the weights.
    assert load["devices"] == [{"name": "host", "kv_bytes": 90 * MIB, "compute_bytes": int(15.51 * MIB)}]
    assert loaded(
        ["W warning: failed to mlock 31858688-byte buffer (after previously locking 0 bytes): Operation not permitted"]
    )["unlocked"]


def test_a_log_of_two_cards_is_held_against_what_was_confirmed() -> None:
    load = loaded(ON_CARDS.splitlines())
    assert load["offloaded"] == [61, 62]
    names = [found["name"] for found in load["devices"]]
    assert names == ["CUDA0", "CUDA1", "host"]
    confirmed = [device("CUDA0", 65208, 11760, 2470), device("CUDA1", 67299), device("host", 1222, 0, 78)]
    assert load_surprises(load["devices"], confirmed) == []
    others = [device("CUDA0", 65100, 11758, 2100), device("CUDA1", 67299), device("host", 1222, 0, 78)]
    assert load_surprises(load["devices"], others) == [
        "CUDA0 takes 65,209 MiB of weights, llama-fit-params said 65,100 MiB",
        "CUDA0 takes 11,760 MiB of KV cache, llama-fit-params said 11,758 MiB",
        "CUDA0 takes 2,218 MiB of compute, llama-fit-params said 2,100 MiB",
    ]


def test_what_another_machine_lends_is_none_of_the_hosts_memory() -> None:
    lent = ["I load_tensors: RPC0[127.0.0.2:7444] model buffer size =     5.00 MiB"]
    devices = loaded([*lent, *ON_CARDS.splitlines()])["devices"]
    assert [(each["name"], each.get("weights_bytes")) for each in devices[-2:]] == [
        ("RPC0[127.0.0.2:7444]", 5 * MIB),
        ("host", int(1222.09 * MIB)),
    ]
    assert load_surprises(devices, []) == []  # Nobody could ask beforehand.


def test_room_that_is_made_anew_counts_once() -> None:
    again = ["I sched_reserve:      CUDA0 compute buffer size =  1000.00 MiB"]
    two_caches = ["I llama_kv_cache:      CUDA0 KV buffer size = 40.00 MiB"]
    [card, *_] = loaded([*ON_CARDS.splitlines(), *again, *two_caches])["devices"]
    assert (card["compute_bytes"], card["kv_bytes"]) == (1000 * MIB, 11800 * MIB)


@pytest.mark.parametrize(
    ("log", "arguments", "says"),
    [
        (ON_CARDS, ["-ngl", "61"], ""),
        (ON_CARDS, ["--n-gpu-layers", "99"], "it put 61 layers on the cards, not 62"),
        (ON_CARDS, ["--n-gpu-layers", "62"], "it put 61 layers on the cards, not 62"),
        (ON_CARDS, ["--n-gpu-layers", "all"], ""),  # the value is a word, not a number
        (ON_CPU, ["-ngl", "61"], "it put 0 layers on the cards, not 61"),
        ("", ["-ngl", "61"], ""),  # the journal does not reach back to the load
    ],
)
def test_other_layers_than_asked_for_are_noticed(log: str, arguments: list[str], says: str) -> None:
    assert misplaced(loaded(log.splitlines()), arguments) == says


def test_the_engines_refusal_has_a_remedy() -> None:
    known = [{"pattern": "invalid argument", "remedy": "this version does not take one of the arguments."}]
    assert remedy("error: invalid argument: --x", known) == known[0]["remedy"]
    assert remedy("something else", known) == "Correct llama_server_arguments."


def test_an_engine_that_aborts_before_it_has_told_why_is_asked_again(tmp_path: Path) -> None:
    program, runs = tmp_path / "llama-fit-params", tmp_path / "runs"
    program.write_text(
        f"#!/bin/sh\necho >> {runs}\n[ $(wc -l < {runs}) -lt 3 ] || echo tensor data lie beyond\nkill -ABRT $$\n"
    )
    program.chmod(0o755)
    with pytest.raises(FitError, match="tensor data lie beyond"):
        run([str(program)], {}, ["data lie beyond"])
    assert runs.read_text() == "\n" * 3
    with pytest.raises(FitError):
        run([str(program)], {}, ["a reason that it never tells"])
    assert runs.read_text() == "\n" * 8
