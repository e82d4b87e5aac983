"""What the verbs that only look and talk do: the state of a site's hosts, a question to one, a tunnel to one."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from r1prov.common.errors import Problem, UnhealthyError
from r1prov.decision import decide
from r1prov.hosts import Tunnel, chat, connect, met, read_secret, read_status
from r1prov.machines.tuned import in_words
from r1prov.site.authority import AUTHORITY
from r1prov.site.select import last_applied
from r1prov.site.state import ADMIN_PASSWORD, API_KEY, SiteState

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

    from r1prov.hosts import Login
    from r1prov.hosts.chat import Piece, Rates
    from r1prov.site import Host, Site

LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
"""Who listens everywhere is asked on loopback."""


def statuses(path: Path | None, named: Sequence[str], login: Login) -> dict[str, dict[str, Any]]:
    """Host name -> what `read_status` says, and whether it is `tuned`, of the site as last applied.

    Raises:
        SiteError: no site is known.
        UnreachableError: a host cannot be read.
    """
    site, hosts = last_applied(path, named)
    page = _url("127.0.0.1", site.file.open_webui.port) if site.file.open_webui.enabled else ""
    embeddings = _url("127.0.0.1", site.file.open_webui.embeddings_port) if page else ""
    gateway = site.file.gateway
    door = _url(LOOPBACK.get(gateway.address, gateway.address), gateway.port, "https") if gateway else ""
    service = {
        "engine": site.file.engine,
        "url": _url(*_engine_at(site)),
        "key_file": API_KEY.on_host,
        "page": page,
        "embeddings": embeddings,
        "gateway": door,
    }
    tuned = SiteState.of(site.path).all_tuned(hosts)
    decision = decide(site) if tuned else None
    found = {}
    with met(hosts, site, login) as contacts:
        for name, contact in contacts.items():
            kept = tuned.get(name)
            lapsed = decision.lapsed(kept, contact.facts) if decision and kept else ""
            found[name] = {**read_status(contact.connection, service), "tuned": in_words(kept, lapsed)}
    return found


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
    site, hosts = last_applied(path, [name] if name else ())
    host, state = hosts[0], SiteState.of(site.path)
    with contextlib.closing(connect(host, login.access(state))) as connection:
        address, port = _engine_at(site)
        http = connection.open_http(port, address)
        if site.file.engine == "ollama":
            yield chat.ask_ollama(http, host.name, question, model=decide(site).alias)
        else:
            yield chat.ask(http, host.name, question, key=_api_key(site, host, login))


@dataclass(frozen=True)
class Doors:
    """Where a host's services are reached from here, as addresses; None for one that is not there.

    Attributes:
        page: the chat page.
        email: who administers it.
        api: the API of the engine that holds the model.
        key_file: the file with the API's key; None for Ollama, which has none.
        password_file: the file with the administrator's first password.
        gateway: what others open; None where there is no gateway.
        authority: what their machines must trust for that; None where a public authority vouches for it.
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
    """Tunnels to the services of one host, all of which listen on loopback there, for as long as this lasts.

    Raises:
        SiteError: no site is known, or it has no such host.
        UnreachableError: the host cannot be reached.
    """
    site, hosts = last_applied(path, [name] if name else ())
    host, file, state = hosts[0], site.file, SiteState.of(site.path)
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(contextlib.closing(connect(host, login.access(state))))

        def reach(address: str, port: int) -> str:
            if host.local:
                return _url(address, port)
            return _url("127.0.0.1", stack.enter_context(Tunnel(connection, address, port, port)).port)

        yield (
            host,
            Doors(
                page=reach("127.0.0.1", file.open_webui.port) if file.open_webui.enabled else None,
                email=file.open_webui.admin_email,
                password_file=state.secret(ADMIN_PASSWORD),
                api=f"{reach(*_engine_at(site))}/v1",
                key_file=None if file.engine == "ollama" else state.secret(API_KEY),
                gateway=file.gateway.url if file.gateway else None,
                authority=state.authority / AUTHORITY
                if file.gateway and file.gateway.tls.type == "local-authority"
                else None,
            ),
        )


def _url(address: str, port: int, scheme: str = "http") -> str:
    return f"{scheme}://[{address}]:{port}" if ":" in address else f"{scheme}://{address}:{port}"


def _engine_at(site: Site) -> tuple[str, int]:
    """Address and port of the engine that holds the model, as its host sees them."""
    address, port = site.file.api
    return LOOPBACK.get(address, address), port


def _api_key(site: Site, host: Host, login: Login) -> str:
    """The key as this site keeps it, or as the host has it, where it is not kept here in the clear."""
    if key := SiteState.of(site.path).in_the_clear(API_KEY):
        return key
    with met([host], site, login) as contacts:
        found = read_secret(contacts[host.name].connection, API_KEY.on_host)
    if not found:
        raise UnhealthyError(Problem(host.name, "the service has no API key there", "`r1prov up` sets it up"))
    return found
