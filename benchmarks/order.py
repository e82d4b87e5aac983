"""Asks the real engine whether the plan puts settings in the right order.

    python -m benchmarks.order [PROGRAM]

The settings in `SETTINGS` differ in what the plan has an opinion about on a machine without cards: how many tokens are computed at once,
and how many people are served at once. For each workload the plan's arithmetic says the mean seconds of an exchange with each of them.
llama-batched-bench measures the same exchanges with a mixture of experts that has the shapes of R1, random weights and 440 MB. PROGRAM is
one that is there; otherwise a throwaway host runs the one of the project's own build. What was found is kept in
tests/data/engine_order.json, and `make unit` holds the arithmetic against that.

- All lengths of a workload are divided by one number, so that its longest exchange has `LONGEST` tokens. As many people ask at once.
- llama-batched-bench caches nothing. The seconds of the tokens before a prompt are measured, too, and taken off.
- The arithmetic counts with two speeds that the same program has shown: of a prompt, and of a token.
- One thread computes, because several wait for whichever of them the machine holds up. A second counts by the part of it in which the
  process had a processor. Measurements are repeated in turns, and the least counts, since whatever else the machine does only adds to it.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1prov import lab
from r1prov.machines.workload import WORKLOADS, Exchange, Workload
from r1prov.models import gguf
from r1prov.offload import waits
from r1prov.offload.costs import costs
from r1prov.offload.setting import Setting
from r1prov.offload.speed import DEFAULT, Speed, Speeds
from tests.fixtures import engine, saying
from tests.gpu import models

if TYPE_CHECKING:
    from r1prov.lab.hosts import LabHost
    from r1prov.models.model import Model

KEPT = Path(__file__).parents[1] / "tests" / "data" / "engine_order.json"
LONGEST = 256
APART = 0.10
"""Settings whose measured seconds differ by a smaller part are taken for equal."""

ROUNDS = 4
"""How often everything is measured."""

QUANT, LAYERS = "Q4_K_M", 9
SIZES = models.Sizes(
    width=1024, dense_ff=2048, expert_ff=512, experts=64, experts_used=4, q_rank=512, heads=16, vocabulary=4096
)
PROGRAM = "/opt/r1prov/llama.cpp/current/bin/llama-batched-bench"
PLACE = "/root/order.gguf"

Run = Callable[[list[str]], str]
"""Runs llama-batched-bench with arguments, and returns what it prints, with a last line of elapsed, user and system seconds."""


@dataclass(frozen=True)
class Tried:
    """A setting: the tokens that are computed at once, and the people who are served at once."""

    micro_batch: int
    slots: int = 1

    @property
    def label(self) -> str:
        """The words for it."""
        return f"micro-batch {self.micro_batch}, {self.slots} slot{'s' * (self.slots > 1)}"

    @property
    def setting(self) -> Setting:
        """The same as the plan knows it, with a slot for every exchange."""
        plain = Setting(unified=False, gpu_layers=0, flash=True, fit=False)
        return replace(plain, context=2 * LONGEST * self.slots, micro_batch=self.micro_batch, slots=self.slots)


_ALONE = tuple(Tried(size) for size in (2, 4, 8, 32, 256))
SETTINGS = {
    "chat": _ALONE,
    "documents": _ALONE,
    "thinking": _ALONE,
    "team": (Tried(256), Tried(256, 4), Tried(256, 16), Tried(4), Tried(4, 4)),
}


def model(folder: Path) -> Path:
    """The file of the model, which is written where it is not there."""
    return models.write(folder / "order.gguf", QUANT, mla=True, layers=LAYERS, sizes=SIZES, weights="random")


def described() -> Model:
    """The model as its header describes it, without its weights."""
    with tempfile.TemporaryDirectory() as folder:
        zeros = models.write(Path(folder) / "zeros.gguf", QUANT, mla=True, layers=LAYERS, sizes=SIZES)
        return gguf.read(zeros)


def scaled(workload: Workload) -> Workload:
    """The workload with all lengths divided by one number, so that its longest exchange has `LONGEST` tokens."""
    factor = LONGEST / max(exchange.tokens for exchange in workload.exchanges)

    def shorter(exchange: Exchange) -> Exchange:
        lengths = {"prompt": exchange.prompt, "cached": exchange.cached, "answer": exchange.answer}
        scaled = {key: max(round(tokens * factor), min(tokens, 1)) for key, tokens in lengths.items()}
        return exchange.model_copy(update=scaled)

    return workload.model_copy(update={"exchanges": tuple(map(shorter, workload.exchanges))})


def planned_s(model: Model, tried: Tried, name: str, speeds: Speeds) -> float:
    """The mean seconds of an exchange of a workload, by the plan's arithmetic."""
    return waits.mean_seconds(model, tried.setting, (), scaled(WORKLOADS[name]), speeds)


def measured_s(run: Run, tried: Tried, name: str) -> float:
    """The mean seconds of an exchange of a workload, by llama-batched-bench."""
    workload, mean = scaled(WORKLOADS[name]), 0.0
    groups: dict[int, list[Exchange]] = {}
    for exchange in workload.exchanges:
        groups.setdefault(min(exchange.at_once, tried.slots), []).append(exchange)
    for together, exchanges in groups.items():
        lengths = {each.cached + each.prompt for each in exchanges} | {each.cached for each in exchanges if each.cached}
        took = _bench(run, tried, sorted(lengths), sorted({each.answer for each in exchanges}), together)
        for each in exchanges:
            whole = sum(took[each.cached + each.prompt, each.answer])
            before = (
                min(prompt for (length, _), (prompt, _) in took.items() if length == each.cached)
                if each.cached
                else 0.0
            )
            # Who finds no free slot waits for those before.
            mean += workload.weight(each) * (whole - before) * (each.at_once / together + 1) / 2
    return mean


def measured_speeds(run: Run, model: Model) -> Speeds:
    """The speeds of the processor and of its memory, by a prompt and by the tokens after a short one."""
    tried = Tried(256)
    found = costs(model, tried.setting, ())
    took = _bench(run, tried, [1, 256], [32], 1)
    prompt_s, answer_s = took[256, 32][0], took[1, 32][1]
    operations = found.host.products * 256 + found.host.scores * 256 * 128
    read = found.host.always + found.host.experts * found.used / found.total + found.host.cache * 16
    return speeds(operations / prompt_s, 32 * read / answer_s)


def speeds(operations: float, n_bytes: float) -> Speeds:
    """Speeds of a machine whose processor does and reads so much in a second."""
    return replace(
        DEFAULT,
        cpu_operations_per_second=Speed(operations, operations),
        ram_bytes_per_second=Speed(n_bytes, n_bytes),
    )


def apart(seconds: dict[str, float]) -> Iterator[tuple[str, str]]:
    """Pairs of settings of which the first was measured to be faster by more than `APART`."""
    for one, other in combinations(seconds, 2):
        faster, slower = sorted((one, other), key=seconds.__getitem__)
        if seconds[faster] < seconds[slower] * (1 - APART):
            yield faster, slower


def _bench(
    run: Run, tried: Tried, prompts: list[int], answers: list[int], users: int
) -> dict[tuple[int, int], tuple[float, float]]:
    """The seconds of the prompts of so many people, and of the answers to them, by the lengths of both."""
    words = ["--ctx-size", str(tried.setting.context), "--ubatch-size", str(tried.micro_batch), "--flash-attn", "on"]
    words += ["--no-kv-unified", "--fit", "off", "--threads", "1", "--log-verbosity", "1", "--output-format", "jsonl"]
    # llama-batched-bench may end before it has printed its last line, so that is one that nobody needs.
    lists = (",".join(map(str, each)) for each in ([*prompts, prompts[0]], answers, [users]))
    said = run([*words, *(word for pair in zip(("-npp", "-ntg", "-npl"), lists, strict=True) for word in pair)])
    elapsed, user, system = map(float, said.split()[-3:])
    had = min((user + system) / elapsed, 1.0)
    found = [json.loads(line) for line in said.splitlines() if line.startswith('{"n_kv_max"')]
    return {(each["pp"], each["tg"]): (each["t_pp"] * had, each["t_tg"] * had) for each in found}


def _timed(program: str, file: str, words: list[str]) -> list[str]:
    """A command line that runs the program and says at last for how long."""
    return ["bash", "-c", f"TIMEFORMAT='%R %U %S'; time {shlex.join([program, '--model', file, *words])} 2>/dev/null"]


def here(program: Path, file: Path) -> Run:
    """Runs a program of this machine."""

    def run(words: list[str]) -> str:
        done = subprocess.run(_timed(str(program), str(file), words), capture_output=True, text=True, check=True)
        return f"{done.stdout}\n{done.stderr}"

    return run


def on(host: LabHost, file: Path) -> Run:
    """Runs the program of a host that has an engine. The model is copied there."""
    with file.open("rb") as content:
        subprocess.run([*host.ssh_argv(), f"cat > {PLACE}"], stdin=content, check=True)

    def run(words: list[str]) -> str:
        done = lab.ssh(host, _timed(PROGRAM, PLACE, words))
        if done.returncode:
            raise RuntimeError(f"{host.name}: {done.stdout} {done.stderr}")
        return f"{done.stdout}\n{done.stderr}"

    return run


@contextmanager
def _fresh(file: Path) -> Iterator[Run]:
    host = lab.up("order", "bookworm", image=engine.image("bookworm", saying.to_stderr))
    try:
        yield on(host, file)
    finally:
        lab.down("order")


@contextmanager
def _given(program: Path, file: Path) -> Iterator[Run]:
    yield here(program, file)


def _measure(run: Run, found: Model) -> dict[str, Any]:
    known = measured_speeds(run, found)
    seconds: dict[str, dict[str, float]] = {name: {} for name in SETTINGS}
    for number in range(ROUNDS):
        for name, settings in SETTINGS.items():
            for tried in settings:
                took = measured_s(run, tried, name)
                seconds[name][tried.label] = round(min(took, seconds[name].get(tried.label, took)), 4)
                sys.stderr.write(f"round {number + 1}, {name}, {tried.label}: {took:.3f} s\n")
    # The least counts here, too.
    again = [known, *(measured_speeds(run, found) for _ in range(ROUNDS - 1))]
    cpu = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "measured": time.strftime("%Y-%m-%d", time.gmtime()),
        "cpu": cpu[1] if cpu else "",
        "longest": LONGEST,
        "operations_per_second": max(each.cpu_operations_per_second.low for each in again),
        "bytes_per_second": max(each.ram_bytes_per_second.low for each in again),
        "seconds": seconds,
    }


def main() -> None:
    """Measures all of it, keeps it, and shows it beside what is planned."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.order", description=__doc__)
    parser.add_argument("program", nargs="?", type=Path)
    program: Path | None = parser.parse_args().program
    with tempfile.TemporaryDirectory() as folder:
        file = model(Path(folder))
        with _given(program, file) if program else _fresh(file) as run:
            kept = _measure(run, gguf.read(file))
    KEPT.write_text(json.dumps(kept, indent=1) + "\n")
    found, known = described(), speeds(kept["operations_per_second"], kept["bytes_per_second"])
    for name, settings in SETTINGS.items():
        for tried in sorted(settings, key=lambda tried: planned_s(found, tried, name, known)):
            took = kept["seconds"][name][tried.label]
            sys.stdout.write(
                f"{name:10} {tried.label:28} planned {planned_s(found, tried, name, known):7.3f} s, measured {took:7.3f} s\n"
            )


if __name__ == "__main__":
    with saying.errors():
        main()
