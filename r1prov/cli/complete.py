"""What the shell offers for hosts, profiles and quants.

A person waits for it at each press of Tab, so it reads files and no more, and says nothing about what is wrong in them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer  # noqa: TC002 - Typer reads the annotation when it runs
import yaml

from r1prov.common import paths

if TYPE_CHECKING:
    from collections.abc import Callable

SITE_VARIABLE = "R1PROV_SITE"


def hosts(context: typer.Context, incomplete: str) -> list[str]:
    """The hosts of the site file, or where it names none, those of the site as last applied. None is offered twice."""
    named = context.params.get("site") or os.environ.get(SITE_VARIABLE) or paths.SITE_FILE
    site = Path(named).resolve()
    state = site.parent / ".r1prov" if site.is_file() else paths.state_dir() / "default"
    found = _named(site, yaml.safe_load) or _named(state / "site.json", lambda text: json.loads(text)["file"])
    given = set(context.params.get("hosts") or ())
    return [name for name in found if name.startswith(incomplete) and name not in given]


def profiles(incomplete: str) -> list[str]:
    """The profiles that come with r1prov."""
    names = (path.stem for path in (paths.collection() / "inventory" / "profiles").glob("*.yml"))
    return sorted(name for name in names if name.startswith(incomplete))


def quants(incomplete: str) -> list[str]:
    """The published quants."""
    from r1prov.models import catalogue  # noqa: PLC0415 - takes as long as all else

    return [name for name in catalogue.quants() if name.lower().startswith(incomplete.lower())]


def _named(path: Path, read: Callable[[str], Any]) -> list[str]:
    """The names of the hosts in a file; none where it cannot be read."""
    try:
        entries = read(path.read_text())["hosts"]
        return [_name(entry) if isinstance(entry, str) else str(entry["name"]) for entry in entries]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return []


def _name(text: str) -> str:
    """The name of a host that is written as `[user@]address[:port]`, as `Host.parse` makes it."""
    return text.rpartition("@")[2].translate({ord("["): "", ord("]"): ""}).strip(":").replace(":", "-")
