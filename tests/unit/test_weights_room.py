"""Tests of how much of the disk the files of a model will take, as preflight says it, beside what transfer and merge then take."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.r1.prov.plugins.module_utils import weights_room
from ansible_collections.r1.prov.plugins.module_utils.host_judge import size
from ansible_collections.r1.prov.plugins.module_utils.weights_merge import Merge
from ansible_collections.r1.prov.plugins.modules import preflight

from tests.faults import kinds
from tests.fixtures.faulty import Faulty
from tests.fixtures.transferring import Host, wait_for

SMALL_BYTES = 1 << 20  # records, journals, and the last block of each file


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> kinds.Model:
    return kinds.publish(tmp_path_factory.mktemp("served") / "files")


@pytest.fixture
def host(tmp_path: Path, served: kinds.Model) -> Host:
    host = Host(tmp_path / "host", served.folder)
    host.job |= {"merged": kinds.NAME, "attention": "mla"}
    return host


def merge(host: Host, name: str = kinds.NAME, attention: str = "mla") -> None:
    state, run = host.root / "state" / "state.json", host.root / "run"
    Merge(host.folder, host.job["files"], name=name, attention=attention, state=state, run=run).complete()


def wanted(host: Host, served: kinds.Model) -> tuple[str, int]:
    size = served.made.stat().st_size
    return weights_room.wanted(host.folder, host.job["files"], kinds.NAME, size, "mla")


def takes(folder: Path) -> int:
    return sum(weights_room.room_of(path) for path in folder.rglob("*") if path.is_file())


def nothing(_host: Host, _served: kinds.Model, _server: Faulty | None = None) -> None:
    """Leaves the folder empty."""


def one_published(host: Host, served: kinds.Model, _server: Faulty | None = None) -> None:
    shutil.copy(served.files[1], host.folder)


def one_begun(host: Host, served: kinds.Model, _server: Faulty | None = None) -> None:
    (host.folder / ".incoming").mkdir()
    begun = served.files[0].read_bytes()[: 5 << 20]
    (host.folder / ".incoming" / host.job["files"][0]["sha256"]).write_bytes(begun)


def all_published(host: Host, served: kinds.Model, _server: Faulty | None = None) -> None:
    for path in served.files:
        shutil.copy(path, host.folder)


def straight_begun(host: Host, _served: kinds.Model, server: Faulty) -> None:
    process = host.start(server.source)
    wait_for(lambda: host.arrived > 4 << 20)
    process.kill()
    process.communicate()


BESIDE = "the published files, of which {} lies there already, and the one file that is made of them beside them"
LYING: dict[Callable[[Host, kinds.Model, Faulty], None], tuple[bool, str]] = {
    nothing: (True, "the weights"),
    straight_begun: (True, "the weights"),
    one_published: (False, BESIDE.format("m-00002-of-00002.gguf")),
    one_begun: (False, BESIDE.format("a part of m-00001-of-00002.gguf")),
    all_published: (False, "the one file that is made of the published files beside them"),
}


@pytest.mark.parametrize("lies", LYING)
def test_what_preflight_asks_for_is_what_transfer_and_merge_take(
    lies: Callable[[Host, kinds.Model, Faulty], None], host: Host, served: kinds.Model
) -> None:
    is_straight, says = LYING[lies]
    with Faulty(served.folder, total=20e6) as server:
        lies(host, served, server)
        assert weights_room.is_straight(host.folder, host.job["files"], kinds.NAME) == is_straight
        before, (what, n_bytes) = takes(host.folder), wanted(host, served)
        assert what == says
        assert host.run(server.source)[0] == 0
    merge(host)
    assert (host.folder / kinds.NAME).read_bytes() == served.made.read_bytes()
    taken = takes(host.folder) - before
    aside = weights_room.ASIDE_SHARE * served.made.stat().st_size if is_straight else 0
    assert taken - SMALL_BYTES < n_bytes < max(taken, 0) + aside + SMALL_BYTES
    assert wanted(host, served) == ("the weights", 0)


def test_where_they_were_merged_as_published_only_the_new_file_comes_beside_that(
    host: Host, served: kinds.Model
) -> None:
    all_published(host, served)
    with Faulty(served.folder) as server:
        assert host.run(server.source)[0] == 0
    merge(host, "old.gguf", "legacy")
    for path in served.files:
        (host.folder / path.name).unlink()
    assert wanted(host, served) == ("the one file that is made of old.gguf beside it", served.made.stat().st_size)


def test_files_that_are_served_as_they_are_take_what_is_missing_of_them(host: Host, served: kinds.Model) -> None:
    one_published(host, served)
    assert weights_room.wanted(host.folder, host.job["files"], "", 0, "legacy") == (
        "the weights",
        served.files[0].stat().st_size,
    )


def test_preflight_says_so(host: Host, served: kinds.Model) -> None:
    one_published(host, served)
    made = served.made.stat().st_size
    model = {"files": host.job["files"], "merged": kinds.NAME, "merged_bytes": made, "attention": "mla"}
    (item,) = preflight.with_models(
        [{"what": "2 GiB that stay free", "path": str(host.folder), "bytes": 2 << 30, "model": model}]
    )
    assert item["what"].endswith("made of them beside them, and 2 GiB that stay free")
    assert item["bytes"] == (2 << 30) + served.files[0].stat().st_size + made
    assert size(item["bytes"]) == "2.2 GB"
