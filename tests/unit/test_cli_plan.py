"""Tests that the verbs `plan` and `explain` print the figures of the memory model."""

import json
import os
import re
import shlex
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from called import document, run

from r1prov.cli import show_plan
from r1prov.common.errors import Exit
from r1prov.common.units import GIB, MIB, parse_cards
from r1prov.models import gguf
from r1prov.offload import Device
from r1prov.output import console
from tests.cuda import fullsize, models
from tests.fixtures import tinymodel

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "plan"


LEGACY = ("--attention", "legacy", "--cache-type-k", "q4_0")
"""The arguments for legacy attention, whose cache can be too large to fit."""


def test_explain_says_what_35_layers_take(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-ngl", "35", "-c", "512", "--cache-type-k", "q4_0"]
    told = document(capsys, "explain", "--gpus", "4x24564MiB", "--ram", "480GB", "--json", "--", *words)
    assert told["fits"]
    assert told["arguments"] == words
    keys = {"name", "capacity_bytes", "weights_bytes", "kv_bytes", "compute_bytes", "reserve_bytes"}
    assert all(device.keys() == keys for device in (*told["devices"], told["host"]))
    assert sum(device["weights_bytes"] for device in told["devices"]) == pytest.approx(80.7e9, rel=0.01)
    assert told["bytes_per_token"]["host"] == pytest.approx(
        7.05e9, rel=0.01
    )  # four slots share the cache, and one of them may fill it
    assert told["environment"] == document(capsys, "plan", "--json")["environment"] != {}


def test_explain_names_the_card_that_runs_out_and_says_what_would_fit(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("explain", "--gpus", "1x24GiB", "--ram", "480GiB", "--", "-np", "1", "-c", "8192")
    code, out, _ = run(capsys, *words, "-ngl", "9")
    assert code == 0
    assert "\nIt does not fit:\n  CUDA0 runs out of memory" in out
    experts, layers, context, planned = out[out.index("Add one of these") :].splitlines()[1:]
    assert [line.split()[0] for line in (experts, layers, context)] == ["--n-cpu-moe", "--n-gpu-layers", "--ctx-size"]
    for other in (experts, planned):
        assert "It fits." in run(capsys, *words, "-ngl", "9", *shlex.split(other))[1]
    for better in (layers.split(), context.split()):
        more = [better[0], str(int(better[1]) + (256 if better[0] == "--ctx-size" else 1))]
        assert "It fits." in run(capsys, *words, "-ngl", "9", *better)[1]
        assert "It does not fit" in run(capsys, *words, "-ngl", "9", *more)[1]


def test_nobody_is_told_how_long_people_wait_for_what_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    told = document(capsys, "explain", "--profile", "4x4090", "--json", "--", "-ngl", "62", "-c", "9000")
    assert told["bytes_per_token"]
    keys = ("fits", "decode_tokens_per_second", "workload", "conversation")
    assert [told[key] for key in keys] == [False, None, None, None]


def test_explain_says_why_the_engine_would_not_start_and_what_would(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = fullsize.write(tmp_path / "r1.gguf", "UD-IQ1_S", mla=True)
    asked = ("explain", "--gpus", "4x24GiB", "--ram", "480GiB", "--gguf", str(file), "--json", "--", "-ctk", "q4_0")
    told = document(capsys, *asked)
    assert not told["fits"]
    assert "different K (q4_0) and V (f16) cache types" in told["reasons"][0]
    assert told["alternatives"] == [
        {"change": {"cache_type_v": "q4_0"}, "arguments": ["--cache-type-v", "q4_0"]},
        {"change": {"cache_type_k": "f16"}, "arguments": ["--cache-type-k", "f16"]},
    ]
    for alternative in told["alternatives"]:
        better = document(capsys, *asked, *alternative["arguments"])
        assert better["devices"]
        assert better.keys() == told.keys()


def test_a_quantised_v_without_flash_attention_has_near_settings_too(capsys: pytest.CaptureFixture[str]) -> None:
    told = document(
        capsys, "explain", "--gpus", "1x24GiB", "--ram", "480GiB", "--json", "--", "-ctv", "q4_0", "-fa", "off"
    )
    assert [each["change"] for each in told["alternatives"]] == [{"cache_type_v": "f16"}, {"flash_attn": "auto"}]


def test_llama_servers_arguments_need_no_dashes_before_them(capsys: pytest.CaptureFixture[str]) -> None:
    machine, arguments = ("explain", "--gpus", "1x24GiB", "--ram", "480GiB", "--json"), ("-ngl", "7", "-c", "512")
    assert document(capsys, *machine, *arguments) == document(capsys, *machine, "--", *arguments)


@pytest.mark.parametrize(
    "taken", [(0, 0, 0), (1, 1, 1), (8 * GIB, 8 * GIB, 8 * GIB), (23 * GIB, 1, 1), (30 * GIB, 0, 1)]
)
def test_each_part_of_a_device_has_a_cell_of_its_bar(taken: tuple[int, int, int]) -> None:
    bar = show_plan._bar(Device("CUDA0", 24 * GIB, *taken, reserve=GIB))
    assert len(bar) == show_plan.BAR
    parts = dict(zip("wkc", taken, strict=True)) | {"r": max(min(GIB, 24 * GIB - sum(taken)), 0)}
    assert {sign for sign in parts if sign in bar} == {sign for sign, size in parts.items() if size}
    assert bar == "".join(sorted(bar, key="wkcr.".index))


def test_too_long_a_context_is_told_whose_limit_it_meets(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "plan", "--ctx-size", "1000000")
    assert code == Exit.SITE
    assert "a slot of 1,000,000 tokens is more than the 163,840 that the model was trained for" in err


def test_another_model_has_a_limit_of_its_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = fullsize.write_other(tmp_path / "llama.gguf", models.MODELS["llama-8b"]())
    trained = gguf.read(file).context_length
    assert trained < 163_840
    code, _, err = run(capsys, "plan", "--gguf", str(file), "--ctx-size", str(trained + 256))
    assert code == Exit.SITE
    assert f"more than the {trained:,} that the model was trained for" in err
    words = ("explain", "--gguf", str(file), "--gpus", "1x80GiB", "--ram", "64GiB", "--json", "--")
    (note,) = document(capsys, *words, "-c", str(2 * trained), "-ngl", "1")["notes"]
    assert f"the {trained:,} tokens that the model was trained for" in note


@pytest.mark.parametrize(
    ("arguments", "would"),
    [
        ("", "shorten the context and leave more in RAM"),
        ("-ngl 62", "shorten the context"),
        ("-c 8192", "leave more in RAM"),
        ("-c 8192 -ngl all", None),
        ("-c 8192 -ot exps=CPU", None),
        ("--fit off", None),
        ("--cpu-moe -c 4096", None),
    ],
)
def test_explain_says_what_the_engines_own_fit_would_change(
    capsys: pytest.CaptureFixture[str], arguments: str, would: str | None
) -> None:
    words = ("explain", "--gpus", "4x24564MiB", "--ram", "480GB", "--json", "--")
    notes = document(capsys, *words, *arguments.split())["notes"]
    assert len(notes) == bool(would)
    assert not would or f"Without `--fit off` the engine would {would} at its start" in notes[0]


def test_what_is_kept_of_past_prompts_is_counted_and_can_be_less(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("explain", "--gpus", "0", "--ram", "150GiB", "--json", "--", "-c", "512", "-np", "1")
    told = document(capsys, *words)
    assert told["host"]["reserve_bytes"] == 12 * GIB
    assert document(capsys, *words, "--cache-ram", "0")["host"]["reserve_bytes"] == 4 * GIB
    tight = (*words[:3], "--ram", "140GiB", *words[5:])
    (less,) = [each for each in document(capsys, *tight)["alternatives"] if "cache_ram" in each["change"]]
    assert 0 <= less["change"]["cache_ram"] < 8192
    assert document(capsys, *tight, *less["arguments"])["fits"]


def test_a_small_machine_keeps_fewer_past_prompts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    told = document(capsys, "plan", "--profile", str(cpu_with(tmp_path, "140 GiB")), "--json")
    assert told["fits"]
    kept = int(told["arguments"][told["arguments"].index("--cache-ram") + 1])
    assert 0 < kept < 8192
    host = told["host"]
    assert host["reserve_bytes"] == 4 * GIB + kept * MIB
    taken = host["weights_bytes"] + host["kv_bytes"] + host["compute_bytes"]
    left = host["capacity_bytes"] - taken - 4 * GIB
    assert 0 <= left // 2 - kept * MIB < 2 * MIB
    assert "half of the RAM that is left" in told["cache_ram"]["reason"]


def test_a_model_that_arguments_name_is_not_the_one_that_is_judged(capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "explain",
        "--gpus",
        "4x24GiB",
        "--ram",
        "480GiB",
        "--json",
        "--",
        "-m",
        "/models/Q4_K_M.gguf",
        "-c",
        "512",
    )
    told = document(capsys, *words)
    assert told["model"] == "UD-IQ1_S"
    assert "These are the figures of UD-IQ1_S; `/models/Q4_K_M.gguf` was not read" in told["notes"][0]


def test_the_line_of_a_plan_can_be_explained(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "plan", "--profile", "4x4090")
    (line,) = [line for line in out.splitlines() if "llama-server" in line]
    words = ("explain", "--gpus", "4x24564MiB", "--ram", "480GB", "--attention", "mla", "--json", "--")
    assert document(capsys, *words, *shlex.split(line))["fits"]


def test_plan_puts_others_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    told = document(capsys, "plan", "--profile", "4x4090", "--json")
    assert told["fits"]
    assert {other["name"]: other["fits"] for other in told["baselines"]} == {
        "as published, legacy attention": True,
        "rule of thumb, formula: 40 layers": False,
        "rule of thumb, published: 39 layers": False,
        "all experts in RAM": True,
        "Ollama, whole layers": True,
    }
    assert told["bytes_per_token"]["host"] < min(other["bytes_per_token"]["host"] for other in told["baselines"])
    assert told["ollama"] == {"num_gpu": 36, "num_ctx": 32768, "num_batch": 128}
    assert all(
        d["capacity_bytes"] - d["weights_bytes"] - d["kv_bytes"] - d["compute_bytes"] >= d["reserve_bytes"]
        for d in told["devices"]
    )


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("case", ["4x4090", "4xh800", "too-small"])
def test_plan_is_a_page_of_text(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, width: int
) -> None:
    """The output is the golden file, on terminals of 40 to 120 columns. `make golden` writes the files again."""
    monkeypatch.setattr(console.out, "width", width)
    words = ("--profile", case) if case != "too-small" else ("--profile", str(cpu_with(tmp_path, "160 GB")))
    _, out, _ = run(capsys, "plan", *words, *((*LEGACY, "--ctx-size", "16384") if case == "too-small" else ()))
    text = "".join(f"{line.rstrip()}\n" for line in out.splitlines())
    golden = GOLDEN / f"{case}-{width}.txt"
    if os.environ.get("R1PROV_GOLDEN") == "write":
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text()
    # A line is longer than the terminal is wide only where one word is: the pattern of a placement.
    assert all(len(line) <= width or len(line.removesuffix(" \\").split()) == 1 for line in text.splitlines())


def cpu_with(folder: Path, ram: str) -> Path:
    """The profile `cpu` with another size of RAM."""
    text = (ROOT / "inventory" / "profiles" / "cpu.yml").read_text()
    profile = folder / "small.yml"
    profile.write_text(re.sub(r"ram: .*", f"ram: {ram}", text))
    return profile


def test_plan_for_too_little_ram_says_what_would_fit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("plan", "--profile", str(cpu_with(tmp_path, "170 GB")), "--quant", "UD-IQ1_M", *LEGACY, "--json")
    told = document(capsys, *words, "--ctx-size", "1024")
    assert not told["fits"]
    assert "host runs out of memory" in told["reasons"][0]
    assert told["alternatives"] == [{"change": {"quant": "UD-IQ1_S"}, "arguments": ["--quant", "UD-IQ1_S"]}]
    assert document(capsys, *words, "--ctx-size", "1024", "--quant", "UD-IQ1_S")["fits"]


def test_the_largest_context_that_fits_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("plan", "--profile", str(cpu_with(tmp_path, "160 GB")), *LEGACY, "--json", "--ctx-size")
    told = document(capsys, *words, "16384")
    (context,) = [each["change"]["ctx_size"] for each in told["alternatives"] if "ctx_size" in each["change"]]
    assert document(capsys, *words, str(context))["fits"]
    assert not document(capsys, *words, str(context + 256))["fits"]


def test_less_reserve_and_fewer_slots_are_alternatives(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    told = document(capsys, "plan", "--profile", "4x4090", "--reserve", "30GiB", "--json")
    assert told["alternatives"] == [{"change": {"reserve_bytes": 2**30}, "arguments": ["--reserve", "1024MiB"]}]
    words = ("plan", "--profile", str(cpu_with(tmp_path, "165 GB")), *LEGACY, "--json")
    told = document(capsys, *words, "--ctx-size", "2048", "--parallel", "4")
    assert {"change": {"parallel": 3}, "arguments": ["--parallel", "3"]} in told["alternatives"]


def test_plan_takes_the_quant_that_the_profile_takes(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "plan", "--profile", "4xh800")
    assert out.startswith("UD-Q2_K_XL")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("explain", "--gpus", "four", "--ram", "1GiB"), "is not a set of cards"),
        (("explain", "--gpus", "0", "--ram", "1"), "is not a size"),
        (("explain", "--gpus", "0", "--ram", "1GiB", "--quant", "UD-IQ9"), "no quant is called"),
        (("plan", "--gguf", "/nowhere.gguf"), "cannot be read: No such file or directory"),
        (("plan", "--profile", "demo", "--source", "/nowhere"), "cannot be read: No such file or directory"),
        (("plan", "--gguf", "http://127.0.0.1:9/a.gguf"), "cannot be read: Connection refused"),
        (("plan", "--gguf", str(ROOT)), "Is a directory"),
        (("plan", "--gguf", str(ROOT / "Makefile")), "it is no GGUF file"),
        (("plan", "--gguf", f"file://{ROOT}/Makefile"), "it is no GGUF file"),
        (("plan", "--gguf", "ftp://example.com/r1.gguf"), "r1prov cannot read from `ftp://`"),
        (("plan", "--gguf", "hf://unsloth/DeepSeek-R1-GGUF"), "r1prov cannot read from `hf://`"),
        (("plan", "--gguf", "HTTP://127.0.0.1:1/r1.gguf"), "Connection refused"),
        (("plan", "--gguf", "https://"), "it is no address of a web server"),
        (("plan", "--gguf", "http://me:secret@[bad"), "[bad: it is no address of a web server"),
        (("plan", "--gguf", "http://127.0.0.1:99999/r1.gguf"), "it is no address of a web server"),
        (("plan", "--profile", "4x409"), "did you mean 4x4090"),
        (
            ("plan", "--ctx-size", "10"),
            "--ctx-size: `10` should be greater than or equal to 256\n  -> write 256 or more",
        ),
        (("plan", "--ctx-size", "999999"), "-> lower --ctx-size (context_per_slot) to 163,840 or less"),
        (("plan", "--parallel", "0"), "--parallel: `0` is no number of slots\n  -> write a number from 1 to 64, or"),
        (
            ("plan", "--parallel", "at least 65"),
            "`at least 65` is no number of slots\n  -> write a number from 1 to 64, or",
        ),
        (
            ("plan", "--first-token", "soon"),
            "--first-token: `soon` is not a duration\n  -> write whole numbers and h, m or s",
        ),
        (("explain", "--gpus", "3x", "--ram", "1GiB"), "`3x` is not a set of cards"),
        (("explain", "--gpus", "4x24GiB,0", "--ram", "1GiB"), "`4x24GiB,0` is not a set of cards"),
        (("explain", "--gpus", "1x0GiB", "--ram", "1GiB"), "`1x0GiB` is not a set of cards"),
        (("explain", "--gpus", "0", "--ram", "1GiB", "--reserve", "-1"), "--reserve: `-1` is not a size"),
        (("explain", "--gpus", "", "--ram", "1GiB"), "`` is not a set of cards"),
        (("plan", "--cache-type-k", ""), "--cache-type-k: `` is none of"),
        (("plan", "--cache-type-k", "q4_9"), "--cache-type-k: `q4_9` is none of 'f32', 'f16',"),
    ],
)
def test_bad_input_is_one_clear_error(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: tuple[str, ...],
    reason: str,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # this cache holds no headers
    code, _, err = run(capsys, *words)
    assert code == Exit.SITE
    assert reason in err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("plan", "--quant", "UD-IQ1_S", "--gguf", "a.gguf"), "exclude each other"),
        (("plan", "--source", "/models", "--gguf", "a.gguf"), "exclude each other"),
        (("plan", "--source", "/models"), "UD-IQ1_S is known without"),
        (("plan", "--quant", ""), "'--quant': it is empty"),
        (("plan", "--gguf", ""), "'--gguf': it is empty"),
        (("plan", "--source", ""), "'--source': it is empty"),
        (("plan", "--profile", ""), "'--profile': it is empty"),
        (("plan", "--ctx-size", ""), "'--ctx-size'"),
        (("explain", "--gpus", "0", "--ram", "1GiB", "--quant", ""), "'--quant': it is empty"),
        (("explain", "--gpus", "0", "--ram", "1GiB", "--gguf", ""), "'--gguf': it is empty"),
        (("plan", "more"), "unexpected extra argument"),
        (("explain", "--ram", "1GiB"), "which machine? Give --gpus and --ram"),
        (("explain", "--gpus", "0", "--ram", "1GiB", "--", "--frobnicate"), "--frobnicate is not an argument"),
        (
            ("explain", "--gpus", "0", "--ram", "1GiB", "--", "CUDA_VISIBLE_DEVICES=0", "llama-server"),
            "does not know the effect of CUDA_VISIBLE_DEVICES=0",
        ),
        (("explain", "--gpus", "0", "--ram", "1GiB", "--jsn"), "--jsn is not an argument"),
    ],
)
def test_wrong_words_are_wrong_usage(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], reason: str) -> None:
    code, out, err = run(capsys, *words)
    assert (code, out) == (Exit.USAGE, "")
    assert reason in " ".join(err.split())


def test_a_file_as_it_was_published_is_planned_as_it_will_be_served(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = fullsize.write(tmp_path / "r1.gguf", "UD-IQ1_S", mla=False)
    mla, legacy = (
        document(capsys, "plan", "--gguf", str(file), "--ctx-size", "8192", "--attention", form, "--json")
        for form in ("mla", "legacy")
    )
    assert (mla["mla"], legacy["mla"]) == (True, False)
    assert mla["bytes_per_token"]["host"] < legacy["bytes_per_token"]["host"]
    (other,) = [each for each in mla["baselines"] if each["name"] == "as published, legacy attention"]
    assert other["bytes_per_token"] == legacy["bytes_per_token"]
    (other,) = [each for each in legacy["baselines"] if each["name"] == "in MLA form"]
    assert other["bytes_per_token"] == mla["bytes_per_token"]
    said = document(
        capsys, "explain", "--gpus", "4x24564MiB", "--ram", "480GB", "--gguf", str(file), "--attention", "mla", "--json",
        *mla["arguments"]
    )  # fmt: skip
    assert said["devices"] == mla["devices"]


def test_no_reserve_needs_no_unit(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("plan",), ("explain", "--gpus", "4x24564MiB", "--ram", "480GB")):
        told = document(capsys, *words, "--reserve", "0", "--json")
        assert [device["reserve_bytes"] for device in told["devices"]] == [0] * 4


def test_capitals_of_a_quant_and_of_a_cache_type_do_not_matter(capsys: pytest.CaptureFixture[str]) -> None:
    as_written = document(capsys, "plan", "--quant", "UD-IQ1_M", "--cache-type-k", "q8_0", "--json")
    assert document(capsys, "plan", "--quant", "ud-iq1_m", "--cache-type-k", "Q8_0", "--json") == as_written


def test_a_small_model_of_the_same_make_plans_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tinymodel.write(tmp_path / "tiny.gguf")
    told = document(capsys, "plan", "--profile", "4x4090", "--gguf", str(file), "--cache-type-k", "f16", "--json")
    assert told["fits"]
    assert told["bytes_per_token"]["host"] < 1 * MIB


def test_a_dense_model_is_placed_by_layers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = fullsize.write_other(tmp_path / "llama.gguf", models.MODELS["llama-8b"]())
    words = ("--profile", "4x4090", "--parallel", "1", "--cache-type-k", "q4_0", "--gguf", str(file))
    _, out, _ = run(capsys, "plan", *words)
    assert "It fits." in out
    assert "--cache-type-k q4_0 --cache-type-v q4_0" in out
    assert "Ollama: num_gpu 33, num_batch 512\n" in out
    assert "experts" not in out
    assert "waits" not in out


def test_a_dense_model_on_a_card_too_small_keeps_its_first_layers_in_ram(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = fullsize.write_other(tmp_path / "llama.gguf", models.MODELS["llama-70b"]())
    profile = tmp_path / "one.yml"
    text = (Path(__file__).parents[2] / "inventory" / "profiles" / "4x4090.yml").read_text()
    profile.write_text(text.replace("count: 4", "count: 1").replace("4 x", "1 x"))
    told = document(capsys, "plan", "--profile", str(profile), "--gguf", str(file), "--json")
    assert told["fits"]
    assert "--override-tensor" not in told["arguments"]
    layers = int(told["arguments"][told["arguments"].index("--n-gpu-layers") + 1])
    assert 0 < told["ollama"]["num_gpu"] <= layers < 81
    weights = told["devices"][0]["weights_bytes"] + told["host"]["weights_bytes"]
    assert weights == pytest.approx(models.MODELS["llama-70b"]().model("").n_bytes, rel=1e-5)


def test_of_experts_a_token_reads_as_many_as_the_header_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    description = models.MODELS["qwen3-30b-a3b"]()
    file = fullsize.write_other(tmp_path / "moe.gguf", description)
    asked = (
        "explain",
        "--gpus",
        "1x24GiB",
        "--ram",
        "64GiB",
        "--gguf",
        str(file),
        "--json",
        "--",
        "-c",
        "512",
        "-cmoe",
    )
    told = document(capsys, *asked)
    experts = sum(tensor.n_bytes for tensor in description.tensors if tensor.is_experts)
    assert told["bytes_per_token"]["host"] == pytest.approx(experts * 8 / 128, rel=0.01)
    assert told["notes"] == []


def test_bounds_are_said_to_be_bounds(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = fullsize.write_other(tmp_path / "gemma.gguf", models.MODELS["gemma3-12b"]())
    asked = ("explain", "--gpus", "1x24GiB", "--ram", "64GiB", "--gguf", str(file))
    (note,) = document(capsys, *asked, "--json", "--", "-c", "4096")["notes"]
    assert "r1prov does not know the compute graph of `gemma3`" in note
    assert "upper bounds" in note
    assert "upper bounds" in run(capsys, *asked, "--", "-c", "4096")[1]


def test_a_model_without_attention_is_refused_by_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    described = models.MODELS["smollm2-135m"]()
    renamed = tuple(replace(tensor, name=tensor.name.replace("attn_q", "ssm_in")) for tensor in described.tensors)
    metadata = {key.replace("llama.", "mamba."): value for key, value in described.metadata.items()}
    metadata |= {"general.architecture": "mamba", "mamba.attention.head_count": 0, "mamba.attention.head_count_kv": 0}
    file = fullsize.write_other(tmp_path / "mamba.gguf", models.Description(metadata, renamed))
    for verb in (("plan",), ("explain", "--gpus", "0", "--ram", "8GiB")):
        code, _, err = run(capsys, *verb, "--gguf", str(file))
        assert code == Exit.SITE
        assert "no graph of `mamba` can be drawn: r1prov does not know how its tensor `ssm_in.weight` is used" in err
        assert "deepseek2, llama, qwen2, qwen3, qwen3moe" in err


def test_cards_are_written_as_people_write_them() -> None:
    assert parse_cards("0") == ()
    assert parse_cards("1x24564MiB,2x48GiB") == (24564 * MIB, 48 * GIB, 48 * GIB)
    for wrong in ("", "4", "3x", "1x0GiB", "4x24GiB,0", "x24GiB", "0x24GiB", "17x1GiB", "9x1GiB,9x1GiB", "4x24"):
        with pytest.raises(ValueError, match=r"not a set of cards|takes at most 16"):
            parse_cards(wrong)


@pytest.mark.parametrize("pattern", ["([a-z_.0-9]+)*!", "(.*)*!", "((a|[a-z])|[.]|_|.)*!", "(?:.*){12}!"])
def test_a_pattern_that_takes_for_ever_is_refused_in_time(capsys: pytest.CaptureFixture[str], pattern: str) -> None:
    words = ("explain", "--gpus", "1x24GiB", "--ram", "480GiB", "--", "-np", "1", "-c", "512", "-ot", f"{pattern}=CPU")
    began = time.process_time()
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert "the engine would hang likewise" in " ".join(out.split())
    assert time.process_time() - began < 4


def test_harmless_repetitions_are_still_read(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("explain", "--gpus", "1x24GiB", "--ram", "480GiB", "--json", "--", "-np", "1", "-c", "512")
    found = [
        document(capsys, *words, "-ot", f"{pattern}=CPU")["devices"]
        for pattern in ("exps", "(blk[.])?([0-9]+[.])*.*_exps.*")
    ]
    assert found[0] == found[1]


def keys_in(told: object, path: str = "") -> Iterator[str]:
    """The paths of all keys in a JSON document. Keys of which the document itself makes the names are left out."""
    if isinstance(told, list):
        for each in told:
            yield from keys_in(each, f"{path}[]")
    elif isinstance(told, dict):
        for key, value in told.items():
            inner = f"{path}.{key}".lstrip(".")
            yield inner
            if inner not in {"environment", "alternatives[].change"}:
                yield from keys_in(value, inner)


def test_the_page_describes_every_key_of_the_document(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / "offload.md").read_text().partition("## The JSON document")[2]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r1prov.yml").write_text("profile: 4x4090\nhosts: [gpu1]\n")
    speed = {
        "low": 4e10,
        "high": 5e10,
        "by": "r1prov tune",
        "model": "UD-IQ1_S",
        "measured": "2026-11-29T00:00:00+00:00",
    }
    hardware = {"cpu": "Xeon", "cores": 64, "threads": 64, "ram": 480 * GIB, "cards": [["RTX 4090", 24564 * MIB]] * 4}
    machine = {"hardware": hardware, "link": None, "measured": {"ram_bytes_per_second": speed}}
    known = tmp_path / ".r1prov" / "machines" / "gpu1.json"
    known.parent.mkdir(parents=True)
    known.write_text(json.dumps(machine))
    small = ("explain", "--json", "--gpus", "1x24GiB", "--ram", "64GiB", "--")
    plans = [document(capsys, "plan", "--json", *words) for words in (("--host", "gpu1"), ("--ctx-size", "100000"))]
    others = [document(capsys, *small, *words) for words in (("-c", "512"), ("-c", "512", "--no-mmap"))]
    assert plans[0]["measured"]
    assert others[1]["alternatives"][0]["without"]
    found = {key for told in (*plans, *others) for key in keys_in(told)}
    assert len(found) > 100
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", text))))
    assert sorted(key for key in found if key.rpartition(".")[2] not in words) == []
    rows = re.findall(r"(?m)^\| (`.*?) \| ", text.partition("### ")[0])
    described = {name for row in rows for name in re.findall(r"`(\w+)[\[\]{}]*`", row)}
    assert described == {key for key in found if "." not in key}
