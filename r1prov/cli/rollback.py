"""`r1prov rollback`: back to the versions that hosts served well with before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from r1prov import output
from r1prov.cli import options, rolling, running
from r1prov.common.errors import Problem, SiteError, UnreachableError
from r1prov.runs import going_back, rollout
from r1prov.site import versions as versions_of
from r1prov.site.select import with_versions
from r1prov.site.state import SiteState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from r1prov.runs.going_back import StepBack


@options.logs_in
def rollback(
    hosts: options.Hosts = None,
    *,
    batch: rolling.Batch = "1",
    keep_going: rolling.KeepGoing = False,
    site: options.SiteFile = None,
    login_options: options.LoginOptions,
    verbose: options.Verbose = 0,
    json: options.Json = False,
) -> None:
    """Bring hosts back to the versions that they served well with before the last upgrade, one after the other.

    Takes back an `upgrade` that ended well, one that was cut off, or an `up` that brought other versions. Nothing is fetched or built
    where the release still lies on the host, and where it does not, that is said. Versions alone go back: all else stays as it was
    last brought to the host. After an upgrade that ended well the chat page keeps its data of now. A host that does not answer as it
    should is put back, as `upgrade` does it. What a host has gone back to is remembered for that host.

    A host goes back once. A second `rollback` goes on with the hosts that the first has not done, and says of the others that there is
    nothing before: it goes neither further back nor forth again. For both name a version, with `r1prov upgrade`.

    Example: `r1prov rollback gpu1`
    """
    now, settled, targets, bare = rolling.among(site, hosts or ())
    state = SiteState.of(now.path)
    login = login_options.ask()
    has = {name: versions_of.of(there, name) for name, there in settled.items()}
    lying, unmet = going_back.releases(now, targets, login)
    found = {name: going_back.step_back(has[name], state.before(name), there) for name, there in lying.items()}
    steps = {name: step for name, step in found.items() if step}
    done = [_nothing(name) for name, step in found.items() if not step]
    away = [problem for error in unmet.values() for problem in error.problems]
    if not steps:
        raise UnreachableError(*away, *done, *bare) if away else SiteError(*done, *bare)
    going = [host for host in targets if host.name in steps]
    going_back.refuse_several_ways(steps)
    first = steps[going[0].name]
    with_versions(now, going, {key: first.to[key] for key in first.moved})  # It refuses what the site file contradicts.
    before = rollout.put_back_sites(now, {host.name: settled[host.name] for host in going})
    conductor = rolling.Conductor(
        now,
        after=rolling.settle_each(rollout.sites_with(before, {name: step.to for name, step in steps.items()})),
        before=rolling.settle_each(before),
        has={name: step.has for name, step in steps.items()},
        keeps={name: rollout.kept_versions(now, name, step.to) for name, step in steps.items()},
        variables={"smoke_bench_force": True},
        login=login,
        verbosity=verbose,
    )
    running.tell_not_applied(now)
    _announce(steps, done)
    for name, step in steps.items():
        if step.to == has[name]:  # It was never well with what is there. So this is all that there is to go back to.
            state.keep_before(name, has[name])
    result = conductor.roll_out(going, batch, keep_going=keep_going)
    result.away[:0] = away
    rolling.finish(result, targets, conductor, bare, json=json)


def _announce(steps: Mapping[str, StepBack], done: list[Problem]) -> None:
    """Say which releases have to be made again, and of which hosts there is nothing to bring back."""
    for name, step in steps.items():
        if step.missing:
            what = " and ".join(f"{versions_of.PROGRAMS[key]} {step.to[key]}" for key in step.missing)
            output.say(
                f"{name}: {what} does not lie there any more, so it is fetched and made again beside what runs",
                "yellow",
            )
        else:
            output.say(f"{name}: the release before lies there still, so nothing is fetched or built")
    for problem in done:
        output.say(f"{problem.where}: {problem.what}")


def _nothing(name: str) -> Problem:
    """That a host has nothing to go back to."""
    remedy = f"name a version to bring it to another: `r1prov upgrade --llama-cpp VERSION {name}`"
    return Problem(name, "there is nothing before the versions that it has", remedy)
