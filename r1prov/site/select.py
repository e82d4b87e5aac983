"""Which site is meant, and which of its hosts: from a file, from flags, or as it was last applied."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1prov.common import documents
from r1prov.common.errors import Problem, SiteError
from r1prov.common.paths import SITE_FILE
from r1prov.site import fleet
from r1prov.site.host import Host
from r1prov.site.judges import loose_files
from r1prov.site.keys import SiteFile
from r1prov.site.load import load, validated
from r1prov.site.state import SiteState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from r1prov.site.host import Duty
    from r1prov.site.site import Site

    Selection = tuple[Site, tuple[Host, ...]]


def select(path: Path | None, named: Sequence[str], **flags: Any) -> Selection:
    """The site of a file or of flags, and the hosts meant.

    With a site file, named hosts select among its hosts. Without one, they are the site. A file in this folder counts as given,
    unless both hosts and a profile are named.

    Raises:
        SiteError: everything that is wrong.
    """
    if path is None and Path(SITE_FILE).is_file() and not (named and flags.get("profile")):
        path = Path(SITE_FILE)
    choices = SiteState.of(path.resolve() if path else None).choices
    site = _with_chosen(load(path, chosen=choices, hosts=() if path else tuple(named), **flags))
    return site, among(site, named) if path else site.hosts


def _with_chosen(site: Site) -> Site:
    """The site with the versions that were chosen for its hosts. What the site file says outranks them."""
    state = SiteState.of(site.path)
    chosen = {
        host.name: {
            key: value
            for key, value in state.versions(host.name).items()
            if key not in site.written_versions(host.name)
        }
        for host in site.hosts
    }
    return site.model_copy(update={"chosen": {name: versions for name, versions in chosen.items() if versions}})


def made_up(profile: str, **flags: Any) -> Selection:
    """A site of one server of some kind, which is called as the kind is. For verbs that only calculate: there need not be such a server.

    Args:
        profile: the kind.
        flags: keys of the site file.

    Raises:
        SiteError: there is no such profile, or it is wrong.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", Path(profile).stem).lstrip("-_.") or "server"
    # Such a verb says itself that the model does not fit.
    site = load(profile=profile, hosts=({"name": name, "address": name},), override=("fit",), **flags)
    return site, site.hosts


def wanted(path: Path | None, named: Sequence[str]) -> Selection:
    """The site as it is wanted now, for verbs that name no profile: as its file says, or as last applied where it has no file.

    Raises:
        SiteError: no site is known, or it has no such host, or its file is wrong.
    """
    if path or Path(SITE_FILE).is_file():
        return select(path, named)
    site, targets = last_applied(None, named)
    return _with_chosen(site), targets


def last_applied(path: Path | None, named: Sequence[str], *, or_else: str = "", duty: Duty | None = None) -> Selection:
    """The site as it was last applied, for the verbs that name no profile, and the hosts meant.

    Args:
        path: the site file.
        named: hosts; none means all.
        or_else: what else does where no site is known, as an instruction; empty where nothing does.
        duty: only hosts that have it are meant.

    Raises:
        SiteError: no site is known, or it has no such host, or a named one has not the duty, or the site's files are open to others.
    """
    if path is None and Path(SITE_FILE).is_file():
        path = Path(SITE_FILE)
    path = path.resolve() if path else None
    # A folder that was copied or moved remembers files and secrets that lie at its old place.
    if (remembered := SiteState.of(path).last()) and remembered.path == path:
        site = remembered
        if loose := loose_files(site.path, site.file):
            raise SiteError(*loose)
    elif path:
        site = _with_chosen(load(path, chosen=SiteState.of(path).choices))
    else:
        remedy = "run `r1prov up` first, or name a site file: --site or R1PROV_SITE"
        raise SiteError(Problem("site", "no site is known here", f"{remedy}; or {or_else}" if or_else else remedy))
    return site, with_duty(site, among(site, named), duty, is_named=bool(named))


_LACKS = {
    "engine": "it has no engine",
    "worker": "it lends no devices",
    "page": "it has no page",
    "door": "it is not the door",
}
"""Duty -> what a host that has it not lacks."""


def with_duty(site: Site, hosts: tuple[Host, ...], duty: Duty | None, *, is_named: bool) -> tuple[Host, ...]:
    """Those of some hosts that have a duty; all of them where none is asked for.

    Raises:
        SiteError: an operator has named hosts that have it not.
    """
    if duty is None:
        return hosts
    if is_named and (without := [host for host in hosts if not host.has(duty)]):
        names = ", ".join(host.name for host in site.file.those(duty))
        raise SiteError(*(Problem(host.name, _LACKS[duty], f"name one of: {names}") for host in without))
    return tuple(host for host in hosts if host.has(duty))


def refuse_parts(site: Site, hosts: Iterable[Host]) -> None:
    """Refuse other versions for some of the hosts that hold one model together, which speak with the same build only.

    Raises:
        SiteError: others of them are left out.
    """
    meant = {host.name for host in hosts}
    problems = []
    for pool in sorted(set(map(site.builds_as, meant))):
        together = [host.name for host in site.hosts if site.builds_as(host.name) == pool]
        if left := [name for name in together if name not in meant]:
            what = f"it holds one model together with {', '.join(left)}"
            here = ", ".join(name for name in together if name in meant)
            problems.append(Problem(here, what, f"name all of them: {' '.join(together)}"))
    if problems:
        raise SiteError(*problems)


def refuse_pools(site: Site, hosts: Iterable[Host], what: str) -> None:
    """Refuse what measures a host by itself, where the engine needs others.

    Args:
        site: the site.
        hosts: those that are meant.
        what: what is refused, as a sentence about the verb.

    Raises:
        SiteError: a host holds its model together with others.
    """
    pools = {host.name: ", ".join(each.name for each in site.file.workers_of(host.name)) for host in hosts}
    problems = [
        Problem(
            name,
            f"it holds one model together with {others}. {what}",
            "`r1prov bench` measures the engine as it serves",
        )
        for name, others in pools.items()
        if others
    ]
    if problems:
        raise SiteError(*problems)


def not_applied(path: Path | None) -> list[str]:
    """The keys of which a site file says something else than what was last applied, in the order of the alphabet.

    Args:
        path: the site file. Where there is none, there are no such keys.

    Raises:
        SiteError: the file is wrong.
    """
    state = SiteState.of(path)
    applied = state.last()
    if not path or not applied:
        return []
    choices = state.choices  # They are no person's words in the file.
    now = load(path, chosen=choices).file.model_dump(mode="json")
    then = applied.file.model_dump(mode="json")
    return sorted(key for key in now.keys() - choices.keys() if now[key] != then[key])


def with_choices(path: Path | None, named: Sequence[str], choices: dict[str, Any]) -> Selection:
    """The site as last applied, but with other choices, and the hosts meant. Keeps nothing.

    Args:
        path: the site file.
        named: hosts; none means all.
        choices: keys of the site file, as `SiteState.choices` keeps them.

    Raises:
        SiteError: no site is known, or its file contradicts a choice. What a person has written is not overruled.
    """
    site, targets = last_applied(path, named)
    _refuse_contradicted(site, choices)
    file = validated(documents.merged(site.file.model_dump(exclude_unset=True), choices))
    if contradictions := fleet.faults(file):
        raise SiteError(*contradictions)
    return site.with_file(file), targets


def with_versions(site: Site, hosts: Iterable[Host], versions: dict[str, str]) -> Site:
    """A wanted site, in which hosts have other versions. Keeps nothing.

    Args:
        site: from `wanted`.
        hosts: of the site. What its other hosts have stays.
        versions: keys of `versions`. Where there are none, the hosts get what the site file says, or else the tested versions.

    Raises:
        SiteError: the site file contradicts a version, or there is no such version.
    """
    choices = {"versions": versions}
    _refuse_contradicted(site, choices)
    chosen = dict(site.chosen)
    for name in (host.name for host in hosts):
        chosen[name] = {**chosen.get(name, {}), **versions} if versions else {}
        validated(documents.merged(site.file.model_dump(exclude_unset=True), {"versions": chosen[name]}))
    return site.model_copy(update={"chosen": {name: chosen[name] for name in chosen if chosen[name]}})


def _refuse_contradicted(site: Site, choices: dict[str, Any]) -> None:
    """Refuse choices that the site file contradicts.

    Raises:
        SiteError: it says otherwise.
    """
    written = documents.load(site.path, SiteFile).model_dump(exclude_unset=True) if site.path else {}
    if contradicted := sorted(_contradicted(written, choices)):
        remedy = "change it there, or take the line out"
        raise SiteError(*(Problem(str(site.path), f"it says `{key}: {value}`", remedy) for key, value in contradicted))


def _contradicted(written: dict[str, Any], choices: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The keys that are written otherwise than they are chosen, with what is written."""
    for key in written.keys() & choices.keys():
        if isinstance(choices[key], dict):
            yield from ((f"{key}.{inner}", value) for inner, value in _contradicted(written[key], choices[key]))
        elif written[key] != choices[key]:
            yield key, written[key]


def among(site: Site, named: Sequence[str]) -> tuple[Host, ...]:
    """The hosts of a site that are named; all of them where none is.

    Raises:
        SiteError: the site has no such host.
    """
    by_name = {host.name: host for host in site.hosts}
    wanted = [_name_of(text, by_name) for text in named]
    unknown = [name for name in wanted if name not in by_name]
    if unknown:
        where = f"the site {site.path}" if site.path else "the site"
        raise SiteError(*(Problem(name, f"{where} has no such host", _similar(name, by_name)) for name in unknown))
    return tuple(by_name[name] for name in wanted) if named else site.hosts


def _name_of(text: str, names: Iterable[str]) -> str:
    """The name of a host that is called by its name or by its address."""
    try:
        return text if text in names else Host.parse(text).name
    except ValueError:
        return text


def _similar(name: str, names: Iterable[str]) -> str:
    similar = difflib.get_close_matches(name, list(names), n=2)
    return f"did you mean {' or '.join(similar)}?" if similar else f"it has: {', '.join(names)}"
