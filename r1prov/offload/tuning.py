"""Lists the settings around a plan that are worth measuring on the real host. It is pure; role `measure` runs llama-batched-bench.

Arithmetic cannot tell how many threads the memory of a CPU feeds, what a micro-batch costs there, whether repacking pays, or what one
expert tensor more or less on each card and other slots change. Each of these questions is a dimension: the plan's own choice and
a few others. One choice after the other is measured, while the other dimensions keep their best choice.

A setting of a large model takes minutes to measure. So where the arithmetic leaves no doubt, nothing is tried.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from r1prov.common.errors import SiteError
from r1prov.offload import search
from r1prov.offload.floors import UnmetError
from r1prov.offload.memory import CELLS_MULTIPLE, placement
from r1prov.offload.outcome import RESERVE_BYTES, Space, outcome
from r1prov.offload.plan import arguments as arguments_of
from r1prov.offload.plan import completed, most_context, needed_context, plan_model
from r1prov.offload.setting import LARGEST_MICRO_BATCH, SMALLEST_MICRO_BATCH, Setting, slots_in_words
from r1prov.offload.slots import HARDLY_LONGER
from r1prov.offload.speed import of_machine

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from r1prov.machines.profile import Machine, Serving
    from r1prov.machines.tuned import Hardware, Subject
    from r1prov.machines.workload import Workload
    from r1prov.models.model import Model, Tensor
    from r1prov.offload.plan import Plan
    from r1prov.offload.speed import Speeds
    from r1prov.offload.waits import Means

SMALLER_RESERVE_BYTES = RESERVE_BYTES // 2
"""The bytes that must stay free on a card that gets one more tensor. The CUDA context takes some 300 to 450 MiB of them."""

_MOST_MOVES = 4
"""The most expert tensors of each card that may go to RAM to make room for a larger micro-batch."""

_NOTICEABLY_LONGER = 1.05
"""A shorter context is tried where people wait longer by this factor with the plan's, which is half of what the plan gives for it."""

_MATTERS = 0.02
"""A logical batch is tried where it changes the end of an exchange by more than this part. Less is not told from chance."""

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
        "--no-op-offload",
        "--cache-ram",
    ),
    "repack": ("--no-repack",),
}
"""The options of llama-server that each dimension sets."""

_FLAGS = frozenset({"--no-repack", "--no-op-offload"})

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
                    {"label": choice.label, "arguments": list(for_bench(choice.arguments))}
                    for choice in dimension.choices
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
    workload = subject.workload or plan.workload
    asked = serving.model_copy(update={"workload": workload})
    around = _Around(plan, model, machine, asked, workload, speeds or of_machine(machine)) if model else None
    dimensions = [_placements(plan, around)]
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


def _placements(plan: Plan, around: _Around | None) -> Dimension:
    """What competes for the memory of the cards, so it is one dimension. Without the layers of the model only the micro-batch shrinks."""
    own = _placed(plan.setting)
    choices = {own: f"micro-batch {plan.setting.micro_batch}"}
    if around:
        for label, setting in around.others():
            choices.setdefault(_placed(setting), label)
    elif (half := plan.setting.micro_batch // 2) >= SMALLEST_MICRO_BATCH:
        choices[_placed(replace(plan.setting, micro_batch=half))] = f"micro-batch {half}"
    return Dimension("placement", tuple(Choice(label, arguments) for arguments, label in choices.items()))


def _placed(setting: Setting) -> tuple[str, ...]:
    return _of(arguments_of(setting), _OPTIONS["placement"])


@dataclass(frozen=True)
class _Around:
    """What may be tried around a plan.

    Attributes:
        plan: The plan.
        model: The model that is served.
        machine, serving: What the plan was made for.
        workload: What people ask.
        speeds: How fast the machine is.
    """

    plan: Plan
    model: Model
    machine: Machine
    serving: Serving
    workload: Workload
    speeds: Speeds

    def others(self) -> Iterator[tuple[str, Setting]]:
        """Other placements with their labels. Each fits, and keeps what the operator asks for."""
        yield from self._micro_batches()
        yield from self._batches()
        yield from self._numbers_of_slots()
        yield from self._contexts()
        yield from self._tensors()

    def _micro_batches(self) -> Iterator[tuple[str, Setting]]:
        """Half and twice the micro-batch. What a smaller one leaves free is used."""
        setting = self.plan.setting
        half, double = setting.micro_batch // 2, setting.micro_batch * 2
        if half >= SMALLEST_MICRO_BATCH:
            found = self._anew(slots=setting.slots, context_per_slot=self.plan.context_per_slot, micro_batch=half)
            if smaller := found or self._kept(replace(setting, micro_batch=half)):
                yield f"micro-batch {smaller.micro_batch}", smaller
        longest = max(exchange.prompt for exchange in self.workload.exchanges)
        # A micro-batch larger than the prompt changes nothing.
        if setting.micro_batch < longest and double <= LARGEST_MICRO_BATCH:
            batch = max(setting.batch // double, 1) * double
            if larger := self._fitting(replace(setting, micro_batch=double, batch=batch), moves=not self.plan.whole):
                yield f"micro-batch {double}", larger

    def _batches(self) -> Iterator[tuple[str, Setting]]:
        """The engine's own logical batch, cut to whole micro-batches, where the plan has a larger one and that matters to the workload."""
        setting = self.plan.setting
        smaller = replace(setting, batch=max(Setting.batch // setting.micro_batch, 1) * setting.micro_batch)
        matters = abs(self._means(smaller).end / self._means(setting).end - 1) > _MATTERS
        if matters and (kept := self._kept(smaller)):
            yield f"batch {kept.batch}", kept

    def _numbers_of_slots(self) -> Iterator[tuple[str, Setting]]:
        """Half and twice the slots, where the operator has not said their number, and so many people ask at once.

        A number with which these would wait longer by more than a tenth is not tried.
        """
        now = self.plan.slots
        if not self.plan.slots_reason:
            return
        for slots in (now // 2, min(now * 2, self.workload.people)):
            if self.serving.least_slots <= slots != now:
                found = self._anew(slots=slots, context_per_slot=self.plan.context_per_slot)
                if found and self._wait(found) <= HARDLY_LONGER:
                    yield slots_in_words(slots), found

    def _contexts(self) -> Iterator[tuple[str, Setting]]:
        """Half and twice the tokens of a slot, where the operator has not said them, with as many slots as the plan takes then.

        They hold the workload, and are no more than the plan would take at most. It has taken as many as cost less than a tenth. So fewer
        are tried where people would wait noticeably less, and more where they would hardly wait longer.
        """
        if self.serving.context_per_slot:
            return
        now, (most, _) = self.plan.context_per_slot, most_context(self.model, self.serving)
        half = now // 2 + -(now // 2) % CELLS_MULTIPLE
        shorter, longer = max(half, min(needed_context(self.workload), most)), min(now * 2, most)
        for context, longest_wait in ((shorter, 1 / _NOTICEABLY_LONGER), (longer, HARDLY_LONGER)):
            found = self._anew(context_per_slot=context) if context != now else None
            if found and self._wait(found) <= longest_wait:
                yield f"{slots_in_words(found.slots)} of {context:,} tokens", found

    def _tensors(self) -> Iterator[tuple[str, Setting]]:
        """One expert tensor of each card to RAM, and one more on each card on which enough stays free."""
        if not self.machine.cards or self.plan.whole:
            return
        if less := self._fitting(self._fewer(self.plan.setting)):
            yield "a tensor less per card", less
        if more := self._kept(self._more(self.plan.setting), SMALLER_RESERVE_BYTES):
            yield "a tensor more per card", more

    def _anew(self, **wishes: int) -> Setting | None:
        """The setting that is planned with other wishes; None where it does not fit, keeps no floor, or wants RAM anew."""
        serving, n_bytes, floor = self.serving.model_copy(update=wishes), self.plan.model_bytes, self.plan.floor
        try:
            found = plan_model(
                self.model, self.machine, serving, self.speeds, floor=floor, n_bytes=n_bytes, propose=False
            )
        except (SiteError, UnmetError):
            return None
        return self._kept(found.setting) if found.whole == self.plan.whole else None

    def _wait(self, setting: Setting) -> float:
        """How long people wait with a setting, as a multiple of how long they wait with the plan."""
        return self._means(setting).waiting / self._means(self.plan.setting).waiting

    def _means(self, setting: Setting) -> Means:
        """What people wait for."""
        return search.means_of(self.model, setting, self._space(), self.workload)

    def _space(self, reserve: int = RESERVE_BYTES) -> Space:
        return Space(self.machine.cards, self.machine.ram, reserve, self.speeds)

    def _kept(self, setting: Setting, reserve: int = RESERVE_BYTES) -> Setting | None:
        """The setting, with no more RAM for past prompts than it leaves; None where it does not fit or an answer would begin too late."""
        kept, found, _ = completed(self.model, setting, self.machine, self._space(reserve), setting.prompts)
        late = self.serving.first_token and self._means(kept).longest_first_token > self.serving.first_token
        return kept if found.fits and not late else None

    def _fitting(self, setting: Setting, *, moves: bool = True) -> Setting | None:
        """The setting, with expert tensors moved to RAM until it fits; None if it does not fit, or tensors may not move."""
        for _ in range(_MOST_MOVES if moves else 1):
            if kept := self._kept(setting):
                return kept
            setting = self._fewer(setting)
        return None

    def _fewer(self, setting: Setting) -> Setting:
        """The setting with the smallest expert tensor of each card moved to RAM."""
        by_device = self._experts(setting)
        moved = tuple(
            (_rule(tensors[0]), None) for device, tensors in by_device.items() if device < len(self.machine.cards)
        )
        return replace(setting, overrides=(*moved, *setting.overrides))

    def _more(self, setting: Setting) -> Setting:
        """The setting with one of the smallest expert tensors in RAM moved to each card on which enough stays free."""
        in_ram = self._experts(setting).get(len(self.machine.cards), [])
        for card in range(len(self.machine.cards)):
            if not in_ram:
                break
            larger = replace(setting, overrides=((_rule(in_ram[0]), card), *setting.overrides))
            if outcome(self.model, larger, self._space()).devices[card].free >= SMALLER_RESERVE_BYTES:
                setting, in_ram = larger, in_ram[1:]
        return setting

    def _experts(self, setting: Setting) -> dict[int, list[Tensor]]:
        """The tensors of experts on each device, smallest first."""
        devices = placement(self.model, setting, self.machine.cards).tensors
        by_device: dict[int, list[Tensor]] = {}
        for tensor in sorted(
            filter(lambda tensor: tensor.is_experts, self.model.weights.values()), key=lambda tensor: tensor.n_bytes
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
