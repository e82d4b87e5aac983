"""Tests of the parts of the lab that need no booted host."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from r1prov import lab
from r1prov.common.errors import Exit, LabError
from r1prov.common.locks import locked
from r1prov.lab import caches, images


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
