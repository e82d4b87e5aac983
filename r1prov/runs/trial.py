"""The trial of a version: engines that have answered must stay well for some time, with everybody's requests, before more hosts get it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from r1prov.common.errors import Problem, UnreachableError
from r1prov.common.systemctl import in_words, sign_of_systemd, systemctl
from r1prov.hosts import at_once, met

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from r1prov.hosts import Contact, HostConnection, Login
    from r1prov.site import Host, Site

EVERY_S = 5.0
"""How often an engine is looked at. One that ends or is restarted has another invocation afterwards, so nothing happens in between."""


def stay_well(
    hosts: Sequence[Host],
    site: Site,
    login: Login,
    seconds: int,
    said: Callable[[int, int], None],
) -> dict[str, Problem]:
    """Look at engines for some time.

    An engine that stands still is restarted by its host, and so noticed here.

    Args:
        hosts: the hosts with the engines. One that cannot be reached says nothing about a version, and is not looked at further.
        site: their site.
        login: how to log in.
        seconds: how long.
        said: is told every now and then how many seconds are over, and of how many.

    Returns:
        host name -> what became of its engine, of those that have not stayed well.
    """
    fallen = dict[str, Problem]()
    with met(hosts, site, login) as meeting:
        began_s = time.monotonic()
        contacts = list(meeting.contacts.values())
        units = {host.name: f"r1prov-{site.of(host.name).file.engine}" for host in hosts}
        first = dict(zip(meeting.contacts, at_once(lambda each: _started(each, units), contacts), strict=True))
        fallen |= {
            name: _fall(meeting.contacts[name].connection, units[name], 0)
            for name, start in first.items()
            if start == ""
        }
        running = {name: start for name, start in first.items() if start}
        while running and (gone_s := time.monotonic() - began_s) < seconds:
            said(int(gone_s), seconds)
            time.sleep(min(EVERY_S, seconds - gone_s))
            asked = [contact for contact in contacts if contact.connection.host.name in running]
            for contact, start in zip(asked, at_once(lambda each: _started(each, units), asked), strict=True):
                name = contact.connection.host.name
                if start is None:
                    del running[name]
                elif start != running[name]:
                    del running[name]
                    fallen[name] = _fall(contact.connection, units[name], int(time.monotonic() - began_s))
        said(seconds, seconds)
    return fallen


def _started(contact: Contact, units: Mapping[str, str]) -> str | None:
    """What tells the start of a host's engine from any other; empty where it does not run; None where the host does not say."""
    unit = units[contact.connection.host.name]
    try:
        result = contact.connection.run(
            systemctl("show", f"{unit}.service", "--property=InvocationID,ActiveState"), root=True
        )
    except UnreachableError:
        return None
    told = dict(line.split("=", 1) for line in result.out.splitlines() if "=" in line)
    if result.code or not told:
        return None
    return told.get("InvocationID", "") if told.get("ActiveState") == "active" else ""


def _fall(connection: HostConnection, unit: str, after_s: int) -> Problem:
    has_systemd = connection.run(["test", "-d", str(sign_of_systemd())]).code == 0
    what = f"{unit} ended or stood still within {after_s} s after it had answered"
    return Problem(connection.host.name, what, f"see `{in_words('log', unit, systemd=has_systemd)}` there")
