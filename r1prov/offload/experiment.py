"""The servers of the guide's experiment: one model, one context, the same slots and cache types, and in each mode another placement."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from r1prov.common.errors import SiteError
from r1prov.models import latent
from r1prov.offload import compare, modes
from r1prov.offload.fit import fitted
from r1prov.offload.foresight import foresee_arguments
from r1prov.offload.ollama import parameters
from r1prov.offload.outcome import Space, outcome
from r1prov.offload.plan import arguments, completed, plan_model
from r1prov.offload.setting import RefusedError
from r1prov.offload.speed import DEFAULT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from r1prov.machines.profile import Machine, Serving
    from r1prov.models.model import Model
    from r1prov.offload.outcome import Outcome
    from r1prov.offload.plan import Plan
    from r1prov.offload.speed import Speeds

NO_CARDS = "the machine has no cards"
NO_LAYERS = "the layers of the model are not known"
NEED_CARDS = (modes.GPU, modes.RULE, modes.EXPERTS_IN_RAM, modes.FIT)


@dataclass(frozen=True)
class Subject:
    """What is served, and where.

    Attributes:
        model: The model in the form in which it is served; None where its layers are not known.
        published: The model as its files are published; None where its layers are not known.
        published_bytes: The size of these files.
        plan: The plan of `model`.
        arguments: The arguments with which llama-server serves it: the plan's own, or what the host was tuned to.
        machine: The server.
        serving: How the site wants the model to be served.
        without_ollama: Why Ollama cannot serve it there; empty where it can.
        speeds: How fast the server is.
    """

    model: Model | None
    published: Model | None
    published_bytes: int
    plan: Plan
    arguments: tuple[str, ...]
    machine: Machine
    serving: Serving
    without_ollama: str
    speeds: Speeds = DEFAULT

    @property
    def space(self) -> Space:
        """The memory of the server."""
        return Space(self.machine.cards, self.machine.ram, speeds=self.speeds)


@dataclass(frozen=True)
class Server:
    """A server of the experiment.

    Attributes:
        mode: Its mode.
        arguments: The arguments of llama-server without model, address and key; none for Ollama, which is told by its Modelfile.
        outcome: What it would take; None where that is not known, or the mode does not exist there.
        left_out: Why it is not measured; empty where it is.
        comes_to: The arguments that do the same. They are others where `--fit` chooses the placement.
        ollama: What Ollama is told instead of arguments; None for llama-server, and where there is no Ollama.
    """

    mode: str
    arguments: tuple[str, ...] = ()
    outcome: Outcome | None = None
    left_out: str = ""
    comes_to: tuple[str, ...] = ()
    ollama: dict[str, int | None] | None = None

    @property
    def kind(self) -> tuple[tuple[str, ...], bool]:
        """What two servers that are the same have in common: what the arguments come to, and whether the files are the published ones."""
        return self.comes_to or self.arguments, self.mode == modes.LEGACY


def servers(asked: Sequence[str], subject: Subject) -> tuple[Server, ...]:
    """The servers of these modes, in this order. One that would be the same as an earlier one, or does not fit, is not measured."""
    found: list[Server] = []
    for server in (_server(mode, subject) for mode in asked):
        same = next((each.mode for each in found if server.arguments and each.kind == server.kind), None)
        found.append(replace(server, left_out=f"the same as {same}") if same else _judged(server))
    return tuple(found)


def _judged(server: Server) -> Server:
    """The server, left out if it does not fit. What serves already is measured even if the plan says that it does not fit."""
    found = server.outcome
    if server.left_out or not found or found.fits or server.mode == modes.HYBRID:
        return server
    return replace(server, left_out="; ".join(found.reasons))


def _server(mode: str, subject: Subject) -> Server:
    if mode in NEED_CARDS and not subject.machine.cards:
        return Server(mode, left_out=NO_CARDS)
    if mode == modes.EXPERTS_IN_RAM and subject.model and not subject.model.experts_used:
        return Server(mode, left_out="the model has no experts")
    try:
        return _WAYS.get(mode, _placed)(mode, subject)
    except RefusedError as refusal:
        return Server(mode, left_out=f"llama-server would not start: {refusal}")
    except SiteError as error:
        return Server(mode, left_out="; ".join(problem.what for problem in error.problems))


def _serving(mode: str, subject: Subject) -> Server:
    """What serves."""
    if subject.arguments == subject.plan.arguments:
        return _planned(mode, subject)
    found = foresee_arguments(subject.model, subject.arguments, subject.space).outcome if subject.model else None
    return Server(mode, subject.arguments, found)


def _planned(mode: str, subject: Subject) -> Server:
    """The plan. It is made without the layers where there are no cards, and then they may be known nevertheless."""
    found = subject.plan.outcome
    if not found and subject.model:
        found = outcome(subject.model, replace(subject.plan.setting, prompts=0), subject.space)
    return Server(mode, subject.plan.arguments, found)


def _placed(mode: str, subject: Subject) -> Server:
    """The plan's context, slots, cache types and micro-batch with the placement of a mode."""
    model, machine, space = subject.model, subject.machine, subject.space
    if mode == modes.GPU and subject.plan.whole:
        return _serving(mode, subject)
    if not model or not machine.cards:
        return _planned(mode, subject)
    alike = replace(subject.plan.setting, gpu_layers=0, split=(), overrides=(), offload=True)
    if mode == modes.EXPERTS_IN_RAM:
        setting = compare.experts_in_ram(model, alike)
    elif mode == modes.FIT:
        setting = fitted(model, alike, machine.cards)
        setting = replace(setting, gpu_layers=model.entries if setting.gpu_layers is None else setting.gpu_layers)
    else:
        n_layers = modes.whole_layers(mode, model, subject.plan.model_bytes, machine)
        setting = replace(alike, gpu_layers=n_layers)
    setting, found, options = completed(model, setting, machine, space, subject.plan.setting.prompts)
    words = (*arguments(setting), *options)
    if mode != modes.FIT:
        return Server(mode, words, found)
    told = replace(setting, fit=True, gpu_layers=None, split=(), overrides=())
    return Server(mode, (*arguments(told), *options), found, comes_to=words)


def _legacy(mode: str, subject: Subject) -> Server:
    published = subject.published
    if not published:
        return Server(mode, left_out=NO_LAYERS)
    if not latent.is_legacy(published):
        return Server(mode, left_out="the model has no other form than the published one")
    if subject.model == published:
        return Server(mode, left_out=f"the same as {modes.HYBRID}: the files are served as they were published")
    # Else it would have figures of its own, or be refused where it does not lie on the cards as a whole.
    plan = subject.plan
    alike = {"slots": plan.slots, "context_per_slot": plan.context_per_slot, "first_token": None, "quant": plan.quant}
    serving = subject.serving.model_copy(update=alike)
    found = plan_model(published, subject.machine, serving, subject.speeds, floor=0, n_bytes=subject.published_bytes)
    return Server(mode, found.arguments, found.outcome)


def _in_ollama(mode: str, subject: Subject) -> Server:
    if subject.without_ollama:
        return Server(mode, left_out=subject.without_ollama)
    setting = replace(subject.plan.ollama, prompts=0)  # Ollama keeps no past prompts.
    found = outcome(subject.model, setting, subject.space) if subject.model else None
    return Server(mode, outcome=found, ollama=parameters(subject.plan))


_WAYS = {modes.HYBRID: _serving, modes.LEGACY: _legacy, modes.OLLAMA: _in_ollama}
"""The modes whose placement is not that of the plan's setting with other layers."""
