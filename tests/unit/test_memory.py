"""Compares the memory model with the engine's own answers in tests/data/engine_memory.json and engine_memory_others.json."""

import json
import re
import shlex
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1prov.common.units import GIB, MIB
from r1prov.models import layout
from r1prov.models.model import Model, Tensor
from r1prov.offload.arguments import MOST_LAYERS, mended, parse
from r1prov.offload.engine.buffers import Pool
from r1prov.offload.engine.graphs import check, known
from r1prov.offload.experiment import servers
from r1prov.offload.memory import Memory, memory, placement
from r1prov.offload.modes import MODES
from r1prov.offload.setting import CACHE_TYPES, RefusedError, Setting, UnknownArgumentError
from tests.cuda import experiments, models


def _answers(file: str) -> list[dict]:
    return json.loads((Path(__file__).parents[1] / "data" / file).read_text())["answers"]


R1, ALL_OTHERS, MIXED, OF_MODES, PLANNED = (
    _answers(f"engine_memory{which}.json") for which in ("", "_others", "_mixed", "_modes", "_workloads")
)
PRESUMED = [answer for answer in ALL_OTHERS if answer["model"] in models.PRESUMED]
OTHERS = [answer for answer in ALL_OTHERS if answer["model"] not in models.PRESUMED]
REFUSED = [answer for answer in (*R1, *ALL_OTHERS) if "refusal" in answer]
QUANTITIES = ("weights", "kv", "compute")


@cache
def other(name: str) -> Model:
    return models.MODELS[name]().model(name)


def name_of(answer: dict) -> str:
    return answer.get("quant") or answer["model"]


def memory_of(answer: dict) -> Memory:
    cards = [mib * MIB for mib in answer["cards"]]
    model = layout.model(answer["quant"], mla=answer["mla"]) if "quant" in answer else other(answer["model"])
    return memory(model, parse(answer["arguments"], cards=len(cards)), cards)


@pytest.mark.parametrize("answers", [R1, OTHERS], ids=["r1", "others"])
def test_the_reference_covers_what_it_should(answers: list[dict]) -> None:
    def values(option: str) -> set[str]:
        return {a["arguments"][a["arguments"].index(option) + 1] for a in answers if option in a["arguments"]}

    measured = [answer for answer in answers if "mib" in answer]
    assert len(measured) >= 100
    assert {len(answer["cards"]) for answer in measured} == {0, 1, 2, 3, 4, 8}
    assert {"512", "65536"} <= values("-c")
    assert {"64", "2048"} <= values("-ub")
    assert {"1", "8"} <= values("-np")
    assert {"f16", "q8_0", "q4_0"} <= values("-ctk")
    assert {"off"} <= values("-fa")


def test_the_reference_covers_every_model() -> None:
    assert {(answer["quant"], answer["mla"]) for answer in R1} == {
        (quant, mla) for quant in layout.TYPES for mla in (False, True)
    }
    assert {answer["model"] for answer in ALL_OTHERS} == set(models.MODELS)


@pytest.mark.parametrize("answers", [R1, OTHERS, PLANNED], ids=["r1", "others", "planned"])
def test_every_device_of_every_answer_is_within_the_limits(answers: list[dict]) -> None:
    """The limits are 0.5 % for weights and KV, and for compute 5 % or 64 MiB, but at most 64 MiB too low.

    The engine prints whole MiB.
    """
    errors: dict[str, list[tuple[float, float, str]]] = {quantity: [] for quantity in QUANTITIES}
    beyond = []
    for answer in (answer for answer in answers if "mib" in answer):
        result = memory_of(answer)
        for device, (use, told) in enumerate(zip((*result.cards, result.host), answer["mib"], strict=True)):
            for quantity, mib in zip(QUANTITIES, told, strict=True):
                difference = getattr(use, quantity) // MIB - mib
                where = f"{name_of(answer)} {answer['cards']} {' '.join(answer['arguments'])}: device {device}"
                errors[quantity].append((abs(difference), abs(difference) / max(mib, 1), where))
                limit = max(0.05 * mib, 64) if quantity == "compute" else max(0.005 * mib, 1)
                if abs(difference) > limit or (quantity == "compute" and difference < -64):
                    beyond.append(f"{where}: {quantity} {difference:+} MiB of {mib}")
    table = []
    for quantity, rows in errors.items():
        worst, share, mean = max(rows)[0], max(row[1] for row in rows), sum(row[0] for row in rows) / len(rows)
        table.append(f"{quantity:8} worst {worst:6.0f} MiB ({share:.2%}), mean {mean:.2f} MiB, {len(rows)} figures")
    assert not beyond, "\n".join([*table, *beyond])


def test_patterns_and_cache_types_are_the_engines_own() -> None:
    """The file has every cache type, with and without flash attention, and patterns that mean something else to Python."""
    measured = [answer for answer in MIXED if "mib" in answer]
    assert len(measured) >= 150
    for type_ in CACHE_TYPES:
        for flash in ("on", "off", "auto"):
            words = ["-ctk", type_.lower()], ["-fa", flash]
            assert any(all(_within(pair, answer["arguments"]) for pair in words) for answer in MIXED), words
    wrong = []
    for answer in MIXED:
        where = f"{name_of(answer)} {answer['cards']} {' '.join(answer['arguments'])}"
        try:
            result = memory_of(answer)
        except RefusedError as refusal:
            wrong += (
                [] if _is_reason(str(refusal), answer.get("refusal", "")) else [f"{where}: {refusal}, not {answer}"]
            )
            continue
        uses = [[use.weights // MIB, use.kv // MIB, use.compute // MIB] for use in (*result.cards, result.host)]
        wrong += [] if uses == answer.get("mib") else [f"{where}: {uses}, not {answer}"]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("profile", ["4x4090", "4xh800"])
def test_what_each_mode_takes_is_what_the_engine_takes(profile: str) -> None:
    """The answers are those to today's arguments of each mode."""
    subject = experiments.subject(profile)
    cards = [card // MIB for card in subject.machine.cards]
    told = {
        (answer["mla"], tuple(answer["arguments"])): answer["mib"] for answer in OF_MODES if answer["cards"] == cards
    }
    for server in servers(tuple(MODES), subject):
        assert server.outcome
        uses = [
            [device.weights // MIB, device.kv // MIB, device.compute // MIB]
            for device in (*server.outcome.devices, server.outcome.host)
        ]
        assert uses == told[experiments.asked(server, subject)], server.mode


def _is_reason(ours: str, theirs: str) -> bool:
    """Whether r1prov refuses a setting for the engine's reason. The library of the engine has words of its own for patterns."""
    of_pattern = r"regular expression|bracket expression|character class|sub-expression"
    if re.search(of_pattern, theirs, re.IGNORECASE):
        return "cannot use the pattern" in ours
    if "unknown buffer type" in theirs:
        return "knows no device" in ours or "finds no `=DEVICE`" in ours
    return bool(theirs) and ours.split(":", maxsplit=1)[0] in theirs


def _within(pair: list[str], words: list[str]) -> bool:
    return any(words[start : start + 2] == pair for start in range(len(words)))


def test_what_is_presumed_is_never_less_than_the_engine_takes() -> None:
    """The estimate of the weights is as exact as for other models, and that of the KV cache is never too small.

    The estimate of the compute buffer is at most twice the engine's plus 512 MiB.
    """
    measured = [answer for answer in PRESUMED if "mib" in answer]
    assert {answer["model"] for answer in measured} == set(models.PRESUMED)
    for answer in measured:
        result = memory_of(answer)
        for device, (use, told) in enumerate(zip((*result.cards, result.host), answer["mib"], strict=True)):
            where = f"{answer['model']} {answer['cards']} {' '.join(answer['arguments'])}: device {device}"
            weights, kv, compute = told
            assert abs(use.weights // MIB - weights) <= max(0.005 * weights, 1), where
            assert use.kv // MIB >= kv, where
            assert compute <= use.compute // MIB <= 2 * compute + 512, where


def test_only_graphs_that_are_the_engines_own_count_as_known() -> None:
    assert all(known(layout.model(quant, mla=mla)) for quant in layout.TYPES for mla in (False, True))
    assert {name for name in models.MODELS if not known(other(name))} == set(models.PRESUMED)
    llama = other("llama-8b")
    fused = Tensor("blk.3.attn_qkv.weight", (4096, 6144), "Q4_K")
    assert not known(replace(llama, tensors=(*llama.tensors, fused)))
    assert not known(replace(llama, heads=30))


@pytest.mark.parametrize(
    ("architecture", "lacking"), [("qwen3", "blk.36.attn_norm.weight"), ("jamba", "blk.36.attn_k.weight")]
)
def test_no_graph_can_be_drawn_of_a_model_that_lacks_a_tensor(architecture: str, lacking: str) -> None:
    model = replace(other("qwen3-8b"), architecture=architecture, layers=37)
    with pytest.raises(ValueError, match=f"no graph of `{architecture}` can be drawn: it has no tensor `{lacking}`"):
        check(model)


@pytest.mark.parametrize("architecture", ["qwen3", "jamba"])
def test_nor_of_one_with_a_tensor_of_unknown_use(architecture: str) -> None:
    model = replace(other("qwen3-8b"), architecture=architecture)
    strange = Tensor("blk.3.ssm_in.weight", (4096, 4096), "F16")
    with pytest.raises(ValueError, match=r"does not know how its tensor `ssm_in\.weight` is used"):
        check(replace(model, tensors=(*model.tensors, strange)))


def test_a_tied_embedding_lies_in_ram_and_with_the_output() -> None:
    model = other("qwen2-1.5b")
    embedding = model.by_name["token_embd.weight"].n_bytes
    on_card = memory(model, Setting(slots=1, context=512, gpu_layers=1), [24 * GIB])
    assert on_card.cards[0].weights == pytest.approx(embedding, rel=0.001)
    assert on_card.host.weights == pytest.approx(model.n_bytes, rel=0.001)
    in_ram = memory(model, Setting(slots=1, context=512, gpu_layers=0), [24 * GIB])
    assert in_ram.host.weights == model.n_bytes


@pytest.mark.parametrize("answer", REFUSED, ids=lambda answer: f"{name_of(answer)}-{' '.join(answer['arguments'])}")
def test_what_the_engine_refuses_is_refused_for_the_same_reason(answer: dict) -> None:
    with pytest.raises(RefusedError) as refusal:
        memory_of(answer)
    assert str(refusal.value).split(":")[0] in answer["refusal"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("-ctk q4_9", "-ctk has an unsupported type: q4_9"),
        ("-c many", "-c cannot be `many`"),
        ("-ngl", "-ngl needs a value"),
        ("-ot exps=CUDA3", "knows no device `CUDA3`"),
        ("-ot blk.{1,2}_exps=CPU", "-ot finds no `=DEVICE` in `blk.{1`, for a comma ends a rule"),
        ("-ot (?<=ffn_)up_exps=CPU", "the first `=` ends a pattern"),
        ("-ot ((=CPU", "cannot use the pattern"),
        ("--make-coffee", "--make-coffee is no argument"),
        ("-ub 0", "-ub must be from 1"),
        ("-c -5", "-c must be from 0"),
        ("-c 99999999999", "-c must be from 0"),
        ("-np 257", "-np must be from 1 to 256"),
        ("-ncmoe many", "-ncmoe cannot be `many`"),
        ("-ts 1,-2", "-ts must be numbers from 0 on"),
        ("-ts nan", "-ts must be numbers from 0 on"),
    ],
)
def test_wrong_arguments_are_refused_with_the_reason(arguments: str, reason: str) -> None:
    with pytest.raises(RefusedError, match=r".*".join(map(_escaped, reason.split()))):
        parse(arguments.split(), cards=1)


def _escaped(word: str) -> str:
    return "".join(f"[{sign}]" if not sign.isalnum() else sign for sign in word)


def test_arguments_have_long_forms_and_defaults_of_the_server() -> None:
    short, long = (
        parse(text.split(), cards=1)
        for text in (
            "-c 8192 -np 2 -ctk q8_0 -ngl 7 -fa off --temp 0.6 --metrics",
            "CUDA_DEVICE_ORDER=X /opt/llama-server --ctx_size 8192 --parallel 2 --cache-type-k q8_0 --gpu-layers 7 -fa disabled -sm layer",
        )
    )
    assert short == long == Setting(context=8192, slots=2, unified=False, type_k="Q8_0", gpu_layers=7, flash=False)
    assert parse([], cards=0) == Setting(slots=4, unified=True)
    assert parse(["-ngl", "auto"], cards=1) == Setting()
    everything = parse(["-ngl", "-7"], cards=1)
    assert everything == parse(["-ngl", "all"], cards=1)
    assert everything.placed
    with pytest.raises(RefusedError, match="has an unsupported type: Q8_0"):
        parse(["-ctk", "Q8_0"], cards=0)
    with pytest.raises(RefusedError, match="write the value as a separate word"):
        parse(["--ctx-size=8192"], cards=0)
    with pytest.raises(RefusedError, match="invalid argument --no-mmap: the engine replaced it by `--load-mode none`"):
        parse(["--no-mmap"], cards=0)
    with pytest.raises(UnknownArgumentError, match="-sm cannot be judged with `row`"):
        parse(["-sm", "row"], cards=2)
    with pytest.raises(UnknownArgumentError, match="leave cards out with `--gpus`"):
        parse(["-dev", "CUDA0"], cards=2)
    assert len(parse(["-ncmoe", "999999999"], cards=1).overrides) == MOST_LAYERS


@pytest.mark.parametrize(
    ("arguments", "compute_mib"),
    [
        ("-ngl 99 -cmoe -c 8192 -np 1 -fa on -ub 128", (1403, 94, 78)),
        ("-ngl 30 -nkvo", (1181, 380, 447)),
        ("-ngl 30 -c 8192", (1181, 380, 299)),
    ],
)
def test_a_cache_that_no_card_fuses_attention_for_has_it_computed_in_ram(
    arguments: str, compute_mib: tuple[int, ...]
) -> None:
    """The figures are those of the pinned engine's CUDA backend for UD-IQ1_S in MLA form on two cards of 24,564 MiB."""
    setting = parse([*arguments.split(), "-ctk", "iq4_nl", "-ctv", "iq4_nl"], cards=2)
    taken = memory(layout.model("UD-IQ1_S", mla=True), setting, (24_564 * MIB,) * 2)
    assert [use.compute / MIB for use in (*taken.cards, taken.host)] == pytest.approx(compute_mib, abs=1)


@pytest.mark.parametrize(
    "line",
    [
        "llama-server {}",
        "sudo -u llm nice -n 5 numactl --interleave=all /opt/llama.cpp/bin/llama-server {}",
        "OMP_NUM_THREADS=8 CUDA_DEVICE_ORDER=PCI_BUS_ID llama-server {}",
        "env HF_HOME=/x taskset -c 0-7 ./llama-server {}",
        r"'C:\Program Files\llama\llama-server.exe' {}",
        "docker run --rm -it --gpus all -v /models:/models -p 8080:8080 ghcr.io/ggml-org/llama.cpp:server-cuda {}",
        "sudo podman run -d --name=r1 -e OMP_NUM_THREADS=4 image llama-server {}",
        "{} --alias llama-server",
        "nohup llama-server {} > server.log 2>&1 &",
        'bash -c "llama-server {}"',
        "llama-server \\\n  {}",
        "docker run -itp 8080:8080 -v/models:/models --no-healthcheck --entrypoint=/app/llama-server image {}",
        "docker run --rm --device nvidia.com/gpu=all -e NVIDIA_VISIBLE_DEVICES=all --gpus=all image:full --server {}",
        "docker run --gpus all image bash -c '/app/llama-server {}'",
        "docker compose run --rm -T r1 {}",
        "apptainer run --nv -B /models r1.sif {}",
        "kubectl exec -it pod -- llama-server {}",
        "sudo -u llm bash -c 'cd /opt && ./llama-server {}'",
        "ssh gpu1 'llama-server {}'",
        "tmux new -d -s llama-server 'llama-server {}'",
        "su - llm -c 'llama-server {}'",
        "systemd-run --unit llama-server llama-server {}",
        "srun --gres=gpu:4 -c 32 llama-server {}",
        "/usr/bin/time -v ./llama-server {} < /dev/null >> log 2>> errors",
        "llama-server -r '<|end|>' {}",
        "/usr/local/bin/llama-server-b4567 {}",
    ],
)
def test_what_people_paste_before_the_arguments_is_taken_off(line: str) -> None:
    arguments = "-ngl 7 -c 512 -np 1"
    words, expected = line.format(arguments), parse(arguments.split(), cards=1)
    assert parse([words], cards=1) == parse(shlex.split(words.replace("\\\n", "")), cards=1) == expected


@pytest.mark.parametrize(
    "text",
    [
        "cd /opt/llama.cpp && ./llama-server {}",
        "export HF_HOME=/x; llama-server {}; echo done",
        "source env.sh\nllama-server {}\n",
        "$ ./llama-server {} # all layers",
        "# llama-server {}",
        "while true; do llama-server {}; done",
        "llama-server {} 2>&1 | tee log",
        "llama-server \\ \n  --jinja \\\r\n  # as many as fit\n  {}\r\n",
        "llama-server --jinja\n  # as many as fit\n  {}",
        "llama-server\u00a0{}",
        "[Service]\nEnvironment=HF_HOME=/x\nExecStart=\nExecStart=-/usr/bin/llama-server \\\n  {}\nRestart=always",
        "ExecStart=/usr/bin/numactl --interleave=all /usr/bin/llama-server {}",
        r"C:\llama\llama-server.exe -m C:\models\r1.gguf {}",
        r"PS C:\llama> .\llama-server.exe {}",
        r"& '.\llama-server.exe' {}",
        'start "" "C:\\Program Files\\llama-server.exe" {}',
        ".\\llama-server.exe `\n  --jinja `\n  {}",
        "llama-server.exe ^\r\n  --jinja ^\r\n  {}",
        r"C:llamallama-server.exe {}",
    ],
)
def test_scripts_units_and_other_shells_are_read_too(text: str) -> None:
    arguments = "-ngl 7 -c 512 -np 1"
    assert parse([text.format(arguments)], cards=1) == parse(arguments.split(), cards=1)


@pytest.mark.parametrize("text", ["", "  ", "llama-server", "$ ./llama-server"])
def test_no_arguments_are_the_defaults(text: str) -> None:
    assert parse([text], cards=1) == parse([], cards=1)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("ollama run deepseek-r1:671b", "`ollama` is not llama-server: Ollama places the model itself"),
        ("python -m llama_cpp.server --n_ctx 8192", "llama_cpp.server has arguments of its own"),
        ("OMP_NUM_THREADS=4 ./llama-cli -ngl 3", "it is another program of llama.cpp"),
        ("vllm serve deepseek-ai/DeepSeek-R1", "it is another engine"),
        ("ngl 99", "`ngl` is neither llama-server nor an argument of it"),
        ("llama-server \u2013ngl 99", "`\u2013ngl` begins with a dash of typography; write `-ngl`"),
        ("llama-server \u2014ctx-size 512", "write `--ctx-size`"),
    ],
)
def test_another_program_is_called_one(line: str, reason: str) -> None:
    for words in ([line], line.split()):
        with pytest.raises(UnknownArgumentError) as refusal:
            parse(words, cards=1)
        assert reason in str(refusal.value)


@pytest.mark.parametrize(
    "line",
    [
        "CUDA_VISIBLE_DEVICES=0 llama-server",
        "export CUDA_VISIBLE_DEVICES=0; llama-server -ngl 1",
        "[Service]\nEnvironment=CUDA_VISIBLE_DEVICES=0\nExecStart=/usr/bin/llama-server -ngl 1",
        "docker run -eCUDA_VISIBLE_DEVICES=0 image -ngl 1",
        "docker run --rm --env=NVIDIA_VISIBLE_DEVICES=0 image -ngl 1",
        "podman run --device nvidia.com/gpu=0 image -ngl 1",
        "GGML_CUDA_ENABLE_UNIFIED_MEMORY=1 ./llama-server -ngl 1",
        "sudo LLAMA_ARG_N_GPU_LAYERS=3 llama-server",
        "docker run --gpus 2 image -ngl 1",
    ],
)
def test_what_would_change_the_cards_is_not_taken_off(line: str) -> None:
    with pytest.raises(UnknownArgumentError):
        parse([line], cards=4)


def test_arguments_that_change_no_memory_are_taken() -> None:
    harmless = (
        "--mirostat 2 --dry-base 1.75 --dynatemp-range 0 --top-nsigma -1 --xtc-threshold 0.1 --sampler-seq edskypmxt"
        " --reasoning-effort high --tools all --cors-origins * --ctx-checkpoints 8 --json-schema-file a.json --reuse-port"
        " --spm-infill --no-mmproj --no-agent --sse-ping-interval 30 --log-jsonl -l 15043+1"
    )
    assert parse(harmless.split(), cards=2) == parse([], cards=2)
    harmless = "-dt 0.1 --no-host --swa-full -mg 1 --override-kv tokenizer.ggml.add_bos_token=bool:false --rope-freq-base 10000"
    assert parse(harmless.split(), cards=2) == parse([], cards=2)
    with pytest.raises(UnknownArgumentError, match=r"does not know the effect of `deepseek2\.block_count` on memory"):
        parse(["--override-kv", "deepseek2.block_count=int:3"], cards=2)


def test_split_mode_none_is_one_card() -> None:
    """The figures are those of the pinned engine's CUDA backend; it does not list the other card."""
    words = shlex.split("-c 4096 -np 1 -fa auto -ngl 99 -ot exps=CPU -sm none -mg 1")
    taken = memory(layout.model("UD-IQ1_S", mla=True), parse(words, cards=2), (81_559 * MIB, 24_564 * MIB))
    uses = [[use.weights // MIB, use.kv // MIB, use.compute // MIB] for use in (*taken.cards, taken.host)]
    assert uses == [[0, 0, 0], [10_207, 274, 1132], [123_641, 0, 32]]
    with pytest.raises(RefusedError, match="invalid value for main_gpu: 2"):
        parse(["-sm", "none", "-mg", "2"], cards=2)


@pytest.mark.parametrize(
    ("words", "out", "put"),
    [
        ("-fa -ngl 3", "-fa", "-fa on"),
        ("-ngl 3 -fa", "-fa", "-fa on"),
        ("--no-mmap", "--no-mmap", "--load-mode none"),
        ("--mlock -ngl 3", "--mlock", "--load-mode mmap+mlock"),
        ("--no-mmap -fa --mlock", "--no-mmap --mlock -fa", "--load-mode mlock -fa on"),
        ("--ctx-size=512", "--ctx-size=512", "--ctx-size 512"),
    ],
)
def test_words_of_older_engines_have_others_in_their_place(words: str, out: str, put: str) -> None:
    with pytest.raises(RefusedError):
        parse(words.split(), cards=1)
    mended_words, *changes = mended(words.split(), cards=1)
    assert changes == [out.split(), put.split()]
    parse(mended_words, cards=1)


def test_only_the_output_lies_on_the_card_with_one_entry() -> None:
    where = placement(layout.model("UD-IQ1_S"), Setting(gpu_layers=1), [24 * GIB])
    assert {name for name, device in where.tensors.items() if device == 0} == {"output.weight", "output_norm.weight"}


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
    st.integers(0, 80),
)
def test_entries_are_dealt_to_the_cards_in_order(shares: list[int], layers: int) -> None:
    setting = Setting(gpu_layers=layers, split=tuple(map(float, shares)))
    where = placement(layout.model("UD-IQ1_S"), setting, [GIB] * len(shares))
    on_cards = [device for device in where.caches if device < len(shares)]
    assert len(on_cards) == max(min(layers, 62) - 1, 0)
    assert on_cards == sorted(on_cards)
    assert where.caches[: 61 - len(on_cards)] == (len(shares),) * (61 - len(on_cards))


@given(st.data())
def test_the_pool_never_gives_the_same_memory_twice(data: st.DataObject) -> None:
    pool, taken = Pool(), []
    for _ in range(data.draw(st.integers(0, 40))):
        if taken and data.draw(st.booleans()):
            pool.give(*taken.pop(data.draw(st.integers(0, len(taken) - 1))))
        else:
            size = data.draw(st.integers(1, 500))
            taken.append((pool.take(size), size))
        taken.sort()
        assert all(offset + size <= following for (offset, size), (following, _) in pairwise(taken))
        gaps = list(zip(pool.offsets, pool.rooms, strict=True))
        assert all(start + room < following for (start, room), (following, _) in pairwise(gaps))
    for offset, size in taken:
        pool.give(offset, size)
    assert pool.offsets == [0]
