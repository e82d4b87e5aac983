"""Keys of the API by name. A site keeps the SHA-256 of each, and shows the key itself once, when it is made."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from r1prov.common.errors import Problem, SiteError
from r1prov.common.files import write_whole

if TYPE_CHECKING:
    from r1prov.site.state import SiteState

ON_HOST = "/etc/r1prov/balancer/keys.map"
"""Where a host keeps them, the site's own key among them."""
OWN = "site"
"""The name of the key with which the services of a site call one another. `r1prov secrets rotate` makes another one."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_LINE = re.compile(r"(?:# added (?P<added>\S+)\n)?(?P<sha256>[0-9a-f]{64}) (?P<name>\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class NamedKey:
    """A key that somebody may use.

    Attributes:
        name: whose it is.
        sha256: of the key, in hexadecimal digits.
        added: when it was made, in UTC; empty where that is not known.
    """

    name: str
    sha256: str
    added: str = ""


def kept(state: SiteState) -> list[NamedKey]:
    """The keys of a site, in the order of their names.

    Raises:
        SiteError: the file cannot be read.
    """
    if not state.keys.is_file():
        return []
    try:
        return [NamedKey(**each) for each in json.loads(state.keys.read_text())]
    except (ValueError, TypeError):
        raise SiteError(Problem(str(state.keys), "is damaged", "bring it back from a backup")) from None


def keep(state: SiteState, keys: list[NamedKey]) -> None:
    """Keep these keys, and no others."""
    rows = [asdict(key) for key in sorted(keys, key=lambda key: key.name)]
    write_whole(state.keys, json.dumps(rows, indent=1) + "\n")


def on_host(text: str) -> list[NamedKey]:
    """The keys in the file of a host, without the site's own."""
    found = [NamedKey(match["name"], match["sha256"], match["added"] or "") for match in _LINE.finditer(text)]
    return [key for key in found if key.name != OWN]


def made(name: str) -> tuple[str, NamedKey]:
    """Make a key of 256 random bits. Returns it, which nobody can show again, and what is kept of it.

    Raises:
        SiteError: this is no name for a key.
    """
    if not _NAME.fullmatch(name) or name == OWN:
        what = "the site's own key has this name" if name == OWN else "is no name for a key"
        raise SiteError(Problem(name, what, "write up to 63 letters, digits and ._-"))
    key = f"r1-{secrets.token_urlsafe(32)}"
    added = datetime.now(UTC).isoformat(timespec="seconds")
    return key, NamedKey(name, hashlib.sha256(key.encode()).hexdigest(), added)


def with_one(keys: list[NamedKey], new: NamedKey) -> list[NamedKey]:
    """The keys and a new one.

    Raises:
        SiteError: another key has its name.
    """
    if any(key.name == new.name for key in keys):
        remedy = f"choose another name, or run `r1prov keys revoke {new.name}` first"
        raise SiteError(Problem(new.name, "another key has this name", remedy))
    return [*keys, new]


def without(keys: list[NamedKey], name: str) -> list[NamedKey]:
    """The keys without the one of this name.

    Raises:
        SiteError: there is none.
    """
    if name == OWN:
        remedy = "`r1prov secrets rotate --only api-key` makes another one"
        raise SiteError(Problem(name, "the services of the site need its own key", remedy))
    rest = [key for key in keys if key.name != name]
    if len(rest) == len(keys):
        names = ", ".join(key.name for key in keys)
        has = f"it has: {names}" if names else "it has none yet; `r1prov keys add` makes one"
        raise SiteError(Problem(name, "the site has no key of this name", has))
    return rest
