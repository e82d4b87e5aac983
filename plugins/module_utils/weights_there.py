"""What lies in the folders of models on a host: of each file what it is, where it came from, and when it was verified last.

`r1prov weights status` sends this file to a host, as text, and the module `weights` asks it before it removes something.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ansible_collections.r1.prov.plugins.module_utils.files import allocated_bytes, free_bytes, read_json
from ansible_collections.r1.prov.plugins.module_utils.weights_kept import READ, STATE, as_kept, standing

PROGRESS = (Path("/run/r1prov/weights/progress.json"), Path("/run/r1prov/weights-read/weights/progress.json"))
"""Of the transfer and of a run, and of the host's own reading, which is in nobody's way."""
USER = "r1prov-weights"

SERVED, WAITING, FETCHING, UNVERIFIED = "served", "waiting", "fetching", "unverified"
OTHER, ORPHAN, EMBEDDINGS, FOREIGN = "other quant", "orphan", "embeddings", "not ours"
"""What a file is.

SERVED is what the site serves. WAITING is a published file, or one that was made of it in another form, which goes when the served one has
answered. FETCHING is what a transfer has begun. UNVERIFIED is not as it was when it was verified, or never was. OTHER lies in the folder
of another quant or model. ORPHAN belongs to nothing. EMBEDDINGS is the model with which the chat page searches documents. FOREIGN was not
made by r1prov.
"""
SURPLUS = (OTHER, ORPHAN)
"""What nobody needs."""
_SILENT_S = 120
_DIGEST = re.compile(r"[0-9a-f]{64}")


def main(job: dict[str, Any]) -> None:
    """Print what lies there.

    Args:
        job: as for `there`.
    """
    print(json.dumps(there(job)))  # noqa: T201 - stdout is the interface


def there(
    job: dict[str, Any], state: Path = STATE, read: Path = READ, progress: tuple[Path, ...] = PROGRESS
) -> dict[str, Any]:
    """What lies in the folders of models.

    Args:
        job: `models`, the folder above those of the models; and `wanted`, the models that the site serves or wants, the one that is
            served first: of each `folder`, `files` (the published ones: name, bytes, sha256) and `merged` (the file made of them that is
            served; empty where they are themselves).
        state: what the transfer has recorded.
        read: what readings have found.
        progress: what the transfer, and verifications, say of themselves.

    Returns:
        `files`, `free_bytes` and `bytes` of the disk, and `progress`, what goes on; None where nothing does. Of each file `path`, `model`
        (the name of its folder), `name`, `bytes`, `disk_bytes`, `links` (how many names it has), `state`, `came` (`from`, bytes by source;
        `made_of`, names of files; `at`), `verified` (`at`, `result`, `why`), and `also`, what goes with it. Times are seconds since 1970,
        and None where they are not known.
    """
    models = Path(job["models"])
    kept = read_json(state)
    readings = standing(read_json(read), kept)
    wanted = {Path(each["folder"]): each for each in job["wanted"]}
    folders = sorted(path for path in models.iterdir() if path.is_dir()) if models.is_dir() else []
    files: list[dict[str, Any]] = []
    for folder in folders:
        about = _Folder(folder, wanted.get(folder), kept, readings, is_served=folder == next(iter(wanted), None))
        files += about.rows()
    place = next(path for path in (models, *models.parents) if path.is_dir())
    disk = os.statvfs(place)
    told = [each for each in map(read_json, progress) if each.get("state") == "running"]
    told = [each for each in told if time.time() - each.get("updated", 0) < _SILENT_S]
    return {
        "files": files,
        "free_bytes": free_bytes(place),
        "bytes": disk.f_blocks * disk.f_frsize,
        "progress": told[0] if told else None,
    }


def surplus(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of the files of `there` that nobody needs, each with what it `frees`: the bytes that the disk gets back when it goes.

    That is nothing where the file has another name, as in Ollama's registry.
    """
    rows = [row for row in found.get("files", ()) if row["state"] in SURPLUS]
    return [{**row, "frees": row["disk_bytes"] if row["links"] == 1 else 0} for row in rows]


class _Folder:
    """One folder of a model."""

    def __init__(
        self,
        folder: Path,
        wanted: dict[str, Any] | None,
        kept: dict[str, Any],
        readings: dict[str, Any],
        *,
        is_served: bool,
    ) -> None:
        self._folder, self._wanted, self._is_served = folder, wanted, is_served
        self._kept, self._readings = kept, readings
        self._incoming = folder / ".incoming"
        self._is_ours = self._incoming.is_dir() or _owner(folder) == USER
        self._published = {file["name"]: file for file in wanted["files"]} if wanted else {}
        self._serves = ([wanted["merged"]] if wanted["merged"] else list(self._published)) if wanted else []

    def rows(self) -> list[dict[str, Any]]:
        """Its files."""
        if self._folder.is_symlink():
            return []
        names = sorted(path.name for path in self._folder.iterdir())
        files = [self._folder / name for name in names if not self._is_record(name, names)]
        files = [file for file in files if file.is_symlink() or not file.is_dir()]
        if self._incoming.is_dir() and not self._incoming.is_symlink():
            growing = sorted(path.name for path in self._incoming.iterdir())
            # The journal of a file goes with it.
            alone = [
                name for name in growing if not (name.endswith(".journal") and name[: -len(".journal")] in growing)
            ]
            files += [self._incoming / name for name in alone]
        rows = [self._row(file) for file in files]
        is_whole = all(name in {row["name"] for row in rows if row["state"] == SERVED} for name in self._serves)
        for row in rows:  # What has begun to grow for a file that is there and whole was left over.
            if row["state"] == FETCHING and self._serves and is_whole:
                row["state"] = ORPHAN
        return [row for row in rows if row["name"] != ".incoming/lock" or row["state"] == ORPHAN]

    @staticmethod
    def _is_record(name: str, names: list[str]) -> bool:
        """Whether a file is the record beside another one."""
        return name.endswith(".json") and name.removesuffix(".json") in names

    def _row(self, file: Path) -> dict[str, Any]:
        status = file.lstat()
        sha256 = self._sha256(file)
        return {
            "path": str(file),
            "model": self._folder.name,
            "name": str(file.relative_to(self._folder)),
            "bytes": status.st_size,
            "disk_bytes": allocated_bytes(status),
            "links": status.st_nlink,
            "state": self._state(file, status, sha256),
            "came": self._came(file, sha256),
            "verified": self._verified(file, status, sha256),
            "also": [str(each) for each in (_beside(file, ".json"), _beside(file, ".journal")) if each.exists()],
        }

    def _sha256(self, file: Path) -> str:
        """What the sha256 of a file should be; empty where nothing says it."""
        if file.parent == self._incoming:
            return file.name.partition(".")[0] if _DIGEST.match(file.name) else ""
        if file.name in self._published:
            return str(self._published[file.name]["sha256"])
        record = read_json(_beside(file, ".json")).get("sha256", "")
        return str(record or self._kept.get("verified", {}).get(str(file), {}).get("sha256", ""))

    def _state(self, file: Path, status: os.stat_result, sha256: str) -> str:
        if not self._wanted:
            # The module embeddings_model records of what it has made its file.
            is_embeddings = "source" in read_json(_beside(file, ".json"))
            other = OTHER if self._is_ours and self._is_a_model_s(file) else FOREIGN
            return EMBEDDINGS if is_embeddings else other
        if file.parent == self._incoming:
            is_another_s = _DIGEST.match(file.name) and sha256 not in {
                each["sha256"] for each in self._published.values()
            }
            return ORPHAN if is_another_s else FETCHING
        if file.name in self._serves:
            is_it = self._is_as_verified(file, status, sha256) or self._is_damaged(file, sha256)
            return UNVERIFIED if not is_it else SERVED if self._is_served else WAITING
        if file.name in self._published:
            return WAITING if self._is_as_verified(file, status, sha256) else UNVERIFIED
        made_of = [shard["sha256"] for shard in read_json(_beside(file, ".json")).get("shards", [])]
        if made_of and made_of == [each["sha256"] for each in self._published.values()]:
            return WAITING
        return ORPHAN if self._is_a_model_s(file) else FOREIGN

    def _is_a_model_s(self, file: Path) -> bool:
        """Whether it is a file of a model, of which r1prov knows what it is for. What else lies there is somebody's own."""
        return file.parent == self._incoming or ".gguf" in file.suffixes or _owner(file) == USER

    def _is_as_verified(self, file: Path, status: os.stat_result, sha256: str) -> bool:
        return bool(sha256) and self._kept.get("verified", {}).get(str(file)) == as_kept(status, sha256)

    def _is_damaged(self, file: Path, sha256: str) -> bool:
        return bool(self._reading(file, sha256).get("why"))

    def _reading(self, file: Path, sha256: str) -> dict[str, Any]:
        """What the last reading of this very file has found, as far as that stands."""
        reading = self._readings.get(str(file), {})
        return reading if reading.get("sha256") == sha256 else {}

    def _came(self, file: Path, sha256: str) -> dict[str, Any]:
        came = self._kept.get("came", {})
        record = read_json(_beside(file, ".json"))
        shards = record.get("shards", [])
        origins: dict[str, int] = {}
        for each in [shard["sha256"] for shard in shards] or [sha256]:
            for origin, count in came.get(each, {}).get("from", {}).items():
                origins[origin] = origins.get(origin, 0) + count
        at = came.get(sha256, {}).get("at")
        return {"from": origins, "made_of": [shard["name"] for shard in shards], "at": at}

    def _verified(self, file: Path, status: os.stat_result, sha256: str) -> dict[str, Any]:
        if reading := self._reading(file, sha256):
            return {"at": reading["at"], "result": reading["state"], "why": reading["why"]}
        if not self._is_as_verified(file, status, sha256):
            return {"at": None, "result": None, "why": ""}
        return {"at": self._kept.get("when", {}).get(str(file)), "result": "whole", "why": ""}


def _beside(file: Path, suffix: str) -> Path:
    return file.with_name(file.name + suffix)


def _owner(path: Path) -> str:
    """The user whose a file is; empty where that user is gone."""
    with suppress(KeyError):
        return pwd.getpwuid(path.lstat().st_uid).pw_name
    return ""
