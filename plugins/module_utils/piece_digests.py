"""The digests of a file, and of each of its pieces, by which damage is found by place.

It takes the standard library only. The transfer makes them while a file arrives, and the merge while it writes one.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

PIECE_BYTES = 16 << 20
_MOST_PENDING = 8  # blocks that wait to be hashed, so few that they take little memory


@dataclass(frozen=True)
class Sums:
    """The digests of a file.

    Attributes:
        bytes: how many they are of.
        sha256: that of all of them.
        pieces: those of its pieces, as they are recorded (`as_record`).
    """

    bytes: int
    sha256: str
    pieces: dict[str, Any]


def as_record(digests: Sequence[str]) -> dict[str, Any]:
    """The form in which the digests of pieces are recorded."""
    return {"bytes": PIECE_BYTES, "sha256": list(digests)}


class Digests:
    """Computes both of a file whose bytes are given in order, in two threads of its own, which `close` ends.

    A state of it can be kept, and gone back to.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._whole, self._piece, self._pieces, self._filled = hashlib.sha256(), hashlib.sha256(), list[str](), 0
        self._pools = [ThreadPoolExecutor(1) for _ in range(2)]
        self._pending: list[Any] = []

    def __enter__(self) -> Digests:  # noqa: PYI034 - Self is newer than the Python of hosts
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, block: bytes) -> None:
        """Takes the bytes that follow."""
        while len(self._pending) >= 2 * _MOST_PENDING:
            self._pending.pop(0).result()
        self.bytes += len(block)
        self._pending += [self._pools[0].submit(self._whole.update, block), self._pools[1].submit(self._take, block)]

    def _take(self, block: bytes) -> None:
        rest = memoryview(block)
        while rest:
            part = rest[: PIECE_BYTES - self._filled]
            self._piece.update(part)
            self._filled, rest = self._filled + len(part), rest[len(part) :]
            if self._filled == PIECE_BYTES:
                self._pieces.append(self._piece.hexdigest())
                self._piece, self._filled = hashlib.sha256(), 0

    def _drain(self) -> None:
        while self._pending:
            self._pending.pop(0).result()

    def keep(self) -> Any:
        """The state, for `go_back`."""
        self._drain()
        return self.bytes, self._whole.copy(), self._piece.copy(), list(self._pieces), self._filled

    def go_back(self, state: Any) -> None:
        """Goes back to a state that was kept, which can be gone back to again."""
        self._drain()
        self.bytes, whole, piece, pieces, self._filled = state
        self._whole, self._piece, self._pieces = whole.copy(), piece.copy(), list(pieces)

    @property
    def pieces(self) -> list[str]:
        """The digests of the pieces that are full."""
        self._drain()
        return list(self._pieces)

    def close(self) -> None:
        """Ends the threads."""
        for pool in self._pools:
            pool.shutdown()

    def sums(self) -> Sums:
        """The digests of all bytes that were taken."""
        self._drain()
        last = [self._piece.hexdigest()] if self._filled else []
        return Sums(self.bytes, self._whole.hexdigest(), as_record([*self._pieces, *last]))
