"""Tests of a file on its way: what is believed of it after a kill and after a power cut, and who else may write to it."""

from __future__ import annotations

import hashlib
import queue
import random
import time
from pathlib import Path

import pytest
import transfer.partial
import transfer.places
from ansible_collections.r1.prov.plugins.module_utils.files import looks
from ansible_collections.r1.prov.plugins.module_utils.weights_room import journal_of
from transfer import journal
from transfer.errors import CancelledError, DisturbedError
from transfer.frontier import Broken, Frontier, Hashed, Rotten
from transfer.partial import Partial, Writer
from transfer.sources import File

CONTENT = random.Random(19).randbytes(9 << 20)
FILE = File("m.gguf", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
MIB = 1 << 20


def bring(partial: Partial, start: int, end: int, content: bytes = CONTENT, source: str = "a") -> Writer:
    """Writes bytes as a connection does, in blocks of no round size."""
    writer = Writer(source)
    for position in range(start, end, 300_001):
        partial.write(writer, position, content[position : min(position + 300_001, end)])
    return writer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / FILE.sha256


def test_a_kill_costs_nothing_that_is_in_the_journal(path: Path) -> None:
    partial = Partial(path, FILE)
    partial.end_piece(bring(partial, 5 * MIB, 8 * MIB))
    bring(partial, 0, 3 * MIB)  # Its last piece is not in the journal yet.
    after = Partial(path, FILE)
    assert list(after.spans)[1] == (5 * MIB, 8 * MIB)
    assert 2 * MIB <= after.spans.prefix <= 3 * MIB
    assert path.read_bytes()[: after.spans.prefix] == CONTENT[: after.spans.prefix]


def test_a_piece_that_grows_is_one_piece_and_the_journal_stays_short(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer.partial, "JOURNAL_BYTES", 4096)
    partial, writer = Partial(path, FILE), Writer("a")
    for position in range(0, MIB, 2000):
        partial.write(writer, position, CONTENT[position : min(position + 2000, MIB)])
        partial.sync()
    told = journal.read(path, FILE)
    assert [(piece.start, piece.end) for piece in told.pieces] == [(0, MIB)]
    assert told.safe == 1
    assert journal_of(path).stat().st_size < 8192
    assert Partial(path, FILE).spans.prefix == MIB


def test_after_a_power_cut_only_what_stands_on_the_disk_is_believed(path: Path) -> None:
    partial = Partial(path, FILE)
    partial.end_piece(bring(partial, 0, 2 * MIB))
    partial.sync()
    partial.end_piece(bring(partial, 2 * MIB, 4 * MIB))
    partial.end_piece(bring(partial, 6 * MIB, 8 * MIB))
    with path.open("r+b") as stream:  # The journal got to the disk, and these bytes did not.
        stream.seek(3 * MIB)
        stream.write(bytes(MIB))
    after = Partial(path, FILE)
    assert list(after.spans) == [(0, 2 * MIB), (6 * MIB, 8 * MIB)]
    assert list(Partial(path, FILE).spans) == list(after.spans)  # It is written down, too.


def test_what_was_brought_to_the_disk_is_not_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = Partial(path, FILE)
    bring(partial, 0, 4 * MIB)
    partial.sync()
    monkeypatch.setattr(Partial, "_stands", lambda *_: pytest.fail("it was read"))
    assert Partial(path, FILE).spans.prefix == 4 * MIB


@pytest.mark.parametrize(
    "harm", ["torn", "zeroed tail", "a line in the middle", "all zero", "empty", "of another file"]
)
def test_a_journal_that_is_damaged_makes_nothing_up(path: Path, harm: str) -> None:
    partial = Partial(path, FILE)
    for start in (0, 2 * MIB, 4 * MIB):
        partial.end_piece(bring(partial, start, start + 2 * MIB))
    place = journal_of(path)
    text = place.read_bytes()
    lines = text.split(b"\n")
    harmed = {
        "torn": text[:-20],
        "zeroed tail": text[:-20] + bytes(20),
        "a line in the middle": text.replace(lines[5], lines[5][:10]),
        "all zero": bytes(len(text)),
        "empty": b"",
        "of another file": text.replace(FILE.sha256.encode(), b"0" * 64),
    }
    place.write_bytes(harmed[harm])
    after = Partial(path, FILE)
    for start, end in after.spans:
        assert path.read_bytes()[start:end] == CONTENT[start:end]
    if harm in {"torn", "zeroed tail", "a line in the middle"}:
        assert 4 * MIB <= after.spans.bytes <= 6 * MIB  # at most one piece less
    else:
        assert after.spans.bytes == 0
    after.end_piece(bring(after, 8 * MIB, 9 * MIB))  # A line after a torn one is read.
    assert Partial(path, FILE).spans.bytes == after.spans.bytes


def test_a_beginning_without_a_journal_is_an_earlier_run_s(path: Path) -> None:
    path.write_bytes(CONTENT[:MIB])
    partial = Partial(path, FILE)
    assert list(partial.spans) == [(0, MIB)]
    partial.end_piece(bring(partial, 3 * MIB, 4 * MIB))
    assert list(Partial(path, FILE).spans) == [(0, MIB), (3 * MIB, 4 * MIB)]
    assert partial.bytes_by_origin() == {("an earlier run", ""): MIB, ("a", ""): MIB}


@pytest.mark.parametrize("how", ["write", "grow", "replace", "remove"])
def test_who_else_writes_to_it_is_noticed_before_the_next_write(path: Path, how: str) -> None:
    partial = Partial(path, FILE)
    bring(partial, 0, MIB)
    if how == "remove":
        path.unlink()
    elif how == "replace":
        (path.parent / "new").write_bytes(path.read_bytes())
        (path.parent / "new").replace(path)
    else:
        with path.open("r+b") as stream:
            stream.seek(0, 0 if how == "write" else 2)
            stream.write(b"x")
    with pytest.raises(DisturbedError):
        bring(partial, MIB, 2 * MIB)


def test_after_that_only_what_is_as_it_arrived_is_kept(path: Path) -> None:
    partial = Partial(path, FILE)
    bring(partial, 0, 6 * MIB)
    partial.sync()
    with path.open("r+b") as stream:
        stream.seek(3 * MIB)
        stream.write(b"x")
    assert partial.adopt(trust=False) >= 2 * MIB
    assert all(CONTENT[start:end] == path.read_bytes()[start:end] for start, end in partial.spans)
    assert partial.spans.bytes >= 3 * MIB


def test_a_cancelled_connection_writes_nothing_more(path: Path) -> None:
    partial = Partial(path, FILE)
    writer = bring(partial, 0, MIB)
    partial.cancel(writer)
    with pytest.raises(CancelledError):
        partial.write(writer, MIB, b"x")


def test_somebody_else_s_file_is_not_written_to(path: Path) -> None:
    theirs = path.with_name("theirs")
    theirs.write_bytes(CONTENT[:-1] + b"?")
    path.hardlink_to(theirs)
    partial = Partial(path, FILE)
    assert partial.spans.bytes == FILE.bytes
    partial.keep_of(lambda *_: False)
    bring(partial, 0, MIB)
    assert theirs.read_bytes() == CONTENT[:-1] + b"?"
    assert theirs.stat().st_nlink == 1


def ask(partial: Partial) -> tuple[Frontier, queue.SimpleQueue[object]]:
    events: queue.SimpleQueue[object] = queue.SimpleQueue()
    frontier = Frontier(partial, events)
    frontier.start()
    return frontier, events


def test_the_frontier_hashes_in_order_what_comes_in_any_order(path: Path) -> None:
    partial = Partial(path, FILE)
    frontier, events = ask(partial)
    starts = list(range(0, 9 * MIB, MIB))
    random.Random(2).shuffle(starts)
    for start in starts:
        partial.end_piece(bring(partial, start, start + MIB))
    found = events.get(timeout=20)
    assert isinstance(found, Hashed)
    assert found.sha256 == FILE.sha256
    frontier.end()


@pytest.mark.parametrize("is_hashed", [True, False])
def test_what_rots_on_the_disk_is_found_by_place(path: Path, is_hashed: bool) -> None:
    """Before and after the frontier has come by. Only one piece is lost."""
    partial = Partial(path, FILE)
    bring(partial, 0, 4 * MIB)
    partial.sync()
    if is_hashed:
        frontier, events = ask(partial)
        with partial.changed:
            partial.changed.wait_for(lambda: partial.hashed == 4 * MIB, timeout=0.1)
    with path.open("r+b") as stream:
        stream.seek(MIB)
        stream.write(b"rotten")
    partial.adopt(trust=not is_hashed)
    if not is_hashed:
        bring(partial, 4 * MIB, FILE.bytes)
        frontier, events = ask(partial)
        found = events.get(timeout=20)
        assert isinstance(found, Rotten)
        assert 0 < found.bytes <= 3 * MIB
    for start, end in partial.missing(0, FILE.bytes):
        partial.end_piece(bring(partial, start, end))
    done = events.get(timeout=20)
    assert isinstance(done, Hashed)
    assert (done.sha256, done.epoch) == (FILE.sha256, partial.epoch)
    frontier.end()


def test_a_write_in_the_moment_of_one_of_ours_is_found_at_the_end(path: Path) -> None:
    partial = Partial(path, FILE)
    frontier, events = ask(partial)
    partial.end_piece(bring(partial, 0, 6 * MIB))
    with partial.changed:
        assert partial.changed.wait_for(lambda: partial.hashed == 6 * MIB, timeout=20)
    time.sleep(0.2)  # The frontier has read what it said that it would.
    with path.open("r+b") as stream:
        stream.seek(MIB)
        stream.write(b"rotten")
    partial.place.looks = looks(path)  # as a write of ours at that moment leaves it
    partial.end_piece(bring(partial, 6 * MIB, FILE.bytes))
    found = events.get(timeout=20)
    assert isinstance(found, Rotten)
    assert found.bytes <= 3 * MIB
    frontier.end()


def test_a_file_that_is_gone_is_told(path: Path) -> None:
    path.write_bytes(CONTENT)
    partial = Partial(path, FILE)
    path.unlink()
    _, events = ask(partial)
    assert isinstance(events.get(timeout=20), Broken)


def test_what_another_program_takes_away_while_it_is_looked_at_is_not_there(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As happens on a disk without locks, where the other one gives the file its name."""
    partial = Partial(path, FILE)
    partial.end_piece(bring(partial, 0, 3 * MIB))
    partial.close()
    read = transfer.places.OwnFile.read

    def too_late(self: transfer.places.OwnFile, position: int, most: int) -> bytes:
        self.path.unlink(missing_ok=True)
        return read(self, position, most)

    monkeypatch.setattr(transfer.places.OwnFile, "read", too_late)
    after = Partial(path, FILE, trust=False)
    assert (list(after.spans), after.place.looks) == ([], None)
