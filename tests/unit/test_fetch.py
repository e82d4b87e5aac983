"""Tests that run roles/weights/files/fetch.py against the hub of tests.fixtures.hub on the loopback address."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import disks
import evaluated
import gguf
import pytest
import yaml
from ansible_collections.r1.prov.plugins.module_utils import merged_weights
from ansible_collections.r1.prov.plugins.module_utils.weights_merge import Merge

from r1prov.common import paths
from tests.fixtures import shards, tinymodel
from tests.fixtures.hub import Faults, Hub

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = Path(__file__).parents[2] / "roles/weights/files/fetch.py"
REPO, FOLDER = "me/model", "Q"
SHARD_BYTES = 3 << 20
TOKEN = "hf_secret"
HOPELESS = 3


class Host:
    """The folders and the job that the unit gives to the program."""

    def __init__(self, root: Path, published: Path) -> None:
        self.root = root
        self.folder = root / "models" / "m"
        self.folder.mkdir(parents=True)
        for name in ("state", "run"):
            (root / name).mkdir()
        self.published = {path.name: path for path in sorted(published.iterdir())}
        self.job: dict[str, Any] = {
            "folder": str(self.folder),
            "files": [
                {"name": name, "bytes": path.stat().st_size, "sha256": sha256(path)}
                for name, path in self.published.items()
            ],
            "merged": "",
            "attention": "legacy",
            "sources": [],
            "token": "",
            "environment": {},
            "reserve_bytes": 0,
        }

    def start(self, *sources: dict[str, str]) -> subprocess.Popen[str]:
        self.job["sources"] = list(sources)
        (self.root / "job.json").write_text(json.dumps(self.job))
        environment = {
            "PATH": os.environ["PATH"],
            "STATE_DIRECTORY": str(self.root / "state"),
            "RUNTIME_DIRECTORY": str(self.root / "run"),
            "INVOCATION_ID": "42",
        }
        command = [sys.executable, str(PROGRAM), str(self.root / "job.json")]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def run(self, *sources: dict[str, str]) -> tuple[int, str]:
        process = self.start(*sources)
        _, log = process.communicate(timeout=300)
        return process.returncode, log

    @property
    def progress(self) -> dict[str, Any]:
        return json.loads((self.root / "run" / "progress.json").read_text())

    @property
    def state(self) -> dict[str, Any]:
        return json.loads((self.root / "state" / "state.json").read_text())

    @property
    def arrived(self) -> int:
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def is_complete(self) -> bool:
        names = {path.name for path in self.folder.iterdir()} - {".incoming"}
        whole = all((self.folder / name).read_bytes() == path.read_bytes() for name, path in self.published.items())
        return whole and names == set(self.published) and not list((self.folder / ".incoming").iterdir())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def flip(file: Path) -> None:
    """Changes a bit of a file, and its time, by which the change is noticed."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    with file.open("r+b") as stream:
        stream.write(content)


def hub_source(hub: Hub, kind: str = "hub") -> dict[str, str]:
    return {"type": kind, "endpoint": hub.url, "repo": REPO, "revision": "main", "folder": FOLDER}


def wait_for(condition: Any, limit_s: float = 120) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


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
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with disks.mounted(tmp_path / "small", 40 << 20) as place:
        yield place


@pytest.fixture
def hub(root: Path) -> Iterator[Hub]:
    with Hub(root) as running:
        yield running


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


def test_what_was_merged_as_published_is_enough_for_mla_form_and_not_the_other_way(host: Host, hub: Hub) -> None:
    host.job |= {"merged": "m.mla.gguf", "attention": "mla"}
    published = merged(host)
    assert host.run(hub_source(hub)) == (0, "")
    assert hub.requests == []
    brought = merged(host, b"new" * SHARD_BYTES, "m.mla.gguf", "mla")
    published.unlink()
    assert host.run(hub_source(hub)) == (0, "")
    assert hub.requests == []
    host.job |= {"merged": "m.gguf", "attention": "legacy"}
    assert host.run(hub_source(hub))[0] == 0
    assert hub.requests
    assert brought.exists()


@pytest.mark.parametrize("harm", ["damaged", "truncated", "lost", "not wanted", "of other shards"])
def test_shards_are_fetched_anew_where_the_merged_file_is_not_theirs(host: Host, hub: Hub, harm: str) -> None:
    file = merged(host)
    host.job["merged"] = "" if harm == "not wanted" else "m.gguf"
    if harm == "damaged":
        file.write_bytes(b"two" * SHARD_BYTES)
    elif harm == "truncated":
        file.write_bytes(b"one")
    elif harm == "lost":
        file.unlink()
    elif harm == "of other shards":
        record = json.loads((host.folder / "m.gguf.json").read_text())
        (host.folder / "m.gguf.json").write_text(json.dumps(record | {"shards": record["shards"][:2]}))
    assert host.run(hub_source(hub))[0] == 0
    assert all((host.folder / name).read_bytes() == path.read_bytes() for name, path in host.published.items())
    assert file.exists() is (harm != "lost")  # a bad file stays until the shards are merged anew
    assert host.progress["total"] == 3 * SHARD_BYTES


@pytest.mark.parametrize("network", ["silent", "refusing"])
@pytest.mark.parametrize("served", ["merged", "published"])
def test_a_damaged_file_is_served_until_its_replacement_is_whole(
    host: Host, root: Path, tmp_path: Path, served: str, network: str
) -> None:
    if served == "merged":
        host.job["merged"] = "m.gguf"
        file = merged(host)
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
    assert all((host.folder / name).read_bytes() == path.read_bytes() for name, path in host.published.items())
    assert host.state["damaged"] == [file.name]
    assert (file.read_bytes() == before) is (served == "merged")  # the merge comes after the transfer


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


def test_a_damaged_merged_file_is_mended_on_the_least_disk_that_is_asked_for(
    small_disk: Path, root: Path, hub: Hub
) -> None:
    """The disk has room for the published files and the file that is made of them, and no more."""
    published = root / REPO / FOLDER
    shutil.rmtree(published)
    whole = tinymodel.write(root / "tiny.gguf", legacy=gguf.GGMLQuantizationType.Q8_0)
    published.mkdir()
    shards.split(whole, published / "m", 60)
    host = Host(small_disk, published)
    host.job |= {"merged": "m.mla.gguf", "attention": "mla"}
    state, run = host.root / "state" / "state.json", host.root / "run"
    work = Merge(host.folder, host.job["files"], name="m.mla.gguf", attention="mla", state=state, run=run)

    def settle() -> None:
        merged_weights.remove(merged_weights.replaced(host.folder, "m.mla.gguf", host.job["files"], state), state)

    assert host.run(hub_source(hub))[0] == 0
    made = work.complete()
    settle()
    disks.fill(small_disk, leave=sum(file["bytes"] for file in host.job["files"]) + (256 << 10))
    flip(work.file)
    inode, bad = work.file.stat().st_ino, work.file.read_bytes()

    with Hub(root.parent / "host") as empty:
        assert host.run(hub_source(empty))[0] == HOPELESS
    assert work.file.read_bytes() == bad
    assert host.run(hub_source(hub))[0] == 0
    assert work.file.read_bytes() == bad
    assert work.complete() == made
    assert (sha256(work.file), work.file.stat().st_ino) == (made["sha256"], inode)
    settle()
    assert host.run() == (0, "")


def test_a_kill_in_the_middle_costs_nothing(host: Host, hub: Hub) -> None:
    hub.faults.silent_after = ("m-00002", 2 << 20)
    process = host.start(hub_source(hub))
    wait_for(lambda: host.arrived > SHARD_BYTES + (1 << 20))
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = host.arrived
    assert not (host.folder / "m-00002-of-00003.gguf").exists()

    hub.faults.silent_after = None
    hub.requests.clear()
    assert host.run(hub_source(hub))[0] == 0
    assert host.is_complete()
    assert hub.requests[0].path.endswith("m-00002-of-00003.gguf")
    assert hub.requests[0].range == f"bytes={before - SHARD_BYTES}-"


def test_a_connection_that_breaks_off_is_resumed(host: Host, hub: Hub) -> None:
    hub.faults.drop_after_bytes = 2 << 20
    assert host.run(hub_source(hub))[0] == 0
    assert host.is_complete()
    assert [request.range for request in hub.requests] == ["", f"bytes={2 << 20}-"] * 3


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
    assert host.arrived == 0


def test_a_good_source_is_not_blamed_for_what_a_bad_one_began(host: Host, hub: Hub, root: Path) -> None:
    with Hub(root, faults=Faults(wrong_bytes=True, silent_after=("m-00001", 2 << 20))) as liar:
        process = host.start(hub_source(liar))
        wait_for(lambda: host.arrived > 1 << 20)
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
