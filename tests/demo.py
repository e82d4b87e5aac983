"""`make demo`: a throwaway server, `r1prov up --profile demo` on it, each door benchmarked, a question, the answer.

Everything is real: a server that boots with ssh and Python only, a hub that the weights are downloaded from, llama.cpp
compiled there, a small real model.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import yaml

from r1prov import lab
from r1prov.common import paths, signals
from r1prov.common.errors import Exit, Problem
from r1prov.machines.profile import load_profile
from r1prov.site.state import ADMIN_PASSWORD, SiteState
from tests.fixtures import ollama, shards, surroundings
from tests.fixtures.hub import Hub

if TYPE_CHECKING:
    from pathlib import Path

NAME = "demo"
HUB_PORT = 8090
"""Always the same, so that a second demo changes nothing on the host."""

ELSEWHERE = """\
The demo needs a machine where it can boot a throwaway server. It runs on any real server as well:

    export PATH="$(./bootstrap):$PATH"
    python -m tests.fixtures.hub {root} --address YOUR_ADDRESS --port {port} &
    r1prov up --profile demo --site demo.yml

with this demo.yml:

{site}
"""


def main() -> int:
    """Run the demo; returns the exit code."""
    hub_root = paths.cache_dir() / "hub"
    if missing := lab.requirements():
        _explain(missing, hub_root)
        return Exit.LAB
    started = time.monotonic()
    _say("a fresh server: Debian with sshd and Python, nothing else")
    host = lab.up(NAME, say=_say)
    _say("the demo's model, and a hub that serves it")
    shards.demo_shards(hub_root)
    site = paths.state_dir() / "demo" / "r1prov.yml"
    site.parent.mkdir(parents=True, exist_ok=True)
    server = {"name": NAME, "address": host.address, "user": "root", "identity_file": str(host.key)}
    archive = ollama.release(ollama.VERSION, _say)
    sources = {**surroundings.sources(), "ollama": {"archive": str(archive)}}
    site.write_text(_site(server, f"http://{lab.GATEWAY}:{HUB_PORT}", sources))
    with Hub(hub_root, address=lab.GATEWAY, port=HUB_PORT):
        code = _r1prov("up", "--site", str(site))
    if code:
        _say(f"the server is still there: r1prov lab ssh {NAME}")
        return code
    done = json.loads((SiteState.of(site).reports / "last.json").read_text())
    if done["hosts"][NAME]["changed"]:
        _say("the third door: Ollama holds the model for a while, and the page follows")
        code = _r1prov("engine", "ollama", "--site", str(site)) or _r1prov(
            "engine", "llama-server", "--site", str(site)
        )
        if code:
            return code
    question = load_profile(NAME).question.ask
    _say(f"served {time.monotonic() - started:.0f} s after the start. Now a question: {question}")
    code = _r1prov("ask", "--site", str(site), question)
    password = SiteState.of(site).secret(ADMIN_PASSWORD)
    _say(
        f"the chat page waits for you: r1prov open (below); log in as admin@example.com with the password in {password}"
    )
    _say("what to try next:")
    for line in (
        'export PATH="$(./bootstrap):$PATH"',
        f'r1prov ask --site {site} "..."',
        f"r1prov open --site {site}    # the chat page, from here",
        f"r1prov status --site {site}",
        f"r1prov up --site {site}      # again: nothing changes",
        f"r1prov lab ssh {NAME}",
        f"r1prov lab down {NAME}",
    ):
        _say(f"    {line}")
    return code


def _site(server: dict[str, str], hub: str, sources: dict[str, object]) -> str:
    site = {
        "profile": "demo",
        "hosts": [server],
        "sources": {**sources, "weights": [{"type": "hub", "endpoint": hub}]},
    }
    return yaml.safe_dump(site, sort_keys=False)


def _explain(missing: list[Problem], hub_root: Path) -> None:
    for problem in missing:
        _say(f"{problem.where}: {problem.what}; {problem.remedy}")
    shards.demo_shards(hub_root)
    server = {"name": "server", "address": "SERVER", "user": "root"}
    site = _site(server, f"http://YOUR_ADDRESS:{HUB_PORT}", surroundings.sources())
    sys.stderr.write(ELSEWHERE.format(root=hub_root, port=HUB_PORT, site=site))


def _r1prov(*arguments: str) -> int:
    """Run r1prov. Whoever wants the end of the demo wants that of r1prov first, which says itself what it leaves.

    Raises:
        KeyboardInterrupt: r1prov was stopped.
    """
    process = subprocess.Popen([sys.executable, "-m", "r1prov.cli", *arguments])
    while True:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.terminate()  # Only Ctrl-C has reached it by itself, and it takes both together as one wish.
            continue
        if code == Exit.INTERRUPTED:
            raise KeyboardInterrupt
        return code


def _say(text: str) -> None:
    sys.stderr.write(f"demo: {text}\n")


if __name__ == "__main__":
    signals.heed()
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        stays = (
            f"; the server stays, and `r1prov lab down {NAME}` removes it"
            if any(host.name == NAME for host in lab.hosts())
            else ""
        )
        _say(f"stopped. `make demo` goes on where it was{stays}")
        sys.exit(Exit.INTERRUPTED)
