"""What the verbs do: a run over a site from first contact to report, a look at its hosts, a question to one of them."""

from __future__ import annotations

import contextlib
import difflib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from r1prov import chat, inventory, run, site
from r1prov.contact import (
    Access,
    Contact,
    HostConnection,
    Progress,
    ProgressWatch,
    connect,
    contact_all,
    read_secret,
    read_status,
)
from r1prov.errors import Exit, Problem, R1provError, SiteError, UnhealthyError
from r1prov.report import HostReport, Recorder, RunReport, now
from r1prov.run import Command, Passwords
from r1prov.site import SITE_FILE, Host, Site
from r1prov.state import SiteState

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence

    from r1prov.chat import Piece, Rates
    from r1prov.events import Event

API_KEY_ON_HOST = "/etc/r1prov/llama-server/api-key"
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
"""Who listens everywhere is asked on loopback."""


class Watcher(Protocol):
    """Who is told what happens."""

    def note(self, host: str, text: str) -> None:
        """A remark about a host."""

    def event(self, event: Event) -> None:
        """Something happened."""

    def progress(self, progress: Progress) -> None:
        """A long step tells how far it is."""


@dataclass(frozen=True)
class Login:
    """How the operator logs in to the hosts, as far as it is not in ~/.ssh/config."""

    passwords: Passwords = field(default_factory=Passwords)
    strict_host_keys: bool = False
    ssh_config: Path | None = None

    def access(self, state: SiteState) -> Access:
        """The same for `contact`."""
        return Access(
            known_hosts=state.known_hosts,
            host_keys="strict" if self.strict_host_keys else "accept-new",
            ssh_password=self.passwords.ssh,
            sudo_password=self.passwords.sudo,
            ssh_config=self.ssh_config,
        )


@dataclass(frozen=True)
class Options:
    """What is asked of one run. `told_as` is what the lock and the report call it."""

    playbook: str
    told_as: str
    variables: dict[str, Any] = field(default_factory=dict)
    check: bool = False
    diff: bool = False
    verbosity: int = 0


def choose(path: Path | None, named: Sequence[str], **flags: Any) -> tuple[Site, tuple[Host, ...]]:
    """The site, and the hosts meant.

    With a site file, named hosts choose among its hosts; without, they are the site. A file in this folder counts as given
    unless both hosts and a profile are named.

    Raises:
        SiteError: everything that is wrong.
    """
    if path is None and Path(SITE_FILE).is_file() and not (named and flags.get("profile")):
        path = Path(SITE_FILE)
    chosen = site.load(path, hosts=() if path else tuple(named), **flags)
    return chosen, among(chosen, named) if path else chosen.hosts


def known(path: Path | None, named: Sequence[str]) -> tuple[Site, tuple[Host, ...]]:
    """The site as last applied, for the verbs that name no profile, and the hosts meant.

    Raises:
        SiteError: there is none, or it has no such host.
    """
    if path is None and Path(SITE_FILE).is_file():
        path = Path(SITE_FILE)
    last = SiteState.of(path.resolve() if path else None).last_site
    if last.is_file():
        chosen = Site.model_validate_json(last.read_text())
    elif path:
        chosen = site.load(path)
    else:
        raise SiteError(Problem("site", "no site is known here", "run `r1prov up` first, or name a site file: --site"))
    return chosen, among(chosen, named)


def among(chosen: Site, named: Sequence[str]) -> tuple[Host, ...]:
    """The hosts of a site that are named; all where none is.

    Raises:
        SiteError: it has no such host.
    """
    by_name = {host.name: host for host in chosen.hosts}
    wanted = [_name_of(name, by_name) for name in named]
    unknown = [name for name in wanted if name not in by_name]
    if unknown:
        raise SiteError(*(Problem(name, "the site has no such host", _near(name, by_name)) for name in unknown))
    return tuple(by_name[name] for name in wanted) if named else chosen.hosts


def _name_of(text: str, names: Iterable[str]) -> str:
    """The name of a host that is called by its name or by its address."""
    try:
        return text if text in names else Host.parse(text).name
    except ValueError:
        return text


def _near(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=2)
    return f"did you mean {' or '.join(near)}?" if near else f"it has: {', '.join(names)}"


@contextlib.contextmanager
def met(hosts: Sequence[Host], chosen: Site, login: Login) -> Generator[dict[str, Contact], None, None]:
    """Open connections to all hosts, closed at the end.

    Raises:
        UnreachableError: what is wrong with any of them; then nothing goes on.
    """
    state = SiteState.of(chosen.path)
    contacts = contact_all(
        hosts, login.access(state), probe_paths=[chosen.file.data_dir], probe_ports=[chosen.file.service.port]
    )
    try:
        yield contacts
    finally:
        for contact in contacts.values():
            contact.connection.close()


def prepare(chosen: Site, hosts: Sequence[Host], login: Login, watcher: Watcher) -> Site:
    """Meet the hosts, see that there is an API key, and render the inventory. Changes nothing on a host.

    Returns:
        the site, with the users that ~/.ssh/config logs in: Ansible leaves sudo alone only where it knows that it is root.

    Raises:
        UnreachableError: what is wrong with any host.
        SiteError: the site cannot be planned.
    """
    state = SiteState.of(chosen.path)
    inventory.plan_for(chosen)  # what cannot be planned need not be contacted
    with met(hosts, chosen, login) as contacts:
        for name, contact in contacts.items():
            for text in contact.notes:
                watcher.note(name, text)
        if not state.api_key.is_file():
            state.keep_api_key(_take_over([contact.connection for contact in contacts.values()]))
        chosen = _with_users(chosen, {name: contact.connection.user for name, contact in contacts.items()})
    inventory.render(chosen, state.inventory)
    state.remember(chosen)
    return chosen


def _with_users(chosen: Site, users: dict[str, str | None]) -> Site:
    hosts = tuple(host.model_copy(update={"user": host.user or users.get(host.name)}) for host in chosen.hosts)
    return chosen.model_copy(update={"file": chosen.file.model_copy(update={"hosts": hosts})})


def _take_over(connections: Iterable[HostConnection]) -> str | None:
    """The API key that another controller gave to the hosts."""
    keys = (read_secret(connection, API_KEY_ON_HOST) for connection in connections)
    return next(filter(None, keys), None)


def command(chosen: Site, hosts: Sequence[Host], login: Login, options: Options) -> Command:
    """What `converge` executes."""
    state = SiteState.of(chosen.path)
    return run.playbook_command(
        options.playbook,
        state.inventory,
        known_hosts=state.known_hosts,
        n_hosts=len(hosts),
        limit=[] if len(hosts) == len(chosen.hosts) else [host.name for host in hosts],
        variables=options.variables,
        ssh_config=login.ssh_config,
        verbosity=max(0, options.verbosity - 1),  # the first -v asks for Ansible's own output
        check=options.check,
        diff=options.diff,
        told_as=options.told_as,
    )


def converge(
    chosen: Site, hosts: Sequence[Host], login: Login, options: Options, watcher: Watcher
) -> tuple[RunReport, R1provError | None]:
    """Run a playbook over prepared hosts. The report is written however the run ends.

    Returns:
        the report, and what went wrong, if anything did.
    """
    state = SiteState.of(chosen.path)
    recorder = Recorder(
        RunReport(
            command=options.told_as,
            site=chosen.name,
            profile=chosen.file.profile,
            quant=inventory.plan_for(chosen)[0].name,
            started=now(),
            hosts={host.name: HostReport() for host in hosts},
        )
    )
    watches = [ProgressWatch(host, login.access(state), watcher.progress) for host in hosts]
    events = run.run(
        command(chosen, hosts, login, options),
        state.artifacts,
        steps=run.steps_of(options.playbook),
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
    finally:
        for watch in watches:
            watch.close()
        recorder.report.ended = now()
        recorder.report.write(state.reports, options.playbook)
    return recorder.report, error


def statuses(path: Path | None, named: Sequence[str], login: Login) -> dict[str, dict[str, Any]]:
    """Host name -> what `contact.read_status` says, of the site as last applied.

    Raises:
        SiteError: no site is known.
        UnreachableError: a host cannot be read.
    """
    chosen, hosts = known(path, named)
    service = {**chosen.file.service.model_dump(), "key_file": API_KEY_ON_HOST}
    with met(hosts, chosen, login) as contacts:
        return {name: read_status(contact.connection, service) for name, contact in contacts.items()}


@contextlib.contextmanager
def conversation(
    path: Path | None, name: str | None, login: Login, question: str
) -> Generator[Iterator[Piece | Rates], None, None]:
    """The answer of one host to a question, as it comes.

    Raises:
        SiteError: no site is known, or it has no such host.
        UnreachableError: the host cannot be reached.
        UnhealthyError: the service does not answer as it should.
    """
    chosen, hosts = known(path, [name] if name else ())
    host, state, service = hosts[0], SiteState.of(chosen.path), chosen.file.service
    with contextlib.closing(connect(host, login.access(state))) as connection:
        http = connection.open_http(service.port, LOOPBACK.get(service.address, service.address))
        yield chat.ask(http, host.name, question, key=_api_key(chosen, host, login))


def _api_key(chosen: Site, host: Host, login: Login) -> str:
    """The key as this site keeps it, or as the host has it, where it is not kept here in the clear."""
    kept = SiteState.of(chosen.path).api_key
    key = kept.read_text().strip() if kept.is_file() else ""
    if key and not key.startswith("$ANSIBLE_VAULT"):
        return key
    with met([host], chosen, login) as contacts:
        found = read_secret(contacts[host.name].connection, API_KEY_ON_HOST)
    if not found:
        raise UnhealthyError(Problem(host.name, "the service has no API key there", "`r1prov up` sets it up"))
    return found
