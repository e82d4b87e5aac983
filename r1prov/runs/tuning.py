"""Tuning hosts: which of them have something to measure, what role `measure` is told, and which setting serves afterwards."""

from __future__ import annotations

from datetime import UTC, datetime
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

from r1prov.common.errors import PreflightError, Problem, SiteError
from r1prov.hosts import met
from r1prov.machines.tuned import Hardware, Measurement, Tuned
from r1prov.offload import tuning
from r1prov.runs import speeds
from r1prov.runs.run import refuse_bare
from r1prov.site.state import SiteState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from r1prov.common.errors import R1provError, UnreachableError
    from r1prov.decision import Decision
    from r1prov.hosts import Login
    from r1prov.offload.tuning import Trial
    from r1prov.runs.run import Done
    from r1prov.site import Host, Site

UNIT = "r1prov-llama-server"


class Conductor(Protocol):
    """Runs the playbooks that tune a host, and tells the operator."""

    def measure(self, host: Host, variables: Mapping[str, Any]) -> Done:
        """Measure a host; role `measure` is told these variables."""

    def serve(self, host: Host) -> Done:
        """Bring a host to serve with what is kept for it."""

    def fell_back(self, host: Host, error: R1provError) -> None:
        """A host does not serve with what was found, and gets the plan's own setting again."""


def look(
    decision: Decision, hosts: Sequence[Host], login: Login, *, force: bool
) -> tuple[dict[str, Tuned], dict[str, Trial], dict[str, UnreachableError]]:
    """What hosts are tuned to already, what is to be measured on the others, and who cannot be reached, by their names.

    Args:
        decision: what they serve.
        hosts: whom to look at.
        login: how to reach them.
        force: all of them are to be measured again.

    Raises:
        LockedError: hosts have no service that could pause, and runs hold them.
        UnhealthyError: a host has no service that could pause.
    """
    site, state = decision.site, SiteState.of(decision.site.path)
    kept = state.all_tuned(hosts)
    tuned, trials = {}, {}
    with met(hosts, site, login) as meeting:
        refuse_bare(meeting, UNIT)
        away = meeting.away
        for name, contact in meeting.contacts.items():
            state.acquaint(name, contact.facts)
        decision = decision.with_machines(state.all_known(site.hosts))
        for name, contact in meeting.contacts.items():
            before = kept.get(name)
            if before and before.served and not force and not decision.lapsed(name, before, contact.facts):
                tuned[name] = before
            else:
                trials[name] = trial(decision, name, contact.facts)
    return tuned, trials, away


def require_llama_server(site: Site, hosts: Sequence[Host]) -> None:
    """Refuse to measure with llama-bench beside Ollama, which sets itself, and whose unit the measurement would not put back.

    Raises:
        SiteError: the engine is Ollama.
    """
    if any(site.of(host.name).file.engine != "llama-server" for host in hosts):
        remedy = "`r1prov engine llama-server` switches"
        raise SiteError(Problem(site.name, "the engine is ollama, which sets itself", remedy))


def trial(decision: Decision, host: str, facts: Mapping[str, Any]) -> Trial:
    """What is to be tried on a host where first contact found `facts`."""
    return _trial(decision, host, Hardware.of(dict(facts)))


def foresee(decision: Decision, host: str) -> Trial:
    """What would be tried on a server that nobody has met, which is as the profile says.

    Raises:
        PreflightError: the model does not fit there.
    """
    if found := decision.plan.outcome:
        remedy = "`r1prov plan --profile` says what would fit there"
        if problems := [Problem(host, reason, remedy) for reason in found.reasons]:
            raise PreflightError(*problems)
    machine = decision.machine_of(host)
    threads, cards = machine.cpu_threads or 0, ((machine.gpus.name, machine.gpus.memory),) if machine.gpus else ()
    hardware = Hardware(cpu="", cores=threads, threads=threads, ram=machine.ram, cards=cards * len(machine.cards))
    return _trial(decision, host, hardware)


def _trial(decision: Decision, host: str, hardware: Hardware) -> Trial:
    decision = decision.of(host)
    subject = decision.subject(host, hardware)
    plan = decision.plan_for(host)
    speeds_of = decision.speeds_of(host)
    machine = decision.machine_of(host)
    return tuning.trial(plan, decision.model, machine, decision.site.profile.serving, subject, speeds=speeds_of)


def tune(decision: Decision, host: Host, trial: Trial, conductor: Conductor, *, limit_s: int, force: bool) -> Tuned:
    """Measure a host, keep the best setting, and serve with it; with the plan's own setting where the best does not serve.

    Args:
        decision: what the host serves.
        host: which.
        trial: what is to be tried there.
        conductor: runs the playbooks.
        limit_s: how long the host may measure.
        force: settings that were measured before are measured again.

    Raises:
        R1provError: what went wrong. The service runs, with what it had before or with the plan's own setting.
    """
    state = SiteState.of(decision.site.path)
    measured = conductor.measure(host, variables(trial, limit_s, force=force))
    if measured.error:
        raise measured.error
    tuned = outcome(trial, measured.report.hosts[host.name].tuning or {})
    state.keep_tuned(host.name, tuned)
    speeds.of_tuning(measured.decision, host.name, trial, tuned)
    served = conductor.serve(host)
    if served.error and tuned.arguments != trial.subject.plan:
        state.forget_tuned(host.name)
        conductor.fell_back(host, served.error)
        raise conductor.serve(host).error or served.error
    if served.error:
        raise served.error
    tuned = tuned.model_copy(update={"served": True})
    state.keep_tuned(host.name, tuned)
    return tuned


def variables(trial: Trial, limit_s: int, *, force: bool) -> dict[str, Any]:
    """The variables that tell role `measure` of a trial."""
    return {
        "measure_arguments": list(tuning.for_bench(trial.fixed)),
        "measure_dimensions": trial.named_dimensions,
        "measure_exchanges": trial.exchanges,
        "measure_decode_tokens": tuning.DECODE_TOKENS,
        "measure_limit_s": limit_s,
        "measure_subject": trial.subject.model_dump(mode="json"),
        "measure_force": force,
    }


def outcome(trial: Trial, result: Mapping[str, Any]) -> Tuned:
    """What came of a trial, from the result that role `measure` returns."""
    chosen, own = result["chosen"], result["measured"][0]["chosen"]
    return Tuned(
        subject=trial.subject,
        chosen=chosen,
        # Unchanged where nothing is changed: the same arguments in another order would restart the service.
        arguments=trial.subject.plan if chosen == own else trial.arguments(chosen),
        measured=tuple(
            Measurement(
                chosen=each["chosen"],
                exchange_s=round(median(each["exchange_s"] or [0]), 3),
                first_token_s=round(median(each["first_token_s"] or [0]), 3),
                prompt_tokens_per_second=round(median(each["prompt"] or [0]), 2),
                decode_tokens_per_second=round(median(each["decode"] or [0]), 2),
                points=tuple(each["points"]),
                seconds=each["seconds"],
                failed=each["failed"],
            )
            for each in result["measured"]
        ),
        untried=tuple(result["untried"]),
        reason=result["reason"],
        ended=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def describe(trial: Trial) -> list[str]:
    """What will be measured, for people: a line for each dimension, the plan's own choice first."""
    lines = []
    for dimension in trial.dimensions:
        own, *others = (choice.label for choice in dimension.choices)
        lines.append(f"{dimension.name}: {own} as planned, {', '.join(others)}")
    if workload := trial.subject.workload:
        lines.append(f"judged by the mean seconds of an exchange of {workload.description}")
    return lines
