"""The pieces that place R1 and measure it: memory of each device against the plan, and rates, by the project's own measuring program.

- `whole` has all of R1, of zeros, in the smallest quant: by the plan, the rule of thumb, `--fit`, with all experts in RAM, and legacy.
- `hybrid` does the same with the next quant that fits cards and RAM together, but not the cards.
- `cut` has R1's shapes with fewer layers, on cards that are taken for smaller than they are, so that the plan uses RAM.
- `mixed` has the same as `cut`, of random weights, so that tokens go to different experts. Beside `cut` it shows what zeros hide.
- `forms` has the layers of `cut`, whole on the cards where they are large enough, in MLA form and in legacy form.
- `tune` measures the settings around the plan of `mixed`, as `r1prov tune` does.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1prov.common import paths
from r1prov.common.errors import SiteError
from r1prov.common.units import GIB, MIB
from r1prov.machines.profile import Gpus, Machine, Serving
from r1prov.machines.tuned import Hardware
from r1prov.machines.tuned import Subject as Tuned
from r1prov.models import gguf, layout
from r1prov.offload import modes as named
from r1prov.offload import tuning, waits
from r1prov.offload.document import of_device
from r1prov.offload.experiment import Server, Subject, servers
from r1prov.offload.outcome import RESERVE_BYTES
from r1prov.offload.plan import plan_model
from tests.gpu import build, cards, models

if TYPE_CHECKING:
    import argparse

    from ansible_collections.r1.prov.plugins.module_utils import llama_memory

    from r1prov.models.model import Model, Tensor
else:
    llama_memory = paths.module_util("llama_memory")

sys.path.append(str(Path(__file__).resolve().parents[2] / "roles/measure/files/r1prov-measure"))
from measuring import modes as measuring_modes
from measuring import servers as measuring_servers
from measuring import settings as measuring_settings
from measuring import work as measuring_work

QUANT = "UD-IQ1_S"
SMALL_LAYERS = 5
SHARE = 0.01
"""So much may a figure of memory differ from the plan."""

CUT_BYTES = 16 * GIB
"""About as large is R1 with fewer layers."""

CUT_SLOTS = 4

ZEROS = "All weights are zero. Each token goes to the same experts, so prompts read fewer weights than real ones. Cards draw less power."
FEWER = "The model has {layers} of R1's 61 layers."
WIDE = "The shapes of each layer are R1's."
NARROW = "Each layer is narrower than R1's (--small), so these rates say nothing about R1."
SMALLER_CARDS = "The plan takes each card for one of {memory:.1f} GiB, so that it keeps experts in RAM."


@dataclass(frozen=True)
class Case:
    """What one piece measures.

    Attributes:
        quant: The quant.
        layers: How many layers of R1 it has.
        weights: `zeros` or `random`.
        modes: The modes of `r1prov bench`.
        machine: The machine for which is planned.
        degenerate: What makes the figures differ from those of R1 itself, one sentence each.
        slots: How many slots it has; None lets the plan choose.
    """

    quant: str
    layers: int
    weights: str
    modes: tuple[str, ...]
    machine: Machine
    degenerate: tuple[str, ...]
    slots: int | None = None


def whole(options: argparse.Namespace) -> dict[str, Any]:
    """The piece `whole`."""
    machine, layers = machine_of(options), _all_layers(options)
    return _measured("whole", options, Case(QUANT, layers, "zeros", _modes(machine), machine, (ZEROS,)))


def hybrid(options: argparse.Namespace) -> dict[str, Any]:
    """The piece `hybrid`."""
    machine, layers = machine_of(options), _all_layers(options)
    by_size = sorted(layout.TYPES, key=lambda quant: sum(each.n_bytes for each in layout.tensors(quant, mla=True)))
    if not machine.cards:
        return {"left_out": "the machine has no cards, so no quant needs cards and RAM together"}
    for quant in by_size:
        subject = _subject(options, Case(quant, layers, "zeros", (), machine, ()))
        if not subject.plan.whole:
            break
    else:
        return {"left_out": "every quant fits the cards"}
    if quant == QUANT:
        return {"left_out": f"the piece `whole` shows it: {QUANT} does not fit the cards"}
    if subject.plan.outcome and not subject.plan.outcome.fits:
        return {"left_out": f"{quant}: {'; '.join(subject.plan.outcome.reasons)}"}
    return _measured("hybrid", options, Case(quant, layers, "zeros", _modes(machine), machine, (ZEROS,)))


def cut(options: argparse.Namespace) -> dict[str, Any]:
    """The piece `cut`."""
    layers, smaller, said = _cut(options, machine_of(options))
    chosen = (named.HYBRID, named.RULE, named.EXPERTS_IN_RAM)
    return _measured("cut", options, Case(QUANT, layers, "zeros", chosen, smaller, (ZEROS, *said), CUT_SLOTS))


def mixed(options: argparse.Namespace) -> dict[str, Any]:
    """The piece `mixed`."""
    layers, smaller, said = _cut(options, machine_of(options))
    chosen = (named.HYBRID, named.EXPERTS_IN_RAM)
    return _measured("mixed", options, Case(QUANT, layers, "random", chosen, smaller, said, CUT_SLOTS))


def forms(options: argparse.Namespace) -> dict[str, Any]:
    """The piece `forms`."""
    machine = machine_of(options)
    layers, _, _ = _cut(options, machine)
    case = Case(QUANT, layers, "zeros", (named.HYBRID, named.LEGACY), machine, (ZEROS,), 1)
    return _measured("forms", options, case)


def tune(options: argparse.Namespace) -> dict[str, Any]:
    """The piece `tune`.

    Raises:
        RuntimeError: The plan's own setting cannot be measured, or no time was left for others.
    """
    machine = machine_of(options)
    layers, smaller, said = _cut(options, machine)
    case = Case(QUANT, layers, "random", (), smaller, said, CUT_SLOTS)
    subject = _subject(options, case)
    found = [(card["name"], card["memory_bytes"]) for card in cards.found()]
    hardware = Hardware(
        cpu=_cpu(), cores=_cores(), threads=len(os.sched_getaffinity(0)), ram=smaller.ram, cards=tuple(found)
    )
    workload = subject.model and waits.workload_for(None, subject.model, subject.plan.setting, smaller.cards)
    of = Tuned(hardware=hardware, engine=(), model=(), plan=subject.plan.arguments, workload=workload)
    trial = tuning.trial(subject.plan, subject.model, smaller, subject.serving, of)
    result = options.work / "tune.json"
    job = {
        "kind": "settings",
        "program": str(programs(options) / "llama-batched-bench"),
        "fixed": ["--model", str(_path(options, case, mla=True)), *tuning.for_bench(trial.fixed)],
        "dimensions": trial.named_dimensions,
        "exchanges": trial.exchanges,
        "decode_tokens": 8 if options.small else tuning.DECODE_TOKENS,
        "repetitions": 2,
        "limit_s": max(1.0, options.until_s - time.monotonic()),
        "result": str(result),
    }
    _prepare(options)
    reason = io.StringIO()
    with _environment(subject.plan.environment), contextlib.redirect_stderr(reason):
        code = measuring_settings.run(job)
    if code:
        raise RuntimeError(reason.getvalue().strip())
    measured = json.loads(result.read_text())
    failed = [f"{each['chosen']}: {each['failed']}" for each in measured["measured"] if each["failed"]]
    failed += [f"{label}: no time was left for it; run the piece again" for label in measured["untried"]]
    said_more = _degenerate(options, case)
    return _facts(options, case) | {"failed": "\n".join(failed), "degenerate": said_more, "tuning": measured}


def programs(options: argparse.Namespace) -> Path:
    """The folder with the engine's programs: the one that is named, or what the piece `build` has made.

    Raises:
        RuntimeError: There is none.
    """
    return options.programs or build.programs(options)


def machine_of(options: argparse.Namespace) -> Machine:
    """This machine as a profile describes it. Cards that differ are taken for the smallest of them."""
    found = cards.found()
    memories = [card["memory_bytes"] for card in found if card["memory_bytes"]]
    # What earlier pieces have written counts as free.
    own = sum(path.stat().st_blocks * 512 for path in (options.work / "models").glob("*"))
    described = {
        "cpu_threads": _cores(),
        "numa_nodes": len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1,
        "ram": f"{ram_bytes(options)} B",
        "disk": f"{shutil.disk_usage(options.work).free + own} B",
    }
    if memories:
        card = {"name": found[0]["name"], "compute_capability": found[0]["compute_capability"]}
        described["gpus"] = Gpus.model_validate(card | {"count": len(memories), "memory": f"{min(memories)} B"})
    return Machine.model_validate(described)


def ram_bytes(options: argparse.Namespace) -> int:
    """The RAM that is there, or that the container may have, or that the caller knows of."""
    if options.ram_gib:
        return int(options.ram_gib * GIB)
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(Path(place).read_text()))
    return min(limits)


def random_model(options: argparse.Namespace) -> tuple[Path, Machine]:
    """The model of the pieces `mixed`, `tune` and `unit`, and the machine for which it is planned."""
    layers, smaller, _ = _cut(options, machine_of(options))
    return _path(options, Case(QUANT, layers, "random", (), smaller, ()), mla=True), smaller


def _modes(machine: Machine) -> tuple[str, ...]:
    with_cards = (named.HYBRID, named.RULE, named.FIT, named.EXPERTS_IN_RAM, named.LEGACY)
    return with_cards if machine.cards else (named.HYBRID, named.LEGACY)


def _all_layers(options: argparse.Namespace) -> int:
    return SMALL_LAYERS if options.small else layout.LAYERS


def _sizes(options: argparse.Namespace) -> models.Sizes:
    return models.SMALL if options.small else models.FULL


def _cut(options: argparse.Namespace, machine: Machine) -> tuple[int, Machine, tuple[str, ...]]:
    """The number of layers, the machine with smaller cards, and what is to be said about these."""

    def shapes(layers: int) -> list[Tensor]:
        return models.tensors(QUANT, mla=True, layers=layers, sizes=_sizes(options))

    most = min(CUT_BYTES, machine.ram // 4, machine.disk // 2, machine.vram // 2 or machine.ram)
    layers = layout.DENSE_LAYERS + 1
    while layers < _all_layers(options) - 1 and sum(each.n_bytes for each in shapes(layers + 1)) <= most:
        layers += 1
    plan = _subject(options, Case(QUANT, layers, "zeros", (), machine, (), CUT_SLOTS)).plan
    if not machine.gpus or not plan.whole or not plan.outcome:
        return layers, machine, ()
    experts = sum(each.n_bytes for each in shapes(layers) if each.is_experts) // machine.gpus.count
    memory = RESERVE_BYTES + max(device.taken for device in plan.outcome.devices) - experts // 2
    smaller = machine.model_copy(update={"gpus": machine.gpus.model_copy(update={"memory": memory})})
    return layers, smaller, (SMALLER_CARDS.format(memory=memory / GIB),)


def _path(options: argparse.Namespace, case: Case, *, mla: bool) -> Path:
    """The file of a case's model, which is written where it is not there."""
    form = "mla" if mla else "legacy"
    name = f"{case.quant}-{form}-{case.layers}{'-small' if options.small else ''}-{case.weights}.gguf"
    return models.write(
        options.work / "models" / name,
        case.quant,
        mla=mla,
        layers=case.layers,
        sizes=_sizes(options),
        weights=case.weights,
    )


def _subject(options: argparse.Namespace, case: Case) -> Subject:
    """What is served, as `r1prov bench --modes` is told it. Models of random weights have no legacy form."""
    model = gguf.read(_path(options, case, mla=True))
    published: Model = model if case.weights == "random" else gguf.read(_path(options, case, mla=False))
    context, micro_batch = (512, 64) if options.small else (32768, 4096)
    serving = Serving(quant=case.quant, context_per_slot=context, slots=case.slots, micro_batch=micro_batch)
    plan = plan_model(model, case.machine, serving, floor=0, n_bytes=model.n_bytes)
    return Subject(
        model=model,
        published=published,
        published_bytes=published.n_bytes,
        plan=plan,
        arguments=plan.arguments,
        machine=case.machine,
        serving=serving,
        without_ollama="not asked",
    )


def _measured(name: str, options: argparse.Namespace, case: Case) -> dict[str, Any]:
    """Measures the modes of a case that fit.

    Returns:
        The result. It has failed if a mode could not be measured, or took other memory than the plan says.
    """
    try:
        subject = _subject(options, case)
    except SiteError as error:
        return _facts(options, case) | {"left_out": "; ".join(problem.what for problem in error.problems)}
    found = servers(case.modes, subject)
    wanted = [server for server in found if not server.left_out]
    result = options.work / f"{name}.modes.json"
    job = {
        "kind": "modes",
        "modes": [_mode(options, case, subject, server) for server in wanted],
        "llama_server": str(programs(options) / "llama-server"),
        "ollama": "",
        "ollama_models_dir": "",
        "limit_s": max(1.0, options.until_s - time.monotonic()),
        "result": str(result),
    }
    _prepare(options)
    Observed.folder, Observed.piece = options.work, name
    measuring_servers.ENGINES["llama-server"] = Observed
    measuring_modes.run(job)
    measured = json.loads(result.read_text())
    of = {each["mode"]: each for each in measured["modes"]}
    told = [_told(options.work, name, server, of.get(server.mode)) for server in found]
    failed = [f"{each['mode']}: {each['failed']}" for each in told if each["failed"]]
    # The engine's own --fit counts what is free at its start, and arithmetic does not know that.
    settled = [each for each in told if each["mode"] != named.FIT]
    failed += [f"{each['mode']}: {difference}" for each in settled for difference in each["differences"]]
    failed += [f"{mode}: no time was left for it; run the piece again" for mode in measured["untried"]]
    degenerate = _degenerate(options, case)
    return _facts(options, case) | {"failed": "\n".join(failed), "degenerate": degenerate, "modes": told}


def _degenerate(options: argparse.Namespace, case: Case) -> list[str]:
    if case.layers == layout.LAYERS:
        return [*case.degenerate]
    shapes = NARROW if options.small else WIDE
    return [*case.degenerate, f"{FEWER.format(layers=case.layers)} {shapes}"]


def _facts(options: argparse.Namespace, case: Case) -> dict[str, Any]:
    """On what was measured, and what."""
    return cards.piece(options) | {
        "cpu": _cpu(),
        "cores": _cores(),
        "planned_for": json.loads(case.machine.model_dump_json()),
        "engine": build.version(programs(options)),
        "model": {"quant": case.quant, "layers": case.layers, "weights": case.weights, "small": options.small},
    }


def _mode(options: argparse.Namespace, case: Case, subject: Subject, server: Server) -> dict[str, Any]:
    """A mode as the measuring program wants it."""
    plan, outcome = subject.plan, server.outcome
    return {
        "mode": server.mode,
        "engine": "llama-server",
        # At this verbosity the log says how large each buffer is.
        "arguments": [*server.arguments, "--verbosity", "4"],
        "model": str(_path(options, case, mla=server.mode != named.LEGACY)),
        "environment": plan.environment,
        "slots": plan.slots,
        "context_per_slot": plan.context_per_slot,
        "decode_estimate": outcome.tokens_per_second[0] if outcome else 0.0,
    }


def _told(work: Path, piece: str, server: Server, measured: dict[str, Any] | None) -> dict[str, Any]:
    """All that is known about a mode: what was planned, what the engine has said, and what was taken."""
    planned = [of_device(device) for device in (*server.outcome.devices, server.outcome.host)] if server.outcome else []
    told: dict[str, Any] = {
        "mode": server.mode,
        "arguments": list(server.arguments),
        "left_out": server.left_out,
        "planned": planned,
        "failed": "",
        "differences": [],
    }
    if not measured:
        return told
    seen_path = work / f"{piece}.{server.mode}.memory.json"
    seen = json.loads(seen_path.read_text()) if seen_path.exists() else {"engine": [], "taken_bytes": []}
    told |= {key: measured[key] for key in ("failed", "load_s", "seconds", "rates", "memory")} | seen
    if not measured["failed"]:
        told["cuda_bytes"] = cuda_bytes(seen["engine"], measured["memory"]["devices_bytes"], seen["taken_bytes"])
        told["differences"] = differences(planned, seen["engine"], told["cuda_bytes"])
        told["of_plan"] = of_plan(planned, seen["engine"])
    return told


def of_plan(planned: list[dict[str, Any]], engine: list[dict[str, Any]]) -> dict[str, float]:
    """For each kind of memory the share of the plan that the engine takes of a card, where that differs most."""
    by_name = {device["name"]: device for device in engine}
    found: dict[str, float] = {}
    for device in planned:
        for kind in llama_memory.KINDS:
            plan, is_ = device[f"{kind}_bytes"], by_name.get(device["name"], {}).get(f"{kind}_bytes")
            if device["name"] != "host" and plan and is_ is not None:
                found[kind] = max(found.get(kind, 1.0), round(is_ / plan, 4), key=lambda share: abs(share - 1))
    return found


def cuda_bytes(engine: list[dict[str, Any]], of_process: list[int], of_card: list[int]) -> list[int]:
    """What CUDA takes of each card by itself: what the process takes, less the engine's buffers.

    Where the driver does not tell what processes take, as in some containers, the growth of what is used of the card counts instead.
    """
    sums = {device["name"]: sum(device.get(f"{kind}_bytes", 0) for kind in llama_memory.KINDS) for device in engine}
    taken = of_process if any(of_process) else of_card
    return [n_bytes - sums.get(f"CUDA{number}", 0) for number, n_bytes in enumerate(taken)]


def differences(planned: list[dict[str, Any]], engine: list[dict[str, Any]], cuda: list[int]) -> list[str]:
    """One sentence for each figure that is not as planned.

    A server makes room for fewer logits than is planned, so of compute only more counts. What the CPU repacks is no buffer of its own.
    """
    by_name = {device["name"]: device for device in engine}
    found = []
    for device in planned:
        name = device["name"]
        said = by_name.get(name)
        if not said:
            found += [f"the log of the engine says nothing of {name}"] if device["weights_bytes"] else []
            continue
        for kind, label in llama_memory.KINDS.items():
            plan, is_ = device[f"{kind}_bytes"], said.get(f"{kind}_bytes")
            if is_ is None:
                continue
            more = is_ - plan
            if abs(more) > max(SHARE * plan, MIB) and (kind != "compute" or more > 0):
                found.append(f"{name} takes {is_ / MIB:,.1f} MiB of {label}, planned are {plan / MIB:,.1f} MiB")
    found += [
        f"CUDA itself takes {n_bytes / MIB:,.0f} MiB of CUDA{number}, more than the reserve of {RESERVE_BYTES // MIB:,} MiB"
        for number, n_bytes in enumerate(cuda)
        if n_bytes > RESERVE_BYTES
    ]
    return found


class Observed(measuring_servers.LlamaServer):
    """A llama-server whose log and whose growth on the cards are kept when it is stopped."""

    folder, piece = Path(), ""

    def start(self, ends_s: float) -> None:
        """See `Server.start`."""
        self._before = [card["used_bytes"] or 0 for card in cards.found()]
        super().start(ends_s)

    def stop(self) -> None:
        """See `Server.stop`."""
        try:
            taken = [
                (card["used_bytes"] or 0) - before for card, before in zip(cards.found(), self._before, strict=True)
            ]
            self._log.seek(0)
            said = self._log.read()
            name = f"{self.piece}.{self.mode['mode']}"
            (self.folder / f"{name}.log").write_text(said, encoding="utf-8")
            seen = {"engine": llama_memory.loaded(said.splitlines())["devices"], "taken_bytes": taken}
            (self.folder / f"{name}.memory.json").write_text(json.dumps(seen), encoding="utf-8")
        finally:
            super().stop()


def _prepare(options: argparse.Namespace) -> None:
    """Gives the measuring program a port and a place for its progress."""
    options.work.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        measuring_servers.PORT = free.getsockname()[1]
    measuring_work.PROGRESS = options.work / "progress.json"


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Any:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _cores() -> int:
    """The physical cores, where the kernel tells them apart."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    pairs = set(re.findall(r"physical id\s*: (\d+)(?:\n.+)*?\ncore id\s*: (\d+)", text))
    usable = len(os.sched_getaffinity(0))
    return min(len(pairs) or usable, usable)


def _cpu() -> str:
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else "unknown"
