"""Lists the settings around a plan that are worth measuring on the real host. It is pure; role `measure` runs llama-batched-bench.

Arithmetic cannot tell how many threads the memory of a CPU feeds, what a micro-batch costs there, whether repacking pays, or what one
expert tensor more or less on each card and fewer or more slots change. Each of these questions is a dimension: the plan's own choice and
a few others. One choice after the other is measured, while the other dimensions keep their best choice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from r1prov.common.errors import SiteError
from r1prov.offload.memory import placement
from r1prov.offload.outcome import RESERVE_BYTES, Space, outcome
from r1prov.offload.plan import arguments as arguments_of
from r1prov.offload.plan import plan_model
from r1prov.offload.setting import SMALLEST_MICRO_BATCH

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from r1prov.machines.profile import Machine, Serving
    from r1prov.machines.tuned import Hardware, Subject
    from r1prov.models.model import Model, Tensor
    from r1prov.offload.plan import Plan
    from r1prov.offload.setting import Setting
    from r1prov.offload.speed import Speeds

SMALLER_RESERVE_BYTES = RESERVE_BYTES // 2
"""The bytes that must stay free on a card that gets one more tensor. The CUDA context takes some 300 to 450 MiB of them."""

_MOST_MOVES = 4
"""The most expert tensors of each card that may go to RAM to make room for a larger micro-batch."""

DECODE_TOKENS = 32

_OPTIONS = {
    "threads": ("--threads",),
    "placement": (
        "--ctx-size",
        "--parallel",
        "--batch-size",
        "--ubatch-size",
        "--n-gpu-layers",
        "--tensor-split",
        "--override-tensor",
    ),
    "repack": ("--no-repack",),
}
"""The options of llama-server that each dimension sets."""

_FLAGS = frozenset({"--no-repack"})

_OF_THE_SERVER = ("--cache-ram", "--cache-reuse")
"""Options that llama-server alone has."""


@dataclass(frozen=True)
class Choice:
    """One choice of a dimension: its label for people, and the arguments of llama-server for it."""

    label: str
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dimension:
    """Something that can be chosen independently of the other dimensions.

    Attributes:
        name: The name for people.
        choices: The plan's own choice, then the others in the order to try.
    """

    name: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Trial:
    """Everything that is to be measured on one host.

    Attributes:
        subject: The model and the server that are tuned.
        fixed: The plan's arguments of llama-server without the options that the dimensions set.
        dimensions: The dimensions that have more than one choice.
    """

    subject: Subject
    fixed: tuple[str, ...]
    dimensions: tuple[Dimension, ...]

    @property
    def settings(self) -> int:
        """The number of settings to measure: the plan's own, and each other choice of each dimension."""
        return 1 + sum(len(dimension.choices) - 1 for dimension in self.dimensions)

    @property
    def named_dimensions(self) -> list[dict[str, Any]]:
        """The dimensions as the measuring program wants them."""
        return [
            {
                "name": dimension.name,
                "choices": [
                    {"label": choice.label, "arguments": list(choice.arguments)} for choice in dimension.choices
                ],
            }
            for dimension in self.dimensions
        ]

    @property
    def exchanges(self) -> list[dict[str, Any]]:
        """The exchanges of the workload as the measuring program wants them."""
        workload = self.subject.workload
        return [exchange.model_dump(mode="json") for exchange in workload.exchanges] if workload else []

    def arguments(self, chosen: dict[str, str]) -> tuple[str, ...]:
        """The arguments of llama-server with the chosen label of each dimension, by the name of the dimension."""
        return (
            *self.fixed,
            *(
                argument
                for dimension in self.dimensions
                for choice in dimension.choices
                if choice.label == chosen[dimension.name]
                for argument in choice.arguments
            ),
        )


def trial(
    plan: Plan,
    model: Model | None,
    machine: Machine,
    serving: Serving,
    subject: Subject,
    *,
    speeds: Speeds | None = None,
) -> Trial:
    """Lists what to measure around `plan`.

    Args:
        plan: The plan that is served, or would be.
        model: The model; None where its layers are not known. Then nothing that takes more memory is tried.
        machine: The server as the profile describes it.
        serving: What the operator asks for.
        subject: The model, the server as found and the workload, which the result of tuning is valid for.
        speeds: How fast the server is; None for what the profile tells of it.
    """
    anew = _Anew(plan, model, machine, serving.model_copy(update={"workload": subject.workload}), speeds)
    dimensions = [_placements(plan, model, machine, subject, anew)]
    if not plan.whole:  # on whole plans the CPU has almost nothing to do
        dimensions = [_threads(plan.arguments, subject.hardware), *dimensions, _repack(plan.arguments)]
    dimensions = [dimension for dimension in dimensions if len(dimension.choices) > 1]
    set_by_us = {argument for dimension in dimensions for argument in _OPTIONS[dimension.name]}
    return Trial(subject, without(plan.arguments, set_by_us), tuple(dimensions))


def without(arguments: Sequence[str], options: Iterable[str]) -> tuple[str, ...]:
    """The arguments without these options and their values."""
    left, words, unwanted = [], iter(arguments), set(options)
    for word in words:
        if word not in unwanted:
            left.append(word)
        elif word not in _FLAGS:
            next(words)
    return tuple(left)


def _of(arguments: Sequence[str], options: Iterable[str]) -> tuple[str, ...]:
    """Only these options and their values, out of the arguments."""
    names = set(options)
    return tuple(
        word
        for place, word in enumerate(arguments)
        if word in names or (place and arguments[place - 1] in names - _FLAGS)
    )


def for_bench(arguments: Sequence[str]) -> tuple[str, ...]:
    """The arguments of llama-server that llama-batched-bench has, too."""
    return without(arguments, _OF_THE_SERVER)


def _threads(arguments: Sequence[str], hardware: Hardware) -> Dimension:
    """The numbers of threads to try: all threads, the physical cores, three quarters and half of them. RAM may feed no more cores."""
    own = _of(arguments, _OPTIONS["threads"])
    now = int(own[1]) if own else min(hardware.cores, hardware.threads)  # the engine chooses this number itself
    numbers = (hardware.threads, hardware.cores, hardware.cores * 3 // 4, hardware.cores // 2)
    others = dict.fromkeys(number for number in numbers if 1 <= number <= hardware.threads and number != now)
    return Dimension(
        "threads",
        (Choice(str(now), own), *(Choice(str(number), ("--threads", str(number))) for number in others)),
    )


@dataclass(frozen=True)
class _Anew:
    """Plans a model anew for the machine of a plan.

    Attributes:
        before: The plan.
        model: The model, if its layers are known.
        machine, serving: What the plan was made for.
        speeds: How fast the machine is; None for what the profile tells of it.
    """

    before: Plan
    model: Model | None
    machine: Machine
    serving: Serving
    speeds: Speeds | None

    def plan(self, slots: int, micro_batch: int) -> Plan | None:
        """The plan with so many slots of the same length and a micro-batch of at most so many tokens.

        It is None where that does not fit, keeps no floor, or wants RAM anew.
        """
        if not self.model:
            return None
        context = self.before.context_per_slot
        changes = {"slots": slots, "context_per_slot": context, "micro_batch": micro_batch}
        serving, n_bytes, floor = self.serving.model_copy(update=changes), self.before.model_bytes, self.before.floor
        try:
            found = plan_model(self.model, self.machine, serving, self.speeds, floor=floor, n_bytes=n_bytes)
        except SiteError:
            return None
        fits = found.outcome and found.outcome.fits and found.whole == self.before.whole
        return found if fits else None


def _placements(plan: Plan, model: Model | None, machine: Machine, subject: Subject, anew: _Anew) -> Dimension:
    """Micro-batches and numbers of slots around the plan's, and one expert tensor less or more on each card.

    All of them compete for the memory of the cards, so they are one dimension. A smaller micro-batch and another number of slots are
    planned anew, so that what they leave free is used.
    """
    setting, workload = plan.setting, subject.workload
    longest = max(exchange.prompt for exchange in workload.exchanges) if workload else setting.micro_batch
    people = workload.people if workload else 1
    half = setting.micro_batch // 2
    double = replace(setting, micro_batch=setting.micro_batch * 2, batch=max(setting.batch, setting.micro_batch * 2))
    candidates: list[tuple[str, tuple[str, ...] | None]] = []
    if half >= SMALLEST_MICRO_BATCH:
        smaller = anew.plan(plan.slots, half)
        size = smaller.setting.micro_batch if smaller else half
        placed = (
            _of(smaller.arguments, _OPTIONS["placement"]) if smaller else _placed(replace(setting, micro_batch=half))
        )
        candidates.append((f"micro-batch {size}", placed))
    if model and setting.micro_batch < longest:  # a micro-batch larger than the prompt changes nothing
        larger = _fitting(model, double, machine, moves=not plan.whole)
        candidates.append((f"micro-batch {double.micro_batch}", _placed(larger) if larger else None))
    if plan.slots_reason:  # the operator has not said the number
        for slots in (plan.slots // 2, min(plan.slots * 2, people)):
            other = anew.plan(slots, anew.serving.micro_batch) if 1 <= slots != plan.slots else None
            candidates.append((f"{slots} slots", _of(other.arguments, _OPTIONS["placement"]) if other else None))
    if model and machine.cards and not plan.whole:
        less, more = _fitting(model, _fewer(model, setting, machine), machine), _more(model, setting, machine)
        candidates += [
            ("a tensor less per card", _placed(less) if less else None),
            ("a tensor more per card", _placed(more) if more != setting else None),
        ]
    own = Choice(f"micro-batch {setting.micro_batch}", _of(plan.arguments, _OPTIONS["placement"]))
    others = (Choice(label, arguments) for label, arguments in candidates if arguments)
    return Dimension("placement", (own, *others))


def _fitting(model: Model, setting: Setting, machine: Machine, *, moves: bool = True) -> Setting | None:
    """The setting, with expert tensors moved to RAM until it fits; None if it does not fit, or tensors may not move."""
    space = Space(machine.cards, machine.ram)
    for _ in range(_MOST_MOVES):
        if outcome(model, setting, space).fits:
            return setting
        if not moves:
            return None
        setting = _fewer(model, setting, machine)
    return None


def _placed(setting: Setting) -> tuple[str, ...]:
    return _of(arguments_of(setting), _OPTIONS["placement"])


def _fewer(model: Model, setting: Setting, machine: Machine) -> Setting:
    """The setting with the smallest expert tensor of each card moved to RAM."""
    by_device = _experts(model, setting, machine)
    moved = tuple((_rule(tensors[0]), None) for device, tensors in by_device.items() if device < len(machine.cards))
    return replace(setting, overrides=(*moved, *setting.overrides))


def _more(model: Model, setting: Setting, machine: Machine) -> Setting:
    """The setting with one of the smallest expert tensors in RAM moved to each card on which enough stays free."""
    in_ram = _experts(model, setting, machine).get(len(machine.cards), [])
    for card in range(len(machine.cards)):
        if not in_ram:
            break
        larger = replace(setting, overrides=((_rule(in_ram[0]), card), *setting.overrides))
        if outcome(model, larger, Space(machine.cards, machine.ram)).devices[card].free >= SMALLER_RESERVE_BYTES:
            setting, in_ram = larger, in_ram[1:]
    return setting


def _experts(model: Model, setting: Setting, machine: Machine) -> dict[int, list[Tensor]]:
    """The tensors of experts on each device, smallest first."""
    devices = placement(model, setting, machine.cards).tensors
    by_device: dict[int, list[Tensor]] = {}
    for tensor in sorted(
        filter(lambda tensor: tensor.is_experts, model.weights.values()), key=lambda tensor: tensor.n_bytes
    ):
        by_device.setdefault(devices[tensor.name], []).append(tensor)
    return by_device


def _rule(tensor: Tensor) -> str:
    """A pattern that matches this tensor only, in the style of the patterns of `search`."""
    return tensor.name.removesuffix(".weight").replace(".", "[.]") + "[.]"


def _repack(arguments: Sequence[str]) -> Dimension:
    """Whether the engine repacks weights in RAM for the CPU's widest instructions, or keeps them as in the file."""
    on, off = Choice("on"), Choice("off", ("--no-repack",))
    return Dimension("repack", (off, on) if "--no-repack" in arguments else (on, off))
