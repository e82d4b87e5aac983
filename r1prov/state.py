"""Where a site's inventory, secrets and reports lie on the controller.

A site with a file keeps them in `.r1prov/` beside it; one without in `$XDG_STATE_HOME/r1prov/default`
(`~/.local/state/r1prov/default`). The folder is private to its owner and ignored by git.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from r1prov import paths

if TYPE_CHECKING:
    from pathlib import Path

    from r1prov.site import Site


@dataclass(frozen=True)
class SiteState:
    """The folder of one site."""

    root: Path

    @classmethod
    def of(cls, site_path: Path | None) -> SiteState:
        """The state of the site whose file is `site_path`; None for a site without a file. Makes the folders."""
        state = cls(site_path.parent / ".r1prov" if site_path else paths.state_dir() / "default")
        for folder in (state.root, state.secrets, state.reports, state.artifacts):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (state.root / ".gitignore").write_text("*\n")
        return state

    @property
    def inventory(self) -> Path:
        """The rendered inventory folder."""
        return self.root / "inventory"

    @property
    def secrets(self) -> Path:
        """Secrets, one file each, 0600 or ansible-vault."""
        return self.root / "secrets"

    @property
    def api_key(self) -> Path:
        """The key of the API."""
        return self.secrets / "api-key"

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
        _write_private(self.last_site, site.model_dump_json(indent=1))

    def keep_api_key(self, key: str | None = None) -> None:
        """Store the site's API key: `key` as found on a host, or a new one of 256 random bits."""
        _write_private(self.api_key, key or secrets.token_urlsafe(32))


def _write_private(path: Path, text: str) -> None:
    """A file that only its owner may read, whole or not at all."""
    part = path.with_name(path.name + ".part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    part.replace(path)
