"""What the verbs that change servers do: a run over a site, from first contact to report."""

from __future__ import annotations

import contextlib
import difflib
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import ValidationError

from r1prov import inventory, site
from r1prov.common import documents
from r1prov.common.errors import Exit, Problem, R1provError, SiteError
from r1prov.hosts import Access, Contact, HostConnection, Progress, ProgressWatch, contact_all, read_secret
from r1prov.machines import tuned
from r1prov.models import headers
from r1prov.runs import ansible as run
from r1prov.runs.ansible import Command, Passwords
from r1prov.runs.report import HostReport, Recorder, RunReport, now
from r1prov.site import SITE_FILE, Host, Site, SiteFile, archives, authority, pins
from r1prov.site.judges import password_weakness
from r1prov.site.state import ADMIN_PASSWORD, API_KEY, PAGE_KEY, Secret, SiteState

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from r1prov.runs.events import Event


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
    choices = SiteState.of(path.resolve() if path else None).choices
    chosen = site.load(path, chosen=choices, hosts=() if path else tuple(named), **flags)
    return chosen, among(chosen, named) if path else chosen.hosts


def known(path: Path | None, named: Sequence[str]) -> tuple[Site, tuple[Host, ...]]:
    """The site as last applied, for the verbs that name no profile, and the hosts meant.

    Raises:
        SiteError: there is none, or it has no such host.
    """
    if path is None and Path(SITE_FILE).is_file():
        path = Path(SITE_FILE)
    last = SiteState.of(path.resolve() if path else None).last_site
    if last.is_file() and (remembered := _remembered(last)):
        chosen = remembered
    elif path:
        chosen = site.load(path, chosen=SiteState.of(path.resolve()).choices)
    else:
        raise SiteError(Problem("site", "no site is known here", "run `r1prov up` first, or name a site file: --site"))
    return chosen, among(chosen, named)


def _remembered(last: Path) -> Site | None:
    """The site as last applied; None where another version of r1prov wrote it in its own way."""
    try:
        return Site.model_validate_json(last.read_text())
    except ValidationError:
        return None


def rechosen(path: Path | None, named: Sequence[str], choices: dict[str, Any]) -> tuple[Site, tuple[Host, ...]]:
    """The known site with other choices, and the hosts meant. Keeps nothing.

    Args:
        path: the site file.
        named: hosts; none for all.
        choices: keys of the site file, as `SiteState.choices` keeps them.

    Raises:
        SiteError: no site is known, or its file says otherwise: what a person has written is not overruled.
    """
    old, meant = known(path, named)
    if old.path:
        written = documents.load(old.path, SiteFile).model_dump(exclude_unset=True)
        against = sorted(_contradicted(written, choices))
        if against:
            raise SiteError(
                *(
                    Problem(f"{old.path}", f"it says `{key}: {value}`", "change it there, or take the line out")
                    for key, value in against
                )
            )
    file = site.validated(site.merged(old.file.model_dump(exclude_unset=True), choices))
    return old.model_copy(update={"file": file}), meant


def _contradicted(written: dict[str, Any], choices: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys, with their values, that are written otherwise than they are chosen."""
    for key in written.keys() & choices.keys():
        if isinstance(choices[key], dict):
            yield from ((f"{key}.{inner}", value) for inner, value in _contradicted(written[key], choices[key]))
        elif written[key] != choices[key]:
            yield key, written[key]


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
    """Meet the hosts, see that the site has all it needs here, and render the inventory. Changes nothing on a host.

    Returns:
        the site, with the users that ~/.ssh/config logs in: Ansible leaves sudo alone only where it knows that it is root.

    Raises:
        UnreachableError: what is wrong with any host.
        SiteError: the site cannot be planned.
    """
    state = SiteState.of(chosen.path)
    read_headers(chosen, lambda text: watcher.note(chosen.name, text))
    inventory.plan_for(chosen)  # what cannot be planned need not be contacted
    pins.keep(chosen, state.pins)
    archives.judge(chosen, state.pins)
    _judge_password(chosen)
    with met(hosts, chosen, login) as contacts:
        for name, contact in contacts.items():
            for text in contact.notes:
                watcher.note(name, text)
        provide(chosen, [contact.connection for contact in contacts.values()])
        holds, remarks = tuned.holding(chosen, {name: contact.facts for name, contact in contacts.items()})
        for name, text in remarks.items():
            watcher.note(name, text)
        chosen = _with_users(chosen, {name: contact.connection.user for name, contact in contacts.items()})
    inventory.render(chosen, state.inventory, tuned=holds)
    return chosen


def read_headers(chosen: Site, say: Callable[[str], None]) -> None:
    """See that the headers that a plan needs are here.

    Args:
        chosen: its sources are asked.
        say: told where a header is read.

    Raises:
        SiteError: no source has them.
    """
    if not inventory.asks_for_header(chosen):
        return
    try:
        headers.fetch(inventory.quant_for(chosen), chosen.file.sources, say)
    except SiteError:
        if inventory.needs_header(chosen):
            raise
        say(
            "its header cannot be read from here, so the files are served as they were published, whatever form they have"
        )


def provide(chosen: Site, connections: Sequence[HostConnection] = ()) -> list[Path]:
    """See that the site has what r1prov makes for it: secrets, and a certificate that lasts, where an authority of its own issues it.

    Args:
        chosen: the site.
        connections: to hosts, which may have secrets that another controller gave them.

    Returns:
        the files that were made.
    """
    state, gateway = SiteState.of(chosen.path), chosen.file.gateway
    wanted = (API_KEY, *((ADMIN_PASSWORD, PAGE_KEY) if chosen.file.open_webui.enabled else ()))
    missing = [secret for secret in wanted if not state.secret(secret).is_file()]
    made = [state.keep_secret(secret, _take_over(secret, connections)) for secret in missing]
    if gateway and gateway.tls.type == "local-authority":
        made += authority.see_to(state.authority, gateway.server_name, datetime.now(UTC))
    return made


def _judge_password(chosen: Site) -> None:
    """A password that the operator has put in the place of ours must not be easy to guess.

    Raises:
        SiteError: it is.
    """
    state = SiteState.of(chosen.path)
    password = state.in_the_clear(ADMIN_PASSWORD)
    if password and (why := password_weakness(password, chosen.file.open_webui.admin_email)):
        remedy = "write another into that file, or remove it: then r1prov makes one"
        raise SiteError(Problem(str(state.secret(ADMIN_PASSWORD)), f"the administrator's password {why}", remedy))


def _with_users(chosen: Site, users: dict[str, str | None]) -> Site:
    hosts = tuple(host.model_copy(update={"user": host.user or users.get(host.name)}) for host in chosen.hosts)
    return chosen.model_copy(update={"file": chosen.file.model_copy(update={"hosts": hosts})})


def _take_over(secret: Secret, connections: Iterable[HostConnection]) -> str | None:
    """A secret that another controller gave to the hosts."""
    contents = (read_secret(connection, secret.on_host) for connection in connections)
    return next(filter(None, map(secret.read_from, filter(None, contents))), None)


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
            quant=inventory.quant_for(chosen).name,
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
        # What was refused before anything was changed is not what runs there.
        applied = recorder.report.exit == Exit.OK or any(host.changes for host in recorder.report.hosts.values())
        if applied and not options.check:
            state.remember(chosen)
    return recorder.report, error
