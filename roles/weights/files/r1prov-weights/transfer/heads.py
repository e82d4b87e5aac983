"""Reads what the published files say of themselves, before more of them comes."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.r1.prov.plugins.module_utils.gguf_header import CutShortError, Gguf, GgufError, header
from transfer.frontier import Frontier, Rotten

if TYPE_CHECKING:
    from transfer.partial import Partial

FIRST_BYTES = 256 << 10  # A head of R1 with the vocabulary has 6 MB, and the others have less than this.
GROWTH = 8
MOST_BYTES = 64 << 20  # A longer one is not believed.


@dataclass(frozen=True)
class Headed:
    """The first bytes of a file are there, and this is what they say."""

    partial: Partial
    epoch: int  # of the file; it holds only as long as that is the same
    head: Gguf | None
    fault: str = ""  # what a source sends that has sent all of it, where that is wrong


class HeadReader(Frontier):
    """Reads the first bytes of a file as they come, and has more of them come until they are enough."""

    def _read_once(self, epoch: int) -> None:
        partial = self._partial
        while self._may_read(epoch, partial.wanted - 1, 1):
            begin = io.BytesIO(partial.read(0, partial.wanted))
            try:
                found = Headed(partial, epoch, header(begin, Path(partial.file.name), partial.file.bytes))
            except GgufError as error:
                found = Headed(partial, epoch, None, f"no part of a model: {error}")
                most = min(MOST_BYTES, partial.file.bytes)
                is_short = isinstance(error, CutShortError) and begin.tell() == partial.wanted
                if is_short and partial.wanted < most:
                    with partial.changed:
                        partial.wanted = min(partial.wanted * GROWTH, most)
                    continue
                if lost := partial.drop_changed():
                    self._events.put(Rotten(partial, lost))
                    return
            self._report(found, epoch)
            return
