"""Tests of the locks. roles/preflight/molecule and tests/e2e let a stranger lock whatever there is on a host."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from ansible_collections.r1.prov.plugins.module_utils import gguf_stream
from ansible_collections.r1.prov.plugins.module_utils.locks import LockedError, alone

from r1prov.common.locks import locked

LOCKS_ALL = """
import fcntl, os, sys
held = []
for path in sys.argv[1:]:
    try:
        file = os.open(path, os.O_RDONLY)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held.append(file)
    except OSError:
        pass
print(len(held), flush=True)
input()
"""


def ignore(_: str) -> None:
    pass


@contextmanager
def holding(*paths: Path, **options) -> Iterator[tuple[int, int]]:
    """Another process that locks what it may; its number, and how many of the paths it has locked."""
    command = [shutil.which("python3", path="/usr/bin") or sys.executable, "-c", LOCKS_ALL, *map(str, paths)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options) as process:
        assert process.stdout
        yield process.pid, int(process.stdout.readline())
        process.kill()


def test_one_at_a_time(tmp_path: Path) -> None:
    went = []

    def work(number: int) -> None:
        with alone(tmp_path / "made" / "here" / ".lock", ignore):
            went.append(number)
            time.sleep(0.01)
            went.append(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert went[::2] == went[1::2]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_a_stranger_keeps_nobody_waiting() -> None:
    """The umask is that of a careless operator, and a file with a loose mode may lie there."""
    before = os.umask(0)
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            folder.chmod(0o777)
            (folder / "loose").touch(0o666)
            for lock in (folder / "lock", folder / "loose"):
                with (
                    alone(lock, ignore, limit_s=5),
                    locked(folder / "of-the-controller"),
                    gguf_stream._alone(folder / "growing"),
                ):
                    pass
            paths = [folder, *folder.iterdir()]
            with holding(*paths, user="nobody") as (_, n_held):
                assert n_held == 1  # the folder alone
                with alone(folder / "lock", ignore, limit_s=5), locked(folder / "of-the-controller"):
                    pass
                with gguf_stream._alone(folder / "growing"):
                    pass
    finally:
        os.umask(before)


def test_who_waits_is_told_the_holder(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    lock.touch(0o600)
    with holding(lock) as (pid, _):
        told: list[str] = []
        with (
            pytest.raises(LockedError, match=rf"^python3\S* \(process {pid} of \w+\) holds {lock}$"),
            alone(lock, told.append, limit_s=1.5),
        ):
            pass
        assert told == [f"python3 (process {pid} of {lock.owner()}) holds {lock}"]


def test_who_waits_on_the_controller_is_told_the_holder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = tmp_path / "lock"
    lock.touch(0o600)
    with ThreadPoolExecutor(1) as pool:
        with holding(lock) as (pid, _):

            def wait() -> bool:
                with locked(lock):
                    return True

            waiter = pool.submit(wait)
            deadline = time.monotonic() + 10
            said = ""
            while not said and time.monotonic() < deadline:
                time.sleep(0.1)
                said = capsys.readouterr().err
            assert f"process {pid}" in said
            assert str(lock) in said
        assert waiter.result()


def test_a_file_that_was_removed_while_somebody_waited_locks_nothing(tmp_path: Path) -> None:
    lock, inside = tmp_path / ".lock", threading.Event()

    def second() -> bool:
        with alone(lock, ignore):
            return inside.is_set()

    with ThreadPoolExecutor(1) as pool:
        with alone(lock, ignore):
            waiter = pool.submit(second)
            time.sleep(0.3)
            lock.unlink()
            # It has the new file before the one that waits hears of the end of the old one.
            third = lock.open("w")
            fcntl.flock(third, fcntl.LOCK_EX)
        with third:
            time.sleep(0.3)
            inside.set()
        assert waiter.result()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="lock"), alone(tmp_path / ".lock", ignore):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_goes_in_the_moment_in_which_it_is_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["is there", "was there"]
    make = Path.mkdir

    def mkdir(folder: Path, *options: object, **named: object) -> None:
        if asked:
            raise {"is there": FileExistsError, "was there": FileNotFoundError}[asked.pop()](str(folder))
        make(folder, *options, **named)  # type: ignore[arg-type] # whatever it is called with

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with alone(tmp_path / "folder" / "lock", lambda _: None, 5):
        assert not asked
    monkeypatch.undo()
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError), alone(tmp_path / "file" / "lock", lambda _: None, 5):
        pass
