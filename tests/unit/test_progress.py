"""Tests of what a step tells while it waits for another process that does the same step."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ansible_collections.r1.prov.plugins.module_utils.progress import Progress

OTHER = "python3 (process 7 of root) holds /opt/r1prov/llama.cpp/.lock"


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "llama_cpp/progress.json").read_text())


def test_a_run_that_waits_for_the_compiler_of_a_cut_one_lets_that_tell_how_far_it_is(tmp_path: Path) -> None:
    compiling = Progress("llama_cpp", tmp_path)
    compiling.begin("compiling", 238, "steps")
    compiling.update(101)
    waiting = Progress("llama_cpp", tmp_path)
    waiting.wait_for(OTHER)
    assert told(tmp_path)["label"] == "compiling"
    compiling.finish()
    waiting.wait_for(OTHER)
    assert told(tmp_path)["label"] == f"waiting: {OTHER}"
    waiting.wait_for("another process")
    assert told(tmp_path)["label"] == "waiting: another process"


def test_who_has_told_nothing_for_long_tells_nothing_more(tmp_path: Path) -> None:
    Progress("llama_cpp", tmp_path).begin("compiling", 238, "steps")
    file = tmp_path / "llama_cpp/progress.json"
    file.write_text(json.dumps(told(tmp_path) | {"updated": time.time() - 1000}))
    Progress("llama_cpp", tmp_path).wait_for(OTHER)
    assert told(tmp_path)["label"] == f"waiting: {OTHER}"
