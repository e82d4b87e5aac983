"""Tests of r1prov's own folders on the data disk, on a folder that stands for the root of a host."""

from __future__ import annotations

import json
import os
import shutil
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.r1.prov.plugins.module_utils import data_disk, place_look
from ansible_collections.r1.prov.plugins.modules import data_disk as module
from ansible_collections.r1.prov.plugins.modules import preflight, removal

if TYPE_CHECKING:
    from pathlib import Path

DATA = "/root/autodl-tmp/r1prov"
ME = os.geteuid()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A fresh container: a data disk below /root, and nothing of r1prov but the record of the run that has just locked it."""
    (tmp_path / "root/autodl-tmp").mkdir(parents=True)
    (tmp_path / "root").chmod(0o700)
    put(tmp_path / "var/lib/r1prov/history/2.json", "second")
    for folder in ("opt", "var/cache"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def brought(root: Path) -> None:
    for place, target in data_disk.wrong_places(DATA, root).items():
        data_disk.settle(place, target)


def test_folders_become_links_and_what_lay_there_goes_along(root: Path) -> None:
    put(root / "opt/r1prov/llama.cpp/releases/1/bin/llama-server", "program")
    (root / "opt/r1prov/llama.cpp/releases/1/bin/llama-server").chmod(0o755)
    (root / "opt/r1prov/llama.cpp/current").symlink_to("releases/1")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "opt/r1prov/socket"))
    brought(root)
    assert not (root / "opt/r1prov/socket").exists()
    assert (root / "opt/r1prov").readlink() == root / "root/autodl-tmp/r1prov/host/opt"
    program = root / "opt/r1prov/llama.cpp/current/bin/llama-server"
    assert (program.read_text(), program.stat().st_mode & 0o777) == ("program", 0o755)
    assert (root / "root/autodl-tmp/r1prov/host/lib/history/2.json").read_text() == "second"
    assert (root / "var/cache/r1prov").is_dir()
    assert data_disk.wrong_places(DATA, root) == {}


def test_a_container_built_anew_has_everything_again(root: Path) -> None:
    """What its first run has left on the system disk joins what the data disk has."""
    put(root / "opt/r1prov/engine", "engine")
    assert not data_disk.is_built_anew(DATA, root)
    brought(root)
    put(root / "var/lib/r1prov/service/accounts.json", "{}")
    assert not data_disk.is_built_anew(DATA, root)
    for folder in ("opt", "var"):
        shutil.rmtree(root / folder)
    put(root / "var/lib/r1prov/history/3.json", "third")
    put(root / "var/lib/r1prov/history/2.json", "another second")
    assert data_disk.is_built_anew(DATA, root)
    brought(root)
    assert not data_disk.is_built_anew(DATA, root)
    assert (root / "opt/r1prov/engine").read_text() == "engine"
    texts = {path.name: path.read_text() for path in (root / "var/lib/r1prov").rglob("*.json")}
    assert texts == {"accounts.json": "{}", "2.json": "second", "3.json": "third"}


def test_a_data_disk_that_is_away_is_told_from_one_that_somebody_has_emptied(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert data_disk.away(DATA, root) == ""
    brought(root)
    assert data_disk.away(DATA, root) == ""
    shutil.rmtree(root / "root/autodl-tmp/r1prov")
    said = f"the data disk is away: {root}/opt/r1prov leads to {root}{DATA}/host/opt, which is not there"
    assert data_disk.away(DATA, root) == said
    assert data_disk.away("/mnt/another", root) == ""
    monkeypatch.setattr(data_disk, "is_apart", lambda *_: True)
    assert data_disk.away(DATA, root) == ""


@pytest.mark.parametrize("check", [True, False])
def test_nothing_is_laid_anew_where_the_data_disk_is_away(monkeypatch: pytest.MonkeyPatch, check: bool) -> None:
    class EndedError(Exception):
        pass

    def ends(**answer: Any) -> None:
        raise EndedError(answer)

    asked = SimpleNamespace(
        params={"path": DATA, "use": "auto", "reach": []}, check_mode=check, exit_json=ends, fail_json=ends
    )
    monkeypatch.setattr(module, "AnsibleModule", lambda **_: asked)
    monkeypatch.setattr(data_disk, "away", lambda path: f"{path} is away")
    with pytest.raises(EndedError) as ended:
        module.main()
    answer = ended.value.args[0]
    assert answer["differences"] == [f"{DATA} is away"]
    assert answer.get("msg", "").startswith("" if check else f"{DATA} is away. Remedy: bring the disk back")
    assert answer["away"]


def test_a_run_that_was_cut_off_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        put(root / f"opt/r1prov/x/{name}", name)
    copied: list[object] = []
    copy2 = shutil.copy2

    def copy(source: Path, *others: object, **options: object) -> None:
        copied.append(source)
        if len(copied) == 2:
            raise KeyboardInterrupt
        copy2(source, *others, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(shutil, "copy2", copy)
    with pytest.raises(KeyboardInterrupt):
        data_disk.settle(root / "opt/r1prov", root / f"{DATA}/host/opt".lstrip("/"))
    brought(root)
    there = root / "opt/r1prov/x"
    assert {path.name: path.read_text() for path in there.iterdir()} == {"a": "a", "b": "b", "c": "c"}
    assert there.resolve().is_relative_to(root / "root/autodl-tmp")


def test_a_folder_in_which_something_is_mounted_stays(root: Path) -> None:
    put(root / "var/cache/r1prov/ccache/x", "x")
    put(root / "proc/self/mountinfo", "40 23 0:31 /x /var/cache/r1prov/ccache rw - ext4 /dev/vda rw\n")
    brought(root)
    assert not (root / "var/cache/r1prov").is_symlink()
    assert (root / "var/lib/r1prov").is_symlink()
    assert data_disk.wrong_places(DATA, root) == {}


@pytest.mark.parametrize("weights", [True, False])
def test_another_folder_for_data_takes_everything_along(root: Path, weights: bool) -> None:
    put(root / "opt/r1prov/engine", "engine")
    brought(root)
    if weights:
        put(root / "root/autodl-tmp/r1prov/models/r1.gguf", "weights")
    for place, target in data_disk.wrong_places("/mnt/r1prov", root).items():
        data_disk.settle(place, target)
    assert (root / "mnt/r1prov/host/opt/engine").read_text() == "engine"
    assert data_disk.wrong_places("/mnt/r1prov", root) == {}
    assert not (root / "root/autodl-tmp/r1prov/host").exists()
    assert (root / "root/autodl-tmp/r1prov").exists() is weights
    assert (root / "root/autodl-tmp").exists()


@pytest.mark.parametrize(
    ("use", "systemd", "data", "used"),
    [
        ("auto", False, "/proc/r1prov", True),
        ("auto", False, "/srv/r1prov", False),
        ("auto", True, "/proc/r1prov", False),
        ("always", True, "/srv/r1prov", True),
        ("never", False, "/proc/r1prov", False),
    ],
)
def test_the_disk_is_used_where_no_systemd_runs_the_host_and_it_is_apart(
    root: Path, monkeypatch: pytest.MonkeyPatch, use: str, systemd: bool, data: str, used: bool
) -> None:
    (root / "proc").symlink_to("/proc")
    if systemd:
        (root / "run/systemd/system").mkdir(parents=True)
    assert data_disk.is_used(use, data, root) == used


def test_services_pass_through_the_folders_of_roots_and_it_can_be_undone(root: Path) -> None:
    root.chmod(0o755)
    found = data_disk.shut([f"{DATA}/host", "/root/autodl-fs/weights"], root, ME)
    assert found == {str(root / "root"): 0o700}
    record = root / "var/lib/r1prov/data_disk/opened.json"
    data_disk.let_through(found, record)
    assert (root / "root").stat().st_mode & 0o777 == 0o701
    assert data_disk.shut([f"{DATA}/host"], root, ME) == {}
    data_disk.shut_again(json.loads(record.read_text()))
    assert (root / "root").stat().st_mode & 0o777 == 0o700


def test_a_mode_that_somebody_has_given_since_stays(root: Path) -> None:
    (root / "root").chmod(0o755)
    data_disk.shut_again({str(root / "root"): 0o700, str(root / "none"): 0o700})
    assert (root / "root").stat().st_mode & 0o777 == 0o755


def test_preflight_counts_what_lies_on_the_data_disk_there() -> None:
    disk = [{"path": "/opt/r1prov", "bytes": 1, "what": "engine", "have": [{"path": "/opt/r1prov/x/bin", "bytes": 1}]}]
    (found,) = preflight.on_data_disk(disk, DATA)
    assert found["path"] == f"{DATA}/host/opt"
    assert found["have"] == [{"path": f"{DATA}/host/opt/x/bin", "bytes": 1}]
    needs = [{"what": "page", "any_of": ["/x"], "have": ["/var/cache/r1prov/*.whl", "/srv/m", "/opt/r1provision"]}]
    (need,) = preflight.present_on_data_disk(needs, DATA)
    assert need["have"] == [f"{DATA}/host/cache/*.whl", "/srv/m", "/opt/r1provision"]


def test_places_behind_links_are_looked_at(root: Path) -> None:
    if os.getegid() != ME:
        pytest.skip("the group's number of whoever runs this is another than the user's")
    put(root / "opt/r1prov/ollama/x", "x")
    for path in root.rglob("*"):
        path.chmod(0o755)
    (root / "var/lib/r1prov/history").chmod(0o700)
    (root / "var/lib/r1prov/history/2.json").chmod(0o600)
    brought(root)
    assert place_look.look(root, ME) == []
    (root / "opt/r1prov/ollama").chmod(0o777)
    (root / "root/autodl-tmp/r1prov/host/lib").chmod(0o777)
    found = place_look.look(root, ME)
    assert [each.place.removeprefix(str(root)) for each in found] == ["/opt/r1prov/ollama", f"{DATA}/host/lib"]
    # Whoever looks at it by its link says the same, so that it is said once.
    assert str(found[1]).startswith(f"{root}/var/lib/r1prov has owner and mode ")
    place_look.mend(found)
    assert place_look.look(root, ME) == []


def test_what_goes_and_what_stays_has_the_names_of_the_data_disk(tmp_path: Path) -> None:
    """What is kept behind a link must not go with the folder that the link leads to."""
    data = f"{tmp_path}/data"
    put(tmp_path / "data/host/lib/open-webui/webui.db", "chats")
    put(tmp_path / "data/host/lib/service/accounts.json", "{}")
    put(tmp_path / "data/host/opt/engine", "engine")
    links = [*data_disk.PLACES]
    chats = removal.chats_of(data, links)
    assert chats == [f"{data}/host/lib/open-webui"]
    patterns = removal.on_host(data, links)
    assert not {*patterns} & {*data_disk.PLACES}
    found = [path for path in removal.doomed(patterns, chats, set()) if path.startswith(data)]
    assert found == [f"{data}/host/opt", f"{data}/host/lib/service"]
    assert [path for path in removal.doomed(patterns, [], set()) if path.startswith(data)] == [
        f"{data}/host/opt",
        f"{data}/host/lib",
    ]
    removal.remove_empty([f"{data}/host/cache", f"{data}/host"], set())
    assert (tmp_path / "data/host").is_dir()
    shutil.rmtree(tmp_path / "data/host/opt")
    shutil.rmtree(tmp_path / "data/host/lib")
    removal.remove_empty([f"{data}/host", data], set())
    assert not (tmp_path / "data").exists()
