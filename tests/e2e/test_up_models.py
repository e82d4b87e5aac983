"""What the engine that `up` has built (test_up.py, before this) says of the demo's models."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import gguf
import pytest
import yaml

from r1prov import lab
from r1prov.common import paths
from r1prov.lab.hosts import LabHost
from r1prov.machines.profile import load_profile
from r1prov.models import convert as weights
from tests.fixtures import shards, tinymodel

from .conftest import Operator

pytestmark = pytest.mark.host
BIN = "/opt/r1prov/llama.cpp/current/bin"


def test_the_demos_shards_are_what_llama_gguf_split_makes(pair: list[LabHost]) -> None:
    model = load_profile("demo").model
    assert model
    merged = f"/srv/r1prov/models/{model.folder}/{model.folder}.gguf"
    script = f"""set -e
        cd /tmp; rm -f split-*
        {BIN}/llama-gguf-split --split --split-max-tensors 100 {merged} split
        sha256sum split-*; rm split-*"""
    done = lab.ssh(pair[0], ["sh", "-c", script])
    digests = [line.split()[0] for line in done.stdout.splitlines() if ".gguf" in line and len(line.split()[0]) == 64]
    assert digests == [file.sha256 for file in model.files], done.stderr


def test_an_operators_own_deepseek2_model_is_served_as_published_then_in_mla_form_and_the_demo_comes_back(
    operator: Operator, pair: list[LabHost], sources: dict[str, Any], tmp_path: Path
) -> None:
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
    own, host = Operator(tmp_path), pair[0]
    (tmp_path / "own.yml").write_text(yaml.safe_dump(profile))

    own.site(pair[:1], sources=sources, profile="own.yml", attention="legacy")
    done = own.run("up")
    assert done.returncode == 0, done.stderr
    assert served(host) == "tiny.gguf"
    assert left(host) == {"tiny.gguf": digest(published)}

    own.site(pair[:1], sources=sources, profile="own.yml")
    done = own.run("up")
    assert done.returncode == 0, done.stderr
    assert served(host) == "tiny.mla.gguf"
    foreseen = weights.convert(published, tmp_path / "foreseen.gguf", "Q8_0", lambda *_: None)
    assert foreseen
    assert left(host) == {"tiny.mla.gguf": foreseen.sha256}
    again = own.run("up")
    assert again.returncode == 0, again.stderr
    assert own.report()["hosts"][host.name]["changed"] == 0

    back = operator.run("up")
    assert back.returncode == 0, back.stderr
    assert "Paris" in operator.run("ask", "--host", host.name, "What is the capital of France? In one word.").stdout


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def served(host: LabHost) -> str:
    """The file that llama-server is started with."""
    shown = lab.ssh(host, ["systemctl", "show", "--property=ExecStart", "r1prov-llama-server"]).stdout
    return re.findall(r"/([^/ ]+[.]gguf) ", shown)[0]


def left(host: LabHost) -> dict[str, str]:
    """The files of the model on the host, and their digests."""
    done = lab.ssh(host, ["sh", "-c", "cd /srv/r1prov/models/tiny && sha256sum *.gguf .incoming/*"])
    return {name: sha256 for sha256, name in map(str.split, done.stdout.splitlines()) if "*" not in name}
