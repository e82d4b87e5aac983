"""The other doors of the servers that test_up.py has set up: the chat page, Ollama, and the verbs that a day needs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from r1prov import lab
from r1prov.common import paths
from r1prov.common.errors import Exit
from r1prov.lab.hosts import LabHost
from r1prov.site import TESTED_LLAMA_CPP, TESTED_OPEN_WEBUI
from tests.fixtures import ollama

from .conftest import Operator
from .page import Page

pytestmark = pytest.mark.host
QUESTION = "What is the capital of France? Answer in one short sentence."
MODEL = "SmolLM2-135M-Instruct-Q4_1"


@contextmanager
def opened(operator: Operator, host: LabHost) -> Iterator[dict[str, Any]]:
    """What `r1prov open --json` says, while it is open."""
    running = subprocess.Popen(
        ["env", "--default-signal=INT", sys.executable, "-m", "r1prov.cli", "open", "--host", host.name, "--json"],
        cwd=operator.folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **operator.environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    text = ""
    try:
        while not text.endswith("}\n"):
            line = running.stdout.readline()
            assert line, text
            text += line
        yield json.loads(text)
    finally:
        running.send_signal(signal.SIGINT)
        code = running.wait(timeout=30)
    assert code == Exit.OK


def logged_in(operator: Operator, doors: dict[str, Any]) -> Page:
    page = Page(doors["page"])
    password = (operator.folder / ".r1prov" / "secrets" / "webui-admin-password").read_text()
    assert page.log_in(doors["email"], password) == 200
    return page


def test_the_page_answers_and_nobody_signs_up(operator: Operator, pair: list[LabHost]) -> None:
    for host in pair:
        with opened(operator, host) as doors:
            page = logged_in(operator, doors)
            assert page.models() == [MODEL]
            assert "Paris" in page.ask(MODEL, QUESTION)
            stranger = Page(doors["page"])
            body = {"name": "s", "email": "s@example.com", "password": "correct-horse-7"}
            assert stranger.call("/api/v1/auths/signup", body)[0] == 403
            assert stranger.call("/api/models")[0] in {401, 403}


def test_one_copy_of_the_weights(pair: list[LabHost]) -> None:
    for host in pair:
        folder = f"/srv/r1prov/models/{MODEL}"
        model = int(lab.ssh(host, ["stat", "--format=%s", f"{folder}/{MODEL}.gguf"]).stdout)
        both = lab.ssh(host, ["du", "--summarize", "--total", "--block-size=1", folder, "/srv/r1prov/ollama"]).stdout
        assert int(both.splitlines()[-1].split()[0]) <= 1.01 * model


def test_the_engine_switches_and_the_page_follows(operator: Operator, pair: list[LabHost]) -> None:
    for engine, other in (("ollama", "llama-server"), ("llama-server", "ollama")):
        done = operator.run("engine", engine)
        assert done.returncode == 0, done.stderr
        for host in pair:
            states = lab.ssh(host, ["systemctl", "is-active", f"r1prov-{engine}", f"r1prov-{other}"]).stdout.split()
            assert states == ["active", "inactive"]
            asked = operator.run("ask", "--host", host.name, QUESTION)
            assert "Paris" in asked.stdout, asked.stderr
            with opened(operator, host) as doors:
                page = logged_in(operator, doors)
                (model,) = page.models()
                assert "Paris" in page.ask(model, QUESTION)


def test_an_upgrade_goes_host_by_host_and_a_bad_one_is_put_back(operator: Operator, pair: list[LabHost]) -> None:
    def releases() -> list[str]:
        return [lab.ssh(host, ["readlink", "/opt/r1prov/ollama/current"]).stdout.split("/")[-1] for host in pair]

    assert operator.run("engine", "ollama").returncode == 0
    before = releases()
    done = operator.run("upgrade", "--ollama", "9.9.9")
    assert done.returncode == Exit.RUN_FAILED, done.stderr
    assert f"Not touched: {pair[1].name}" in done.stderr
    assert releases() == before
    assert "9.9.9" not in lab.ssh(pair[1], ["ls", "/opt/r1prov/ollama/releases"]).stdout
    assert "Paris" in operator.run("ask", "--host", pair[0].name, QUESTION).stdout
    done = operator.run("upgrade", "--ollama", ollama.OTHER_VERSION)
    assert done.returncode == 0, done.stderr
    assert all(name.startswith(ollama.OTHER_VERSION) for name in releases())
    for host in pair:
        assert "Paris" in operator.run("ask", "--host", host.name, QUESTION).stdout
    assert operator.run("engine", "llama-server").returncode == 0


def test_engine_and_page_go_to_another_version_and_back(operator: Operator, pair: list[LabHost]) -> None:
    """On one host: another compiler would have to compile the other version all over again."""
    host = pair[0]
    tested = (TESTED_LLAMA_CPP["pypi"], TESTED_OPEN_WEBUI)
    for llama_cpp, open_webui in (("0.3.35", "0.12.3"), tested):
        # Two cores that are busy with other things measure no speed.
        versions = ("--llama-cpp", llama_cpp, "--open-webui", open_webui, "--at-least", "20")
        done = operator.run("upgrade", *versions, host.name)
        assert done.returncode == 0, done.stderr
        assert f"{host.name} will not answer while llama-server loads the model; last time that took" in done.stderr
        links = "readlink /opt/r1prov/llama.cpp/current /opt/r1prov/open-webui/current"
        releases = lab.ssh(host, ["sh", "-c", links]).stdout.splitlines()
        assert releases[0].startswith(f"releases/{llama_cpp}-")
        assert releases[1].startswith(f"releases/{open_webui}-")
        with opened(operator, host) as doors:
            assert "Paris" in logged_in(operator, doors).ask(MODEL, QUESTION)


def test_the_page_moves_to_another_server(operator: Operator, pair: list[LabHost], tmp_path: Path) -> None:
    """With the commands of docs/backup.md, but for their `ssh root@SERVER`."""
    text = (paths.collection() / "docs/backup.md").read_text()
    packing, unpacking = (re.search(rf"    ssh root@{host} '([^']+)' [<>] page.tar", text) for host in ("OLD", "NEW"))
    assert packing
    assert unpacking
    person = {"email": "eve@example.com", "password": "eves-very-own-passphrase"}
    with opened(operator, pair[0]) as doors:
        page = logged_in(operator, doors)
        assert page.call("/api/v1/auths/add", {"name": "Eve", "role": "user", **person})[0] == 200
    packed = tmp_path / "page.tar"
    with packed.open("wb") as file:
        subprocess.run([*pair[0].ssh_argv(), packing[1]], stdout=file, check=True)
    with packed.open("rb") as file:
        subprocess.run([*pair[1].ssh_argv(), unpacking[1]], stdin=file, check=True)
    lab.ssh(pair[0], ["systemctl", "start", "r1prov-open-webui"])
    for host in pair:
        with opened(operator, host) as doors:
            assert Page(doors["page"]).log_in(**person) == 200


def test_a_rotated_key_is_the_only_one(operator: Operator, pair: list[LabHost]) -> None:
    key_file = operator.folder / ".r1prov" / "secrets" / "api-key"
    old = key_file.read_text()
    done = operator.run("secrets", "rotate")
    assert done.returncode == 0, done.stderr
    new = key_file.read_text()
    assert new != old
    for host in pair:
        with opened(operator, host) as doors:
            api = doors["api"].removesuffix("/v1")
            assert Page(api, old).call("/v1/chat/completions", {"messages": []})[0] == 401
            assert Page(api, new).call("/v1/models")[0] == 200
            assert "Paris" in logged_in(operator, doors).ask(MODEL, QUESTION)
