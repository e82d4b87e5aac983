"""The controller's half of a look: what is expected of a host, the modules that are sent there, and what their answers come to.

r1prov looks by it over its own connection, and the action plugin `look` over that of Ansible. The other half is look_program.py.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import json
import re
import time
import zipfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.release import __version__ as ansible_version
from ansible_collections.r1.prov.plugins.module_utils import look_program, looked
from ansible_collections.r1.prov.plugins.module_utils.lock_holder import ended, is_dead
from ansible_collections.r1.prov.plugins.module_utils.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

LIMIT_S = 120
"""The seconds that a look may take on a host."""

STOCK = ("command", "file")
"""The modules of ansible-core that a look asks."""

COMMAND = "python3 -I -"
"""What the host is given as a command, as root."""

PROGRAM = Path(look_program.__file__).read_text(encoding="utf-8")
"""What runs on a host."""

SITE_DIR = "r1prov_site_dir:"
"""The line of an inventory that says where its site keeps its own. It depends on where the inventory lies, and hosts do not see it."""

EXPECTED = ("step", "task", "module", "arguments", "sha1", "said")
"""What is kept of an expectation. See `Expectation` of r1prov, which keeps it."""

_PATH = re.compile(r"""(?<![\w.])/[^\s'"`,;{}()\[\]|]+""")


def look(
    ask: Callable[[dict[str, Any]], dict[str, Any]], collection: Path, asked: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Ask a host whether it is still as its last run has left it. Changes nothing that serves.

    Args:
        ask: runs PROGRAM on the host with this job, and returns what it tells.
        collection: the root of the collection, whose modules are asked.
        asked: what is expected, as the program is given it, each with the keys `step` and `task` as well.

    Returns:
        `asked`: the number of questions. `seconds`: how long it took. `differences`: a list of {step, task, what}. `unknown`: why nothing
        or not all could be told; empty where all was. `stays`: what is an administrator's own. `built_anew`: whether a platform has built
        the host anew. `benchmark`: the last result of the role smoke_bench; None where it was not asked.
    """
    began = time.monotonic()
    code, digest = modules(collection)
    job = {"digest": digest, "code": "", "version": ansible_version, "dead": "", "asked": asked}
    said, locked = ask(job), []
    if (holder := said.get("holder")) and is_dead(holder):
        locked = [{"step": "lock", "task": "Lock the host", "what": f"it is still locked: {ended(holder)}"}]
        job["dead"] = holder["run"]
        said = ask(job)
    if said.get("missing") and not said["holder"]:
        said = ask(job | {"code": base64.b64encode(zipped(code)).decode()})
    if said.get("holder"):
        return untold("another run is at work on it")
    if newer := said.get("newer"):
        return untold(
            f"r1prov {newer} has changed it last, and this is r1prov {VERSION}, which does not know what that expects of it"
        )
    told = looked.summary(asked, said["answers"])
    of_benchmark = (
        answer for each, answer in zip(asked, said["answers"], strict=True) if each["step"] == "smoke_bench"
    )
    return {
        "asked": len(asked),
        "seconds": round(time.monotonic() - began, 1),
        "differences": [*locked, *told["differences"]],
        "unknown": told["unknown"],
        "stays": told["stays"],
        "built_anew": told["built_anew"],
        "benchmark": next((answer.get("result") for answer in of_benchmark), None),
    }


def untold(why: str) -> dict[str, Any]:
    """What comes of a look that could not tell anything, as `look` returns it."""
    return {
        "asked": 0,
        "seconds": 0.0,
        "differences": [],
        "unknown": why,
        "stays": [],
        "built_anew": False,
        "benchmark": None,
    }


def script(job: dict[str, Any]) -> str:
    """What COMMAND on the host reads: PROGRAM with this job. Argument lists have a limit, and everybody on the host may read them."""
    return f"{PROGRAM}\n\nmain(json.loads({json.dumps(job)!r}))\n"


def recall(kept: Path) -> tuple[str, list[dict[str, Any]]]:
    """What the run that was kept in a file of the site's `looks` was made of, and what it expects of its host; nothing where none is."""
    try:
        found = json.loads(kept.read_text())
        return str(found["made_of"]), [{name: each[name] for name in EXPECTED} for each in found["expectations"]]
    except (OSError, ValueError, KeyError, TypeError):
        return "", []


def made_of(collection: Path, inventory: Iterable[Path], site_dir: Path) -> str:
    """Identifies what a run is made of: the code, the inventory, and all files that the inventory names.

    A file that is named counts by its size and its times, because it may be an archive of some GB.

    Args:
        collection: the root of the collection.
        inventory: the folders and files of the inventory, in the order in which Ansible is given them.
        site_dir: the folder with the site's secrets, authority, pins and keys.
    """
    digest = hashlib.sha256(ansible_version.encode())
    code = (path for folder in ("playbooks", "plugins", "roles") for path in _files(collection / folder))
    for path in sorted(path for path in code if path.suffix != ".pyc" and "molecule" not in path.parts):
        digest.update(f"{path.relative_to(collection)}\n".encode() + path.read_bytes())
    named: set[str] = set()
    for source in inventory:
        for path in _files(source):
            lines = path.read_text().splitlines()
            text = "\n".join(line for line in lines if not line.startswith(SITE_DIR))
            digest.update(f"{path.relative_to(source)}\n{text}".encode())
            named |= set(_PATH.findall(text))
    named |= {str(path) for name in ("secrets", "authority", "pins") for path in (site_dir / name).rglob("*")}
    named.add(str(site_dir / "keys.json"))
    for path in map(Path, sorted(named)):
        if path.is_file():
            status = path.stat()
            digest.update(f"{path} {status.st_size} {status.st_mtime_ns} {status.st_ino}\n".encode())
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    return [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())


@cache
def modules(collection: Path) -> tuple[dict[str, bytes], str]:
    """The modules that a look asks and all that they import, by their places, and a digest of them all."""
    core = Path(next(iter(importlib.util.find_spec("ansible").submodule_search_locations or ())))  # type: ignore[union-attr]
    ours = collection / "plugins"
    files = {"ansible/__init__.py": b"", "ansible/modules/__init__.py": b""}
    files |= {
        f"ansible/{path.relative_to(core)}": path.read_bytes() for path in sorted((core / "module_utils").rglob("*.py"))
    }
    files |= {f"ansible/modules/{name}.py": (core / "modules" / f"{name}.py").read_bytes() for name in STOCK}
    files["ansible/release.py"] = (core / "release.py").read_bytes()
    package = ""
    for name in ("ansible_collections", "r1", "prov", "plugins"):
        package += f"{name}/"
        files[f"{package}__init__.py"] = b""
    for folder in ("modules", "module_utils"):
        files[f"{package}{folder}/__init__.py"] = b""
        files |= {f"{package}{folder}/{path.name}": path.read_bytes() for path in sorted((ours / folder).glob("*.py"))}
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return files, digest.hexdigest()


def zipped(files: Mapping[str, bytes]) -> bytes:
    """A zip file of files, by their places. Of the same files it is always the same."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return whole.getvalue()
