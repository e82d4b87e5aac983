"""Tests of reading headers from the sources of weights without the data: a small hub, a web server without ranges, a folder."""

import hashlib
import json
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import pytest

from r1prov import inventory
from r1prov.cli import main
from r1prov.common.errors import Exit, Problem, SiteError
from r1prov.common.network import Network
from r1prov.decision import decide
from r1prov.machines import profile as machine
from r1prov.models import gguf, headers
from r1prov.models.catalogue import Quant, ShardFile
from r1prov.models.sources import Hub as HubSource
from r1prov.models.sources import Mirror, ModelScope
from r1prov.site import Site, authority
from r1prov.site.select import select
from r1prov.site.sources import Proxy, Sources
from tests.cuda import fullsize
from tests.fixtures import shards, tinymodel
from tests.fixtures.hub import Faults, Hub

FOLDER = "me/model-GGUF/mine"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "r1prov" / "headers"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a hub with the shards of a tiny model."""
    root = tmp_path_factory.mktemp("hub")
    whole = tinymodel.write(root / "whole.gguf")
    folder = root / FOLDER
    folder.mkdir(parents=True)
    shards.split(whole, folder / "mine", 40)
    return root


@pytest.fixture(scope="module")
def quant(root: Path) -> Quant:
    return published(root / FOLDER)


def published(folder: Path) -> Quant:
    files = tuple(
        ShardFile(name=f.name, bytes=f.stat().st_size, sha256=hashlib.sha256(f.read_bytes()).hexdigest())
        for f in sorted(folder.glob("*.gguf"))
    )
    return Quant(name="mine", repo="me/model-GGUF", folder="mine", files=files)


@pytest.fixture
def hub(root: Path) -> Iterator[Hub]:
    with Hub(root) as running:
        yield running


def from_hub(hub: Hub, **more: object) -> Sources:
    return Sources(weights=(HubSource(type="hub", endpoint=hub.url, **more),))


def fetched(quant: Quant, sources: Sources) -> tuple[list[str], object]:
    said: list[str] = []
    return said, headers.fetch(quant, sources.weights, sources.network(), said.append)


def test_the_headers_of_a_set_are_one_model_and_asked_for_once(hub: Hub, root: Path, quant: Quant, cache: Path) -> None:
    said, found = fetched(quant, from_hub(hub))
    assert found.tensors == gguf.read(root / "whole.gguf").tensors  # type: ignore[attr-defined]
    assert said == [f"reading the header of mine from {hub.url}/me/model-GGUF/resolve/main/mine"]
    assert {file.name for file in cache.iterdir()} == {file.sha256 for file in quant.files}
    assert sum(file.stat().st_size for file in cache.iterdir()) < quant.bytes / 100
    asked = len(hub.requests)
    assert fetched(quant, from_hub(hub)) == ([], found)
    assert len(hub.requests) == asked


def test_a_header_of_megabytes_before_a_hole_of_140_gb(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / FOLDER
    folder.mkdir(parents=True)
    file = fullsize.write(folder / "r1.gguf", "UD-IQ1_S", mla=True)
    quant = Quant(
        name="mine",
        repo="me/model-GGUF",
        folder="mine",
        files=(ShardFile(name="r1.gguf", bytes=file.stat().st_size, sha256="0" * 64),),
    )
    folder_source = headers.weight_sources(str(folder))
    assert headers.fetch(quant, folder_source, Network(), lambda _: None).n_bytes == pytest.approx(
        file.stat().st_size, rel=1e-4
    )
    with WebServer(folder) as server:
        found = headers.at(f"{server.url}/r1.gguf", lambda _: None)
    assert found.tensors == gguf.read(file).tensors
    assert sum(server.sent) < 40 * 10**6


def test_a_hub_that_breaks_off_all_the_time_gets_there(hub: Hub, quant: Quant) -> None:
    hub.faults = Faults(drop_after_bytes=4000)
    assert fetched(quant, from_hub(hub))[1]
    assert max(int(request.range.removeprefix("bytes=").split("-")[0]) for request in hub.requests) >= 4000


def test_the_token_is_shown_to_the_hub_and_not_where_it_sends_on_to(root: Path, quant: Quant, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("open-sesame\n")
    with Hub(root) as store, Hub(root, token="open-sesame", cdn=store.url) as hub:
        with pytest.raises(SiteError, match="answers 401"):
            fetched(quant, from_hub(hub))
        assert fetched(quant, from_hub(hub, token_file=str(tmp_path / "token")))[1]
    assert {request.token for request in hub.requests} == {"", "open-sesame"}
    assert {request.token for request in store.requests} == {""}


def test_a_login_in_an_address_is_shown_to_that_server_alone_and_never_told(root: Path, quant: Quant) -> None:
    with Hub(root) as store, Hub(root, token="ann:p@ss", cdn=store.url) as hub:
        source = HubSource(type="hub", endpoint=hub.url.replace("//", "//ann:p%40ss@"))
        said, found = fetched(quant, Sources(weights=(source,)))
        assert found
        lost = quant.model_copy(update={"folder": "lost", "files": quant.files[:1]})
        with pytest.raises(SiteError, match="answers 404") as refused:
            headers._fetch(
                lost,
                (source.model_copy(update={"endpoint": hub.url.replace("//", "//ann:p@ss@")}),),
                Network(),
                said.append,
            )
    assert {request.token for request in hub.requests} == {"ann:p@ss"}
    assert {request.token for request in store.requests} == {""}
    assert "ss@" not in f"{said}{refused.value}{refused.value.problems}"


def test_the_token_is_shown_again_where_a_hub_redirects_within_itself(quant: Quant, root: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("open-sesame\n")
    (tmp_path / "hub" / "me" / "model-GGUF" / "resolve").mkdir(parents=True)
    (tmp_path / "hub" / "me" / "model-GGUF" / "resolve" / "main").symlink_to((root / FOLDER).parent)
    with WebServer(tmp_path / "hub", moved=True) as server:
        source = HubSource(type="hub", endpoint=server.url, token_file=str(tmp_path / "token"))
        assert headers.fetch(quant, (source,), Network(), lambda _: None).layers == 8
    assert any(path.startswith("/moved/me/") for path in server.asked)
    assert server.shown == {"Bearer open-sesame"}


def test_the_next_source_is_asked_where_one_refuses(hub: Hub, quant: Quant) -> None:
    sources = Sources(
        weights=(
            HubSource(type="hub", endpoint="http://127.0.0.1:9"),
            Mirror(type="http", url=f"{hub.url}/nothing/here"),
            ModelScope(type="modelscope", endpoint=hub.url),
        )
    )
    said, found = fetched(quant, sources)
    assert found
    assert said[-1].endswith(f"{hub.url}/models/me/model-GGUF/resolve/master/mine")
    assert len(said) == 4  # a mirror may hold the quant's folder or the files themselves


def test_all_refusals_are_told(hub: Hub, quant: Quant, cache: Path) -> None:
    hub.faults = Faults(wrong_bytes=True)
    other = quant.files[0].model_copy(update={"bytes": 10**12, "sha256": "1" * 64})
    sources = Sources(
        weights=(HubSource(type="hub", endpoint=hub.url), HubSource(type="hub", endpoint="http://u:pw@127.0.0.1:9"))
    )
    with pytest.raises(SiteError, match=r"it is no GGUF file.*it cannot be read") as refused:
        fetched(quant, sources)
    assert "pw" not in str(refused.value)
    hub.faults = Faults()
    with pytest.raises(SiteError, match=r"is another, of .* bytes, not 1,000,000,000,000"):
        fetched(quant.model_copy(update={"files": (other, *quant.files[1:])}), from_hub(hub))
    with pytest.raises(
        SiteError, match=r"file 1 of 3 of the set belongs to another set: its header says `split.count` 4"
    ):
        fetched(quant.model_copy(update={"files": quant.files[:-1]}), from_hub(hub))
    assert not cache.exists()


def test_the_sites_proxy_is_asked_unless_it_is_not_for_this_host(hub: Hub, quant: Quant) -> None:
    through = from_hub(hub).model_copy(update={"proxy": Proxy(http="http://127.0.0.1:9")})
    with pytest.raises(SiteError, match="Connection refused"):
        fetched(quant, through)
    past = through.model_copy(update={"proxy": Proxy(http="http://127.0.0.1:9", none_for="127.0.0.1")})
    assert fetched(quant, past)[1]


def test_the_sites_authorities_are_trusted_and_no_others(root: Path, quant: Quant, tmp_path: Path) -> None:
    authority.see_to(tmp_path / "tls", "127.0.0.1", datetime.now(UTC))
    trusted = (str(tmp_path / "tls" / authority.AUTHORITY),)
    with WebServer(root / FOLDER) as server:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(tmp_path / "tls" / authority.SERVER, tmp_path / "tls" / authority.SERVER_KEY)
        server.server.socket = context.wrap_socket(server.server.socket, server_side=True)
        mirror = Mirror(type="http", url=server.url.replace("http:", "https:"))
        with pytest.raises(SiteError, match="CERTIFICATE_VERIFY_FAILED"):
            fetched(quant, Sources(weights=(mirror,)))
        assert fetched(quant, Sources(weights=(mirror,), ca_certificates=trusted))[1]


def test_a_url_of_a_shard_is_the_whole_set(hub: Hub, quant: Quant) -> None:
    url = f"{hub.url}/me/model-GGUF/resolve/main/mine/{quant.files[1].name}"
    assert headers.at(url, lambda _: None).layers == 8
    with pytest.raises(SiteError, match="answers 404"):
        headers.at(f"{hub.url}/me/model-GGUF/resolve/main/mine/other.gguf", lambda _: None)


def test_a_urls_query_goes_with_each_shard_and_its_fragment_nowhere(root: Path, quant: Quant) -> None:
    said: list[str] = []
    with WebServer(root / FOLDER) as server:
        found = headers.at(f"{server.url}/{quant.files[0].name}?download=true#top", said.append)
    assert found.name == quant.files[0].name
    assert server.asked == [f"/{file.name}?download=true" for file in quant.files]
    assert said == [f"reading the header of {quant.files[0].name} from {server.url}"]


def refused_at(url: str) -> Problem:
    with pytest.raises(SiteError) as refused:
        headers.at(url, lambda _: None)
    (problem,) = refused.value.problems
    return problem


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (404, "check the address"),
        (401, "it wants a login: fetch the file and name it here"),
        (403, "it wants a login: fetch the file and name it here"),
        (503, "try again later"),
    ],
)
def test_what_to_do_follows_the_answer(root: Path, status: int, remedy: str) -> None:
    with WebServer(root, refuse=status) as server:
        problem = refused_at(f"{server.url}/whole.gguf")
    assert f"it answers {status} " in problem.what
    assert problem.remedy.startswith(remedy)


@pytest.mark.parametrize(
    ("content", "what", "remedy"),
    [
        (b"<!doctype html>", "it is no GGUF file", "perhaps a page about the file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS", "/resolve/ where this has /raw/"),
        (b"GGUF\3\0\0\0", "its header is cut short", "has only a part of the file"),
        (b"GGUF\1\0\0\0", "its GGUF version is 1", "take a file of version 3"),
    ],
)
def test_what_to_do_follows_the_content(tmp_path: Path, content: bytes, what: str, remedy: str) -> None:
    (tmp_path / "it.gguf").write_bytes(content)
    with WebServer(tmp_path) as server:
        problem = refused_at(f"{server.url}/it.gguf")
    assert what in problem.what
    assert remedy in problem.remedy


def test_a_server_that_is_not_there_may_be_later() -> None:
    problem = refused_at("http://127.0.0.1:9/it.gguf")
    assert problem.what == "it cannot be read: Connection refused"
    assert problem.remedy.startswith("try again")


def test_half_a_file_is_cut_short_although_its_header_is_whole(hub: Hub, root: Path, quant: Quant) -> None:
    content = (root / "whole.gguf").read_bytes()
    half = root / FOLDER / "half.gguf"
    half.write_bytes(content[: len(content) // 2])
    try:
        with WebServer(half.parent) as server:  # one sends the size with a range, the other with the whole file
            for url in (f"{hub.url}/me/model-GGUF/resolve/main/mine/half.gguf", f"{server.url}/half.gguf"):
                problem = refused_at(url)
                assert problem.what == f"it is cut short: {len(content) // 2:,} bytes of {len(content):,}"
                assert problem.remedy == "the server has only a part of the file: name one that has all of it"
    finally:
        half.unlink()


def test_the_shard_that_a_server_lacks_is_named(root: Path, tmp_path: Path, quant: Quant) -> None:
    first, second, *_ = (file.name for file in quant.files)
    (tmp_path / first).symlink_to(root / FOLDER / first)
    with WebServer(tmp_path) as server:
        assert refused_at(f"{server.url}/{first}").where == f"{server.url}/{second}"


def own_profile(folder: Path, quant: Quant) -> Path:
    """Writes a profile of a 4x4090 that serves `quant`, and returns its path."""
    chosen = machine.load_profile("4x4090")
    serving = chosen.serving.model_copy(update={"quant": "mine", "kv_type_k": "f16"})
    path = folder / "own.yml"
    path.write_text(machine.as_yaml(chosen.model_copy(update={"serving": serving, "model": quant})))
    return path


def without_cards(folder: Path, quant: Quant) -> Path:
    """A profile of a server without cards that serves these files, and names no context."""
    chosen = machine.load_profile("demo")
    named = {**chosen.serving.model_dump(exclude_unset=True), "quant": "mine"}
    del named["context_per_slot"]
    serving = type(chosen.serving).model_validate(named)
    path = folder / "own.yml"
    path.write_text(machine.as_yaml(chosen.model_copy(update={"serving": serving, "model": quant})))
    return path


def site_of(profile: Path, hub: Hub) -> Site:
    """The site of one host of a profile, whose file lies beside that, and whose files come from a hub."""
    source = {"type": "hub", "endpoint": hub.url}
    file = profile.with_name("r1prov.yml")
    file.write_text(json.dumps({"profile": str(profile), "hosts": ["one"], "sources": {"weights": [source]}}))
    return select(file, ())[0]


def test_a_site_with_a_model_of_its_own_is_planned_by_its_header(
    hub: Hub, quant: Quant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    chosen = site_of(own_profile(tmp_path, quant), hub)
    with pytest.raises(SiteError, match="its layers are not known"):
        decide(chosen)
    decision = decide(chosen, lambda _: None)
    plan = decision.plan
    assert plan.whole
    assert plan.outcome
    assert plan.outcome.fits
    assert "n-gpu-layers" in inventory.rendered(decision)["group_vars/all.yml"]


def test_a_model_of_its_own_without_cards_is_served_as_plan_says(
    hub: Hub, quant: Quant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody names the context. The engine would not start with more tokens than the model was trained for."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    chosen = site_of(without_cards(tmp_path, quant), hub)
    decision = decide(chosen, lambda _: None)
    assert decision.model
    assert decision.plan.context_per_slot == min(decision.model.context_length, machine.DEFAULT_CONTEXT)
    assert decision.plan.outcome
    assert decision.plan.outcome.fits


def test_a_profile_with_a_model_of_its_own_is_planned_from_where_one_says(
    hub: Hub, quant: Quant, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("plan", "--profile", str(own_profile(tmp_path, quant)), "--json", "--source")
    for source in (str(root / FOLDER), hub.url):
        with pytest.raises(SystemExit) as ended:
            main((*words, source))
        out, _ = capsys.readouterr()
        assert not ended.value.code
        assert json.loads(out)["fits"]


class WebServer:
    """A plain web server of a folder that counts the bytes it sends. It is Python's own server, which does not support ranges.

    With `refuse` it answers every request with that status. With `moved` it redirects every request to a path below /moved/.
    """

    def __init__(self, folder: Path, refuse: int | None = None, *, moved: bool = False) -> None:
        sent = self.sent = []
        asked = self.asked = []
        shown = self.shown = set()

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *words: object) -> None:
                super().__init__(*words, directory=str(folder))

            def translate_path(self, path: str) -> str:
                return super().translate_path(path.removeprefix("/moved"))

            def do_GET(self) -> None:
                asked.append(self.path)
                shown.add(self.headers.get("Authorization"))
                if refuse:
                    self.send_error(refuse)
                elif moved and not self.path.startswith("/moved/"):
                    self.send_response(307)
                    self.send_header("Location", f"/moved{self.path}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                else:
                    super().do_GET()

            def copyfile(self, source, outputfile) -> None:
                try:
                    while block := source.read(1 << 16):
                        outputfile.write(block)
                        sent.append(len(block))
                except OSError:  # the client has closed the connection
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_no_public_hub_is_asked_for_the_model_of_the_demo(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headers, "Remote", None)  # asking would be a defect
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--profile", "demo"])
    told = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == Exit.SITE
    assert "no public hub has it. It is the model of the demo" in told
    assert "`make demo`" in told
    assert "`--source` of `r1prov plan`" in told
