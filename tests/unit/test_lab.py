"""Tests of the parts of the lab that need no booted host."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from r1prov import lab
from r1prov.common.errors import Exit, LabError
from r1prov.common.locks import locked
from r1prov.lab import caches, images, trees
from r1prov.lab.base import base_image


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "r1prov"


def test_what_is_missing_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    problem = lab.requirements()[0]
    assert "iproute2, mmdebstrap, nftables, openssh-client, systemd-container" in problem.what
    assert problem.remedy.startswith("as root: apt-get install")
    with_containers = lab.requirements(container=True)[0]
    assert "e2fsprogs, iproute2, mmdebstrap, mount, nftables, openssh-client, systemd-container" in with_containers.what
    with pytest.raises(LabError) as caught:
        lab.up("Not A Name", "sid")  # type: ignore[arg-type]
    assert caught.value.exit == Exit.LAB
    assert len(caught.value.problems) >= 3
    assert "unknown release sid" in str(caught.value)
    assert "is not a name for a host" in str(caught.value)


def test_a_host_that_is_not_there() -> None:
    with pytest.raises(LabError, match="no such host") as caught:
        lab.get("never-made")
    assert "r1prov lab up never-made" in caught.value.problems[0].remedy


def test_an_image_is_its_layer_with_its_data_disk(tmp_path: Path) -> None:
    base = tmp_path / "container-bookworm-digest"
    for image in ("one", "two"):
        images.layer(base, image).mkdir(parents=True)
        images.data_disk(base, image).touch()
    assert images.images(base) == ["one", "two"]
    images.remove(base, "one")
    assert images.images(base) == ["two"]
    assert not images.data_disk(base, "one").exists()
    images.remove(base, "one")
    images.remove_all(base)
    assert images.images(base) == []
    assert not images.data_disk(base, "two").exists()


def test_packages_travel_between_hosts_as_links(tmp_path: Path, cache: Path) -> None:
    archives = tmp_path / "one/var/cache/apt/archives"
    (archives / "partial").mkdir(parents=True)
    (archives / "hello_1_amd64.deb").write_text("a package")
    (archives / "partial/half_1_amd64.deb").write_text("half a pack")
    for _ in range(2):  # a package that is already there is no error
        caches.harvest("bookworm", tmp_path / "one")
        caches.seed("bookworm", tmp_path / "two")
    seeded = tmp_path / "two/var/cache/apt/archives"
    assert [path.name for path in seeded.iterdir()] == ["hello_1_amd64.deb"]
    assert (seeded / "hello_1_amd64.deb").samefile(cache / "apt/bookworm/hello_1_amd64.deb")
    caches.seed("trixie", tmp_path / "three")
    assert not list((tmp_path / "three/var/cache/apt/archives").iterdir())


def test_a_lock_is_exclusive_though_its_holder_deletes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    inside = threading.Semaphore(1)
    failures = []

    def work() -> None:
        for _ in range(50):
            with locked(path):
                if not inside.acquire(blocking=False):
                    failures.append("two at once")
                inside.release()
                path.unlink()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_lock_is_free_when_its_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = f"""
from pathlib import Path
from r1prov.common.locks import locked
with locked(Path({str(path)!r})):
    print("held", flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        holder.kill()
    with locked(path):
        pass


def _mounted(folder: Path) -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {folder}" in line]


_AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")


@_AS_ROOT
def test_what_is_mounted_below_a_folder_outlives_it(tmp_path: Path) -> None:
    outside, tree = tmp_path / "outside", tmp_path / "a tree"
    inside = tree / "root" / "shm"
    outside.mkdir()
    inside.mkdir(parents=True)
    (outside / "precious").touch()
    (outside / "shm").mkdir()
    subprocess.run(["mount", "--bind", outside, inside], check=True)
    subprocess.run(["mount", "--bind", outside, inside / "shm"], check=True)
    trees.remove(tree)
    assert not tree.exists()
    assert (outside / "precious").exists()
    assert not _mounted(tmp_path)


@_AS_ROOT
def test_a_folder_stays_as_it_is_while_what_is_mounted_below_it_is_in_use(tmp_path: Path) -> None:
    outside, tree = tmp_path / "outside", tmp_path / "tree"
    outside.mkdir()
    (tree / "mounted").mkdir(parents=True)
    (outside / "precious").touch()
    subprocess.run(["mount", "--bind", outside, tree / "mounted"], check=True)
    try:
        with (tree / "mounted" / "precious").open(), pytest.raises(LabError, match="cannot be unmounted") as caught:
            trees.remove(tree)
        assert "umount" in caught.value.problems[0].remedy
        assert (outside / "precious").exists()
    finally:
        subprocess.run(["umount", tree / "mounted"], check=True)


@_AS_ROOT
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_build_of_a_base_image_leaves_no_mounts_and_the_next_one_is_made(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """mmdebstrap mounts things of this machine below the folder that it fills. Here a script does so in its place."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    programs = tmp_path / "bin"
    programs.mkdir()
    script = programs / "mmdebstrap"
    begin = f'#!/bin/sh\nfor root; do :; done\nmkdir -p "$root/shm"\nmount --bind {precious} "$root/shm"\n'
    script.write_text(f'{begin}echo "I: mounted"\nsleep 300\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    build = (
        "from r1prov.lab.base import base_image; print(base_image('bookworm', lambda line: print(line, flush=True)))"
    )
    with subprocess.Popen([sys.executable, "-c", build], stdout=subprocess.PIPE, text=True) as building:
        assert building.stdout
        while "mounted" not in building.stdout.readline():
            assert building.poll() is None
        assert list(cache.glob("lab/base/bookworm-*/root/shm"))
        building.send_signal(number)
        building.wait(30)
    limit = time.monotonic() + 30
    while any(str(tmp_path) in _command(pid) for pid in Path("/proc").glob("[0-9]*")):
        assert time.monotonic() < limit, "the build goes on"
        time.sleep(0.05)
    assert not _mounted(tmp_path)
    script.write_text(f'{begin}umount "$root/shm"\n')
    image = base_image("bookworm", lambda _: None)
    assert [path for path in image.parent.glob("bookworm-*") if path.is_dir()] == [image]
    assert (precious / "file").exists()


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_text(errors="replace")
    except OSError:
        return ""
