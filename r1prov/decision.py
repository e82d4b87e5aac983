"""The decision: what a site comes to, as the one value that inventory, runs and report are given. Nothing after it derives it again.

`decide(site)` calculates. It reads nothing but the headers of model files, and those only where the catalogue does not describe the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from r1prov.common.errors import Problem, SiteError
from r1prov.machines.profile import BEST_ON_GPUS
from r1prov.machines.tuned import Hardware, Subject
from r1prov.models import catalogue, headers, latent
from r1prov.offload import DYNAMIC_QUANTS, best_on_gpus, model_of, plan, plan_model
from r1prov.offload.arguments import parse
from r1prov.offload.outcome import Space
from r1prov.offload.plan import arguments, completed
from r1prov.offload.speed import is_like, of_machine
from r1prov.site import pins

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from r1prov.machines.known import Known
    from r1prov.machines.profile import Link, Machine
    from r1prov.machines.tuned import Tuned
    from r1prov.machines.workload import Workload
    from r1prov.models.catalogue import Quant
    from r1prov.models.model import Model
    from r1prov.offload import Plan
    from r1prov.offload.speed import Speeds
    from r1prov.site import Site


@dataclass(frozen=True)
class Release:
    """One program that the hosts shall have.

    Attributes:
        version: as its project counts.
        archive: where its archive is, for Ollama; empty for the others, whose places do not depend on the version.
        pin: the file among the site's pins that holds its digests; empty where r1prov or the site file knows them.
    """

    version: str
    archive: str = ""
    pin: str = ""


@dataclass(frozen=True)
class Releases:
    """The programs that a host shall have."""

    llama_cpp: Release
    ollama: Release
    open_webui: Release


@dataclass(frozen=True)
class Decision:
    """What the hosts of a site shall serve, and with what.

    Attributes:
        site: what the operator wants.
        quant: the published files of the model.
        plan: where the model lies, and the arguments of the engine.
        model: what is served, in the form in which it is; None where its layers are not known.
        attention: `mla` where the published files are brought into that form on the hosts.
        merged: the name of the one file that the hosts make of the published ones; empty where those are served as they are.
        alias: the name of the model in every API.
        releases: the programs that each host shall have, by its name.
        tuned: what a host serves with instead of the plan's own setting, by its name.
        known: what is known of the machine of a host, by its name, of those that were met.
        plans: the plans of hosts for which another link or less RAM makes another plan, by their names.
        groups: by its name, what the hosts of a group serve. What else is here is for the hosts that are in none.
    """

    site: Site
    quant: Quant
    plan: Plan
    model: Model | None
    attention: latent.Attention
    merged: str
    alias: str
    releases: Mapping[str, Releases]
    tuned: Mapping[str, Tuned] = field(default_factory=dict)
    known: Mapping[str, Known] = field(default_factory=dict)
    plans: Mapping[str, Plan] = field(default_factory=dict)
    groups: Mapping[str, Decision] = field(default_factory=dict)

    def of(self, host: str) -> Decision:
        """The decision as it is for the hosts of the group of one."""
        group = self.groups.get(self.site.group_of(host) or "")
        if not group:
            return self
        return replace(group, releases=self.releases, tuned=self.tuned, known=self.known, plans=self.plans)

    @property
    def backend(self) -> str:
        """What llama.cpp is built for: `cuda` or `cpu`."""
        return "cuda" if self.site.own.profile.machine.gpus else "cpu"

    @property
    def weights_dir(self) -> str:
        """The folder of the model's files on a host."""
        return f"{self.site.file.data_dir}/models/{_folder(self.quant)}"

    @property
    def model_file(self) -> str:
        """The file that the engine is given, on a host."""
        return f"{self.weights_dir}/{self.merged or self.quant.files[0].name}"

    @property
    def workload(self) -> Workload:
        """What people ask of the hosts: what the operator says, or what suits the machine."""
        return self.plan.workload

    def arguments(self, host: str) -> tuple[str, ...]:
        """The arguments with which llama-server serves on a host: what it was tuned to, or the plan's own."""
        return self.tuned[host].arguments if host in self.tuned else self.plan_for(host).arguments

    def plan_for(self, host: str) -> Plan:
        """Where the model lies on a host."""
        return self.plans.get(host, self.of(host).plan)

    def slots(self, host: str) -> int:
        """How many requests the engine of a host answers at once."""
        if self.site.of_group_of(host).file.engine == "ollama":
            return self.plan_for(host).slots
        machine = self.machine_of(host)
        return parse(self.arguments(host), cards=len(machine.cards), lent=machine.lent).slots

    def speeds_of(self, host: str) -> Speeds:
        """The speeds with which the plan for a host counts."""
        return of_machine(self.of(host).site.profile.machine, self._link(host))

    def machine_of(self, host: str) -> Machine:
        """The machine of a host: that of the profile, with less RAM where the host has less."""
        machine = self.of(host).site.profile.machine
        return self.known[host].machine(machine) if host in self.known else machine

    def _link(self, host: str) -> Link | None:
        return self.known[host].link if host in self.known else None

    def with_machines(self, known: Mapping[str, Known]) -> Decision:
        """The decision for hosts that were met. A host with another link, or with too little RAM for the plan, gets a plan of its own.

        A link does not change what fits. Where all lies on the cards, next to nothing is copied, and the link does not count.

        Args:
            known: what is known of the machine of a host, by its name.

        Raises:
            SiteError: no placement on one of these machines keeps the floors.
        """
        found = replace(self, known=known, plans={})
        of_machines: dict[tuple[str | None, int, Speeds], Plan | None] = {}
        for host in (each.name for each in self.site.file.those("engine") if each.name in known):
            kind = self.site.group_of(host), found.machine_of(host).ram, found.speeds_of(host)
            if kind not in of_machines:
                of_machines[kind] = _own_plan(found, host)
            if own := of_machines[kind]:
                found = replace(found, plans={**found.plans, host: own})
        return found

    def with_versions(self, chosen: Mapping[str, dict[str, str]]) -> Decision:
        """The decision for hosts with other versions, by host and key of `versions`. Where the model lies does not depend on them."""
        site = self.site.model_copy(update={"chosen": {name: dict(versions) for name, versions in chosen.items()}})
        return replace(self, site=site, releases=_releases(site))

    def subject(self, host: str, hardware: Hardware) -> Subject:
        """What a host with this hardware would be tuned for."""
        source, own = self.site.file.sources.llama_cpp, self.of(host)
        archive = source.sha256 if source.type == "archive" else ""
        return Subject(
            hardware=hardware,
            engine=(self.releases[host].llama_cpp.version, own.backend, source.type, archive),
            model=tuple(file.sha256 for file in own.quant.files),
            plan=self.plan_for(host).arguments,
            workload=own.workload,
        )

    def lapsed(self, host: str, tuned: Tuned, facts: dict[str, Any] | None) -> str:
        """What has changed since a host was tuned, in the words of `tuned for ...`; empty where the result still holds.

        Args:
            host: its name.
            tuned: what the host was tuned to.
            facts: what first contact found there; None for a host that nobody has met, whose hardware is taken to be the same.
        """
        return tuned.lapsed(self.subject(host, Hardware.of(facts) if facts else tuned.subject.hardware))

    def with_tuned(
        self, kept: Mapping[str, Tuned], facts: Mapping[str, dict[str, Any]]
    ) -> tuple[Decision, dict[str, str]]:
        """The decision for hosts that were tuned, and by host a remark where that no longer holds.

        Args:
            kept: what each host was tuned to, whether it still holds or not.
            facts: what first contact found, of the hosts that were met.
        """
        lapsed = {host: self.lapsed(host, tuned, facts.get(host)) for host, tuned in kept.items()}
        remarks = {
            host: f"is tuned for {why}, so the plan's own setting serves: run `r1prov tune`"
            for host, why in lapsed.items()
            if why
        }
        return replace(self, tuned={host: kept[host] for host, why in lapsed.items() if not why}), remarks


def _own_plan(decision: Decision, host: str) -> Plan | None:
    """The plan for the machine of a host; None where that is the plan of its group."""
    own = decision.of(host)
    profile, made, model = own.site.profile, own.plan, own.model
    machine, speeds = decision.machine_of(host), of_machine(profile.machine)
    # Where all lies on the cards, next to nothing is copied.
    if model and machine.cards and not made.whole:
        speeds = decision.speeds_of(host)
    if is_like(of_machine(profile.machine), speeds) and (machine == profile.machine or _holds(made, model, machine)):
        return None
    try:
        found = _planned(own, machine, speeds)
        if found.outcome and not found.outcome.fits:
            # The host is too small for any placement. Preflight or the engine says so there, of the plan that the operator knows.
            found = _planned(own, profile.machine, speeds)
    except SiteError as error:
        raise SiteError(*(replace(each, where=f"{host}: {each.where}") for each in error.problems)) from None
    return found if found.arguments != made.arguments or found.ollama != made.ollama else None


def _planned(decision: Decision, machine: Machine, speeds: Speeds) -> Plan:
    """The plan of the same model on another machine."""
    made, serving = decision.plan, decision.site.profile.serving
    if not decision.model:
        return plan(decision.quant, machine, serving, speeds=speeds)
    return plan_model(decision.model, machine, serving, speeds, floor=made.floor, n_bytes=made.model_bytes)


def _holds(made: Plan, model: Model | None, machine: Machine) -> bool:
    """Whether a plan is the same on a machine with less RAM. Past prompts take at most half of what is left there."""
    if not model or not made.outcome:
        return False
    space = Space(machine.cards, machine.ram)
    setting, found, options = completed(model, made.setting, machine, space, made.setting.prompts)
    left = found.host.free - found.host.reserve
    return found.fits and left >= setting.prompts and (*arguments(setting), *options) == made.arguments


def decide(site: Site, say: Callable[[str], None] | None = None) -> Decision:
    """What a site comes to.

    Args:
        site: what the operator wants.
        say: told where a header is read that was not read before. Without, only headers that were read before count.

    Raises:
        SiteError: no quant has that name, the model cannot be placed, or the machine has no room for it and the site does not
            override that; or engines behind one door would not serve under one name.
    """
    groups = {name: _decide(group, say) for name, group in site.groups.items()}
    own = next((groups[name] for name, group in site.groups.items() if group is site.own), None) or _decide(site, say)
    decided = replace(own, site=site, releases=_releases(site), groups=groups)
    _refuse_several_names(decided)
    return decided


def _refuse_several_names(decision: Decision) -> None:
    """Refuse that a request at the door is for one model or another, by chance.

    Raises:
        SiteError: engines behind it serve under different names.
    """
    site = decision.site
    names = sorted({decision.of(host.name).alias for host in site.file.those("engine")})
    if site.file.door and len(names) > 1:
        what = f"the engines behind the door would serve under different names: {', '.join(names)}"
        remedy = "let all groups serve one quant; or write `service.alias`, a name that is right for all of them"
        raise SiteError(Problem(str(site.path or "the site"), what, remedy))


def _decide(site: Site, say: Callable[[str], None] | None) -> Decision:
    """What the hosts of one group come to, or those that are in none."""
    quant, best = _quant(site)
    published = model_of(quant) or (_read_header(site, quant, say) if say else headers.kept(quant))
    serving = site.profile.serving
    chosen = best or plan(quant, site.profile.machine, serving, header=published)
    _refuse_misfit(site, chosen)
    is_changed = serving.attention == "mla" and published is not None and latent.is_legacy(published)
    return Decision(
        site=site,
        quant=quant,
        plan=chosen,
        model=published and latent.served(published, serving.attention),
        attention="mla" if is_changed else "legacy",
        merged=_merged(site, quant, is_changed=is_changed),
        alias=site.file.service.alias or _folder(quant),
        releases={},
    )


def _releases(site: Site) -> dict[str, Releases]:
    """The programs that each host shall have."""
    found = {}
    for name in (host.name for host in site.hosts):
        on_host = site.of(name)
        file = on_host.file
        found[name] = Releases(
            llama_cpp=Release(file.llama_cpp_version, pin=pins.llama_cpp(on_host)),
            ollama=Release(file.versions.ollama, archive=file.ollama_archive, pin=pins.ollama(on_host)),
            open_webui=Release(file.versions.open_webui, pin=pins.open_webui(on_host)),
        )
    return found


def _read_header(site: Site, quant: Quant, say: Callable[[str], None]) -> Model | None:
    """The model in files that the catalogue does not describe; None where no source can be asked and its layers do not matter."""
    try:
        return headers.fetch(quant, site.file.sources.weights, site.file.sources.network(), say)
    except SiteError:
        if site.profile.machine.cards:  # Its layers must be known, because they are dealt out.
            raise
        say(
            f"the header of {quant.name} cannot be read from here, so the files are served as they were published, whatever form they have"
        )
        return None


def _quant(site: Site) -> tuple[Quant, Plan | None]:
    """The files that the site serves; with their plan where that was made to choose them."""
    serving, own = site.profile.serving, site.profile.model
    if own and own.name == serving.quant:
        return own, None
    if serving.quant == BEST_ON_GPUS:
        candidates = [catalogue.quant(name) for name in DYNAMIC_QUANTS]
        best = best_on_gpus(candidates, site.profile.machine, serving)
        return catalogue.quant(best.quant), best
    return catalogue.quant(serving.quant), None


def _refuse_misfit(site: Site, chosen: Plan) -> None:
    """Raise where the machine has no room, unless the operator accepts that."""
    if chosen.outcome and chosen.outcome.reasons and "fit" not in site.file.override:
        remedy = "`r1prov plan` says what would fit; `up --override fit`, or `override: [fit]` in the site file, goes on nevertheless"
        raise SiteError(*(Problem(chosen.quant, reason, remedy) for reason in chosen.outcome.reasons))


def _merged(site: Site, quant: Quant, *, is_changed: bool) -> str:
    if is_changed:
        return f"{_folder(quant)}.mla.gguf"
    return f"{_folder(quant)}.gguf" if site.file.ollama.enabled and len(quant.files) > 1 else ""


def _folder(quant: Quant) -> str:
    return quant.folder or quant.name
