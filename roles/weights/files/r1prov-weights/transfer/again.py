"""Reads the final file once more, to see whether another program has written to it meanwhile.

A stranger's write in the very moment of one of ours is not seen by the file's time. What is verified is read while the rest comes, so that
little is left to read when the last byte has arrived.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ansible_collections.r1.prov.plugins.module_utils.piece_digests import PIECE_BYTES
from transfer.disk import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from transfer.places import Final

MOST_READERS = 16


class Again:
    """The pieces that are read once more, by all processors. `close` ends the threads."""

    def __init__(self, final: Final, n_bytes: int) -> None:
        self._final, self._bytes = final, n_bytes
        self._pool = ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), MOST_READERS))
        self._found: list[Future[bool]] = []

    def read(self, pieces: Sequence[str]) -> None:
        """Begins to read those of the file's first pieces that were not read once more yet. Does not wait for that.

        Args:
            pieces: the sha256 of each, in order.
        """
        for number in range(len(self._found), len(pieces)):
            self._found.append(self._pool.submit(self._agrees, number, pieces[number]))

    def agrees(self) -> bool:
        """Whether all of them are still what they were."""
        return all(found.result() for found in self._found)

    def _agrees(self, number: int, sha256: str) -> bool:
        digest, start = hashlib.sha256(), number * PIECE_BYTES
        end = min(start + PIECE_BYTES, self._bytes)
        for position in range(start, end, BLOCK_BYTES):
            digest.update(self._final.read(position, min(BLOCK_BYTES, end - position)))
        return digest.hexdigest() == sha256

    def close(self) -> None:
        """Ends the threads, and reads no further pieces."""
        self._pool.shutdown(cancel_futures=True)
