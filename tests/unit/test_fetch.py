"""Tests that run roles/weights/files/r1prov-weights/fetch.py against the hub of tests.fixtures.hub on the loopback address."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import pwd
import random
import re
import shutil
import signal
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import disks
import evaluated
import pytest
import transfer.delivery
import transfer.disk
import transfer.run
import yaml
from ansible_collections.r1.prov.plugins.module_utils import gguf_header

from r1prov.common import paths
from tests.faults import kinds
from tests.fixtures.faulty import Faulty, Twist
from tests.fixtures.hub import Faults, Hub
from tests.fixtures.transferring import HOPELESS, Host, sha256, wait_for, while_running

if TYPE_CHECKING:
    from collections.abc import Iterator

REPO, FOLDER = "me/model", "Q"
SHARD_BYTES = 3 << 20
TOKEN = "hf_secret"


def flip(file: Path) -> None:
    """Changes a bit of a file, and its time, by which the change is noticed."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    with file.open("r+b") as stream:
        stream.write(content)


def hub_source(hub: Hub, kind: str = "hub") -> dict[str, str]:
    return {"type": kind, "endpoint": hub.url, "repo": REPO, "revision": "main", "folder": FOLDER}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The three shards that the hubs serve."""
    folder = tmp_path / "hub" / REPO / FOLDER
    folder.mkdir(parents=True)
    for number in (1, 2, 3):
        content = random.Random(number).randbytes(SHARD_BYTES)
        (folder / f"m-{number:05d}-of-00003.gguf").write_bytes(content)
    return tmp_path / "hub"


@pytest.fixture
def host(tmp_path: Path, root: Path) -> Host:
    return Host(tmp_path / "host", root / REPO / FOLDER)


@pytest.fixture
def model(root: Path) -> kinds.Model:
    """A tiny model in two files, which the hubs serve in the place of the three."""
    published = root / REPO / FOLDER
    shutil.rmtree(published)
    return kinds.publish(published)


@pytest.fixture
def straight(tmp_path: Path, model: kinds.Model) -> Host:
    """A host to which it comes straight in MLA form."""
    host = Host(tmp_path / "straight", model.folder)
    host.job |= {"merged": "m.gguf", "attention": "mla"}
    return host


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with disks.mounted(tmp_path / "small", 40 << 20) as place:
        yield place


@pytest.fixture
def hub(root: Path) -> Iterator[Hub]:
    with Hub(root) as running:
        yield running


def test_what_has_arrived_is_counted_while_a_file_gets_its_name(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    part, place, stat = stored(host), host.folder / "m-00001-of-00003.gguf", Path.stat

    def late(path: Path, **options: bool) -> os.stat_result:
        if path == part and os.path.lexists(part):
            part.rename(place)
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", late)
    assert host.arrived == 1 << 20
    assert place.exists()


@pytest.mark.parametrize("kind", ["hub", "modelscope"])
def test_all_files_arrive_and_are_left_alone_afterwards(host: Host, hub: Hub, kind: str) -> None:
    assert host.run(hub_source(hub, kind))[0] == 0
    assert host.is_complete()
    prefix = "/models" if kind == "modelscope" else ""
    assert hub.requests[0].path == f"{prefix}/{REPO}/resolve/main/{FOLDER}/m-00001-of-00003.gguf"
    progress = host.progress
    assert (progress["state"], progress["unit"]) == ("done", "bytes")
    assert progress["done"] == progress["total"] == 3 * SHARD_BYTES
    assert (host.state["state"], host.state["invocation"]) == ("done", "42")
    assert (host.folder / "m-00001-of-00003.gguf").stat().st_mode & 0o777 == 0o644

    asked = len(hub.requests)
    assert host.run(hub_source(hub)) == (0, "")
    assert len(hub.requests) == asked


def test_where_each_file_came_from_and_when_it_was_verified_outlives_its_journal(
    host: Host, hub: Hub, root: Path
) -> None:
    began = time.time()
    linked = host.job["files"][1]
    (host.folder / ".incoming").mkdir()
    os.link(root / REPO / FOLDER / linked["name"], host.folder / ".incoming" / linked["sha256"])
    assert host.run(hub_source(hub))[0] == 0
    for file in host.job["files"]:
        came = host.state["came"][file["sha256"]]
        place = "another folder of this disk" if file is linked else hub.url.removeprefix("http://")
        assert came["from"] == {place: SHARD_BYTES}
        assert began <= came["at"] <= host.state["when"][str(host.folder / file["name"])] <= time.time()


def test_a_transfer_takes_as_long_as_its_limit_asks(host: Host, hub: Hub) -> None:
    host.job["rate_limit"] = {"00:00-24:00": 3 * SHARD_BYTES // 4}
    began = time.monotonic()
    code, log = host.run(hub_source(hub))
    assert code == 0, log
    assert time.monotonic() - began > 3.9
    assert host.is_complete()


def test_it_tells_what_brings_something_and_what_is_verified(host: Host, hub: Hub) -> None:
    host.job["rate_limit"] = {"00:00-24:00": 3 * SHARD_BYTES // 2}
    process = host.start(hub_source(hub))
    wait_for((host.root / "run" / "progress.json").exists)
    told = host.progress
    for _ in while_running(process, 0.05):
        told = host.progress if host.progress["sources"] else told
    process.communicate()
    assert told["sources"] == [hub.url.removeprefix("http://")]
    assert re.match(r"m-0000\d-of-00003.gguf \d+ %", told["verifying"])
    assert (host.progress["state"], host.progress["sources"]) == ("done", [])


def test_what_was_verified_is_not_read_again_unless_it_changed(host: Host, hub: Hub) -> None:
    host.run(hub_source(hub))
    (changed, times) = host.folder / "m-00002-of-00003.gguf", (host.folder / "m-00002-of-00003.gguf").stat()
    with changed.open("r+b") as stream:
        stream.write(b"rot")
    # Size and times are as recorded, so the program trusts the file without reading it. So a start takes only milliseconds.
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert host.run(hub_source(hub)) == (0, "")
    changed.touch()
    assert "is damaged: its sha256 is" in host.run(hub_source(hub))[1]
    assert host.is_complete()


def test_files_that_lie_in_their_place_are_verified_and_kept(host: Host, hub: Hub, root: Path) -> None:
    for name, path in host.published.items():
        shutil.copy(path, host.folder / name)
    assert host.run(hub_source(hub))[0] == 0
    assert hub.requests == []


def merged(host: Host, content: bytes = b"one" * SHARD_BYTES, name: str = "m.gguf", attention: str = "legacy") -> Path:
    """Replaces the shards by one merged file, as `tasks_from: settle` does, and returns that file."""
    file = host.folder / name
    file.write_bytes(content)
    for shard in host.published:
        (host.folder / shard).unlink(missing_ok=True)
    record = {"name": file.name, "bytes": len(content), "sha256": sha256(file), "shards": host.job["files"]}
    (host.folder / f"{file.name}.json").write_text(json.dumps(record | {"attention": attention}))
    return file


def test_the_file_that_the_shards_were_merged_into_takes_their_place(host: Host, hub: Hub) -> None:
    host.job["merged"] = "m.gguf"
    file = merged(host)
    assert host.run(hub_source(hub)) == (0, "")
    assert hub.requests == []
    assert (host.progress["done"], host.progress["total"]) == (3 * SHARD_BYTES, 3 * SHARD_BYTES)
    assert host.state["verified"][str(file)]["sha256"] == sha256(file)
    file.touch()  # the content is still right, so the file is read again and kept
    assert host.run(hub_source(hub)) == (0, "")
    assert hub.requests == []


def test_what_was_merged_as_published_is_enough_for_mla_form_and_not_the_other_way(
    straight: Host, model: kinds.Model, hub: Hub
) -> None:
    straight.job |= {"merged": "m.mla.gguf", "attention": "mla"}
    published = merged(straight)
    assert straight.run(hub_source(hub)) == (0, "")
    assert hub.requests == []
    brought = merged(straight, b"new" * SHARD_BYTES, "m.mla.gguf", "mla")
    published.unlink()
    assert straight.run(hub_source(hub)) == (0, "")
    assert hub.requests == []
    straight.job |= {"merged": "m.gguf", "attention": "legacy"}
    assert straight.run(hub_source(hub))[0] == 0
    assert gguf_header.read(straight.folder / "m.gguf").text("general.architecture") == "deepseek2"
    assert brought.exists()


@pytest.mark.parametrize("harm", ["damaged", "truncated", "lost", "of other shards"])
def test_it_comes_anew_where_the_merged_file_is_not_what_is_wanted(
    straight: Host, model: kinds.Model, hub: Hub, harm: str
) -> None:
    file = merged(straight, attention="mla")
    if harm == "damaged":
        file.write_bytes(b"two" * SHARD_BYTES)
    elif harm == "truncated":
        file.write_bytes(b"one")
    elif harm == "lost":
        file.unlink()
    elif harm == "of other shards":
        record = json.loads((straight.folder / "m.gguf.json").read_text())
        (straight.folder / "m.gguf.json").write_text(json.dumps(record | {"shards": record["shards"][:1]}))
    code, log = straight.run(hub_source(hub))
    assert code == 0, log
    assert straight.has_made(model.made)
    assert straight.state["damaged"] == (["m.gguf"] if harm in ("damaged", "truncated") else [])
    assert straight.progress["done"] == straight.progress["total"] == sum(f["bytes"] for f in straight.job["files"])


@pytest.mark.parametrize("network", ["silent", "refusing"])
@pytest.mark.parametrize("served", ["merged", "published"])
def test_a_damaged_file_is_served_until_its_replacement_is_whole(
    request: pytest.FixtureRequest, root: Path, tmp_path: Path, served: str, network: str
) -> None:
    host = request.getfixturevalue("straight" if served == "merged" else "host")
    if served == "merged":
        file = merged(host, attention="mla")
    else:
        for name, path in host.published.items():
            shutil.copy(path, host.folder / name)
        file = host.folder / "m-00002-of-00003.gguf"
    flip(file)
    before = file.read_bytes()
    if network == "silent":
        with Hub(root) as down:
            pass
        process = host.start(hub_source(down))
        wait_for(lambda: (host.root / "run/progress.json").exists() and "waiting" in host.progress["label"])
        assert f"damaged, and kept until then: {file.name}" in host.progress["label"]
        process.kill()
        process.wait()
    else:
        code, log = host.run({"type": "folder", "path": str(tmp_path / "unplugged")})
        assert code == HOPELESS
        for text in (log, host.state["message"]):
            assert f"{file.name} is damaged, and stays until what replaces it is whole" in text
    assert file.read_bytes() == before
    with Hub(root) as hub:
        assert host.run(hub_source(hub))[0] == 0
    if served == "merged":
        assert host.has_made(request.getfixturevalue("model").made)
    else:
        assert host.is_complete()
    assert host.state["damaged"] == [file.name]


def test_a_damaged_published_file_goes_for_room_only_when_a_source_has_its_like(
    small_disk: Path, hub: Hub, root: Path, tmp_path: Path
) -> None:
    """The disk has room for the three files and no more."""
    host = Host(small_disk, root / REPO / FOLDER)
    for name, path in host.published.items():
        shutil.copy(path, host.folder / name)
    flip(file := host.folder / "m-00002-of-00003.gguf")
    disks.fill(small_disk, leave=1 << 20)
    with Hub(tmp_path) as empty:
        code, log = host.run(hub_source(empty))
    assert code == HOPELESS
    assert "the damaged one is not removed before a source has shown that it has it: 127.0.0.1" in log
    assert file.exists()
    with file.open("rb"):  # an engine that has mapped the file keeps its room
        code, log = host.run(hub_source(hub))
        assert code == HOPELESS
        assert "a process that has it open keeps its room" in log
    assert host.run(hub_source(hub))[0] == 0
    assert host.is_complete()


def test_a_damaged_merged_file_stays_where_there_is_no_room_for_another(
    small_disk: Path, model: kinds.Model, hub: Hub
) -> None:
    host = Host(small_disk, model.folder)
    host.job |= {"merged": "m.gguf", "attention": "mla"}
    assert host.run(hub_source(hub))[0] == 0
    flip(file := host.folder / "m.gguf")
    bad = file.read_bytes()
    code, log = host.run(hub_source(hub))
    assert code == HOPELESS
    assert "make room" in log
    assert "m.gguf is damaged, and stays until what replaces it is whole" in log
    assert file.read_bytes() == bad


def test_a_kill_in_the_middle_costs_nothing(host: Host, hub: Hub) -> None:
    hub.faults.silent_after = ("m-00002", 2 << 20)
    process = host.start(hub_source(hub))
    part = host.folder / ".incoming" / host.job["files"][1]["sha256"]
    wait_for(lambda: part.exists() and part.stat().st_size == 2 << 20)
    time.sleep(0.6)  # What has arrived is written down four times a second.
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (host.folder / "m-00002-of-00003.gguf").exists()

    hub.faults.silent_after = None
    hub.requests.clear()
    assert host.run(hub_source(hub))[0] == 0
    assert host.is_complete()
    assert hub.requests[0].path.endswith("m-00002-of-00003.gguf")
    begun = next(request.range for request in hub.requests if request.path.endswith("m-00002-of-00003.gguf"))
    assert begun == f"bytes={2 << 20}-"


def test_a_connection_that_breaks_off_is_resumed(host: Host, hub: Hub) -> None:
    hub.faults.drop_after_bytes = 2 << 20
    assert host.run(hub_source(hub))[0] == 0
    assert host.is_complete()
    asked = [(request.path.rpartition("/")[2], request.range) for request in hub.requests]
    assert sorted(asked) == [(name, wanted) for name in host.published for wanted in ("", f"bytes={2 << 20}-")]


def test_a_server_in_trouble_is_waited_for(host: Host, hub: Hub) -> None:
    hub.faults.errors = 2
    code, log = host.run(hub_source(hub))
    assert code == 0
    assert log.count("answers 503") == 2
    assert host.is_complete()


def test_nobody_there_means_patience_and_says_so(host: Host, root: Path) -> None:
    with Hub(root) as hub:
        pass  # the hub's port is free again, so it refuses connections
    process = host.start(hub_source(hub))
    wait_for(lambda: (host.root / "run/progress.json").exists() and "waiting" in host.progress["label"])
    assert "Connection refused" in host.progress["label"]
    assert host.progress["state"] == "running"
    with Hub(root, port=hub.port):
        process.wait(timeout=120)
    assert host.is_complete()


def test_a_source_that_is_down_is_passed_over(host: Host, hub: Hub, root: Path) -> None:
    with Hub(root) as down:
        pass
    assert host.run(hub_source(down), hub_source(hub))[0] == 0
    assert host.is_complete()


def test_wrong_bytes_are_refused_and_the_next_source_asked(host: Host, hub: Hub, root: Path) -> None:
    with Hub(root, faults=Faults(wrong_bytes=True)) as liar:
        code, log = host.run(hub_source(liar), hub_source(hub))
        assert code == 0
        assert host.is_complete()
        assert f"127.0.0.1:{liar.port} sends wrong bytes" in log

        shutil.rmtree(host.folder)
        host.folder.mkdir()
        code, _ = host.run(hub_source(liar))
    assert code == HOPELESS
    assert host.progress["state"] == host.state["state"] == "failed"
    assert f"127.0.0.1:{liar.port} sends wrong bytes" in host.state["message"]
    assert not list(host.folder.glob("*.gguf"))
    assert not (host.folder / ".incoming" / host.job["files"][0]["sha256"]).exists()


def test_a_source_that_has_lied_is_asked_last_for_what_is_not_begun(tmp_path: Path) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    for number in range(8):
        (folder / f"m-{number}.gguf").write_bytes(random.Random(number).randbytes(200_000))
    host = Host(tmp_path / "host", folder)
    with Faulty(folder, twist=lambda _: Twist(flips=True)) as liar, Faulty(folder) as right:
        assert host.run(liar.source, right.source)[0] == 0
        assert len(liar.requests) <= 5  # Four files are open at once.
    assert host.is_complete()


def test_nobody_waits_while_what_an_earlier_run_has_left_is_read(
    host: Host, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(host, 2 << 20)
    read = transfer.disk.DirectReader.next

    def slowly(reader: transfer.disk.DirectReader) -> memoryview:
        time.sleep(1)
        return read(reader)

    monkeypatch.setattr(transfer.disk.DirectReader, "next", slowly)
    monkeypatch.setattr(transfer.delivery, "look_ahead_bytes", lambda: 1 << 20)
    host.job["sources"] = [hub_source(hub)]
    began = time.monotonic()
    runner = threading.Thread(target=transfer.run.Transfer(host.job, host.root / "state", host.root / "run").run)
    runner.start()
    wait_for(lambda: hub.requests)
    asked_s = time.monotonic() - began
    runner.join(timeout=60)
    assert asked_s < 1
    assert host.is_complete()


def test_a_good_source_is_not_blamed_for_what_a_bad_one_began(host: Host, hub: Hub, root: Path) -> None:
    with Hub(root, faults=Faults(wrong_bytes=True, silent_after=("m-00001", 2 << 20))) as liar:
        process = host.start(hub_source(liar))
        wait_for(lambda: host.arrived > 1 << 20)
        time.sleep(0.6)
        process.kill()
        process.wait()
    code, log = host.run(hub_source(hub))
    assert code == 0
    assert "does not fit together" in log
    assert host.is_complete()


def test_when_every_source_refuses_each_one_s_word_is_given(host: Host, hub: Hub, tmp_path: Path) -> None:
    lost = {**hub_source(hub), "repo": "me/lost"}
    code, log = host.run(lost, {"type": "folder", "path": str(tmp_path / "no-such")})
    assert code == HOPELESS
    for text in (log, host.progress["label"], host.state["message"]):
        assert "no source brings m-00001-of-00003.gguf" in text
        assert "answers 404" in text
        assert f"the folder {tmp_path}/no-such does not have it" in text


def test_a_file_of_another_size_is_refused_before_it_is_fetched(host: Host, hub: Hub) -> None:
    host.job["files"][0]["bytes"] -= 1
    code, log = host.run(hub_source(hub))
    assert code == HOPELESS
    assert f"has {SHARD_BYTES} bytes where {SHARD_BYTES - 1} are wanted" in log


@pytest.mark.parametrize("kind", ["folder", "hub"])
def test_an_lfs_pointer_is_recognised(host: Host, hub: Hub, root: Path, kind: str) -> None:
    folder = root / REPO / FOLDER
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize {SHARD_BYTES}\n"
    (folder / "m-00001-of-00003.gguf").write_text(pointer)
    source = hub_source(hub) if kind == "hub" else {"type": "folder", "path": str(folder)}
    code, log = host.run(source)
    assert code == HOPELESS
    assert "Git LFS pointer" in log


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_folder_is_a_source(host: Host, root: Path, prefix: str) -> None:
    folder = str(root / REPO / FOLDER)
    row = {"type": "http", "url": prefix + folder} if prefix else {"type": "folder", "path": folder}
    assert host.run(row)[0] == 0
    assert host.is_complete()
    assert (host.folder / "m-00001-of-00003.gguf").stat().st_nlink == 1


def test_a_mirror_without_ranges_is_a_source(host: Host, root: Path) -> None:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(root / REPO / FOLDER))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as mirror:
        threading.Thread(target=mirror.serve_forever, daemon=True).start()
        incoming = host.folder / ".incoming"
        incoming.mkdir()
        first = host.job["files"][0]
        (incoming / first["sha256"]).write_bytes(host.published[first["name"]].read_bytes()[:1000])
        assert host.run({"type": "http", "url": f"http://127.0.0.1:{mirror.server_port}/"})[0] == 0
        mirror.shutdown()
    assert host.is_complete()


def test_the_token_is_shown_to_the_hub_and_to_nobody_else(host: Host, root: Path) -> None:
    host.job["token"] = TOKEN
    with Hub(root) as cdn, Hub(root, token=TOKEN, cdn=cdn.url) as hub, Hub(root) as mirror:
        url = f"{mirror.url}/{REPO}/resolve/main/nothing-there"
        code, log = host.run(
            {"type": "http", "url": url},
            hub_source(mirror) | {"folder": "nothing-there"},
            hub_source(mirror, "modelscope") | {"folder": ""},
            hub_source(hub) | {"login": True},
        )
    assert code == 0, log
    assert host.is_complete()
    assert {request.token for request in hub.requests} == {TOKEN}
    assert cdn.requests
    assert mirror.requests
    assert {request.token for request in cdn.requests + mirror.requests} == {""}
    assert TOKEN not in log
    assert TOKEN not in (host.root / "run/progress.json").read_text()


def own_site(folder: Path, host: Host, *sources: dict[str, str]) -> Path:
    """Writes the site file of somebody whose profile has the model that the hubs of these tests serve."""
    profile = yaml.safe_load((paths.collection() / "inventory/profiles/cpu.yml").read_text())
    profile["model"] = {"name": "own", "repo": REPO, "revision": "main", "folder": FOLDER, "files": host.job["files"]}
    profile["serving"]["quant"] = "own"
    (folder / "own.yml").write_text(yaml.safe_dump(profile))
    keys = {"profile": "own.yml", "hosts": ["a"], "sources": {"weights": list(sources)}, "ollama": {"enabled": False}}
    (folder / "r1prov.yml").write_text(yaml.safe_dump(keys))
    return folder / "r1prov.yml"


def test_the_token_of_a_site_file_opens_the_hub_that_wants_it_and_is_shown_to_no_other(
    host: Host, root: Path, tmp_path: Path
) -> None:
    token = tmp_path / "o'brien's \"token\""
    token.touch(0o600)
    token.write_text(f"{TOKEN}\n")
    token.chmod(0o600)
    (tmp_path / "empty").mkdir()
    with (
        Hub(root) as cdn,
        Hub(root, token=TOKEN, cdn=cdn.url) as hub,
        Hub(tmp_path / "empty") as other,
    ):
        path = own_site(
            tmp_path,
            host,
            {"type": "hub", "endpoint": other.url},
            {"type": "modelscope", "endpoint": other.url},
            {"type": "http", "url": other.url},
            {"type": "hub", "endpoint": hub.url, "token_file": token.name},
        )
        job = evaluated.up(tmp_path, path, show={"job": "{{ __weights_job }}"})["job"]
        host.job = job | {"folder": str(host.folder), "reserve_bytes": 0}
        code, log = host.run(*job["sources"])
    assert code == 0, log
    assert host.is_complete()
    assert {request.token for request in hub.requests} == {TOKEN}
    assert cdn.requests
    assert other.requests
    assert {request.token for request in cdn.requests + other.requests} == {""}
    assert (
        TOKEN not in log + (host.root / "run/progress.json").read_text() + (host.root / "state/state.json").read_text()
    )


def test_a_job_whose_sources_want_no_token_holds_none(host: Host, tmp_path: Path) -> None:
    path = own_site(tmp_path, host, {"type": "hub"}, {"type": "modelscope"}, {"type": "http", "url": "http://mirror"})
    shown = {"job": "{{ __weights_job }}"}
    job = evaluated.up(tmp_path, path, show=shown, variables={"weights_token": TOKEN})["job"]
    assert TOKEN not in json.dumps(job)


def test_a_login_in_an_address_is_shown_to_that_server_alone(host: Host, root: Path) -> None:
    with Hub(root) as cdn, Hub(root, token="ann:p@ss word", cdn=cdn.url) as mirror:
        with_login = mirror.url.replace("http://", "http://ann:p%40ss%20word@")
        code, log = host.run({"type": "http", "url": f"{with_login}/{REPO}/resolve/main/{FOLDER}"})
    assert code == 0, log
    assert {request.token for request in mirror.requests} == {"ann:p@ss word"}
    assert {request.token for request in cdn.requests} == {""}
    assert "p%40ss" not in log + (host.root / "run/progress.json").read_text()


def test_a_redirect_past_the_proxy_is_not_shown_its_password(host: Host, root: Path) -> None:
    # The hub itself acts as the proxy. It sends on to another server, which is reached without a proxy.
    with Hub(root) as cdn, Hub(root, cdn=cdn.url) as proxy:
        host.job["environment"] = {"http_proxy": proxy.url.replace("//", "//ann:secret@"), "no_proxy": "127.0.0.1"}
        code, log = host.run({**hub_source(proxy), "endpoint": "http://hub.invalid"})
    assert code == 0, log
    assert {request.proxy_login for request in proxy.requests} == {"ann:secret"}
    assert {request.proxy_login for request in cdn.requests} == {""}
    assert "secret" not in log


def test_a_missing_token_is_named(host: Host, root: Path) -> None:
    with Hub(root, token=TOKEN) as hub:
        code, log = host.run(hub_source(hub))
    assert code == HOPELESS
    assert "answers 401 Unauthorized; it may want a token" in log


def test_a_proxy_comes_from_the_environment(host: Host, root: Path) -> None:
    # The hub itself acts as the proxy. It is asked for the full address of a host that does not exist.
    with Hub(root) as proxy:
        host.job["environment"] = {"http_proxy": proxy.url}
        code, log = host.run({**hub_source(proxy), "endpoint": "http://hub.invalid"})
    assert code == 0, log
    assert host.is_complete()


def test_a_socks_proxy_is_refused_in_plain_words(host: Host, hub: Hub) -> None:
    host.job["environment"] = {"http_proxy": "socks5://127.0.0.1:1"}
    code, log = host.run(hub_source(hub))
    assert code == HOPELESS
    assert "SOCKS" in log


def test_too_little_room_is_said_before_anything_is_fetched(host: Host, hub: Hub) -> None:
    host.job["reserve_bytes"] = 1 << 60
    code, log = host.run(hub_source(hub))
    assert code == HOPELESS
    assert "make room, or choose a smaller quant" in log
    assert hub.requests == []


def test_a_full_disk_ends_it_and_what_has_arrived_is_kept(small_disk: Path, hub: Hub) -> None:
    host = Host(small_disk, hub.root / REPO / FOLDER)
    hub.faults.silent_after = ("m-00001", 2 << 20)
    process = host.start(hub_source(hub))
    wait_for(lambda: host.arrived > 1 << 20)
    ballast = disks.fill(small_disk, leave=1 << 19)
    hub.faults.silent_after = None
    _, log = process.communicate(timeout=120)
    assert process.returncode == HOPELESS
    assert "is full: make room" in log.splitlines()[-1]
    ballast.unlink()
    hub.requests.clear()
    assert host.run(hub_source(hub))[0] == 0
    assert hub.requests[0].range
    assert host.is_complete()


def test_a_folder_that_is_gone_is_not_made_on_another_disk(host: Host, hub: Hub) -> None:
    host.folder.rmdir()
    code, log = host.run(hub_source(hub))
    assert code == HOPELESS
    assert "is its disk mounted?" in log
    assert not host.folder.exists()


def test_leftovers_of_another_quant_are_removed(host: Host, hub: Hub) -> None:
    (host.folder / ".incoming").mkdir()
    (host.folder / ".incoming" / ("0" * 64)).write_bytes(b"x")
    assert host.run(hub_source(hub))[0] == 0
    assert host.is_complete()


def answer(status: str, *headers: str, body: bytes = b"") -> bytes:
    """An answer as it goes over the wire. Without a length it ends when the connection does."""
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "Connection: close", "", ""]).encode() + body


PAGE = b"<!DOCTYPE html><html><head><title>Sign in &amp;\n continue</title></head><body>Hello</body></html>"
XML = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>'
FLAWED = {
    "403": (answer("403 Forbidden", "Content-Length: 0"), "answers 403 Forbidden"),
    "404": (answer("404 Not Found", "Content-Length: 0"), "answers 404 Not Found"),
    "204": (answer("204 No Content"), "answers 204 No Content instead of the file"),
    "202": (answer("202 Accepted", "Content-Length: 0"), "answers 202 Accepted instead of the file"),
    "a block page": (
        answer("403 Forbidden", "Content-Type: text/html", body=PAGE),
        'answers 403 Forbidden with a web page with the title "Sign in & continue"',
    ),
    "a page without a length": (
        answer("200 OK", "Content-Type: text/html", body=PAGE),
        "sends a web page with the title",
    ),
    "a page by its bytes": (answer("200 OK", body=b"\n" + PAGE), "sends a web page with the title"),
    "a page with a length": (
        answer("200 OK", "Content-Type: text/html", f"Content-Length: {len(PAGE)}", body=PAGE),
        "a login, a proxy or a filter may stand in between",
    ),
    "a page in chunks": (
        answer("200 OK", "Transfer-Encoding: chunked", body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(PAGE), PAGE)),
        "sends a web page",
    ),
    "JSON": (
        answer("200 OK", body=b'{"error": "rate limited"}'),
        'sends text that begins with "{"error": "rate limited"}" instead of the file',
    ),
    "XML with a refusal": (
        answer("403 Forbidden", "Content-Type: application/xml", f"Content-Length: {len(XML)}", body=XML),
        'answers 403 Forbidden with text that begins with "<Error><Code>AccessDenied</Code></Error>"',
    ),
    "a long text": (
        answer("200 OK", body=b"one\n\ttwo" + b"x" * 999),
        f'sends text that begins with "one two{73 * "x"}" instead of the file',
    ),
    "a page behind comments": (
        answer("200 OK", body=b"<?xml version='1.0'?>\n<!-- a\n > b --><!-- c -->\n" + PAGE),
        'sends a web page with the title "Sign in & continue"',
    ),
    "gzip by its header": (
        answer("200 OK", "Content-Encoding: gzip", f"Content-Length: {SHARD_BYTES}", body=b"\x1f\x8b\x08"),
        "sends something packed (gzip) instead of the file",
    ),
    "gzip by its bytes": (answer("200 OK", body=b"\x1f\x8b\x08" + bytes(600)), "sends a gzip archive"),
    "chunks that end early": (
        answer("200 OK", "Transfer-Encoding: chunked", body=b"3e8\r\n" + bytes(1000) + b"\r\n0\r\n\r\n"),
        "sends other bytes than the",
    ),
    "parts of a message": (
        answer(
            "206 Partial Content", "Content-Type: multipart/byteranges; boundary=x", "Content-Length: 9", body=b"--x--"
        ),
        "answers a request for the rest of a file with something else",
    ),
    "the rest of another file": (
        answer("206 Partial Content", "Content-Range: bytes 1048576-1999999/2000000", "Content-Length: 951424"),
        f"has 2000000 bytes where {SHARD_BYTES} are wanted",
    ),
    "a shorter file": (
        answer("416 Range Not Satisfiable", "Content-Range: bytes */1000", "Content-Length: 0"),
        f"has 1000 bytes where {SHARD_BYTES} are wanted",
    ),
    "an address that is none": (
        answer("302 Found", "Location: http://[", "Content-Length: 0"),
        "redirects to an address",
    ),
    "an address without a server": (
        answer("302 Found", "Location: https:///x", "Content-Length: 0"),
        "redirects to an address that is none: it names no server",
    ),
    "an address with a port that is none": (
        answer("302 Found", "Location: http://127.0.0.1:abc/x", "Content-Length: 0"),
        "redirects to an address that is none: ",
    ),
    "an address of ftp": (
        answer("302 Found", "Location: ftp://127.0.0.1:9/x", "Content-Length: 0"),
        "redirects to a ftp:// address",
    ),
    "an address of this host": (
        answer("302 Found", "Location: file:///etc/hostname", "Content-Length: 0"),
        "redirects to a file:// address",
    ),
}


def stored(host: Host, size: int = 1 << 20) -> Path:
    """The beginning of the first file, as an earlier run left it."""
    first = host.job["files"][0]
    (host.folder / ".incoming").mkdir(exist_ok=True)
    path = host.folder / ".incoming" / first["sha256"]
    path.write_bytes(host.published[first["name"]].read_bytes()[:size])
    return path


@pytest.mark.parametrize("flaw", FLAWED)
def test_what_is_wrong_is_named_passes_and_costs_nothing_that_is_stored(host: Host, hub: Hub, flaw: str) -> None:
    raw, said = FLAWED[flaw]
    part = stored(host)
    hub.faults.answers = [raw]
    code, log = host.run(hub_source(hub))
    assert code == HOPELESS
    assert said in host.state["message"]
    assert part.read_bytes() == host.published["m-00001-of-00003.gguf"].read_bytes()[: 1 << 20]
    # It is gone at the second attempt.
    host.job["patience_s"] = 60
    hub.faults.answers, hub.requests[:] = [raw], []
    code, log = host.run(hub_source(hub))
    assert code == 0, log
    assert said in log
    assert [request.range for request in hub.requests][:2] == [f"bytes={1 << 20}-"] * 2
    assert host.is_complete()


def test_a_page_behind_a_redirect_is_named_with_its_server(host: Host, hub: Hub, root: Path) -> None:
    with Hub(root) as portal:
        hub.faults.answers = [
            answer("302 Found", f"Location: http://localhost:{portal.port}/login", "Content-Length: 0")
        ]
        portal.faults.answers = [answer("200 OK", "Content-Type: text/html; charset=utf-8", body=PAGE)]
        assert host.run(hub_source(hub))[0] == HOPELESS
    assert 'sends a web page with the title "Sign in & continue" from localhost instead' in host.state["message"]


@pytest.mark.parametrize(
    ("places", "said"),
    [
        (["/here"] * 20, "redirects in a circle"),
        (["/here", "/there", "/everywhere"] * 7, "redirects in a circle"),
        ([f"/{number}" for number in range(20)], "redirects more than 10 times"),
    ],
)
def test_redirects_without_end_are_named(host: Host, hub: Hub, places: list[str], said: str) -> None:
    hub.faults.answers = [answer("302 Found", f"Location: {place}", "Content-Length: 0") for place in places]
    assert host.run(hub_source(hub))[0] == HOPELESS
    assert host.state["message"].endswith(f"127.0.0.1:{hub.port} {said}")


def test_a_redirect_to_where_nobody_answers_is_waited_for_and_named(host: Host, hub: Hub, root: Path) -> None:
    with Hub(root) as cdn:
        pass
    hub.cdn = f"http://localhost:{cdn.port}"
    process = host.start(hub_source(hub))
    wait_for(lambda: (host.root / "run/progress.json").exists() and "waiting" in host.progress["label"])
    label = host.progress["label"]
    assert f"127.0.0.1:{hub.port} sends us on to localhost:{cdn.port}, which cannot be reached: Connection" in label
    hub.cdn = ""
    _, log = process.communicate(timeout=120)
    assert process.returncode == 0, log
    assert host.is_complete()


@pytest.mark.parametrize("login", [TOKEN, "ann:p@ss word"])
def test_a_server_that_repeats_the_login_does_not_bring_it_into_the_log(host: Host, hub: Hub, login: str) -> None:
    said = f'{{"refused": "{login}"}}'.encode()
    hub.faults.answers = [answer("403 Forbidden", f"Content-Length: {len(said)}", body=said)]
    if login == TOKEN:
        host.job["token"] = TOKEN
        code, log = host.run(hub_source(hub) | {"login": True})
    else:
        url = hub.url.replace("//", "//ann:p%40ss%20word@")
        code, log = host.run({"type": "http", "url": f"{url}/{REPO}/resolve/main/{FOLDER}"})
    assert code == HOPELESS
    assert 'with text that begins with "{"refused": "***"}"' in log
    assert login not in log + json.dumps(host.state)


def test_a_flipped_bit_at_the_only_source_passes(host: Host, hub: Hub) -> None:
    host.job["patience_s"] = 60
    hub.faults.wrong_bytes = True
    process = host.start(hub_source(hub))
    wait_for(lambda: (host.root / "run/progress.json").exists() and "waiting" in host.progress["label"])
    label, state = host.progress["label"], host.progress["state"]
    hub.faults.wrong_bytes = False
    _, log = process.communicate(timeout=120)
    assert process.returncode == 0, log
    assert state == "running"
    assert "sends wrong bytes" in label
    assert re.search(r"is given up if that is so until \d\d:\d\d:\d\d UTC", label)
    assert host.is_complete()


def test_a_source_that_lies_for_good_ends_it_when_patience_does(host: Host, hub: Hub) -> None:
    host.job["patience_s"] = 5
    hub.faults.wrong_bytes = True
    began = time.monotonic()
    code, log = host.run(hub_source(hub))
    assert code == HOPELESS
    assert 5 <= time.monotonic() - began < 60
    # Whichever file is given up first was asked for again until then. Other files are asked for meanwhile.
    (name,) = re.findall(r"^no source brings (\S+);", log, re.MULTILINE)
    assert log.count(f"{name}: 127.0.0.1:{hub.port} sends wrong bytes") >= 3


@pytest.mark.parametrize(
    ("retry_after", "pause_s"),
    [
        ("4", 4),
        ("²", 0),
        ("٣", 0),
        ("soon", 0),
        ("-5", 0),
        ("Sun, 99 Foo 2026 99:99:99 GMT", 0),
        ("Thu, 01 Jan 2026 00:00:04 GMT", 4),  # by the clock of the server, which says when it is
        ("Wed, 31 Dec 2025 00:00:00 GMT", 0),
    ],
)
def test_a_server_says_when_it_wants_to_be_asked_again(host: Host, hub: Hub, retry_after: str, pause_s: int) -> None:
    headers = ["Date: Thu, 01 Jan 2026 00:00:00 GMT", f"Retry-After: {retry_after}", "Content-Length: 0"]
    hub.faults.answers = [
        answer("429 Too Many Requests", *headers).decode().encode("latin-1" if retry_after == "²" else "utf-8")
    ]
    times: list[float] = []
    process = host.start(hub_source(hub))
    for _ in while_running(process, 0.01):
        if len(hub.requests) > len(times):
            times.append(time.monotonic())
    _, log = process.communicate()
    assert process.returncode == 0, log
    assert "Traceback" not in log
    assert max(pause_s, 2) - 0.3 < times[1] - times[0] < max(pause_s, 2) + 1.6


def test_with_two_sources_each_one_s_wish_is_kept(host: Host, hub: Hub, root: Path) -> None:
    refusal = answer("503 Service Unavailable", "Content-Length: 0")
    with Hub(root) as busy:
        busy.faults.answers = [answer("429 Too Many Requests", "Retry-After: 600", "Content-Length: 0")]
        hub.faults.answers = [refusal]
        code, log = host.run(hub_source(busy), hub_source(hub))
        assert code == 0, log
        assert len(busy.requests) == 1  # for the second and the third file it is not asked either
    assert host.is_complete()


def test_a_mirror_without_ranges_loses_nothing_of_what_is_stored(host: Host, root: Path) -> None:
    content = host.published["m-00001-of-00003.gguf"].read_bytes()
    part = stored(host, 2 << 20)
    whole = answer("200 OK", f"Content-Length: {SHARD_BYTES}", body=content[: 1 << 20])
    with Hub(root) as mirror:
        mirror.faults.answers = [whole]  # It breaks off before it gets to anything new.
        process = host.start(hub_source(mirror))
        wait_for(lambda: mirror.requests and not mirror.faults.answers)
        least = SHARD_BYTES
        for _ in while_running(process, 0.01):
            with contextlib.suppress(FileNotFoundError):
                least = min(least, part.stat().st_size)
    assert process.returncode == 0
    assert least >= 2 << 20
    assert host.is_complete()


def test_wrong_bytes_that_are_stored_are_replaced_by_a_mirror_without_ranges(host: Host, hub: Hub) -> None:
    part = stored(host, 2 << 20)
    with part.open("r+b") as stream:
        stream.seek(1 << 20)
        stream.write(b"rot")
    content = host.published["m-00001-of-00003.gguf"].read_bytes()
    hub.faults.answers = [answer("200 OK", f"Content-Length: {SHARD_BYTES}", body=content)]
    code, log = host.run(hub_source(hub))
    assert code == 0, log
    assert len(hub.requests) == 3
    assert host.is_complete()


def test_what_changes_on_the_disk_is_noticed_though_the_right_bytes_came_in(host: Host, hub: Hub) -> None:
    hub.faults.silent_after = ("m-00001", 2 << 20)
    process = host.start(hub_source(hub))
    part = host.folder / ".incoming" / host.job["files"][0]["sha256"]
    wait_for(lambda: part.exists() and part.stat().st_size == 2 << 20)
    with part.open("r+b") as stream:
        stream.write(b"rot")
    hub.faults.silent_after = None
    host.job["patience_s"] = 60
    process.communicate(timeout=120)
    host.run(hub_source(hub))
    assert host.is_complete()


def test_strangers_among_what_comes_in_end_nothing(host: Host, hub: Hub, tmp_path: Path) -> None:
    incoming, wanted = host.folder / ".incoming", [file["sha256"] for file in host.job["files"]]
    (incoming / "folder" / "below").mkdir(parents=True)
    (incoming / "folder" / "below" / "file").write_text("x")
    (incoming / wanted[0]).mkdir()
    (tmp_path / "elsewhere").write_text("not ours")
    (incoming / wanted[1]).symlink_to(tmp_path / "elsewhere")
    (incoming / "link").symlink_to(tmp_path / "nowhere")
    os.mkfifo(incoming / wanted[2])
    os.mkfifo(incoming / "lock")
    with socket.socket(socket.AF_UNIX) as stranger:
        here = Path.cwd()
        os.chdir(incoming)
        try:
            stranger.bind("socket")
        finally:
            os.chdir(here)
        code, log = host.run(hub_source(hub))
    assert code == 0, log
    assert host.is_complete()
    assert (tmp_path / "elsewhere").read_text() == "not ours"


def test_a_link_in_place_of_the_folder_for_what_comes_in_costs_nothing_where_it_leads(
    host: Host, hub: Hub, small_disk: Path
) -> None:
    (small_disk / "precious").write_text("not ours")
    (host.folder / ".incoming").symlink_to(small_disk)
    code, log = host.run(hub_source(hub))
    assert code == 0, log
    assert host.is_complete()
    assert not (host.folder / ".incoming").is_symlink()
    assert [path.name for path in small_disk.iterdir()] == ["precious"]


def test_another_disk_in_place_of_that_folder_is_named_before_anything_is_fetched(host: Host, hub: Hub) -> None:
    with disks.mounted(host.folder / ".incoming", 1 << 20) as other:
        code, log = host.run(hub_source(hub))
        assert code == HOPELESS
        assert f"{other} is another disk" in log
        assert hub.requests == []


@pytest.mark.parametrize("taken", ["run/progress.json", "state/state.json"])
def test_a_folder_in_place_of_what_a_run_writes_is_named_with_what_to_do(host: Host, hub: Hub, taken: str) -> None:
    (host.root / taken / "below").mkdir(parents=True)
    code, log = host.run(hub_source(hub))
    said = f"{host.root / taken}: it is a folder, and should be a file. Move the folder away"
    assert code == HOPELESS
    assert log.splitlines()[-1] == said
    assert "Traceback" not in log
    other = host.state if taken.startswith("run") else {"message": host.progress["label"]}
    assert other["message"] == said
    assert not list((host.root / taken).parent.glob(".*"))
    shutil.rmtree(host.root / taken)
    assert host.run(hub_source(hub))[0] == 0
    assert host.is_complete()


def test_a_folder_with_the_name_of_a_file_is_named_before_anything_is_fetched(host: Host, hub: Hub) -> None:
    (host.folder / "m-00002-of-00003.gguf").mkdir()
    code, log = host.run(hub_source(hub))
    assert code == HOPELESS
    assert "m-00002-of-00003.gguf is a folder" in log
    assert hub.requests == []


def test_a_file_of_somebody_else_s_is_not_added_to(host: Host, hub: Hub, tmp_path: Path) -> None:
    part = stored(host)
    (tmp_path / "theirs").hardlink_to(part)
    assert host.run(hub_source(hub))[0] == 0
    assert (tmp_path / "theirs").stat().st_size == 1 << 20
    assert host.is_complete()


def test_a_file_that_was_being_checked_at_a_kill_is_not_fetched_again(host: Host, hub: Hub) -> None:
    part = stored(host, SHARD_BYTES)
    part.rename(part.with_name(f"{part.name}.gpu1.example.com.123"))
    assert host.run(hub_source(hub))[0] == 0
    assert not [request for request in hub.requests if "m-00001" in request.path]
    assert host.is_complete()


def test_who_waits_for_the_folder_says_for_whom_and_then_looks_again(host: Host, hub: Hub) -> None:
    hub.faults.silent_after = ("m-00002", 1 << 20)
    first = host.start(hub_source(hub))
    wait_for(lambda: host.arrived >= SHARD_BYTES + (1 << 20))
    # By hand there is no invocation. It is the unit's outcome that others wait for.
    second = host.start(hub_source(hub), run="by-hand", INVOCATION_ID="")
    progress = host.root / "by-hand" / "progress.json"
    wait_for(progress.exists)
    label = json.loads(progress.read_text())["label"]
    assert label == f"waiting: process {first.pid} on {os.uname().nodename} fetches into {host.folder}"
    hub.faults.silent_after = None
    assert first.wait(timeout=120) == 0
    asked = len(hub.requests)
    assert second.wait(timeout=120) == 0
    assert len(hub.requests) == asked
    assert (host.state["state"], host.state["invocation"]) == ("done", "42")
    assert host.is_complete()


@pytest.mark.parametrize("locks", [True, False])
def test_two_fetchers_on_one_folder_make_no_wrong_file(tmp_path: Path, root: Path, locks: bool) -> None:
    """At a dozen distances in time. Without locks the disk says that it has none, as NFS does without its lock daemon."""
    shim = tmp_path / "shim"
    shim.mkdir()
    if not locks:
        lines = [
            "import errno, fcntl",
            "def lockf(*_):",
            "    raise OSError(errno.ENOLCK, 'No locks available')",
            "fcntl.lockf = lockf",
        ]
        (shim / "sitecustomize.py").write_text("\n".join(lines))
    chance, pairs = random.Random(14), []
    with Hub(root, faults=Faults(rate_bytes_s=6 << 20)) as hub:
        for number in range(6):
            host = Host(tmp_path / f"host{number}", root / REPO / FOLDER)
            (host.root / "other").mkdir()
            first = host.start(hub_source(hub), PYTHONPATH=str(shim))
            time.sleep(chance.uniform(0, 0.6))
            second = host.start(
                hub_source(hub), run="other", PYTHONPATH=str(shim), STATE_DIRECTORY=str(host.root / "other")
            )
            pairs.append((host, first, second))
        pairs[0][1].kill()  # The other goes on with what the killed one left.
        running, logs = [process for _, *both in pairs for process in both], []
        for process in running:
            for _ in while_running(process, 0.2):
                for path in (path for host, *_ in pairs for path in host.folder.glob("*.gguf")):
                    assert path.stat().st_size == SHARD_BYTES
                    assert sha256(path) == sha256(host.published[path.name])
        logs = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running][1:] == [0] * 11, logs
    # A killed one may leave the file that it was checking, which the next run removes.
    with Hub(root) as hub:
        assert pairs[0][0].start(hub_source(hub)).wait(timeout=60) == 0
    assert [sorted(host.folder.rglob("*")) for host, *_ in pairs if not host.is_complete()] == []
    assert any("writes to" in log for log in logs) is not locks
    assert any("has no locks" in log for log in logs) is not locks


def test_a_run_of_root_by_hand_leaves_nothing_that_the_unit_could_not_change(root: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder to another user")
    nobody = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory() as name, Hub(root) as hub:
        Path(name).chmod(0o755)
        host = Host(Path(name) / "host", root / REPO / FOLDER)
        for path in (host.root, *host.root.rglob("*")):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
        hub.faults.silent_after = ("m-00002", 1 << 20)
        process = host.start(hub_source(hub), python="/usr/bin/python3")
        wait_for(lambda: host.arrived >= SHARD_BYTES + (1 << 20))
        process.kill()
        made = [*host.folder.rglob("*"), *(host.root / "state").iterdir()]
        assert {path.stat().st_uid for path in made} == {nobody.pw_uid}
        assert (host.folder / ".incoming" / "lock").stat().st_mode & 0o777 == 0o600


def test_what_a_proxy_does_not_let_through_is_not_waited_for_without_end(host: Host) -> None:
    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            self.send_error(403)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        host.job["environment"] = {"https_proxy": f"http://127.0.0.1:{proxy.server_port}"}
        assert host.run({"type": "http", "url": "https://hub.invalid"})[0] == HOPELESS
        proxy.shutdown()
    assert "is not let through by the proxy: Tunnel connection failed: 403 Forbidden" in host.state["message"]
