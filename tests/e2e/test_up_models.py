"""Other models on a server with a gateway, and the demo's model again. The tests build on each other, in this order."""

from __future__ import annotations

import hashlib
import re
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import gguf
import pytest
import yaml

from r1prov.common import paths
from r1prov.lab.hosts import LabHost
from r1prov.machines.profile import load_profile
from r1prov.models import convert as weights
from tests.fixtures import shards, tinymodel

from .people import QUESTION, Operator, by_hand, told
from .test_up_gateway import open_ports

pytestmark = pytest.mark.host
BIN = "/opt/r1prov/llama.cpp/current/bin"


def test_the_demos_shards_are_what_llama_gguf_split_makes(gateway: LabHost, wheels: Future[Path]) -> None:
    """The wheels are for test_up_offline.py: they come while this group does other things."""
    model = load_profile("demo").model
    assert model
    merged = f"/srv/r1prov/models/{model.folder}/{model.folder}.gguf"
    script = f"""
        cd /tmp; rm -f split-*
        {BIN}/llama-gguf-split --split --split-max-tensors 100 {merged} split > /dev/null
        sha256sum split-*; rm split-*"""
    assert [line.split()[0] for line in told(gateway, script).splitlines()] == [file.sha256 for file in model.files]


def test_an_operators_own_deepseek2_model_is_served_as_published_and_then_in_mla_form(
    alone: LabHost, neighbour: LabHost, sources: dict[str, Any], tmp_path: Path
) -> None:
    """By another operator, whose site has no gateway: what others could reach before is closed."""
    folder = paths.cache_dir() / "hub" / "r1prov" / "tiny-deepseek2" / "tiny"
    folder.mkdir(parents=True, exist_ok=True)
    published = tinymodel.write(tmp_path / "tiny.gguf", legacy=gguf.GGMLQuantizationType.Q8_0)
    made = shards.split(published, folder / "tiny", 60)
    profile = yaml.safe_load((paths.collection() / "inventory/profiles/demo.yml").read_text())
    profile["serving"] |= {"quant": "tiny", "context_per_slot": 256}
    profile["question"] = {"ask": "What do random weights say?", "expect": "", "max_tokens": 16}
    profile["model"] = {
        "name": "tiny",
        "repo": "r1prov/tiny-deepseek2",
        "folder": "tiny",
        "files": [{"name": path.name, "bytes": path.stat().st_size, "sha256": digest(path)} for path in made],
    }
    own = Operator(tmp_path)
    (tmp_path / "own.yml").write_text(yaml.safe_dump(profile))

    own.site([alone], sources=sources, profile="own.yml", attention="legacy")
    own.does("up")
    assert served(alone) == "tiny.gguf"
    assert left(alone) == {"tiny.gguf": digest(published)}
    assert open_ports(alone, seen_from=neighbour) == ["22"]
    traces = "find / -xdev -path /proc -prune -o -name '*r1prov-gateway*' -print; getent passwd r1prov-gateway || true"
    assert told(alone, traces) == ""

    own.site([alone], sources=sources, profile="own.yml")
    own.does("up")
    assert served(alone) == "tiny.mla.gguf"
    foreseen = weights.convert(published, tmp_path / "foreseen.gguf", "Q8_0", lambda *_: None)
    assert foreseen
    assert left(alone) == {"tiny.mla.gguf": foreseen.sha256}

    own.does("up")
    assert own.changes == {alone.name: []}

    # Random weights answer nonsense, so that it answers is what counts. The program ends now and then before it has written its figures.
    assert len(by_hand(own, alone).rpartition("What do random weights say?")[2]) > 100


def test_the_demos_model_comes_back(owner: Operator, alone: LabHost, sources: dict[str, Any]) -> None:
    owner.site([alone], sources=sources)
    owner.does("up")
    assert "Paris" in owner.does("ask", QUESTION).stdout
    assert "Paris" in by_hand(owner, alone)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def served(host: LabHost) -> str:
    """The file that llama-server is started with."""
    shown = told(host, "systemctl show --property=ExecStart r1prov-llama-server")
    return re.findall(r"/([^/ ]+[.]gguf) ", shown)[0]


def left(host: LabHost) -> dict[str, str]:
    """The files of the model on the host, and their digests."""
    shown = told(host, "cd /srv/r1prov/models/tiny; find . -type f ! -name '*.json' -exec sha256sum {} +")
    return {name.removeprefix("./"): sha256 for sha256, name in map(str.split, shown.splitlines())}
