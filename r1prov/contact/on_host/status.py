# ruff: noqa: PTH114, PTH118, PTH119, PTH123, PTH207, UP031 - the host's Python may be 3.8
"""Runs on a host as root: prints what is installed, running and healthy as one line of JSON.

Python 3.8 or newer, standard library only. Argument: JSON with `address`, `port` and `key_file` of the API.
"""

from __future__ import annotations

import glob
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from typing import Any

CURRENT = "/opt/r1prov/llama.cpp/current"
REMEMBERED = "/var/lib/r1prov"
UNIT_KEYS = ("ActiveState", "SubState", "UnitFileState", "NRestarts", "ActiveEnterTimestamp", "MainPID")


def main() -> None:
    """Collect and print."""
    service = json.loads(sys.argv[1])
    code, _ = get(service, "/health")
    props = get(service, "/props", read(service["key_file"]))[1] if code == 200 else None
    status = {
        "release": os.path.basename(os.path.realpath(CURRENT)) if os.path.islink(CURRENT) else None,
        "units": units(),
        "health": {200: "ok", 503: "loading", 0: "down"}.get(code, "answers %d" % code),
        "props": props,
        "weights": remembered("weights", "state.json"),
        "benchmark": remembered("smoke_bench", "last.json"),
    }
    print(json.dumps(status))  # noqa: T201 - stdout is the interface


def units() -> dict[str, dict[str, str]]:
    """Name -> some of systemd's properties, of every installed unit of r1prov."""
    found = {}
    for path in sorted(glob.glob("/etc/systemd/system/r1prov-*.service")):
        name = os.path.basename(path)
        argv = ["systemctl", "show", name, "--property=" + ",".join(UNIT_KEYS)]
        out = subprocess.run(argv, stdout=subprocess.PIPE, check=False).stdout.decode()
        found[name] = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
    return found


def get(service: dict[str, Any], path: str, key: str = "") -> tuple[int, Any]:
    """The API's answer: http status and decoded JSON; 0 where nothing answers."""
    address = service["address"]
    if address in ("0.0.0.0", "::"):  # noqa: S104 - who listens everywhere listens on loopback too
        address = "127.0.0.1"
    url = "http://%s:%d%s" % ("[%s]" % address if ":" in address else address, service["port"], path)
    request = urllib.request.Request(url, headers={"Authorization": "Bearer " + key} if key else {})  # noqa: S310
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through the host's proxy
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
