"""`r1prov down`, after everything else: what it leaves, and what it was told to leave. Then one who has only the wheel takes over."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from r1prov.common import paths
from r1prov.common.errors import Exit
from r1prov.lab.hosts import LabHost

from .people import Operator, told, untouched

pytestmark = pytest.mark.host

# Caches that the lab shares among its hosts are mounted, so they are not the host's own; a reboot empties /run.
OURS = r"""
find / -xdev -path /proc -prune -o -path /run -prune -o -path /var/cache/r1prov -prune -o -path /srv -prune -o -name '*r1prov*' -print
find /srv -mindepth 2 -path /srv/r1prov/models -prune -o -print
getent passwd | grep r1prov || true
getent group | grep r1prov || true
systemctl list-unit-files --no-legend '*r1prov*' || true
"""
PORTS = "cat /proc/net/tcp /proc/net/tcp6 | awk '$4 == \"0A\" {print substr($2, length($2) - 3)}' | sort --unique"
"""Every port that something listens on, in four hex digits."""
SSH = "0016"
EMBEDDINGS = "/srv/r1prov/models/all-minilm-l6-v2/all-minilm-l6-v2.gguf"
"""The model of the chat page's search, which is public. r1prov makes it of a package."""
BY_NOBODY = "runuser -u nobody -- find /srv/r1prov/models -type f -size +1M 2> /dev/null || true"
"""The models that any local user finds."""
KEPT = "find /srv/r1prov/models -type f -printf '%i %s %P\n' | sort"


def test_down_asks_first(operator: Operator, pair: list[LabHost]) -> None:
    assert "--keep-weights" in operator.does("down", pair[1].name, code=Exit.USAGE).stderr


def test_a_check_lists_what_would_go(operator: Operator, pair: list[LabHost]) -> None:
    host = pair[1]
    with untouched(host):
        done = operator.does("down", "--check", "--keep-weights", "--json", host.name)
    found = json.loads(done.stdout)["hosts"][host.name]["removal"]
    listed = "systemctl list-unit-files --no-legend 'r1prov-*' | cut -d' ' -f1 | sort"
    assert found["removed"]["units"] == told(host, listed).splitlines()
    assert (
        sorted(found["removed"]["users"])
        == told(host, "getent passwd | cut -d: -f1 | grep ^r1prov | sort").splitlines()
    )
    freed = {path["path"]: path["bytes"] for path in found["removed"]["paths"]}
    assert freed["/srv/r1prov/ollama"] < 10 << 20  # its blob is the model, which stays under its other name
    assert freed["/opt/r1prov"] > 500 << 20
    weights = next(path for path in found["kept"] if path["why"] == "weights")
    assert weights["bytes"] >= sum(int(line.split()[1]) for line in told(host, KEPT).splitlines())


def test_down_leaves_nothing_but_what_it_was_told_to_leave(operator: Operator, pair: list[LabHost]) -> None:
    host = pair[1]
    weights = told(host, KEPT)
    assert weights
    assert len(told(host, OURS).splitlines()) > 20
    assert len(told(host, PORTS).split()) > 1
    operator.does("down", "--keep-weights", "--yes", host.name)
    assert told(host, OURS) == ""
    assert told(host, PORTS) == SSH
    assert told(host, KEPT) == weights
    assert told(host, BY_NOBODY) == EMBEDDINGS


def test_the_wheel_brings_all_that_a_new_controller_needs(
    operator: Operator, pair: list[LabHost], sources: dict[str, Any], tmp_path: Path
) -> None:
    """It takes over the one server as it is, and sets up the other anew, around the weights that were left there."""
    uv = Path(sys.executable).with_name("uv")
    root = paths.collection().resolve()
    ignored = shutil.ignore_patterns(".git", ".collections", ".venv", ".*_cache")
    shutil.copytree(root, tmp_path / "src", ignore=ignored, symlinks=True)
    built = subprocess.run(
        [uv, "build", "--wheel", "--no-build-isolation", "--python", sys.executable, "-o", tmp_path, tmp_path / "src"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run(
        [uv, "pip", "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True, capture_output=True
    )
    colleague = Operator(tmp_path, {"PYTHONPATH": str(tmp_path / "site")})
    colleague.site(pair, sources=sources)
    (weights,) = [
        line for line in told(pair[1], KEPT).splitlines() if line.endswith("/SmolLM2-135M-Instruct-Q4_1.gguf")
    ]
    colleague.does("up")
    assert colleague.changes[pair[0].name] == ["smoke_bench: Copy the result to the controller"]
    assert len(colleague.changes[pair[1].name]) > 20
    assert weights in told(pair[1], KEPT).splitlines()
    assert colleague.secret("api-key") == operator.secret("api-key")
    for host in pair:
        assert "Paris" in colleague.asks(host)


def test_without_a_word_everything_goes(operator: Operator, pair: list[LabHost]) -> None:
    host = pair[1]
    operator.does("down", "--yes", host.name)
    assert told(host, "ls -A /srv") == ""
