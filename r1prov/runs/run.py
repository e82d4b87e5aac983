"""One run: a playbook over the hosts of a site, from first contact to report."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from r1prov import inventory
from r1prov.common import paths
from r1prov.common.errors import Exit, LockedError, Problem, R1provError, SiteError, UnhealthyError, UnreachableError
from r1prov.common.systemctl import systemctl
from r1prov.common.units import gib
from r1prov.decision import decide
from r1prov.hosts import Look, Progress, ProgressWatch, at_once, met, read_lock
from r1prov.offload.speed import DEFAULT_LINK, of_machine
from r1prov.runs import ansible, expectations, history, secrets, speeds, watch
from r1prov.runs.early import look_at
from r1prov.runs.events import HostAway, HostLooked, TaskDone
from r1prov.runs.report import HostReport, Recorder, RunReport, now
from r1prov.site import archives, authority, pins
from r1prov.site.judges import password_weakness
from r1prov.site.state import ADMIN_PASSWORD, SiteState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ansible_collections.r1.prov.plugins.module_utils.steps import Step

    from r1prov.decision import Decision
    from r1prov.hosts import HostConnection, Login, Meeting
    from r1prov.hosts.looking import Expectation
    from r1prov.machines.known import Known
    from r1prov.runs.ansible import Command
    from r1prov.runs.early import Early
    from r1prov.runs.events import Event
    from r1prov.site import Host, Site

WATCHED = 32
"""Of so many hosts the progress within long steps is followed. Each costs the controller a connection and two threads."""


_HARDLY = 0.05
"""Links whose speeds differ by less than this share are the same."""


class Watcher(Protocol):
    """Somebody who is told what happens."""

    def note(self, host: str, text: str) -> None:
        """There is a remark about a host."""

    def event(self, event: Event) -> None:
        """Something happened."""

    def progress(self, progress: Progress) -> None:
        """A long step says how far it is."""


@dataclass(frozen=True)
class Change:
    """Something that is kept here and that a run brings to hosts. It concerns the steps of one role alone.

    Attributes:
        role: that role.
        make: makes the change here. It is called when hosts were met, so a run that is cut off later is made good by the next `up`.
    """

    role: str
    make: Callable[[], None]


@dataclass(frozen=True)
class Request:
    """What is asked of one run.

    Attributes:
        playbook: its name.
        told_as: what the lock on a host and the report call the run.
        variables: for Ansible, in this run only.
        check: nothing is changed.
        diff: the changes of files are shown.
        verbosity: how often the operator gave `-v`.
        looks: whether hosts are looked at first. The run is then over those where something differs, or where that cannot be told.
        needs: the unit without which a host was never set up for this; empty where the run sets it up.
        change: what the run is for, where its steps are those of one role; None where looks decide which steps run, or all do.
        all_or_none: whether nothing is done on any host where one of them is away.
    """

    playbook: str
    told_as: str
    variables: Mapping[str, Any] = field(default_factory=dict)
    check: bool = False
    diff: bool = False
    verbosity: int = 0
    looks: bool = False
    needs: str = ""
    change: Change | None = None
    all_or_none: bool = False


class Stopped(KeyboardInterrupt):
    """A run that somebody has stopped while Ansible worked. Nothing works on any host, but for what a host finishes by itself.

    Attributes:
        hosts: host name -> where its run was, and what became of its lock, as a predicate.
    """

    def __init__(self, hosts: dict[str, str]) -> None:
        super().__init__()
        self.hosts = hosts


@dataclass(frozen=True)
class Prepared:
    """A run that can begin.

    Attributes:
        decision: for the hosts as they are. It knows which of them are tuned, and its site names the users that ~/.ssh/config
            logs in, for Ansible leaves sudo alone only where it knows that it is root.
        targets: all hosts that are meant.
        away: those of them that the first contact could not use. The run leaves them out.
        looks: what came of looking at hosts of which is known what a run expects. Where nothing differs, the run has nothing to do.
        made_of: what the run is made of, when it begins.
        only: the role whose steps run; empty where looks decide that, or all run.
        since: what the run would have been made of without its change; empty where there is none.
    """

    decision: Decision
    targets: Sequence[Host]
    away: Sequence[HostAway]
    looks: Mapping[str, Look] = field(default_factory=dict)
    made_of: str = ""
    only: str = ""
    since: str = ""

    @property
    def hosts(self) -> list[Host]:
        """Those that the run is over."""
        away = {each.host for each in self.away}
        clean = {name for name, found in self.looks.items() if found.clean}
        return [host for host in self.targets if host.name not in away | clean]

    @property
    def due(self) -> tuple[str, ...]:
        """The steps that differ on the hosts that the run is over. Empty, which means all steps, where that is not known of one of them."""
        if self.only:
            return (self.only,)
        found = [self.looks.get(host.name) for host in self.hosts]
        if not all(look and not look.unknown for look in found):
            return ()
        steps = {difference.step for look in found if look for difference in look.differences}
        return tuple(sorted(steps))

    def refuse_away(self) -> None:
        """Say which hosts are left out.

        Raises:
            UnreachableError: some are.
        """
        if self.away:
            raise UnreachableError(*(problem for each in self.away for problem in each.problems))


@dataclass(frozen=True)
class Done:
    """A run that has ended.

    Attributes:
        decision: what the hosts were to serve.
        report: what happened on them.
        error: what went wrong, if anything did.
    """

    decision: Decision
    report: RunReport
    error: R1provError | None


def run(
    decision: Decision,
    hosts: Sequence[Host],
    login: Login,
    request: Request,
    watcher: Watcher,
    *,
    early: Early | None = None,
) -> Done:
    """Meet the hosts, render the inventory, and run the playbook over those that can be used. The others are in the report."""
    prepared = prepare(
        decision,
        hosts,
        login,
        watcher,
        looks=request.looks,
        needs=request.needs,
        all_or_none=request.all_or_none,
        early=early,
    )
    if request.change and prepared.hosts:
        prepared = _changed(prepared, request.change)
    return play(prepared, login, request, watcher)


def _changed(prepared: Prepared, change: Change) -> Prepared:
    """The run that brings a change to the hosts, which is made here now."""
    change.make()
    made_of = expectations.made_of(SiteState.of(prepared.decision.site.path))
    return replace(prepared, only=change.role, since=prepared.made_of, made_of=made_of)


def prepare(
    decision: Decision,
    hosts: Sequence[Host],
    login: Login,
    watcher: Watcher,
    *,
    looks: bool = False,
    needs: str = "",
    all_or_none: bool = False,
    early: Early | None = None,
) -> Prepared:
    """Meet the hosts, and render the inventory. Changes nothing on a host, and nothing here where no host can be used.

    Args:
        decision: from `settle`.
        hosts: whom to meet.
        login: how to reach them.
        watcher: told who is away, and what is remarkable about the others.
        looks: whether to look at hosts of which is known what a run expects.
        needs: as in `Request`.
        all_or_none: as in `Request`.
        early: looks that go on already.

    Raises:
        UnreachableError: some hosts are away, and it shall be all or none.
        LockedError: no host was set up for this, and runs hold all of them.
        UnhealthyError: no host was set up for this.
    """
    site = decision.site
    state = SiteState.of(site.path)
    begun = early.meeting() if early else None
    with contextlib.closing(begun) if begun else met(hosts, site, login) as meeting:
        if needs:
            refuse_bare(meeting, needs)
        away = _tell_away(meeting, watcher, site.name, all_or_none=all_or_none)
        if not meeting.contacts:
            return Prepared(decision, hosts, away)
        for name, contact in meeting.contacts.items():
            for text in contact.notes:
                watcher.note(name, text)
        for path in secrets.provide(site, [contact.connection for contact in meeting.contacts.values()]):
            if path.name == authority.AUTHORITY:
                watcher.note(site.name, f"{path} is new: the machines that shall trust the gateway must trust it")
            elif away and path.parent == state.secrets:
                late = ", ".join(each.host for each in away)
                watcher.note(site.name, f"{path} is new; once {late} can be reached, `r1prov up` brings it there, too")
        users = {name: contact.connection.user for name, contact in meeting.contacts.items()}
        facts = {name: contact.facts for name, contact in meeting.contacts.items()}
        # A host that shows no card where cards are wanted, as a container that was started without them, says too little of itself.
        shown = {
            name: each
            for name, each in facts.items()
            if each["gpu"]["cards"] or not decision.of(name).site.profile.machine.cards
        }
        acquainted = {name: state.acquaint(name, each) for name, each in shown.items()}
        decision = decision.with_machines(state.all_known(site.hosts))
        for name, both in acquainted.items():
            for text in filter(None, (_on_link(decision.of(name), *both), _on_ram(decision, name, *both))):
                watcher.note(name, text)
        decision, remarks = decision.with_tuned(state.all_tuned(site.hosts), shown)
        for name, text in remarks.items():
            watcher.note(name, text)
        decision = replace(decision, site=_with_users(site, users))
        inventory.render(decision, state.inventory)
        made_of, found = expectations.made_of(state), {}
        if looks:
            found = early.looks(made_of) if early and begun else {}
            others = [name for name in meeting.contacts if name not in found]
            found |= look_at(meeting, {name: expectations.recall(state, name).where(made_of) for name in others})
    return Prepared(decision, hosts, away, found, made_of)


def _tell_away(meeting: Meeting, watcher: Watcher, site: str, *, all_or_none: bool) -> list[HostAway]:
    """The hosts that are away, told.

    Raises:
        UnreachableError: there are some, and it shall be all or none.
    """
    away = [HostAway(name, error.problems) for name, error in meeting.away.items()]
    for event in away:
        watcher.event(event)
    if away and all_or_none:
        watcher.note(site, "nothing is changed on any host, because all are required")
        raise UnreachableError(*(problem for event in away for problem in event.problems))
    return away


def refuse_bare(meeting: Meeting, unit: str) -> None:
    """Leave out hosts that were never set up, before anything is changed there or here. Like a host that is lost meanwhile, they are away.

    Args:
        meeting: the hosts.
        unit: what a host has that was set up.

    Raises:
        LockedError: no host was set up, and all are held by runs, which may be setting them up.
        UnhealthyError: no host was set up.
    """

    def seen(name: str) -> _Bare | UnreachableError | None:
        try:
            return _bare(name, meeting.contacts[name].connection, unit)
        except UnreachableError as error:
            return error

    found = dict(zip(meeting.contacts, at_once(seen, [*meeting.contacts]), strict=True))
    bare = [each for each in found.values() if isinstance(each, _Bare)]
    if bare and None not in found.values():
        kind = LockedError if all(each.is_held for each in bare) else UnhealthyError
        raise kind(*(each.problem for each in bare))
    for name, each in found.items():
        if each:
            meeting.contacts.pop(name).connection.close()
            meeting.away[name] = UnreachableError(each.problem) if isinstance(each, _Bare) else each


@dataclass(frozen=True)
class _Bare:
    """A host that was never set up, and whether a run holds it."""

    problem: Problem
    is_held: bool


def _bare(name: str, connection: HostConnection, unit: str) -> _Bare | None:
    """What is wrong with a host that has no such unit; None where it has.

    The lock is read first. A run that sets the host up may end in between, and then the unit is there.
    """
    holder = read_lock(connection)
    if connection.run(systemctl("cat", f"{unit}.service"), root=True).code == 0:
        return None
    if not holder:
        return _Bare(Problem(name, f"is not set up yet: it has no {unit}.service", "run `r1prov up` first"), False)
    lock = paths.module_util("lock_holder")
    return _Bare(Problem(name, f"{lock.sentence(holder)}, and has no {unit}.service yet", lock.remedy(holder)), True)


def _on_ram(decision: Decision, host: str, before: Known | None, known: Known | None) -> str:
    """A remark on RAM that does not hold as many past prompts as the profile's would, where that is new."""
    machine, own = decision.of(host).site.profile.machine, decision.plans.get(host)
    if not known or not own or (before and before.machine(machine) == known.machine(machine)):
        return ""
    planned, kept = decision.of(host).plan.setting.prompts, own.setting.prompts
    if kept >= planned:
        return ""
    what = f"{gib(kept)} of it are for past prompts" if kept else "none of it is for past prompts"
    return (
        f"has {gib(known.hardware.ram)} of RAM, less than the {gib(machine.ram)} of the profile: {what} instead of {gib(planned)},"
        f" because {own.prompts_reason}"
    )


def _on_link(decision: Decision, before: Known | None, known: Known | None) -> str:
    """A remark on how the first card of a host is attached, where that is new and matters."""
    machine = decision.site.profile.machine
    is_new = known and (not before or before.link != known.link or not before.hardware.like(known.hardware))
    # Where all lies on the cards, next to nothing is copied.
    if not known or not is_new or not machine.cards or decision.plan.whole:
        return ""
    planned = of_machine(machine).link_bytes_per_second
    than = planned.detail or str(DEFAULT_LINK)
    if not known.link:
        remedy = "`machine.gpus.link` of a profile names another"
        return f"does not tell how its first card is attached, so the plan counts with {than}; {remedy}"
    slower = planned.low / of_machine(machine, known.link).link_bytes_per_second.low
    if abs(slower - 1) < _HARDLY:
        return ""
    times = f"{slower:.1f} times as long" if slower > 1 else f"{slower:.0%} of the time"
    return f"has its first card at {known.link}: copies for prompts take {times} as by {than}, and the plan counts with that"


def settle(site: Site, say: Callable[[str], None]) -> Decision:
    """Decide what the hosts shall serve, and see that this machine has what that takes. Contacts no host.

    Args:
        site: what the operator wants.
        say: told where a header is read that was not read before.

    Raises:
        SiteError: the site cannot be planned, or something is missing or wrong on this machine.
    """
    state = SiteState.of(site.path)
    decision = decide(site, say).with_machines(state.all_known(site.hosts))
    pins.keep(site, state.pins)
    archives.judge(site, state.pins)
    if (gateway := site.file.gateway) and gateway.tls.type == "local-authority":
        authority.judge(state.authority, gateway.server_name, datetime.now(UTC))
    _judge_password(site)
    return decision


def _judge_password(site: Site) -> None:
    """Refuse a password that the operator has put in the place of ours and that is easy to guess.

    Raises:
        SiteError: the password is easy to guess.
    """
    state = SiteState.of(site.path)
    password = state.in_the_clear(ADMIN_PASSWORD)
    if password and (why := password_weakness(password, site.file.open_webui.admin_email)):
        remedy = "write another into that file, or remove it: then r1prov makes one"
        raise SiteError(Problem(str(state.secret(ADMIN_PASSWORD)), f"the administrator's password {why}", remedy))


def _with_users(site: Site, users: Mapping[str, str | None]) -> Site:
    hosts = tuple(host.model_copy(update={"user": host.user or users.get(host.name)}) for host in site.hosts)
    return site.model_copy(update={"file": site.file.model_copy(update={"hosts": hosts})})


def command(prepared: Prepared, login: Login, request: Request) -> Command:
    """The command that `play` executes."""
    site, hosts = prepared.decision.site, prepared.hosts
    state = SiteState.of(site.path)
    return ansible.playbook_command(
        request.playbook,
        state.inventory,
        n_hosts=len(hosts),
        limit=[] if len(hosts) == len(site.hosts) else [host.name for host in hosts],
        variables=request.variables,
        ssh_config=login.ssh_config,
        verbosity=max(0, request.verbosity - 1),  # The first -v asks for Ansible's own output.
        check=request.check,
        diff=request.diff,
        told_as=request.told_as,
        due=prepared.due,
        looked=request.playbook == "up",
    )


def play(prepared: Prepared, login: Login, request: Request, watcher: Watcher) -> Done:
    """Run a playbook over the hosts of a prepared run. The report is written however the run ends.

    Raises:
        Stopped: somebody has stopped it, perhaps when hosts were done. They are released where they can be reached.
    """
    site = prepared.decision.site
    state = SiteState.of(site.path)
    recorder = Recorder(
        RunReport(
            command=request.told_as,
            site=site.name,
            profile=site.own.file.profile,
            quant=prepared.decision.quant.name,
            started=now(),
            run=ansible.new_run(),
            hosts={host.name: HostReport() for host in prepared.targets},
            check=request.check,
        )
    )
    for away in prepared.away:
        recorder.event(away, time.monotonic())
    for name, found in prepared.looks.items():
        looked = HostLooked(name, found)
        recorder.event(looked, time.monotonic())
        watcher.event(looked)
    report, error = recorder.report, None
    is_kept = bool(prepared.hosts) and not request.check
    if is_kept:
        history.begin(state, prepared.hosts, report)
    try:
        if prepared.hosts:
            _execute(prepared, login, request, watcher, recorder)
        error = recorder.error()
        report.exit = error.exit if error else Exit.OK
    except KeyboardInterrupt:
        if request.check:  # It locks nothing.
            raise
        watcher.note(site.name, "stopped. The servers are being released; another Ctrl-C leaves them locked")
        raise Stopped(recorder.places(_release(prepared, login))) from None
    finally:
        report.ended = now()
        report.write(state.reports, request.playbook)
        # A site that was refused before anything was changed is not what runs on the hosts.
        applied = report.with_result("ok") or report.changed_hosts
        if applied and not request.check:
            state.remember(site)
            for name in report.with_result("ok"):
                if benchmark := report.hosts[name].benchmark:
                    speeds.of_benchmark(prepared.decision, name, benchmark)
            settle_hosts(state, site, report, request.playbook)
        if is_kept:
            history.end(prepared.decision, prepared.hosts, login, report)
    if request.playbook == "up" and prepared.hosts:
        with _told_where_stopped(recorder):
            _keep_expectations(prepared, recorder, login, request, watcher)
    return Done(prepared.decision, report, error)


@contextlib.contextmanager
def _told_where_stopped(recorder: Recorder) -> Iterator[None]:
    """Say of each host what has become of it where somebody stops what comes after the run."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(recorder.places({})) from None


def _keep_expectations(
    prepared: Prepared, recorder: Recorder, login: Login, request: Request, watcher: Watcher
) -> None:
    """Keep what the run expects of each host on which it went well, and leave it there where the host looks by itself.

    Of steps that were not due, what an earlier run has kept stays.

    Where it has changed something, some of its tasks may ask what a later run does not ask. So these hosts are looked at once more, and
    only what holds for a host as it is now is kept. Where what the run is made of was changed meanwhile, as by an update of this checkout,
    nobody knows which of its tasks were those of before, so nothing of it is kept.
    """
    site = prepared.decision.site
    state, every_s = SiteState.of(site.path), site.file.watch or 0
    is_same = expectations.made_of(state) == prepared.made_of
    ran = {step.role for step in _steps(prepared, request)}
    # Other steps than those of the change are made of the same as before.
    since = prepared.since or prepared.made_of
    earlier = {host.name: _earlier(state, host.name, since) for host in prepared.hosts}
    seen = {
        name: expectations.merged(of_host, found, ran)
        for name, of_host in earlier.items()
        # Of a host of which only some steps are known a look would say too little.
        if (found := recorder.expectations(name)) and (of_host or not prepared.due)
    }
    changed = {name for name in seen if recorder.report.hosts[name].changes}
    well = seen.keys() - changed
    visited = [host for host in prepared.hosts if host.name in (seen if every_s else changed)]
    if visited and not request.check:
        with met(visited, site, login) as meeting:
            again = {name: found for name, found in seen.items() if name in changed & meeting.contacts.keys()}
            after = look_at(meeting, again)
            well |= {name for name, found in after.items() if found.clean}
            if prepared.due:
                _tell_what_is_left(after, watcher)
            if every_s:
                known = {name: seen[name] if name in well and is_same else [] for name in meeting.contacts}
                _leave(meeting, known, every_s, watcher)
    if well and not is_same:
        what = "r1prov or its inventory was changed while this run went on, so the next one looks at nothing first and runs all steps"
        watcher.note(site.name, what)
        return
    for name in well:
        expectations.keep(state, name, prepared.made_of, [*seen[name], *([watch.LEFT] if every_s else [])])


def _earlier(state: SiteState, host: str, made_of: str) -> list[Expectation]:
    """What is expected of a host by earlier runs that were made of the same. What the host looks by is left there anew."""
    return [each for each in expectations.recall(state, host).where(made_of) if each != watch.LEFT]


def _tell_what_is_left(after: Mapping[str, Look], watcher: Watcher) -> None:
    """Say of each host what differs there although all steps that were due have run."""
    for name, found in after.items():
        if left := "; ".join(difference.what for difference in found.differences):
            watcher.note(
                name, f"still differs after the steps that were due: {left}. `r1prov up --full` runs all steps"
            )


def _leave(meeting: Meeting, known: Mapping[str, Sequence[Expectation]], every_s: int, watcher: Watcher) -> None:
    """Leave hosts what they look by. Where that fails, the next look from here says that it is not there."""

    def one(name: str) -> None:
        try:
            watch.leave(meeting.contacts[name].connection, known[name], every_s)
        except UnreachableError as error:
            what = "; ".join(problem.what for problem in error.problems)
            watcher.note(name, f"{what}. It goes on looking by what an earlier run has left")

    at_once(one, [*known])


def _steps(prepared: Prepared, request: Request) -> list[Step]:
    """The steps of a run, with those of the door where it is over that."""
    door = prepared.decision.site.file.door
    return ansible.steps_of(request.playbook, prepared.due, door=door in prepared.targets)


def _execute(prepared: Prepared, login: Login, request: Request, watcher: Watcher, recorder: Recorder) -> None:
    """Execute the playbook, and tell watcher and recorder what happens."""
    state = SiteState.of(prepared.decision.site.path)
    access = login.access(state)
    watches = [ProgressWatch(host, access, watcher.progress) for host in prepared.hosts[:WATCHED]]
    events = ansible.execute(
        command(prepared, login, request),
        state.artifacts,
        steps=_steps(prepared, request),
        passwords=login.passwords,
        run=recorder.report.run,
    )
    try:
        with contextlib.closing(events):
            for event in events:
                recorder.event(event, time.monotonic())
                watcher.event(event)
    finally:
        for watch in watches:
            watch.close()


def _release(prepared: Prepared, login: Login) -> dict[str, bool]:
    """Release hosts whose run was stopped. Says of each that was reached whether it was locked."""
    events = ansible.execute(
        command(prepared, login, Request(playbook="unlock", told_as="")),
        SiteState.of(prepared.decision.site.path).artifacts,
        steps=[],
        passwords=login.passwords,
    )
    found = {}
    with contextlib.suppress(KeyboardInterrupt), contextlib.closing(events):
        for event in events:
            if isinstance(event, TaskDone):
                found[event.host] = bool(event.result["holder"])
    return found


def settle_hosts(state: SiteState, site: Site, report: RunReport, playbook: str) -> None:
    """Keep what each host has been brought to, where the run over it went well to its end."""
    for name in report.with_result("ok"):
        if playbook == "up":
            state.keep_settled(name, site.of(name))
        elif playbook == "down":
            state.forget_settled(name)
            state.look(name).unlink(missing_ok=True)
