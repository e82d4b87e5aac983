"""Tests of the role `ollama`: its Modelfile, and the registration of a model with a server that stands in for Ollama."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import pytest
from ansible_collections.r1.prov.plugins.module_utils.http_api import ApiError
from ansible_collections.r1.prov.plugins.modules import ollama_model
from ansible_collections.r1.prov.plugins.modules.ollama_model import Model, ModelError

from tests.fixtures import tinymodel

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "ollama"
TEMPLATE = "<｜User｜>{{ .System }} {{ .Prompt }}<｜Assistant｜>"  # noqa: RUF001 - the tokens of R1
R1 = {
    "ollama_model_file": "/srv/r1prov/models/DeepSeek-R1-UD-IQ1_S/DeepSeek-R1-UD-IQ1_S.gguf",
    "ollama_template": TEMPLATE,
}
SERVED = {
    "published-template": R1
    | {"__ollama_parameters": {"num_gpu": 35, "num_ctx": 8192, "num_batch": 256, "temperature": 0.6}},
    "own-template": R1
    | {
        "__ollama_parameters": {"num_gpu": -1, "num_ctx": 2048, "num_batch": 512, "temperature": 0.6},
        "ollama_template": "",
    },
}


def rendered(values: dict[str, Any]) -> str:
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return environment.from_string((ROOT / "roles/ollama/templates/Modelfile.j2").read_text()).render(values)


@pytest.mark.parametrize("name", SERVED)
def test_the_modelfile_is_the_golden_one(name: str) -> None:
    values = SERVED[name]
    text = rendered(values)
    assert text == (GOLDEN / f"{name}.Modelfile").read_text(encoding="utf-8")


class Stand(ThreadingHTTPServer):
    """A server that answers the module's requests as Ollama does, and creates the requested model below `models`."""

    def __init__(self, models: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models = models
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.running = True


class _Handler(BaseHTTPRequestHandler):
    server: Stand

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.command, self.path, body))
        found, models = 200, self.server.models
        if self.path == "/api/create":
            (digest,) = body["files"].values()
            blob = models / "blobs" / digest.replace(":", "-")
            found = 200 if blob.exists() and self.server.running else 500
            config = models / "blobs" / f"sha256-{'c' * 64}"
            config.write_text("{}")
            layers = [{"digest": digest, "size": blob.stat().st_size if blob.exists() else 0}]
            manifest = models / "manifests/registry.ollama.ai/library" / body["model"] / "latest"
            manifest.parent.mkdir(parents=True, exist_ok=True)
            content = {"layers": layers, "config": {"digest": f"sha256:{'c' * 64}", "size": 2}, "of": body}
            manifest.write_text(json.dumps(content))
        self.send_response(found)
        self.end_headers()
        self.wfile.write(b'{"status": "success"}')

    do_DELETE = do_POST  # noqa: N815 - http.server looks for this name

    def log_message(self, *_: object) -> None:
        pass


class Host:
    """A host with a model's file, a release that knows its architecture, and a service whose starts are counted."""

    def __init__(self, root: Path, server: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.server, self.file = root, server, root / "m.gguf"
        tinymodel.write(self.file)
        (root / "release" / "bin").mkdir(parents=True)
        (root / "release" / "bin" / "ollama").write_bytes(b"llama\0deepseek2\0qwen2\0")
        self.systemctl: list[str] = []
        monkeypatch.setattr(ollama_model.units, "systemctl", self._systemctl)
        monkeypatch.setattr(ollama_model, "USER", getpass.getuser())
        self.wanted = {
            "name": "demo",
            "file": str(self.file),
            "parameters": {"num_gpu": 7},
            "template": "",
            "models_dir": str(server.models),
            "release": str(root / "release"),
            "url": f"http://127.0.0.1:{server.server_port}",
            "state": "started",
        }

    def _systemctl(self, verb: str, _: str) -> None:
        self.systemctl.append(verb)
        self.server.running = verb == "start"

    def model(self, **changes: Any) -> Model:
        return Model(self.wanted | changes, self.root / "state" / "registered.json")

    @property
    def blob(self) -> Path:
        return self.model().blob(hashlib.sha256(self.file.read_bytes()).hexdigest())


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    (tmp_path / "models").mkdir()
    with Stand(tmp_path / "models") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Host(tmp_path, server, monkeypatch)
        server.shutdown()


def test_a_model_is_registered_once_and_takes_no_room(host: Host) -> None:
    assert host.model().reason() == "demo is not registered"
    digest = host.model().register()
    assert host.blob.samefile(host.file)
    body = {"model": "demo", "files": {"m.gguf": f"sha256:{digest}"}, "parameters": {"num_gpu": 7}, "stream": False}
    assert host.server.asked == [("POST", "/api/create", body)]
    assert host.model().reason() == ""
    assert host.systemctl == []


def test_a_stopped_service_is_started_for_it_and_stopped_again(host: Host) -> None:
    host.server.running = False
    host.model(state="stopped").register()
    assert host.systemctl == ["start", "stop"]
    host.server.asked.clear()
    host.wanted["parameters"] = {"num_ctx": 1}
    host.server.models.joinpath("blobs").rename(host.server.models / "lost")
    host.server.models.joinpath("blobs").write_text("in the way")
    with pytest.raises(OSError, match="blobs"):
        host.model(state="stopped").register()
    assert host.systemctl == ["start", "stop"] * 2


def test_what_changed_is_registered_again(host: Host) -> None:
    host.model().register()
    changed = host.model(template="{{ .Prompt }}")
    assert changed.reason() == "the Modelfile changed"
    changed.register()
    assert host.server.asked[-1][2]["template"] == "{{ .Prompt }}"

    host.model().register()
    host.blob.write_bytes(content := host.blob.read_bytes())  # the same content, with new times
    assert host.model().reason() == "the model's file changed"
    host.model().register()

    copy = host.root / "copy"
    copy.write_bytes(content)
    copy.replace(host.file)  # the file is fetched again, so another file has the same bytes
    host.model().register()
    assert host.blob.samefile(host.file)
    assert host.server.asked[-1] == ("POST", "/api/generate", {"model": "demo", "keep_alive": 0, "stream": False})

    host.blob.unlink()
    assert host.model().reason() == "what Ollama has of it was changed"
    host.model().register()
    for path in host.server.models.glob("manifests/**/latest"):
        path.unlink()
    assert host.model().reason() == "what Ollama has of it was changed"


def test_a_file_that_was_mended_in_place_is_loaded_anew(host: Host) -> None:
    host.model().register()
    os.utime(host.file, (1, 1))
    assert host.model().reason() == "the model's file changed"
    host.model().register()
    assert host.blob.samefile(host.file)
    assert host.server.asked[-1] == ("POST", "/api/generate", {"model": "demo", "keep_alive": 0, "stream": False})


def test_a_name_that_is_not_wanted_any_more_is_removed(host: Host) -> None:
    host.model().register()
    host.model(name="deepseek-r1").register()
    assert host.server.asked[-1] == ("DELETE", "/api/delete", {"model": "demo"})
    assert host.model(name="deepseek-r1").reason() == ""


def test_a_digest_that_is_recorded_beside_the_file_is_taken(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ollama_model, "sha256_of", None)  # the module must not read the file
    record = {"name": "m.gguf", "bytes": host.file.stat().st_size, "sha256": "d" * 64}
    (host.root / "m.gguf.json").write_text(json.dumps(record))
    assert host.model().register() == "d" * 64
    (host.root / "m.gguf.json").unlink()
    assert host.model(parameters={"num_ctx": 1}).register() == "d" * 64


def test_what_cannot_be_registered_is_said(host: Host) -> None:
    with pytest.raises(ModelError, match="is not there"):
        host.model(file="/none.gguf").reason()
    (host.root / "release" / "bin" / "ollama").write_bytes(b"deepseek2-ocr deepseek old-deepseek2")
    with pytest.raises(
        ModelError, match=r"does not know the architecture deepseek2.*Set ollama_version to a newer one"
    ):
        host.model().check()
    (host.root / "release" / "bin" / "ollama").rename(host.root / "elsewhere")
    host.model().check()
    (host.root / "elsewhere").rename(host.root / "release" / "bin" / "ollama")
    with pytest.raises(ModelError, match=r"/proc/none is not on the file system of .*Correct ollama_models_dir"):
        host.model(models_dir="/proc/none").check()
    (host.root / "release" / "lib" / "ollama").mkdir(parents=True)
    (host.root / "release" / "lib" / "ollama" / "llama-server").write_bytes(b"\0deepseek2\0")
    host.model().check()
    host.server.running = False
    with pytest.raises(ApiError, match="HTTP 500"):
        host.model().register()
    assert host.model().reason() == "demo is not registered"
