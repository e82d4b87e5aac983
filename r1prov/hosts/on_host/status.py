"""Runs on a host as root and prints what is installed, running and healthy as one line of JSON.

It is sent as text, followed by a call of `main`, and what it imports of the collection goes along. It is asked with these keys:

engine      llama-server or ollama; empty where the host has none and is the door to engines of others
lends_to    the name of the host to whose engine this one lends its devices; empty where it lends none
url         the base URL of the engine's API, or of the balancer
key_file    the file on the host with the key of that API
page        the base URL of the chat page, empty where there is none
embeddings  the base URL of the model that finds passages for the page, empty where there is none
gateway     the base URL of the gateway, empty where there is none
model       the name under which Ollama serves the model, empty for another engine
systemctl   the words before the verb of a command that answers as systemctl does
systemd     the folder that is there where systemd runs the host
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any

from ansible_collections.r1.prov.plugins.module_utils import liveness
from ansible_collections.r1.prov.plugins.module_utils.balancer_figures import figures
from ansible_collections.r1.prov.plugins.module_utils.disk_away import away
from ansible_collections.r1.prov.plugins.module_utils.files import read_json, text_of
from ansible_collections.r1.prov.plugins.module_utils.weights_kept import last_reading

RELEASES = Path("/opt/r1prov")
ARTEFACTS = ("llama.cpp", "ollama", "open-webui")
HEALTH = {"llama-server": "/health", "ollama": "/api/version", "": "/health"}
REMEMBERED = Path("/var/lib/r1prov")
LOCK = Path("/run/r1prov/lock.json")
NOBODY = {"user": "somebody", "controller": "", "since": "", "command": f"{LOCK} there is damaged"}
"""Who holds a host whose lock is damaged."""
NO_MODEL = "model missing"
LENDS = "r1prov-rpc-server.service"
"""The unit that lends the devices of a host."""
UNIT_KEYS = ("ActiveState", "SubState", "UnitFileState", "NRestarts", "ActiveEnterTimestamp", "MainPID")


def main(asked: dict[str, Any]) -> None:
    """Collect the status and print it."""
    code, _ = get(asked["url"] + HEALTH[asked["engine"]])
    props = None
    if code == 200 and asked["engine"] == "llama-server":
        props = get(asked["url"] + "/props", text_of(Path(asked["key_file"])).strip())[1]
    found, balanced = units(asked["systemctl"]), figures()
    if not asked["engine"] and balanced and all(each["state"] == "DOWN" for each in balanced["engines"].values()):
        code = 0  # The balancer answers, and nobody stands behind it.
    if asked["lends_to"] and not balanced:
        code = 200 if found.get(LENDS, {}).get("ActiveState") == "active" else 0
    processes = [words(unit.get("MainPID", "0")) for unit in found.values()]
    status = {
        "engine": asked["engine"],
        "lends_to": asked["lends_to"],
        "releases": {name: release(name) for name in ARTEFACTS},
        "running": {name: running(name, processes) for name in ARTEFACTS},
        "units": found,
        "systemd": Path(asked["systemd"]).is_dir(),
        "data_disk": away(REMEMBERED),
        "health": (code == 200 and without_model(asked)) or word(code),
        "page": word(get(asked["page"] + "/health")[0]) if asked["page"] else None,
        "document_search": word(get(asked["embeddings"] + "/health")[0]) if asked["embeddings"] else None,
        "gateway": word(get(asked["gateway"] + "/health")[0]) if asked["gateway"] else None,
        "balancer": balanced,
        "props": props,
        "weights": read_json(REMEMBERED / "weights" / "state.json") or None,
        "benchmark": read_json(REMEMBERED / "smoke_bench" / "last.json") or None,
        "weights_read": last_reading(),
        "liveness": liveness.last_seen(),
        "watch": watch(),
        "lock": read_json(LOCK) or (NOBODY if LOCK.exists() else None),
    }
    print(json.dumps(status))  # noqa: T201 - stdout is the interface


def watch() -> dict[str, Any] | None:
    """What the host's own watch has found last, and how many seconds ago; None where it has not looked."""
    found = read_json(REMEMBERED / "watch" / "last.json")
    if "looked" not in found:
        return None
    return {**found, "age_s": round(time.time() - datetime.fromisoformat(found["looked"]).timestamp())}


def release(name: str) -> str | None:
    """The name of the release that `current` links to; None where there is no such link."""
    link = RELEASES / name / "current"
    return link.resolve().name if link.is_symlink() else None


def running(name: str, processes: list[list[str]]) -> list[str]:
    """The releases that processes really run, sorted. `current` may have been switched since they were started."""
    folder = f"{RELEASES}/{name}/releases/"
    return sorted(
        {word[len(folder) :].split("/")[0] for words in processes for word in words if word.startswith(folder)}
    )


def words(pid: str) -> list[str]:
    """The program of a process, links followed, and its arguments: of a script, the latter tell more. Empty where there is none."""
    process = Path("/proc") / pid
    arguments = text_of(process / "cmdline").split("\0")
    try:
        return [str((process / "exe").readlink()), *arguments]
    except PermissionError:  # In a container root may not look into the processes of others.
        return [os.path.realpath(arguments[0]), *arguments]
    except OSError:
        return []


def word(code: int) -> str:
    """A service's health, as a word for the http status that it answers with."""
    return {200: "ok", 503: "loading", 0: "down"}.get(code, f"answers {code}")


def without_model(asked: dict[str, Any]) -> str:
    """What to say where Ollama answers and does not have the model, because somebody has removed it; else empty."""
    if not asked["model"]:
        return ""
    models = (get(asked["url"] + "/api/tags")[1] or {}).get("models", [])
    return "" if asked["model"] in {each["name"].removesuffix(":latest") for each in models} else NO_MODEL


def units(systemctl: list[str]) -> dict[str, dict[str, str]]:
    """Unit name -> the systemd properties in UNIT_KEYS, for every installed unit of r1prov."""
    properties = {}
    for name in sorted(path.name for path in Path("/etc/systemd/system").glob("r1prov-*.service")):
        argv = [*systemctl, "show", name, "--property=" + ",".join(UNIT_KEYS)]
        out = subprocess.run(argv, stdout=subprocess.PIPE, check=False).stdout.decode()
        properties[name] = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
    return properties


def get(url: str, key: str = "") -> tuple[int, Any]:
    """The http status and the decoded JSON that a URL answers with; the status is 0 where nothing answers."""
    request = urllib.request.Request(url, headers={"Authorization": "Bearer " + key} if key else {})  # noqa: S310
    # The request stays on this host: it takes no proxy, and the certificate may be for another name.
    anyone = ssl._create_unverified_context()  # noqa: S323, SLF001
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=anyone))
    try:
        with opener.open(request, timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, None
    except (OSError, ValueError):
        return 0, None
