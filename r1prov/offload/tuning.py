"""What to try around a plan on the real host, and what came of it. Pure: llama-bench runs elsewhere (roles/tune).

Arithmetic cannot tell how many threads a CPU's memory feeds, what a micro-batch costs there, whether repacked weights pay, or what
one expert tensor more or less on each card does. So each of these is a dimension: the plan's own choice and a few others, of which
one after the other is measured while the other dimensions keep their best.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from r1prov.offload import running
from r1prov.offload.memory import placement
from r1prov.offload.outcome import RESERVE_BYTES, Space, outcome
from r1prov.offload.search import PROMPT_SHARE, SMALLEST_MICRO_BATCH
from r1prov.offload.setting import rules

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from r1prov.machines.profile import Machine
    from r1prov.machines.tuned import Hardware, Subject
    from r1prov.models.model import Model, Tensor
    from r1prov.offload.plan import Plan
    from r1prov.offload.setting import Setting

SMALLER_RESERVE_BYTES = RESERVE_BYTES // 2
"""What must stay free on a card that is given a tensor more: the CUDA context takes some 300 to 450 MiB of it."""

_MOST_MOVES = 4
"""Tensors of each card that may make room for a larger micro-batch."""

DECODE_TOKENS = 32
SHORTEST_PROMPT, LONGEST_PROMPT = 64, 1024
"""Tokens of the measured prompt, which otherwise is the part of a full slot that is asked."""

_OPTIONS = {
    "threads": ("--threads",),
    "placement": ("--ubatch-size", "--override-tensor"),
    "repack": ("--no-repack",),
}
"""What each dimension sets."""

_FLAGS = frozenset({"--no-repack"})


@dataclass(frozen=True)
class Choice:
    """One way to set a dimension: its name for people, and llama-server's arguments for it."""

    label: str
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dimension:
    """What can be chosen independently of the rest.

    Attributes:
        name: for people.
        choices: the plan's own, then the others, in the order to try.
    """

    name: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Trial:
    """All that is to be measured on one host.

    Attributes:
        subject: what is tuned.
        fixed: the plan's arguments without what the dimensions set.
        bench_fixed: llama-bench's, likewise.
        prompt_tokens: of each measurement; it decodes `DECODE_TOKENS`.
    """

    subject: Subject
    fixed: tuple[str, ...]
    bench_fixed: tuple[str, ...]
    dimensions: tuple[Dimension, ...]
    prompt_tokens: int

    @property
    def settings(self) -> int:
        """How many there are to measure: the plan's own, and the others of each dimension."""
        return 1 + sum(len(dimension.choices) - 1 for dimension in self.dimensions)

    def arguments(self, chosen: dict[str, str]) -> tuple[str, ...]:
        """llama-server's, with the choice of each dimension by its label."""
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


def trial(plan: Plan, model: Model | None, machine: Machine, subject: Subject) -> Trial:
    """What to try around `plan`.

    Args:
        plan: what is served now, or would be.
        model: its layers; None where they are not known. Then nothing that takes more memory is tried.
        machine: the server as planned for.
        subject: the same as it is kept, with the server as it is.
    """
    prompt = min(max(plan.context_per_slot // PROMPT_SHARE, SHORTEST_PROMPT), LONGEST_PROMPT)
    dimensions = [_placements(plan, model, machine, prompt)]
    if not plan.whole:  # else the CPU has next to nothing to do
        dimensions = [_threads(plan.arguments, subject.hardware), *dimensions, _repack(plan.arguments)]
    dimensions = [dimension for dimension in dimensions if len(dimension.choices) > 1]
    set_by_us = {argument for dimension in dimensions for argument in _OPTIONS[dimension.name]}
    fixed = without(plan.arguments, set_by_us)
    return Trial(subject, fixed, for_bench(fixed, plan), tuple(dimensions), prompt)


def without(arguments: Sequence[str], options: Iterable[str]) -> tuple[str, ...]:
    """Arguments less these options and their values."""
    left, words, unwanted = [], iter(arguments), set(options)
    for word in words:
        if word not in unwanted:
            left.append(word)
        elif word not in _FLAGS:
            next(words)
    return tuple(left)


def _of(arguments: Sequence[str], options: Iterable[str]) -> tuple[str, ...]:
    """These options and their values alone."""
    wanted = set(options)
    return tuple(
        word
        for place, word in enumerate(arguments)
        if word in wanted or (place and arguments[place - 1] in wanted - _FLAGS)
    )


def for_bench(arguments: Sequence[str], plan: Plan) -> tuple[str, ...]:
    """llama-bench's arguments for llama-server's: what the plan gives it, and what is tuned."""
    tuned = {option for options in _OPTIONS.values() for option in options}
    return (*without(plan.bench_arguments, (tuned - _FLAGS) | {"--repack"}), *in_bench_words(_of(arguments, tuned)))


def in_bench_words(arguments: Sequence[str]) -> tuple[str, ...]:
    """What is tuned, as llama-bench wants it said: commas part values that are to be measured one after the other."""
    return tuple(word.replace(",", ";") for word in running.for_bench(arguments))


def _threads(arguments: Sequence[str], hardware: Hardware) -> Dimension:
    """All that may be used, the physical cores, three quarters and half of them: RAM may feed no more than that."""
    own = _of(arguments, _OPTIONS["threads"])
    now = int(own[1]) if own else min(hardware.cores, hardware.threads)  # the engine's own choice
    numbers = (hardware.threads, hardware.cores, hardware.cores * 3 // 4, hardware.cores // 2)
    others = dict.fromkeys(number for number in numbers if 1 <= number <= hardware.threads and number != now)
    return Dimension(
        "threads",
        (Choice(str(now), own), *(Choice(str(number), ("--threads", str(number))) for number in others)),
    )


def _placements(plan: Plan, model: Model | None, machine: Machine, prompt: int) -> Dimension:
    """Micro-batches beside the plan's, and an expert tensor less or more on each card: one dimension, for both want the cards' memory."""
    setting = plan.setting
    own = Choice(f"micro-batch {setting.micro_batch}", _of(plan.arguments, _OPTIONS["placement"]))
    half, double = (replace(setting, micro_batch=size) for size in (setting.micro_batch // 2, setting.micro_batch * 2))
    found: list[tuple[str, Setting | None]] = []
    if half.micro_batch >= SMALLEST_MICRO_BATCH:
        found.append((f"micro-batch {half.micro_batch}", half))
    if model and double.micro_batch <= prompt:  # a larger one than the prompt changes nothing for it
        found.append((f"micro-batch {double.micro_batch}", _fitting(model, double, machine, moves=not plan.whole)))
    if model and machine.cards and not plan.whole:
        found += [
            ("a tensor less per card", _fitting(model, _fewer(model, setting, machine), machine)),
            ("a tensor more per card", _more(model, setting, machine)),
        ]
    others = (Choice(label, _placed(other)) for label, other in found if other and other != setting)
    return Dimension("placement", (own, *others))


def _fitting(model: Model, setting: Setting, machine: Machine, *, moves: bool = True) -> Setting | None:
    """With as many expert tensors less on the cards as it takes, where they may move; None where that does not suffice."""
    space = Space(machine.cards, machine.ram)
    for _ in range(_MOST_MOVES):
        if outcome(model, setting, space).fits:
            return setting
        if not moves:
            return None
        setting = _fewer(model, setting, machine)
    return None


def _placed(setting: Setting) -> tuple[str, ...]:
    placed = ("--override-tensor", rules(setting, ",")) if setting.overrides else ()
    return "--ubatch-size", str(setting.micro_batch), *placed


def _fewer(model: Model, setting: Setting, machine: Machine) -> Setting:
    """The smallest expert tensor of each card goes to RAM."""
    by_device = _experts(model, setting, machine)
    moved = tuple((_rule(tensors[0]), None) for device, tensors in by_device.items() if device < len(machine.cards))
    return replace(setting, overrides=(*moved, *setting.overrides))


def _more(model: Model, setting: Setting, machine: Machine) -> Setting:
    """One of the smallest expert tensors in RAM goes to each card where enough stays free beside it."""
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
    found: dict[int, list[Tensor]] = {}
    for tensor in sorted(
        filter(lambda tensor: tensor.is_experts, model.weights.values()), key=lambda tensor: tensor.n_bytes
    ):
        found.setdefault(devices[tensor.name], []).append(tensor)
    return found


def _rule(tensor: Tensor) -> str:
    """A pattern of this tensor alone, written as `search` writes its patterns."""
    return tensor.name.removesuffix(".weight").replace(".", "[.]") + "[.]"


def _repack(arguments: Sequence[str]) -> Dimension:
    """Weights in RAM laid out anew for the CPU's widest instructions, or as they are in the file."""
    on, off = Choice("on"), Choice("off", ("--no-repack",))
    return Dimension("repack", (off, on) if "--no-repack" in arguments else (on, off))
