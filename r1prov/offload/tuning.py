"""Lists the settings around a plan that are worth measuring on the real host. It is pure; roles/tune runs llama-bench.

Arithmetic cannot tell how many threads the memory of a CPU feeds, what a micro-batch costs there, whether repacking pays, or what one
expert tensor more or less on each card changes. Each of these questions is a dimension: the plan's own choice and a few others. One
choice after the other is measured, while the other dimensions keep their best choice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from r1prov.offload import running
from r1prov.offload.memory import placement
from r1prov.offload.outcome import RESERVE_BYTES, Space, outcome
from r1prov.offload.search import SMALLEST_MICRO_BATCH
from r1prov.offload.setting import batches, rules
from r1prov.offload.waits import PROMPT_SHARE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from r1prov.machines.profile import Machine
    from r1prov.machines.tuned import Hardware, Subject
    from r1prov.models.model import Model, Tensor
    from r1prov.offload.plan import Plan
    from r1prov.offload.setting import Setting

SMALLER_RESERVE_BYTES = RESERVE_BYTES // 2
"""The bytes that must stay free on a card that gets one more tensor. The CUDA context takes some 300 to 450 MiB of them."""

_MOST_MOVES = 4
"""The most expert tensors of each card that may go to RAM to make room for a larger micro-batch."""

DECODE_TOKENS = 32
SHORTEST_PROMPT, LONGEST_PROMPT = 64, 1024
"""The limits of the measured prompt in tokens. Between them it is one part in `PROMPT_SHARE` of a slot."""

_OPTIONS = {
    "threads": ("--threads",),
    "placement": ("--batch-size", "--ubatch-size", "--override-tensor"),
    "repack": ("--no-repack",),
}
"""The options of llama-server that each dimension sets."""

_FLAGS = frozenset({"--no-repack"})


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
        bench_fixed: The same for llama-bench.
        dimensions: The dimensions that have more than one choice.
        prompt_tokens: The length of the prompt in each measurement, which then decodes `DECODE_TOKENS`.
    """

    subject: Subject
    fixed: tuple[str, ...]
    bench_fixed: tuple[str, ...]
    dimensions: tuple[Dimension, ...]
    prompt_tokens: int

    @property
    def settings(self) -> int:
        """The number of settings to measure: the plan's own, and each other choice of each dimension."""
        return 1 + sum(len(dimension.choices) - 1 for dimension in self.dimensions)

    @property
    def bench_dimensions(self) -> list[dict[str, Any]]:
        """The dimensions as the measuring program wants them, with the arguments of llama-bench."""
        return [
            {
                "name": dimension.name,
                "choices": [
                    {"label": choice.label, "arguments": list(in_bench_words(choice.arguments))}
                    for choice in dimension.choices
                ],
            }
            for dimension in self.dimensions
        ]

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


def trial(plan: Plan, model: Model | None, machine: Machine, subject: Subject) -> Trial:
    """Lists what to measure around `plan`.

    Args:
        plan: The plan that is served, or would be.
        model: The model; None where its layers are not known. Then nothing that takes more memory is tried.
        machine: The server as the profile describes it.
        subject: The model and the server as found, which the result of tuning is valid for.
    """
    prompt = min(max(plan.context_per_slot // PROMPT_SHARE, SHORTEST_PROMPT), LONGEST_PROMPT)
    dimensions = [_placements(plan, model, machine, prompt)]
    if not plan.whole:  # on whole plans the CPU has almost nothing to do
        dimensions = [_threads(plan.arguments, subject.hardware), *dimensions, _repack(plan.arguments)]
    dimensions = [dimension for dimension in dimensions if len(dimension.choices) > 1]
    set_by_us = {argument for dimension in dimensions for argument in _OPTIONS[dimension.name]}
    fixed = without(plan.arguments, set_by_us)
    return Trial(subject, fixed, for_bench(fixed, plan), tuple(dimensions), prompt)


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


def for_bench(arguments: Sequence[str], plan: Plan) -> tuple[str, ...]:
    """The arguments of llama-bench that measure these arguments of llama-server: those of the plan, with the tuned options."""
    tuned = {option for options in _OPTIONS.values() for option in options}
    return (*without(plan.bench_arguments, (tuned - _FLAGS) | {"--repack"}), *in_bench_words(_of(arguments, tuned)))


def in_bench_words(arguments: Sequence[str]) -> tuple[str, ...]:
    """Translates tuned options for llama-bench, where a comma would separate values to measure one after the other."""
    return tuple(word.replace(",", ";") for word in running.for_bench(arguments))


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


def _placements(plan: Plan, model: Model | None, machine: Machine, prompt: int) -> Dimension:
    """The micro-batches around the plan's, and one expert tensor less or more on each card.

    Both compete for the memory of the cards, so they are one dimension.
    """
    setting = plan.setting
    own = Choice(f"micro-batch {setting.micro_batch}", _of(plan.arguments, _OPTIONS["placement"]))
    half, double = (
        replace(setting, micro_batch=size, batch=max(setting.batch, size))
        for size in (setting.micro_batch // 2, setting.micro_batch * 2)
    )
    candidates: list[tuple[str, Setting | None]] = []
    if half.micro_batch >= SMALLEST_MICRO_BATCH:
        candidates.append((f"micro-batch {half.micro_batch}", half))
    if model and double.micro_batch <= prompt:  # a micro-batch larger than the prompt changes nothing
        candidates.append((f"micro-batch {double.micro_batch}", _fitting(model, double, machine, moves=not plan.whole)))
    if model and machine.cards and not plan.whole:
        candidates += [
            ("a tensor less per card", _fitting(model, _fewer(model, setting, machine), machine)),
            ("a tensor more per card", _more(model, setting, machine)),
        ]
    others = (Choice(label, _placed(other)) for label, other in candidates if other and other != setting)
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
    placed = ("--override-tensor", rules(setting, ",")) if setting.overrides else ()
    return *batches(setting), *placed


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
