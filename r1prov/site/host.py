"""One server of a site: how it is reached, and what it does for the site."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from r1prov.common.documents import Keys
from r1prov.site.addresses import is_reached_by_others

Duty = Literal["engine", "worker", "page", "door"]
"""What a host does for the site: it serves the model, it lends its devices to the engine of its group, it has the chat page, or it lets
others in and shares their requests out."""

_ADDRESS = re.compile(
    r"(?:(?P<user>[^@\s]+)@)?(?:\[(?P<v6>[0-9a-fA-F:.%]+)\]|(?P<name>[^@:\s\[\]]+))(?::(?P<port>\d{1,5}))?"
)


def _also_one(value: Any) -> Any:
    """A list of one, where a single duty is written without brackets."""
    return [value] if isinstance(value, str) else value


class Host(Keys):
    """One server."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """The name of the server in every output."""
    address: str = ""
    """A DNS name, an IP address, or a `Host` of ~/.ssh/config. Default: the name."""
    user: str | None = None
    """The user who logs in. Default: the one that ssh's configuration names."""
    port: int | None = Field(default=None, ge=1, le=65535)
    """The port of sshd. Default: the one that ssh's configuration names."""
    identity_file: str | None = None
    """A private key for this host, relative to the site file. The keys of the agent and of ssh's configuration are tried too."""
    group: str | None = None
    """The group whose keys say what this host serves. Default: the keys of the site."""
    does: Annotated[tuple[Duty, ...], BeforeValidator(_also_one)] | None = Field(default=None, min_length=1)
    """`engine`, `worker`, `page`, `door`: what this host does in a site whose hosts are one service. A `worker` lends its devices to the
    engine of its group. Default: each host is a service of its own, with engine, page and door."""
    private: Annotated[str, AfterValidator(is_reached_by_others)] | None = None
    """The IP address at which the other hosts of the site reach this one."""

    @model_validator(mode="before")
    @classmethod
    def _is_reached_by_its_name(cls, keys: Any) -> Any:
        if isinstance(keys, dict) and isinstance(keys.get("name"), str):
            return {"address": keys["name"], **keys}
        return keys

    def has(self, duty: Duty) -> bool:
        """Whether this host has a duty."""
        return duty in self.does if self.does is not None else duty != "worker"

    @property
    def local(self) -> bool:
        """Whether this is the controller itself, which is reached without ssh."""
        return self.address in {"localhost", "127.0.0.1", "::1"} and self.port is None

    @classmethod
    def parse(cls, text: str) -> Host:
        """Make a host of `[user@]address[:port]`, where an IPv6 address stands in brackets.

        Raises:
            ValueError: the text has another form.
        """
        match = _ADDRESS.fullmatch(text)
        if not match:
            raise ValueError(f"`{text}` is not a host: write [user@]address[:port]")
        address = match["v6"] or match["name"]
        # Ansible would read a colon in a host's name as the start of a port.
        name = "-".join(filter(None, (address.strip(":").replace(":", "-"), match["port"])))
        return cls(name=name, address=address, user=match["user"], port=int(match["port"]) if match["port"] else None)


HostEntry = Annotated[Host, BeforeValidator(lambda value: Host.parse(value) if isinstance(value, str) else value)]
