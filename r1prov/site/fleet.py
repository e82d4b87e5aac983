"""Judges how the hosts and groups of a site hang together. All that contradicts is said at once, before any host is met."""

from __future__ import annotations

from typing import TYPE_CHECKING

from r1prov.common import paths
from r1prov.common.errors import Problem
from r1prov.site.keys import Group

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from r1prov.site.host import Host
    from r1prov.site.keys import SiteFile
    from r1prov.site.site import Site


LONGEST_NAME = 40


def faults(file: SiteFile) -> list[Problem]:
    """What contradicts in the hosts and groups of a site file."""
    return [*_groups(file), *_profiles(file), *(_duties(file) if file.one_service else ())]


def _groups(file: SiteFile) -> Iterator[Problem]:
    """Groups that nobody is in, or that do not exist, and hosts that are in one and serve nothing."""
    for host in file.hosts:
        if host.group is None:
            continue
        if host.group not in file.groups:
            there = f"`groups` has {', '.join(file.groups)}" if file.groups else "write its keys below `groups`"
            yield Problem(f"host {host.name}", f"the site has no group {host.group}", there)
        elif not host.has("engine") and not host.has("worker"):
            what = f"it is in the group {host.group}, which says how a model is served, and has no engine"
            yield Problem(f"host {host.name}", what, "take `group` out, or write `engine` or `worker` into its `does`")
    for name in file.groups.keys() - {host.group for host in file.hosts}:
        yield Problem(f"group {name}", "no host is in it", f"write `group: {name}` for one, or take the group out")


def _profiles(file: SiteFile) -> Iterator[Problem]:
    """Hosts with an engine of which nothing says what kind of server they are."""
    there = [host for host in file.those("engine") if (host.group or "") in {"", *file.groups}]
    bare = [host for host in there if not file.profile and not _group_of(file, host).profile]
    remedy = "`r1prov profiles` lists them"
    if bare and not file.groups:
        yield Problem("profile", "`profile` is missing", f"add it to the site, or --profile; {remedy}")
    elif bare:
        what = f"no profile says what kind of servers these are: {_names(bare)}"
        yield Problem("profile", what, f"add `profile` to the site, or to their groups; {remedy}")


def _group_of(file: SiteFile, host: Host) -> Group:
    return file.groups.get(host.group or "", Group())


def _duties(file: SiteFile) -> Iterator[Problem]:
    """What does not go together in a site whose hosts are one service."""
    doors, pages, engines = file.those("door"), file.those("page"), file.those("engine")
    for host in file.hosts:
        if host.does is None:
            yield Problem(
                f"host {host.name}", "other hosts have duties, and it has none", "write `does: [engine]`, or others"
            )
    doors, pages, engines = (tuple(host for host in some if host.does) for some in (doors, pages, engines))
    if len(doors) != 1:
        what = f"there are {len(doors)} doors: {_names(doors)}" if doors else "no host is the door"
        yield Problem("does", f"{what}. One service has one", "write `door` into the `does` of one host")
    if len(pages) > 1:
        what = f"the page is on {len(pages)} hosts: {_names(pages)}. Two pages would know different people and chats"
        yield Problem("does", what, "write `page` into the `does` of one host")
    elif pages and len(doors) == 1 and pages != doors:
        what = f"the page is on {_names(pages)}, and the door on {_names(doors)}. It stands beside the door"
        yield Problem("does", what, f"write `page` into the `does` of {_names(doors)}")
    if pages and not file.open_webui.enabled:
        what = f"{_names(pages)} has the page, and `open_webui.enabled` is false"
        yield Problem("does", what, "take `page` out, or let the page be enabled")
    if not engines:
        yield Problem("does", "no host has an engine", "write `engine` into the `does` of those that hold the model")
    if doors and not file.gateway:
        what = f"{_names(doors)} is the door, and nothing says under which name people open it"
        remedy = f"write `gateway: {{server_name: ..., tls: ...}}`, as {paths.page('site.md')} shows"
        yield Problem("gateway", what, remedy)
    yield from _workers(file)
    yield from _private(file, [host for host in engines if host not in doors])
    yield from _long(file)
    yield from _alike(file)


def _workers(file: SiteFile) -> Iterator[Problem]:
    """Workers that no engine can use, and coordinators that are none."""
    for host in file.those("worker"):
        if host.has("engine"):
            what = "it has an engine and is a worker, and its devices can do one of it"
            yield Problem(f"host {host.name}", what, "write `engine` or `worker` into its `does`, and not both")
        elif host.private is None:
            what = "it lends its devices, and nothing says at which address the engine reaches it"
            yield Problem(
                f"host {host.name}", what, "write `private: ADDRESS`, an address that the engine's host can reach"
            )
    for name in dict.fromkeys(host.group for host in file.those("worker")):
        engines = [host for host in file.those("engine") if host.group == name]
        if len(engines) != 1:
            where = f"group {name}" if name else "does"
            workers = _names([host for host in file.those("worker") if host.group == name])
            what = f"{workers} would lend to one engine, and " + (
                f"there are {_names(engines)}" if engines else "there is none"
            )
            yield Problem(where, what, "put the workers and the one host with their engine into a group of their own")
    for name, group in file.groups.items():
        named = next((host for host in file.hosts if host.name == group.coordinator), None)
        if group.coordinator is not None and (named is None or named.group != name or not named.has("engine")):
            what = f"{group.coordinator} is to be its coordinator, and is no host of it with an engine"
            yield Problem(
                f"group {name}", what, f"write `does: [engine]` and `group: {name}` for it, or name another one"
            )


def pool_faults(sites: Sequence[tuple[str | None, Site]]) -> list[Problem]:
    """What contradicts between profiles and the hosts that are to hold one model together.

    Args:
        sites: the name of each group, with the site as it is for its hosts; for those in none, None with theirs.
    """
    return [problem for name, site in sites for problem in _pool_faults(name, site)]


def _pool_faults(name: str | None, site: Site) -> Iterator[Problem]:
    machine, file = site.profile.machine, site.file
    engines, workers = ([host for host in file.those(duty) if host.group == name] for duty in ("engine", "worker"))
    where = f"group {name}" if name else "does"
    if not engines:
        return
    if workers and machine.hosts == 1:
        what = f"{_names(workers)} would lend devices, and the profile {file.profile} is one of a single host"
        remedy = "name one of several hosts, such as 2x4x4090, or write `hosts` and `network` below `machine` in a profile of your own"
        yield Problem(where, what, remedy)
    elif machine.hosts > 1 and (len(engines), len(workers)) != (1, machine.hosts - 1):
        what = f"the profile {file.profile} is one of {machine.hosts} hosts that hold one model together"
        there = f"here are {len(engines)} with an engine ({_names(engines)}) and {len(workers)} workers"
        remedy = f"write `does: [engine]` for one host of the group and `does: [worker]` for {machine.hosts - 1}"
        yield Problem(where, f"{what}, and {there}", remedy)


def _private(file: SiteFile, engines: list[Host]) -> Iterator[Problem]:
    """Engines that the door cannot reach, because they have no address for that, or share one."""
    for host in engines:
        if host.private is None:
            what = "the door is on another host, and nothing says at which address it reaches this one"
            yield Problem(
                f"host {host.name}", what, "write `private: ADDRESS`, an address that the door's host can reach"
            )
    for address in sorted({host.private for host in file.hosts if host.private}):
        same = [host for host in file.hosts if host.private == address]
        if len(same) > 1:
            yield Problem("private", f"{_names(same)} have the same address {address}", "each host has one of its own")


def _long(file: SiteFile) -> Iterator[Problem]:
    """Names that have no room in a certificate, where a common name has 64 characters."""
    for host in file.hosts:
        if len(host.name) > LONGEST_NAME:
            what = f"its name has more than {LONGEST_NAME} characters, and a certificate has no room for that"
            yield Problem(f"host {host.name}", what, "give it a shorter `name`; `address` may be as long as it is")


def _alike(file: SiteFile) -> Iterator[Problem]:
    """Engines behind the door of several hosts that it cannot speak to."""
    others = [host for host in file.those("engine") if (_group_of(file, host).engine or file.engine) != "llama-server"]
    if others:
        what = f"the engine of {_names(others)} is ollama, and the door of several hosts speaks to llama-server"
        yield Problem(
            "engine", what, "write `engine: llama-server`; Ollama is for hosts that are services of their own"
        )


def _names(hosts: Iterable[Host]) -> str:
    return ", ".join(host.name for host in hosts)
