"""Looks at hosts that go on while it is still being decided what the run over them is made of.

To decide takes as long as to look. So hosts are asked what was last expected of them, and the answer counts only where the run turns out to
be made of the same as that which was kept.
"""

from __future__ import annotations

import sys
import threading
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from r1prov.common.errors import UnreachableError
from r1prov.hosts import Look, StrangerError, at_once, look, meet, prepare_looks
from r1prov.runs import expectations
from r1prov.site.state import SiteState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from r1prov.hosts import Expectation, HostConnection, Login, Meeting
    from r1prov.site import Host, Site

T = TypeVar("T")

_SWITCH_S = 0.0005
"""How long a thread may go on while another waits."""

_HEAD_START_S = 0.2
"""How long to wait for the first connection before anything is decided. Deciding meanwhile would make connecting take twice as long, and
there is time for it while the hosts look."""


class Early:
    """First contact with hosts of which something is kept, and a look at them, in threads. Nobody is asked anything meanwhile."""

    def __init__(self, site: Site, hosts: Sequence[Host], login: Login) -> None:
        state = SiteState.of(site.path)
        self._kept = {host.name: expectations.recall(state, host.name) for host in hosts}
        self._meeting: Future[Meeting] = Future()
        self._looks: dict[str, Future[Look]] = {}
        self._connected = threading.Event()
        if all(kept.expectations for kept in self._kept.values()):
            # What ssh has to do between two answers takes less than a millisecond. Python would let it wait for five each time.
            sys.setswitchinterval(_SWITCH_S)
            _begin(self._meeting, lambda: meet(hosts, site, replace(login, confirm=None), self._look_too))
            prepare_looks()  # While the hosts are connected to.
            self._connected.wait(_HEAD_START_S)
        else:
            self._meeting.cancel()

    def meeting(self) -> Meeting | None:
        """The hosts, met; None where they must be met anew, because there was a reason not to, or a person is to be asked."""
        if self._meeting.cancelled():
            return None
        meeting = self._meeting.result()
        if any(isinstance(error, StrangerError) for error in meeting.away.values()):
            meeting.close()
            return None
        return meeting

    def looks(self, made_of: str) -> dict[str, Look]:
        """What came of looking at those hosts of the meeting over which a run is made of the same now as the last one."""
        same = [name for name in self._meeting.result().contacts if self._kept[name].made_of == made_of]
        return {name: self._looks[name].result() for name in same}

    def _look_too(self, connection: HostConnection) -> None:
        name = connection.host.name
        self._looks[name] = Future()
        _begin(self._looks[name], lambda: _look(connection, self._kept[name].expectations))
        self._connected.set()


def _begin(coming: Future[T], work: Callable[[], T]) -> None:
    """Do something in a thread. Where nobody waits for it in the end, as where a site turns out to be wrong, it ends with the process."""

    def go() -> None:
        try:
            coming.set_result(work())
        except BaseException as error:
            coming.set_exception(error)

    threading.Thread(target=go, name="early look", daemon=True).start()


def look_at(meeting: Meeting, expected: Mapping[str, Sequence[Expectation]]) -> dict[str, Look]:
    """Look at all hosts at once of which something is expected. `expected` names the hosts."""
    names = [name for name in meeting.contacts if expected.get(name)]
    looks = at_once(lambda name: _look(meeting.contacts[name].connection, expected[name]), names)
    return dict(zip(names, looks, strict=True))


def _look(connection: HostConnection, expected: Sequence[Expectation]) -> Look:
    try:
        return look(connection, expected)
    except UnreachableError as error:
        return Look(0, 0.0, unknown="; ".join(problem.what for problem in error.problems))
