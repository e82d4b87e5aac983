# ruff: noqa: PTH114, PTH118, PTH119, PTH123, PTH207, UP031 - the host's Python may be 3.8
"""Runs on a host as root: prints what is installed, running and healthy as one line of JSON.

Python 3.8 or newer, standard library only. Argument: JSON with `engine` (llama-server, ollama), `url` and `key_file` of its API,
`page`, `embeddings` (finds passages for it) and `gateway`, their addresses; empty for none.
"""

from __future__ import annotations

import glob
import json
import os
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from typing import Any

CURRENT = "/opt/r1prov/%s/current"
HEALTH = {"llama-server": "/health", "ollama": "/api/version"}
REMEMBERED = "/var/lib/r1prov"
UNIT_KEYS = ("ActiveState", "SubState", "UnitFileState", "NRestarts", "ActiveEnterTimestamp", "MainPID")


def main() -> None:
    """Collect and print."""
    asked = json.loads(sys.argv[1])
    code, _ = get(asked["url"] + HEALTH[asked["engine"]])
    props = None
    if code == 200 and asked["engine"] == "llama-server":
        props = get(asked["url"] + "/props", read(asked["key_file"]))[1]
    status = {
        "engine": asked["engine"],
        "releases": {name: release(name) for name in ("llama.cpp", "ollama", "open-webui")},
        "units": units(),
        "health": word(code),
        "page": word(get(asked["page"] + "/health")[0]) if asked["page"] else None,
        "document_search": word(get(asked["embeddings"] + "/health")[0]) if asked["embeddings"] else None,
        "gateway": word(get(asked["gateway"] + "/health")[0]) if asked["gateway"] else None,
        "props": props,
        "weights": remembered("weights", "state.json"),
        "benchmark": remembered("smoke_bench", "last.json"),
    }
    print(json.dumps(status))  # noqa: T201 - stdout is the interface


def release(name: str) -> str | None:
    """The release that is current; None where there is none."""
    link = CURRENT % name
    return os.path.basename(os.path.realpath(link)) if os.path.islink(link) else None


def word(code: int) -> str:
    """What an http status says of a service's health."""
    return {200: "ok", 503: "loading", 0: "down"}.get(code, "answers %d" % code)


def units() -> dict[str, dict[str, str]]:
    """Name -> some of systemd's properties, of every installed unit of r1prov."""
    found = {}
    for path in sorted(glob.glob("/etc/systemd/system/r1prov-*.service")):
        name = os.path.basename(path)
        argv = ["systemctl", "show", name, "--property=" + ",".join(UNIT_KEYS)]
        out = subprocess.run(argv, stdout=subprocess.PIPE, check=False).stdout.decode()
        found[name] = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
    return found


def get(url: str, key: str = "") -> tuple[int, Any]:
    """The answer at a URL: http status and decoded JSON; 0 where nothing answers."""
    request = urllib.request.Request(url, headers={"Authorization": "Bearer " + key} if key else {})  # noqa: S310
    # Never through the host's proxy; and it is this host that is asked, whatever name its certificate is for.
    anyone = ssl._create_unverified_context()  # noqa: S323, SLF001
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=anyone))
    try:
        with opener.open(request, timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, None
    except (OSError, ValueError):
        return 0, None


def read(path: str) -> str:
    """A small text file; empty where there is none."""
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


def remembered(step: str, name: str) -> dict[str, Any] | None:
    """What a step wrote down for later."""
    text = read(os.path.join(REMEMBERED, step, name))
    return json.loads(text) if text else None


main()
