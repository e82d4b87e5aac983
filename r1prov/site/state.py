"""Where a site's inventory, secrets and reports lie on the controller.

A site with a file keeps them in `.r1prov/` beside it; one without in `$XDG_STATE_HOME/r1prov/default`
(`~/.local/state/r1prov/default`). The folder is private to its owner and ignored by git.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from r1prov.common import documents, paths
from r1prov.common.files import keep_private, write_whole
from r1prov.machines.known import Known, met
from r1prov.machines.tuned import Tuned
from r1prov.site import versions as versions_of
from r1prov.site.site import Site

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from r1prov.site import Host


@dataclass(frozen=True)
class Secret:
    """A secret of a site.

    Attributes:
        name: its file among the site's secrets.
        on_host: where a host keeps it: the file of a credential, or a file of `VARIABLE=value` lines.
        variable: which of those lines; empty for a file that is the secret.
    """

    name: str
    on_host: str
    variable: str = ""

    def read_from(self, content: str) -> str | None:
        """The secret, from the content of its file on a host; None where it is not in there."""
        if not self.variable:
            return content.strip() or None
        lines = (line.partition("=") for line in content.splitlines())
        return next((value.strip().strip('"') for name, _, value in lines if name == self.variable), None)


API_KEY = Secret("api-key", "/etc/r1prov/llama-server/api-key")
ADMIN_PASSWORD = Secret("webui-admin-password", "/etc/r1prov/open-webui/admin-password")
PAGE_KEY = Secret("webui-secret-key", "/etc/r1prov/open-webui/environment", "WEBUI_SECRET_KEY")
"""Signs the page's logins: another one logs everybody out."""
SECRETS = (API_KEY, ADMIN_PASSWORD, PAGE_KEY)
"""All that r1prov makes and can make anew. The keys of TLS are the authority's."""


def secrets_of(site: Site) -> tuple[Secret, ...]:
    """Those of the secrets that a site needs."""
    return SECRETS if site.file.open_webui.enabled else (API_KEY,)


@dataclass(frozen=True)
class SiteState:
    """The folder of one site."""

    root: Path

    @classmethod
    def of(cls, site_path: Path | None) -> SiteState:
        """The state of the site whose file is `site_path`; None for a site without a file.

        Makes the folders. What others may read or change in them is put right.

        Raises:
            SiteError: something in them belongs to another user.
        """
        state = cls(site_path.parent / ".r1prov" if site_path else paths.state_dir() / "default")
        for folder in (state.root, state.secrets, state.reports, state.artifacts):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (state.root / ".gitignore").is_file():
            write_whole(state.root / ".gitignore", "*\n")
        keep_private(state.root)
        return state

    @property
    def inventory(self) -> Path:
        """The rendered inventory folder."""
        return self.root / "inventory"

    @property
    def secrets(self) -> Path:
        """Secrets, one file each, 0600 or ansible-vault."""
        return self.root / "secrets"

    def secret(self, secret: Secret) -> Path:
        """The file of one of them."""
        return self.secrets / secret.name

    def in_the_clear(self, secret: Secret) -> str:
        """A secret as it is kept here; empty where it is not, or only as ansible-vault."""
        return "" if self.is_encrypted(secret) else self._text(secret)

    def is_encrypted(self, secret: Secret) -> bool:
        """Whether a secret is kept here as ansible-vault."""
        return self._text(secret).startswith("$ANSIBLE_VAULT")

    def _text(self, secret: Secret) -> str:
        path = self.secret(secret)
        return path.read_text().strip() if path.is_file() else ""

    @property
    def keys(self) -> Path:
        """The keys of the API that have names, as digests."""
        return self.root / "keys.json"

    @property
    def pins(self) -> Path:
        """Digests of versions that r1prov does not come with, and of archives that have been read."""
        return self.root / "pins"

    @property
    def authority(self) -> Path:
        """The authority of machines among themselves, and that of the gateway, where the site makes it."""
        return self.root / "authority"

    @property
    def reports(self) -> Path:
        """What runs did and benchmarks measured."""
        return self.root / "reports"

    @property
    def artifacts(self) -> Path:
        """ansible-runner's own files."""
        return self.root / "artifacts"

    @property
    def known_hosts(self) -> Path:
        """The ssh host keys accepted for this site."""
        return self.root / "known_hosts"

    @property
    def last_site(self) -> Path:
        """The site as last applied, for the verbs that name no profile."""
        return self.root / "site.json"

    def remember(self, site: Site) -> None:
        """Keep the site as applied."""
        write_whole(self.last_site, site.model_dump_json(indent=1))

    def last(self) -> Site | None:
        """The site as last applied; None where none was, or where another version of r1prov wrote it in its own way."""
        return _read(self.last_site)

    def settled(self, host: str) -> Site | None:
        """The site that a host has been brought to, and was well with; None where there is none that can be read."""
        return _read(self._settled(host))

    def keep_settled(self, host: str, site: Site) -> None:
        """Keep the site that a host has been brought to, and is well with. An upgrade that fails brings it back to that.

        Where it has other versions than it had, those that it had are kept, too, unless it has gone back.
        """
        before, kept, has = self.settled(host), _versions_in(self._before(host)), versions_of.of(site, host)
        had = versions_of.of(before, host) if before else has
        is_back = bool(kept) and not versions_of.differ(kept, has)
        if versions_of.differ(had, has) and not is_back:
            self.keep_before(host, had)
        self._settled(host).parent.mkdir(mode=0o700, exist_ok=True)
        write_whole(self._settled(host), site.model_dump_json(indent=1))

    def forget_settled(self, host: str) -> None:
        """Forget what a host was brought to, from which everything has been taken away."""
        self._settled(host).unlink(missing_ok=True)
        self._before(host).unlink(missing_ok=True)

    def _settled(self, host: str) -> Path:
        return self.root / "settled" / f"{host}.json"

    def before(self, host: str) -> dict[str, str]:
        """The versions to which a host goes back, by keys of `versions`; none where there is nothing before what it has.

        Versions that are kept and that the host has are not before anything. So nothing has to be removed when it has gone back.
        """
        has, kept = self.settled(host), _versions_in(self._before(host))
        return kept if has and versions_of.differ(kept, versions_of.of(has, host)) else {}

    def keep_before(self, host: str, kept: dict[str, str]) -> None:
        """Keep the versions to which a host goes back, instead of those that were kept before."""
        self._before(host).parent.mkdir(mode=0o700, exist_ok=True)
        write_whole(self._before(host), json.dumps(kept, indent=1) + "\n")

    def _before(self, host: str) -> Path:
        return self.root / "before" / f"{host}.json"

    def versions(self, host: str) -> dict[str, str]:
        """The versions that were chosen for a host by `upgrade` or `rollback`, by keys of `versions`. The site file outranks them."""
        return _versions_in(self._versions(host))

    def choose_versions(self, host: str, versions: dict[str, str]) -> None:
        """Keep these versions for a host, instead of those that were chosen before."""
        if versions:
            self._versions(host).parent.mkdir(mode=0o700, exist_ok=True)
            write_whole(self._versions(host), json.dumps(versions, indent=1) + "\n")
        else:
            self._versions(host).unlink(missing_ok=True)

    def _versions(self, host: str) -> Path:
        return self.root / "versions" / f"{host}.json"

    @property
    def choices(self) -> dict[str, Any]:
        """Keys of the site file that verbs have chosen (`r1prov engine`); they hold where the file is silent."""
        path = self.root / "choices.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        return found

    def choose(self, choices: dict[str, Any]) -> None:
        """Keep these keys beside those that were chosen before."""
        write_whole(self.root / "choices.json", json.dumps(documents.merged(self.choices, choices), indent=1) + "\n")

    def tuned(self, host: str) -> Tuned | None:
        """What a host was tuned to, whether that still holds or not; None where nothing that can be read is kept."""
        try:
            return Tuned.model_validate_json(self._tuned(host).read_text())
        except (FileNotFoundError, ValidationError):
            return None  # another version of r1prov may have written it in its own way

    def all_tuned(self, hosts: Iterable[Host]) -> dict[str, Tuned]:
        """What those of `hosts` that were tuned were tuned to, by their names."""
        kept = {host.name: self.tuned(host.name) for host in hosts}
        return {name: tuned for name, tuned in kept.items() if tuned}

    def keep_tuned(self, host: str, tuned: Tuned) -> None:
        """Let a host serve with this from now on."""
        self._tuned(host).parent.mkdir(mode=0o700, exist_ok=True)
        write_whole(self._tuned(host), tuned.model_dump_json(indent=1) + "\n")

    def forget_tuned(self, host: str) -> None:
        """Let a host serve with the plan's own setting from now on."""
        self._tuned(host).unlink(missing_ok=True)

    def _tuned(self, host: str) -> Path:
        return self.root / "tuned" / f"{host}.json"

    def known(self, host: str) -> Known | None:
        """What is known of the machine of a host; None where nothing that can be read is kept."""
        try:
            return Known.model_validate_json(self._known(host).read_text())
        except (FileNotFoundError, ValidationError):
            return None  # another version of r1prov may have written it in its own way

    def keep_known(self, host: str, known: Known) -> None:
        """Keep what is known of the machine of a host."""
        self._known(host).parent.mkdir(mode=0o700, exist_ok=True)
        write_whole(self._known(host), known.model_dump_json(indent=1) + "\n")

    def acquaint(self, host: str, facts: dict[str, Any]) -> tuple[Known | None, Known | None]:
        """Keep what first contact has found of a machine. Returns what was known before, and what is known now."""
        before = self.known(host)
        now = met(before, facts)
        if now and now != before:
            self.keep_known(host, now)
        return before, now

    def all_known(self, hosts: Iterable[Host]) -> dict[str, Known]:
        """What is known of the machines of `hosts`, by their names, of those that were met."""
        kept = {host.name: self.known(host.name) for host in hosts}
        return {name: known for name, known in kept.items() if known}

    def _known(self, host: str) -> Path:
        return self.root / "machines" / f"{host}.json"

    @property
    def looks(self) -> Path:
        """What is expected of each host, which a look compares."""
        return self.root / "looks"

    def look(self, host: str) -> Path:
        """What is expected of one of them."""
        return self.looks / f"{host}.json"

    def history(self, host: str) -> Path:
        """The records of the runs over a host that this machine began."""
        return self.root / "history" / host

    def keep_secret(self, secret: Secret, value: str | None = None) -> Path:
        """Store a secret: `value` as found on a host, or a new one of 256 random bits. Returns its file."""
        return write_whole(self.secret(secret), value or secrets.token_urlsafe(32))


def _versions_in(path: Path) -> dict[str, str]:
    """Versions that were kept, by keys of `versions`; none where none were."""
    found: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def _read(path: Path) -> Site | None:
    """A site that was kept; None where it was not, or where another version of r1prov wrote it in its own way."""
    try:
        return Site.model_validate_json(path.read_text())
    except (FileNotFoundError, ValidationError):
        return None
