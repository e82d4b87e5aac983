"""`r1prov weights status`: what lies on the hosts, where it came from, and when it was verified last."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1prov import output
from r1prov.cli import options
from r1prov.common.errors import Problem, UnreachableError
from r1prov.common.units import GIB, gib
from r1prov.hosts import visit

if TYPE_CHECKING:
    from collections.abc import Mapping


@options.logs_in
def status(
    hosts: options.Hosts = None,
    *,
    site: options.SiteFile = None,
    login_options: options.LoginOptions,
    json: options.Json = False,
) -> None:
    """Say of each file of a model on the hosts what it is, where it came from, and when it was verified last. Changes nothing.

    Example: `r1prov weights status gpu1`
    """
    found = visit.weights(site, hosts or (), login_options.ask())
    if json:
        output.data(document(found))
    else:
        show(found)
    if away := [Problem(**problem) for each in found.values() for problem in each.get("problems", ())]:
        raise UnreachableError(*away)


def document(found: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What was found, as a JSON document. Times are those of UTC."""
    hosts = {}
    for name, each in found.items():
        files = [
            {
                **{key: file[key] for key in ("path", "model", "name", "bytes", "disk_bytes", "links", "state")},
                "came": {**file["came"], "at": _iso(file["came"]["at"])},
                "verified": {**file["verified"], "at": _iso(file["verified"]["at"])},
            }
            for file in each.get("files", ())
        ]
        hosts[name] = {
            "reachable": each["reachable"],
            "files": files,
            "bytes": each.get("bytes"),
            "free_bytes": each.get("free_bytes"),
            "progress": each.get("progress"),
            "problems": each.get("problems", []),
        }
    return {"hosts": hosts}


def show(found: Mapping[str, dict[str, Any]]) -> None:
    """Print a table for each model on each host, and what the disk of the host has free."""
    for name, each in found.items():
        models = {str(Path(file["path"][: -len(file["name"])])) for file in each.get("files", ())}
        for model in sorted(models):
            output.line(f"{name}: {model}")
            files = [file for file in each["files"] if file["path"].startswith(f"{model}/")]
            output.table(("file", "GiB>", "state", "from", "verified"), [_row(file) for file in files])
    for name, each in found.items():
        if each["reachable"]:
            _tell(name, each)


def _tell(name: str, found: dict[str, Any]) -> None:
    """Say what goes on on a host, what is damaged there, and what its disk has free."""
    if progress := found["progress"]:
        share = f", {progress['done'] / progress['total']:.0%}" if progress["total"] else ""
        output.say(f"{name}: {progress['label']}{share}")
    for file in found["files"]:
        if file["verified"]["why"]:
            since = _day(file["verified"]["at"])
            output.say(f"{name}: {file['path']} was found damaged on {since}: {file['verified']['why']}", "yellow")
    if not found["files"]:
        output.say(f"{name}: there are no weights")
    output.say(f"{name}: {gib(found['free_bytes'])} of {gib(found['bytes'])} are free")


def _row(file: dict[str, Any]) -> tuple[str, ...]:
    # What grows is named by its sha256, of which the beginning says enough.
    name = re.sub(r"([0-9a-f]{12})[0-9a-f]{52}", r"\1", file["name"])
    return (name, f"{_there(file) / GIB:.1f}", file["state"], came(file["came"]), verified(file["verified"]))


def _there(file: dict[str, Any]) -> int:
    """The bytes of a file that are there. One that grows has its whole size from the beginning."""
    there: int = file["disk_bytes"] if file["state"] == "fetching" else file["bytes"]
    return there


def came(told: dict[str, Any]) -> str:
    """Where a file came from: the source with most bytes, and how many others."""
    origins = sorted(told["from"], key=lambda origin: -told["from"][origin])
    made = f"made of {len(told['made_of'])} file{'' if len(told['made_of']) == 1 else 's'}" if told["made_of"] else ""
    return " ".join([*origins[:1], *([f"+{len(origins) - 1}"] if len(origins) > 1 else [])]) or made


def verified(told: dict[str, Any]) -> str:
    """When a file was verified last, and what came of it."""
    if not told["result"]:
        return ""
    return _day(told["at"]) or "once" if told["result"] == "whole" else str(told["result"])


def _day(seconds: float | None) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}" if seconds else ""


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S+00:00}"
