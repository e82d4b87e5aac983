"""Reads all files of a model, and says which of them are not what they should be, and where.

A file whose bits changed on the disk keeps its size and times, so nothing that only looks at these ever notices it.
"""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Callable

from ansible_collections.r1.prov.plugins.module_utils import merged_weights, piece_digests, pieces
from ansible_collections.r1.prov.plugins.module_utils.digest import Digests, digests_of
from ansible_collections.r1.prov.plugins.module_utils.disk_look import turns
from ansible_collections.r1.prov.plugins.module_utils.files import read_json, write_whole
from ansible_collections.r1.prov.plugins.module_utils.gguf_header import GgufError, read
from ansible_collections.r1.prov.plugins.module_utils.weights_kept import DAMAGED, STATE, WHOLE

if TYPE_CHECKING:
    from pathlib import Path

    from ansible_collections.r1.prov.plugins.module_utils.progress import Progress

_MOST_AT_ONCE = 4
_MOST_CORES = 6
"""Each takes the memory of a piece, and each file that of two more: 192 MiB in all."""
_MOST_SAID = 3
_MOST_TENSORS = 4


def expected(folder: Path, shards: list[dict[str, Any]], merged: str) -> list[dict[str, Any]]:
    """The files to read: what is served, and what else is there of the same model.

    Returns:
        `name`, `bytes` and `sha256` of each. The latter two are empty where nothing says what the file should be.
    """
    made = merged_weights.made(folder, shards)
    served = shards
    if merged:
        record = merged_weights.recorded(folder / merged, shards)
        served = [record or {"name": merged, "bytes": 0, "sha256": ""}]
    known = {file["name"]: file for file in (*shards, *made) if (folder / file["name"]).exists()}
    known |= {file["name"]: file for file in served}
    return [{key: file[key] for key in ("name", "bytes", "sha256")} for file in known.values()]


def verified(
    folder: Path,
    files: list[dict[str, Any]],
    progress: Progress,
    *,
    state: Path = STATE,
    cores: int = 0,
    rest: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Reads the files of `expected`, and changes none of them.

    The digests of the pieces of a file are recorded where they were not known and the file is whole.

    Args:
        folder: the model's folder.
        files: what to read.
        progress: is told how far it is.
        state: what the transfer has recorded.
        cores: how many to use; those of the host where it is 0.
        rest: is called before each piece that is read, and may take its time.

    Returns:
        For each file `path`, `bytes`, `sha256`, `state` (WHOLE or DAMAGED), `why`, which is empty for a whole one, `mended`, which is for
        others to say, and `places`: where it is damaged, each with `start`, `end` and what it `holds`. `places` is empty where the digests
        of its pieces are not known.
    """
    faults = {file["name"]: _fault(folder, file) for file in files}
    to_read = [file for file in files if not faults[file["name"]]]
    cores = cores or min(len(os.sched_getaffinity(0)), _MOST_CORES)
    # A disk that turns reads one file after the other faster than several at once.
    at_once = max(1, 1 if turns(folder) else min(cores, len(to_read), _MOST_AT_ONCE))
    progress.begin("verifying the weights", sum(file["bytes"] for file in to_read), "bytes")
    told = _Told(progress)

    def look(file: dict[str, Any]) -> dict[str, Any]:
        path, why = folder / file["name"], faults[file["name"]]
        places: list[dict[str, Any]] = []
        if not why:
            work = _Reading(path, file, state=state, cores=max(1, cores // at_once), rest=rest)
            why, places = work.found(lambda done: told.tell(file["name"], done))
        return {
            "path": str(path),
            "bytes": file["bytes"],
            "sha256": file["sha256"],
            "state": DAMAGED if why else WHOLE,
            "why": why,
            "places": places,
            "mended": False,
        }

    with ThreadPoolExecutor(at_once) as pool:
        rows = list(pool.map(look, files))
    progress.finish()
    return rows


def joined(began: float, kept: Path, wanted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a run that ended after `began` found of the same files. So a run whose connection was lost is not lost."""
    record = read_json(kept)
    rows: list[dict[str, Any]] = record["rows"] if record.get("ended", 0) > began and record["of"] == wanted else []
    return rows


def keep(kept: Path, wanted: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Writes down what was found, for whoever waits for this run."""
    write_whole(kept, json.dumps({"ended": time.time(), "of": wanted, "rows": rows}))


class _Told:
    """Adds up how far several files are, which threads of their own read."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._lock = progress, threading.Lock()
        self._done: dict[str, int] = {}

    def tell(self, name: str, done: int) -> None:
        with self._lock:
            self._done[name] = done
            self._progress.update(sum(self._done.values()))


class _Reading:
    """One file that is read."""

    def __init__(self, path: Path, file: dict[str, Any], *, state: Path, cores: int, rest: Callable[[], None]) -> None:
        self._path, self._bytes, self._sha256 = path, file["bytes"], file["sha256"]
        self._state, self._cores, self._rest = state, cores, rest

    def found(self, report: Callable[[int], None]) -> tuple[str, list[dict[str, Any]]]:
        """What is wrong with the file, and where; nothing where nothing is."""
        known = pieces.recorded_pieces(self._path, self._bytes, self._sha256, self._state)
        read = self._read(report, whole=not known)
        if not known:
            if read.whole == self._sha256:
                pieces.record_pieces(self._path, self._sha256, read.pieces, self._state)
                return "", []
            # What the disk cannot read has a place, whatever is known of the file.
            places = self._places([not each for each in read.pieces])
            return self._difference(read.whole, places), places
        wrong = [is_digest != was for is_digest, was in zip(read.pieces, known, strict=True)]
        if not any(wrong):
            return "", []
        if all(read.pieces):
            # The digests of the pieces may have rotted themselves. That of the whole file is known from elsewhere.
            again = self._read(report, whole=True)
            if again.whole == self._sha256:
                pieces.record_pieces(self._path, self._sha256, again.pieces, self._state)
                return "", []
        places = self._places(wrong)
        some = "1 piece is not what it was" if sum(wrong) == 1 else f"{sum(wrong)} pieces are not what they were"
        return f"{some}: {_listed(places)}", places

    def _read(self, report: Callable[[int], None], *, whole: bool) -> Digests:
        return digests_of(
            self._path, piece_digests.PIECE_BYTES, whole=whole, cores=self._cores, report=report, rest=self._rest
        )

    def _difference(self, sha256: str, places: list[dict[str, Any]]) -> str:
        return f"its sha256 is {sha256}, not {self._sha256}" if sha256 else f"its disk cannot read {_listed(places)}"

    def _places(self, wrong: list[bool]) -> list[dict[str, Any]]:
        """The damaged pieces. Those that follow each other are one place."""
        places: list[dict[str, Any]] = []
        for number, is_wrong in enumerate(wrong):
            start = number * piece_digests.PIECE_BYTES
            end = min(start + piece_digests.PIECE_BYTES, self._bytes)
            if is_wrong and places and places[-1]["end"] == start:
                places[-1]["end"] = end
            elif is_wrong:
                places.append({"start": start, "end": end, "holds": []})
        for place in places:
            place["holds"] = self._holds(place["start"], place["end"])
        return places

    def _holds(self, start: int, end: int) -> list[str]:
        """The names of the tensors that lie there, and `the header` where that does."""
        try:
            header = read(self._path)
        except (GgufError, OSError):  # The damage may be in the header itself, or the file is of another kind.
            return []
        names = ["the header"] if start < header.data else []
        return names + [
            tensor.name for tensor in header.tensors if tensor.start < end and start < tensor.start + tensor.n_bytes
        ]


def _listed(places: list[dict[str, Any]]) -> str:
    """Names places in a file."""
    said = [f"bytes {place['start']}-{place['end'] - 1}{_naming(place['holds'])}" for place in places[:_MOST_SAID]]
    more = len(places) - len(said)
    return ", ".join([*said, *([f"{more} more"] if more > 0 else [])])


def _naming(holds: list[str]) -> str:
    more = len(holds) - _MOST_TENSORS
    names = holds[:_MOST_TENSORS] + ([f"{more} more"] if more > 0 else [])
    return f" ({', '.join(names)})" if names else ""


def _fault(folder: Path, file: dict[str, Any]) -> str:
    """What is wrong with a file at first sight; empty where it has to be read."""
    path = folder / file["name"]
    if not path.is_file():
        return "it is not there"
    if not file["sha256"]:
        return f"nothing says what it should be: {merged_weights.record_of(path).name} is lost or damaged"
    size = path.stat().st_size
    return f"it has {size} bytes, not {file['bytes']}" if size != file["bytes"] else ""
