"""How many bytes may come in a second, by the hour."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LEAST_BLOCK_BYTES, MOST_BLOCK_BYTES = 64 << 10, 1 << 20
BLOCKS_PER_S = 64
NOTICE_S = 0.2  # so soon a connection that waits notices that it is cancelled


class Limit:
    """A rate that all connections to web servers share. It goes by the hours of this host's clock, which may change in the middle.

    What has come is counted, and whoever has received it waits until that much may have come. So the kernel's buffers run full, and the
    server slows down.
    """

    def __init__(self, hours: Mapping[str, int], now: Callable[[], time.struct_time] = time.localtime) -> None:
        """Makes a limit.

        Args:
            hours: bytes per second by hours such as `22:30-06:00`. At all other times there is no limit. Of several that hold, the least
                counts.
            now: the time of the day.
        """
        self._hours = [(*map(_minutes, text.split("-")), rate) for text, rate in hours.items()]
        self._now, self._lock, self._free_s = now, threading.Lock(), 0.0

    def rate(self) -> int:
        """The bytes that may come in a second now; 0 where there is no limit."""
        now = self._now()
        minute = now.tm_hour * 60 + now.tm_min
        holding = [
            rate
            for begin, end, rate in self._hours
            if (begin <= minute < end if begin < end else minute >= begin or minute < end)
        ]
        return min(holding, default=0)

    def block_bytes(self) -> int:
        """How much a connection reads at once: so little that no connection waits for long because of the others."""
        rate = self.rate()
        return min(max(rate // BLOCKS_PER_S, LEAST_BLOCK_BYTES), MOST_BLOCK_BYTES) if rate else MOST_BLOCK_BYTES

    def wait(self, taken: int, is_over: Callable[[], bool]) -> None:
        """Returns when so many bytes more may have come, or when it is over."""
        rate = self.rate()
        if not rate:
            return
        with self._lock:
            self._free_s = until_s = max(self._free_s, time.monotonic()) + taken / rate
        while (left_s := until_s - time.monotonic()) > 0 and not is_over():
            time.sleep(min(left_s, NOTICE_S))


def _minutes(text: str) -> int:
    """The minutes since midnight of a time such as `22:30`."""
    hours, minutes = text.split(":")
    return int(hours) * 60 + int(minutes)
