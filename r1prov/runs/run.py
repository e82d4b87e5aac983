"""One run: a playbook over the hosts of a site, from first contact to report."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from r1prov import inventory
from r1prov.common.errors import Exit, Problem, R1provError, SiteError
from r1prov.decision import decide
from r1prov.hosts import Progress, ProgressWatch, met
from r1prov.runs import ansible, secrets
from r1prov.runs.events import TaskDone
from r1prov.runs.report import HostReport, Recorder, RunReport, now
from r1prov.site import archives, authority, pins
from r1prov.site.judges import password_weakness
from r1prov.site.state import ADMIN_PASSWORD, SiteState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from r1prov.decision import Decision
    from r1prov.hosts import Login
    from r1prov.runs.ansible import Command
    from r1prov.runs.events import Event
    from r1prov.site import Host, Site


class Watcher(Protocol):
    """Somebody who is told what happens."""

    def note(self, host: str, text: str) -> None:
        """There is a remark about a host."""

    def event(self, event: Event) -> None:
        """Something happened."""

    def progress(self, progress: Progress) -> None:
        """A long step says how far it is."""


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
    """

    playbook: str
    told_as: str
    variables: Mapping[str, Any] = field(default_factory=dict)
    check: bool = False
    diff: bool = False
    verbosity: int = 0


class Stopped(KeyboardInterrupt):
    """A run that somebody has stopped while Ansible worked. Nothing works on any host, but for what a host finishes by itself.

    Attributes:
        hosts: host name -> where its run was, and what became of its lock, as a predicate.
    """

    def __init__(self, hosts: dict[str, str]) -> None:
        super().__init__()
        self.hosts = hosts


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


def run(decision: Decision, hosts: Sequence[Host], login: Login, request: Request, watcher: Watcher) -> Done:
    """Meet the hosts, render the inventory, and run the playbook.

    Raises:
        UnreachableError: what is wrong with any host.
    """
    return play(prepare(decision, hosts, login, watcher), hosts, login, request, watcher)


def prepare(decision: Decision, hosts: Sequence[Host], login: Login, watcher: Watcher) -> Decision:
    """Meet the hosts, and render the inventory. Changes nothing on a host.

    Args:
        decision: from `settle`.
        hosts: whom to meet.
        login: how to reach them.
        watcher: told what is remarkable about them.

    Returns:
        the decision for the hosts as they are. It knows which of them are tuned, and its site names the users that ~/.ssh/config
        logs in, for Ansible leaves sudo alone only where it knows that it is root.

    Raises:
        UnreachableError: what is wrong with any host.
    """
    site = decision.site
    state = SiteState.of(site.path)
    with met(hosts, site, login) as contacts:
        for name, contact in contacts.items():
            for text in contact.notes:
                watcher.note(name, text)
        for path in secrets.provide(site, [contact.connection for contact in contacts.values()]):
            if path.name == authority.AUTHORITY:
                watcher.note(site.name, f"{path} is new: the machines that shall trust the gateway must trust it")
        users = {name: contact.connection.user for name, contact in contacts.items()}
        facts = {name: contact.facts for name, contact in contacts.items()}
    decision, remarks = decision.with_tuned(state.all_tuned(site.hosts), facts)
    for name, text in remarks.items():
        watcher.note(name, text)
    decision = replace(decision, site=_with_users(site, users))
    inventory.render(decision, state.inventory)
    return decision


def settle(site: Site, say: Callable[[str], None]) -> Decision:
    """Decide what the hosts shall serve, and see that this machine has what that takes. Contacts no host.

    Args:
        site: what the operator wants.
        say: told where a header is read that was not read before.

    Raises:
        SiteError: the site cannot be planned, or something is missing or wrong on this machine.
    """
    state = SiteState.of(site.path)
    decision = decide(site, say)
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


def command(site: Site, hosts: Sequence[Host], login: Login, request: Request) -> Command:
    """The command that `play` executes."""
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
    )


def play(decision: Decision, hosts: Sequence[Host], login: Login, request: Request, watcher: Watcher) -> Done:
    """Run a playbook over prepared hosts. The report is written however the run ends.

    Raises:
        Stopped: somebody has stopped it. The hosts are released where they can be reached.
    """
    site = decision.site
    state = SiteState.of(site.path)
    recorder = Recorder(
        RunReport(
            command=request.told_as,
            site=site.name,
            profile=site.file.profile,
            quant=decision.quant.name,
            started=now(),
            hosts={host.name: HostReport() for host in hosts},
            check=request.check,
        )
    )
    watches = [ProgressWatch(host, login.access(state), watcher.progress) for host in hosts]
    events = ansible.execute(
        command(site, hosts, login, request),
        state.artifacts,
        steps=ansible.steps_of(request.playbook),
        passwords=login.passwords,
    )
    error: R1provError | None = None
    try:
        with contextlib.closing(events):
            for event in events:
                recorder.event(event, time.monotonic())
                watcher.event(event)
        error = recorder.error()
        recorder.report.exit = error.exit if error else Exit.OK
    except KeyboardInterrupt:
        if request.check:  # It locks nothing.
            raise
        watcher.note(site.name, "stopped. The servers are being released; another Ctrl-C leaves them locked")
        raise Stopped(recorder.places(_release(site, hosts, login))) from None
    finally:
        for watch in watches:
            watch.close()
        recorder.report.ended = now()
        recorder.report.write(state.reports, request.playbook)
        # A site that was refused before anything was changed is not what runs on the hosts.
        applied = recorder.report.exit == Exit.OK or recorder.report.changed_hosts
        if applied and not request.check:
            state.remember(site)
            settle_hosts(state, site, recorder.report, request.playbook)
    return Done(decision, recorder.report, error)


def _release(site: Site, hosts: Sequence[Host], login: Login) -> dict[str, bool]:
    """Release hosts whose run was stopped. Says of each that was reached whether it was locked."""
    state = SiteState.of(site.path)
    events = ansible.execute(
        command(site, hosts, login, Request(playbook="unlock", told_as="")),
        state.artifacts,
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
    for name in [name for name, host in report.hosts.items() if host.result == "ok"]:
        if playbook == "up":
            state.keep_settled(name, site.on(name))
        elif playbook == "down":
            state.forget_settled(name)
