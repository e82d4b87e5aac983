"""The versions of hosts: from which to which a host goes, and where it differs from what its site has."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from packaging.version import InvalidVersion, Version

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from r1prov.site.site import Site

PROGRAMS = {"llama_cpp": "llama.cpp", "ollama": "Ollama", "open_webui": "Open-WebUI"}
"""Key of `versions` -> what people call the program."""
_FOLDERS = {"llama_cpp": "llama.cpp", "ollama": "ollama", "open_webui": "open-webui"}
"""Key of `versions` -> the folder of its releases on a host."""
_DIGEST = re.compile(r"(-(cpu|cuda))?-[0-9a-f]{12}$")
"""What follows the version in the name of a release."""


def of(site: Site, host: str) -> dict[str, str]:
    """The versions that a host shall have, by keys of `versions`; of the programs that it has there."""
    file = site.of(host).file
    does = next((each for each in site.hosts if each.name == host), None)
    has_engine, has_page = (does is None or does.has(duty) for duty in ("engine", "page"))
    lends = does is not None and does.has("worker")
    has_page = has_page and file.open_webui.enabled
    found = {}
    if has_engine or lends or has_page:  # The page has a model of its own, which finds passages.
        found["llama_cpp"] = file.llama_cpp_version
    if file.has_ollama(does) if does else file.ollama.enabled:
        found["ollama"] = file.versions.ollama
    if has_page:
        found["open_webui"] = file.versions.open_webui
    return found


def moves(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """What becomes of a host's versions, in words: one for each program whose version changes."""
    found = []
    for key, name in PROGRAMS.items():
        if key not in before or key not in after or before[key] == after[key]:
            continue
        old, new = _order(before[key]), _order(after[key])
        what = name
        if old and new and old[0] == new[0]:
            what = f"{'downgrade' if new[1] < old[1] else 'upgrade'} of {name}"
        found.append(f"{what} from {before[key]} to {after[key]}")
    return found


def differ(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether a program that both name has another version in one than in the other."""
    return any(one[key] != other[key] for key in one.keys() & other.keys())


def may_be_older(before: str, after: str) -> bool:
    """Whether a program that goes from one version to another is not certainly brought to a newer one."""
    old, new = _order(before), _order(after)
    is_newer = bool(old and new and old[0] == new[0] and new[1] > old[1])
    return before != after and not is_newer


def _order(version: str) -> tuple[str, Any] | None:
    """By what a version is compared with others of its kind; None for a commit or a label, of which nobody knows which is newer."""
    if tag := re.fullmatch(r"b(\d+)", version):
        return "tag", int(tag[1])
    if re.fullmatch(r"[0-9a-f]{40}", version):
        return None
    try:
        return "version", Version(version)
    except InvalidVersion:
        return None


def installed(releases: Mapping[str, str | None]) -> dict[str, str | None]:
    """The versions on a host, by keys of `versions`, from the names of its current releases, by their folders."""
    names = {key: releases.get(folder) for key, folder in _FOLDERS.items()}
    return {key: _DIGEST.sub("", name) if name else None for key, name in names.items()}


def lying(releases: Mapping[str, Iterable[str]]) -> dict[str, set[str]]:
    """The versions of all releases on a host, by keys of `versions`, from the names of these releases, by their folders."""
    return {
        key: {version for name in releases.get(folder, ()) if (version := installed({folder: name})[key])}
        for key, folder in _FOLDERS.items()
    }


def differences(site: Site, host: str, there: Mapping[str, str | None]) -> dict[str, dict[str, str | None]]:
    """In which versions a host differs from its site.

    Args:
        site: as it is wanted now.
        host: one of its hosts.
        there: the versions on the host, by keys of `versions`.

    Returns:
        key of `versions` -> `installed`, the version on the host; `wanted`, the version that the next `up` brings there, which
        `r1prov upgrade` may have chosen; `site`, what the site file says, or else the tested version.
    """
    own, usual = of(site, host), of(site.model_copy(update={"chosen": {}}), host)
    return {
        key: {"installed": there.get(key), "wanted": own[key], "site": usual[key]}
        for key in own
        if not there.get(key) == own[key] == usual[key]
    }


def in_short(found: Mapping[str, Mapping[str, str | None]]) -> str:
    """What `differences` has found, for a table."""
    return ", ".join(
        f"{PROGRAMS[key]} {each['installed'] or 'missing'} "
        + (f"(site {each['site']})" if each["installed"] == each["wanted"] else f"(wanted {each['wanted']})")
        for key, each in found.items()
    )


def in_words(found: Mapping[str, Mapping[str, str | None]]) -> list[str]:
    """What `differences` has found, as sentences that lack the host, which is their subject."""
    told = []
    for key, each in found.items():
        name, there, wanted = PROGRAMS[key], each["installed"], each["wanted"]
        chosen = f", which was chosen for it; the site has {each['site']}" if wanted != each["site"] else ""
        if there == wanted:
            told.append(f"keeps {name} {there}{chosen}")
        else:
            told.append(f"has {f'{name} {there}' if there else f'no {name}'}; `r1prov up` brings {wanted}{chosen}")
    return told
