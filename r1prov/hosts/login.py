"""How the operator logs in to hosts, and a context that holds open connections to all of them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from r1prov.hosts.first import contact_all
from r1prov.hosts.ssh import Access, say_nothing
from r1prov.site.state import SiteState

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

    from r1prov.hosts.first import Meanwhile, Meeting
    from r1prov.site import Host, Site


@dataclass(frozen=True)
class Passwords:
    """The passwords that the operator typed in for all hosts of a site. They are never printed."""

    ssh: str | None = field(default=None, repr=False)
    sudo: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Login:
    """How the operator logs in to the hosts, where ~/.ssh/config does not say it.

    Attributes:
        passwords: those that the operator typed in.
        strict_host_keys: whether a host whose key is not known is refused. Otherwise its key is trusted at first sight.
        ssh_config: the file to read instead of ~/.ssh/config.
        tell: is told, with the name of a host, which key was trusted at first sight. It may be called from any thread.
        confirm: asks a person whether a host, given by its name, has the key that it shows. None says that nobody can be asked.
    """

    passwords: Passwords = field(default_factory=Passwords)
    strict_host_keys: bool = False
    ssh_config: Path | None = None
    tell: Callable[[str, str], None] = say_nothing
    confirm: Callable[[str, str], bool] | None = None

    def access(self, state: SiteState) -> Access:
        """This login together with the host keys that a site has accepted."""
        return Access(
            known_hosts=state.known_hosts,
            host_keys="strict" if self.strict_host_keys else "accept-new",
            ssh_password=self.passwords.ssh,
            sudo_password=self.passwords.sudo,
            ssh_config=self.ssh_config,
            tell=self.tell,
            confirm=self.confirm,
        )


@contextlib.contextmanager
def met(hosts: Sequence[Host], site: Site, login: Login) -> Generator[Meeting, None, None]:
    """Contact all hosts and yield what came of it. The connections are closed at the end."""
    with contextlib.closing(meet(hosts, site, login)) as meeting:
        yield meeting


def meet(hosts: Sequence[Host], site: Site, login: Login, meanwhile: Meanwhile | None = None) -> Meeting:
    """Contact all hosts. Whoever calls it closes the connections. See `contact_all`."""
    return contact_all(
        hosts,
        login.access(SiteState.of(site.path)),
        meanwhile=meanwhile,
    )
