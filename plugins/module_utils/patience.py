"""Tells an answer that is wrong from one that never came to its end, because a service behind it went away. Then it is asked once more."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from ansible_collections.r1.prov.plugins.module_utils import units
from ansible_collections.r1.prov.plugins.module_utils.http_api import ApiError, AwayError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")
LOOK_AGAIN_S = 2.0
STOPPED_S = 10.0
"""A unit that is restarted is stopped for a moment. After so long it is not coming back."""
_KEYS = ("InvocationID", "ActiveState", "SubState", "Result", "NRestarts")


class GoneError(Exception):
    """A service went away in the middle of an answer, and did not come back, or went away again."""


class Services:
    """The services that an answer comes through.

    Args:
        names: their units.
        look: raises an ApiError where one of them is not ready.
        limit_s: how long they may take to come back.
    """

    def __init__(self, names: Sequence[str], look: Callable[[], object], limit_s: float) -> None:
        self._names, self._look, self._limit_s = names, look, limit_s
        self._before = self._states()

    def _states(self) -> dict[str, dict[str, str]]:
        return {name: units.show(f"{name}.service", *_KEYS) for name in self._names}

    def have_gone(self) -> bool:
        """Whether one of them is not the process that it was. A unit has another ID each time it is started."""
        return any(
            now["InvocationID"] != before["InvocationID"] or now["ActiveState"] != before["ActiveState"]
            for before, now in zip(self._before.values(), self._states().values(), strict=True)
        )

    def in_words(self) -> str:
        """How they are now, e.g. `r1prov-llama-server is failed (failed, oom-kill)`."""
        told = []
        for name, now in self._states().items():
            result = "" if now["Result"] == "success" else f", {now['Result']}"
            restarts = int(now["NRestarts"]) - int(self._before[name]["NRestarts"])
            again = f", started again {restarts} times" if restarts > 0 else ""
            told.append(f"{name} is {now['ActiveState']} ({now['SubState']}{result}){again}")
        return "; ".join(told)

    def are_back(self) -> bool:
        """Waits until all are ready; whether they are before the limit, and none has stopped for good."""
        started_s = stopped_s = time.monotonic()
        while (now_s := time.monotonic()) - started_s < self._limit_s and now_s - stopped_s < STOPPED_S:
            if not any(now["ActiveState"] in {"failed", "inactive"} for now in self._states().values()):
                stopped_s = now_s
                try:
                    self._look()
                except ApiError:
                    pass
                else:
                    self._before = self._states()
                    return True
            time.sleep(LOOK_AGAIN_S)
        return False


def patiently(
    work: Callable[[], T],
    services: Services,
    wrong: type[Exception],
    wait: Callable[[str], None],
    warn: Callable[[str], None],
) -> T:
    """Does the work. Where a service goes away meanwhile, waits until it is back, and does the work once more.

    Args:
        work: asks the services.
        services: whom it asks.
        wrong: what the work raises about an answer that is not right. That of a service that went away is no answer.
        wait: is told what is waited for.
        warn: is told that a service went away and came back.

    Raises:
        GoneError: a service went away and did not come back, or went away again.
    """
    told = _try(work, services, wrong)
    if not isinstance(told, _Away):
        return told
    state = services.in_words()
    wait("a service went away and is to come back")
    if not services.are_back():
        raise GoneError(f"a service went away in the middle of an answer: {told.why}. Now {services.in_words()}")
    warn(f"a service went away in the middle of an answer, and was asked again when it was back: {told.why}. {state}")
    again = _try(work, services, wrong)
    if isinstance(again, _Away):
        raise GoneError(f"a service went away twice in the middle of an answer: {again.why}. Now {services.in_words()}")
    return again


class _Away:
    """The service went away, which showed as this error."""

    def __init__(self, error: Exception) -> None:
        self.why = str(error).rstrip(".")


def _try(work: Callable[[], T], services: Services, wrong: type[Exception]) -> T | _Away:
    try:
        return work()
    except (ApiError, wrong) as error:
        if isinstance(error, AwayError) or services.have_gone():
            return _Away(error)
        raise
