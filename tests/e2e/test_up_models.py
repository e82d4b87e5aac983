"""What the engine that `up` has built (test_up.py, before this) says of the demo's models."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from r1prov import lab, paths
from r1prov.lab import shards, tinymodel
from r1prov.lab.hosts import LabHost
from r1prov.machine import load_profile

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


def test_an_operators_own_profile_serves_a_deepseek2_model_and_the_demo_comes_back(
    operator: Operator, pair: list[LabHost], sources: dict[str, Any], tmp_path: Path
) -> None:
    folder = paths.cache_dir() / "hub" / "r1prov" / "tiny-deepseek2" / "tiny"
    folder.mkdir(parents=True, exist_ok=True)
    made = shards.split(tinymodel.write(tmp_path / "tiny.gguf"), folder / "tiny", 60)
    profile = yaml.safe_load((paths.collection() / "inventory/profiles/demo.yml").read_text())
    profile["serving"] |= {"quant": "tiny", "context_per_slot": 256}
    profile["question"] = {"ask": "What do random weights say?", "expect": "", "max_tokens": 16}
    profile["model"] = {
        "name": "tiny",
        "repo": "r1prov/tiny-deepseek2",
        "folder": "tiny",
        "files": [
            {"name": path.name, "bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for path in made
        ],
    }
    own = Operator(tmp_path)
    (tmp_path / "own.yml").write_text(yaml.safe_dump(profile))
    own.site(pair[:1], sources=sources, profile="own.yml")
    done = own.run("up")
    assert done.returncode == 0, done.stderr
    shown = lab.ssh(pair[0], ["systemctl", "show", "--property=ExecStart", "r1prov-llama-server"]).stdout
    assert "tiny/tiny.gguf" in shown
    back = operator.run("up")
    assert back.returncode == 0, back.stderr
    assert "Paris" in operator.run("ask", "--host", pair[0].name, "What is the capital of France? In one word.").stdout
