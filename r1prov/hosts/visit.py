"""Reads the status of a site's hosts, asks the model on one host a question, and opens tunnels to the services of one host."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from r1prov.common import paths
from r1prov.common.errors import Problem, SiteError, UnhealthyError, UnreachableError
from r1prov.decision import decide
from r1prov.hosts import Contact, Tunnel, ask, at_once, chat, connect, met, read_pause, read_secret, read_status
from r1prov.machines.tuned import in_words
from r1prov.site.addresses import reached_at, url
from r1prov.site.authority import AUTHORITY
from r1prov.site.select import last_applied, wanted
from r1prov.site.state import ADMIN_PASSWORD, API_KEY, SiteState

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

    from r1prov.hosts import Login
    from r1prov.hosts.chat import End, Piece
    from r1prov.site import Host, Site


def statuses(path: Path | None, named: Sequence[str], login: Login) -> dict[str, dict[str, Any]]:
    """Read the status of hosts of the site as last applied.

    Returns:
        host name -> the keys of `read_status`, and `tuned`, which says in words whether the host's tuned settings hold. It is empty for a
        host that cannot be tuned. Where a measurement keeps the engine from answering, `health` is `paused`, and `pause` says so in words;
        else it is empty. Of a host that cannot be reached it says `problems` instead, and its `health` is `unreachable`. `reachable` tells
        the two apart.

    Raises:
        SiteError: no site is known, or it has no such host.
    """
    site, hosts = last_applied(path, named)
    tuned = SiteState.of(site.path).all_tuned(hosts)
    by_ollama = any(site.of_group_of(host.name).file.engine == "ollama" for host in hosts)
    decision = decide(site).with_machines(SiteState.of(site.path).all_known(hosts)) if tuned or by_ollama else None

    def read(contact: Contact) -> dict[str, Any]:
        host = contact.connection.host
        name, engine = host.name, site.of_group_of(host.name).file.engine if host.has("engine") else ""
        service = _service(site, host)
        service["model"] = decision.of(name).alias if decision and engine == "ollama" else ""
        settings = tuned.get(name)
        lapsed = decision.lapsed(name, settings, contact.facts) if decision and settings else ""
        try:
            found = read_status(contact.connection, service)
        except UnreachableError as error:
            return _unreachable(error)
        pause = read_pause(contact.connection) if found["health"] == "down" else None
        if pause:
            found["health"] = "paused"
        found["pause"] = pause.in_words(engine) if pause else ""
        every_s = site.file.watch
        found["watch"] = {"every_s": every_s, "looked": None, **(found["watch"] or {})} if every_s else None
        # What lies on several hosts, or has no engine, is not tuned.
        is_alone = host.has("engine") and not site.file.workers_of(name)
        return {"reachable": True, **found, "tuned": in_words(settings, lapsed) if is_alone else ""}

    with met(hosts, site, login) as meeting:
        found = dict(zip(meeting.contacts, at_once(read, [*meeting.contacts.values()]), strict=True))
        found |= {name: _unreachable(error) for name, error in meeting.away.items()}
    return {host.name: found[host.name] for host in hosts}


def _service(site: Site, host: Host) -> dict[str, Any]:
    """What a host is asked of its services."""
    file = site.of_group_of(host.name).file
    gateway = file.gateway if host.has("door") else None
    has_page, has_engine = host.has("page") and file.open_webui.enabled, host.has("engine")
    return {
        "engine": file.engine if has_engine else "",
        "lends_to": coordinator.name if (coordinator := file.coordinator_of(host)) else "",
        "url": file.api_url if has_engine or not gateway else gateway.balancer_url,
        "key_file": API_KEY.on_host,
        "page": file.page_url if has_page else "",
        "embeddings": file.embeddings_url if has_page else "",
        "gateway": gateway.local_url if gateway else "",
    }


def weights(path: Path | None, named: Sequence[str], login: Login) -> dict[str, dict[str, Any]]:
    """Read what lies in the folders of models on hosts, by the site as last applied. What the site wants since is not taken for surplus.

    Returns:
        host name -> what `there` of plugins/module_utils/weights_there.py says, and `reachable`. Of a host that cannot be reached it says
        `problems` instead.

    Raises:
        SiteError: no site is known, or it has no such host.
    """
    site, hosts = last_applied(path, named, duty="engine")
    decisions = [decide(site)]
    with contextlib.suppress(SiteError):  # The file may be wrong just now.
        decisions.append(decide(wanted(path, ())[0]))
    carried = paths.module_util("carried")
    program = carried.alone((carried.FOLDER / "weights_there.py").read_text())

    def job(host: str) -> dict[str, Any]:
        models = {own.weights_dir: own for own in (decision.of(host) for decision in reversed(decisions))}
        return {
            "models": f"{site.file.data_dir}/models",
            "wanted": [
                {
                    "folder": folder,
                    "files": [
                        {"name": each.name, "bytes": each.bytes, "sha256": each.sha256} for each in own.quant.files
                    ],
                    "merged": own.merged,
                }
                for folder, own in reversed(models.items())
            ],
        }

    def read(contact: Contact) -> dict[str, Any]:
        try:
            asked = job(contact.connection.host.name)
            return {"reachable": True, **ask(contact.connection, program, asked, "its weights cannot be looked at", 60)}
        except UnreachableError as error:
            return _unreachable(error)

    with met(hosts, site, login) as meeting:
        found = dict(zip(meeting.contacts, at_once(read, [*meeting.contacts.values()]), strict=True))
        found |= {name: _unreachable(error) for name, error in meeting.away.items()}
    return {host.name: found[host.name] for host in hosts}


def _unreachable(error: UnreachableError) -> dict[str, Any]:
    return {"reachable": False, "health": "unreachable", "problems": [asdict(problem) for problem in error.problems]}


@contextlib.contextmanager
def conversation(
    path: Path | None, name: str | None, login: Login, question: str, max_tokens: int
) -> Generator[Iterator[Piece | End], None, None]:
    """Ask the model on one host a question, and yield the answer while it is being written.

    Raises:
        SiteError: no site is known, or it has no such host.
        UnreachableError: the host cannot be reached.
        UnhealthyError: the service does not answer as it should.
    """
    site, host = _one(path, name)
    state, is_door = SiteState.of(site.path), _is_door(site, host)
    engine = site.of_group_of(host.name).file.engine
    with contextlib.closing(connect(host, login.access(state))) as connection:
        address, port = _api_at(site, host)
        http = connection.open_http(port, address)
        try:
            if engine == "ollama" and not is_door:
                yield chat.ask_ollama(http, host.name, question, model=decide(site).alias, max_tokens=max_tokens)
            else:
                yield chat.ask(http, host.name, question, key=_api_key(site, host, login), max_tokens=max_tokens)
        except UnhealthyError:
            if pause := read_pause(connection):
                remedy = "ask again then"
                raise UnhealthyError(Problem(host.name, pause.in_words(engine), remedy)) from None
            raise


def _one(path: Path | None, name: str | None) -> tuple[Site, Host]:
    """The site as last applied, and the host that is named. Without a name it is the door to all engines, or else the first one.

    Raises:
        SiteError: no site is known, or it has no such host.
    """
    site, hosts = last_applied(path, [name] if name else ())
    return site, hosts[0] if name else site.file.door or hosts[0]


def _is_door(site: Site, host: Host) -> bool:
    """Whether a host is the door to the engines of several."""
    return site.file.door == host


@dataclass(frozen=True)
class Doors:
    """The URLs under which a host's services are reached from this machine, and what a login there needs.

    Attributes:
        page: the URL of the chat page; None where it is not installed.
        email: the address with which the administrator logs in to the page.
        password_file: the file with the administrator's first password.
        api: the base URL of the API of the engine that holds the model.
        key_file: the file with the API's key; None for Ollama, which has none.
        gateway: the URL that other people open; None where there is no gateway.
        authority: the certificate that their machines must trust; None unless the site has an authority of its own.
    """

    page: str | None
    email: str
    password_file: Path
    api: str
    key_file: Path | None
    gateway: str | None
    authority: Path | None


@contextlib.contextmanager
def opened(path: Path | None, name: str | None, login: Login) -> Generator[tuple[Host, Doors], None, None]:
    """Open tunnels to the services of one host, and close them at the end. The services listen on the host's loopback.

    Raises:
        SiteError: no site is known, or it has no such host.
        UnreachableError: the host cannot be reached.
    """
    site, host = _one(path, name)
    file, state = site.of_group_of(host.name).file, SiteState.of(site.path)
    gateway, is_door = file.gateway if host.has("door") else None, _is_door(site, host)
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(contextlib.closing(connect(host, login.access(state))))

        def reach(address: str, port: int) -> str:
            if host.local:
                return url(address, port)
            return url("127.0.0.1", stack.enter_context(Tunnel(connection, address, port, port)).port)

        yield (
            host,
            Doors(
                page=reach("127.0.0.1", file.open_webui.port) if file.open_webui.enabled and host.has("page") else None,
                email=file.open_webui.admin_email,
                password_file=state.secret(ADMIN_PASSWORD),
                api=f"{reach(*_api_at(site, host))}/v1",
                key_file=None if file.engine == "ollama" and not is_door else state.secret(API_KEY),
                gateway=gateway.url if gateway else None,
                authority=state.authority / AUTHORITY if gateway and gateway.tls.type == "local-authority" else None,
            ),
        )


def _api_at(site: Site, host: Host) -> tuple[str, int]:
    """The address and port at which a host is asked, as it sees them: of its balancer if it is the door to several, else of its engine."""
    file = site.of_group_of(host.name).file
    if file.gateway and _is_door(site, host):
        return "127.0.0.1", file.gateway.balancer_port
    address, port = file.api
    return reached_at(address), port


def _api_key(site: Site, host: Host, login: Login) -> str:
    """The key that this site keeps. Where it is not kept here in the clear, it is read from the host.

    Raises:
        UnhealthyError: the host has no key.
        UnreachableError: the host cannot be reached.
    """
    if key := SiteState.of(site.path).in_the_clear(API_KEY):
        return key
    with met([host], site, login) as meeting:
        key_there = read_secret(meeting.somebody()[host.name].connection, API_KEY.on_host)
    if not key_there:
        raise UnhealthyError(Problem(host.name, "has no API key for the service", "`r1prov up` sets the service up"))
    return key_there
