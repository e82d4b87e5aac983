"""One look at a host: what the tasks of the last run expect there, asked again without Ansible, in one call.

A task expects something of a host by a module and its arguments. A look asks the same module again, in check mode. So it says what a run
would change, by the same code, and nothing has to be declared twice.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import time
import zipfile
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1prov.common import paths
from r1prov.hosts.asking import ask

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from r1prov.hosts.connection import HostConnection

LIMIT_S = 120
"""The seconds that a look may take on a host."""

STOCK = ("command", "file", "systemd_service")
"""The modules of ansible-core that a look asks."""


@dataclass(frozen=True)
class Expectation:
    """What a task expects of a host.

    Attributes:
        step: the role of the task.
        task: its name.
        module: the full name of its module for Python.
        arguments: the module's arguments, in which digests stand for secrets.
        sha1: of the file at the argument `path`; empty where the content does not matter.
        said: what a command that only reads has answered, by keys of the module `command`.
    """

    step: str
    task: str
    module: str
    arguments: dict[str, Any]
    sha1: str = ""
    said: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """Something on a host that is not as it should be.

    Attributes:
        step: the role that mends it.
        task: the task that does.
        what: what differs, as a predicate of the host or a clause.
    """

    step: str
    task: str
    what: str


@dataclass(frozen=True)
class FileDiff:
    """How one file differs.

    Attributes:
        step: the role that mends it.
        task: the task that does.
        path: the file.
        diff: a unified diff from what should be there to what is there, or why there is none.
    """

    step: str
    task: str
    path: str
    diff: str


@dataclass(frozen=True)
class Look:
    """What came of a look at a host.

    Attributes:
        asked: the number of questions.
        seconds: how long it took.
        differences: what differs.
        unknown: why nothing or not all could be told; empty where all was.
        stays: what is an administrator's own and concerns r1prov: a run warns of it and leaves it.
        benchmark: the last result of the role smoke_bench; None where it was not asked.
        diffs: how the content of files differs, where that was asked for.
    """

    asked: int
    seconds: float
    differences: tuple[Difference, ...] = ()
    unknown: str = ""
    stays: tuple[str, ...] = ()
    benchmark: dict[str, Any] | None = None
    diffs: tuple[FileDiff, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether everything is as it should be, as far as was asked, and all was answered."""
        return not self.differences and not self.unknown


def look(connection: HostConnection, expectations: Sequence[Expectation]) -> Look:
    """Ask a host whether it is still as its last run has left it. Changes nothing that serves.

    Raises:
        UnreachableError: the connection is lost, or the host gives no answer.
    """
    began = time.monotonic()
    code, digest = modules()
    asked = [asdict(each) for each in expectations]
    job = {"digest": digest, "code": "", "version": metadata.version("ansible-core"), "dead": "", "asked": asked}
    said, locked = _ask(connection, job), []
    if (holder := said.get("holder")) and is_dead(holder):
        locked = [
            Difference("lock", "Lock the host", f"it is still locked: {paths.module_util('lock_holder').ended(holder)}")
        ]
        job["dead"] = holder["run"]
        said = _ask(connection, job)
    if said.get("missing") and not said["holder"]:
        said = _ask(connection, job | {"code": base64.b64encode(zipped(code)).decode()})
    if said.get("holder"):
        return Look(0, 0.0, unknown="another run is at work on it")
    answers = said["answers"]
    told = paths.module_util("looked").summary(asked, answers)
    of_benchmark = (answer for each, answer in zip(asked, answers, strict=True) if each["step"] == "smoke_bench")
    return Look(
        asked=len(asked),
        seconds=round(time.monotonic() - began, 1),
        differences=(*locked, *(Difference(**each) for each in told["differences"])),
        unknown=told["unknown"],
        stays=tuple(told["stays"]),
        benchmark=next((answer.get("result") for answer in of_benchmark), None),
    )


def is_dead(holder: Any) -> bool:
    """Whether the run that holds a lock has certainly ended without releasing it. A damaged lock is somebody's."""
    return isinstance(holder, dict) and bool(paths.module_util("lock_holder").is_dead(holder))


def _ask(connection: HostConnection, job: dict[str, Any]) -> dict[str, Any]:
    program = (resources.files("r1prov.hosts") / "on_host" / "look.py").read_text()
    return ask(connection, program, job, "it cannot be looked at", LIMIT_S)


@cache
def modules() -> tuple[dict[str, bytes], str]:
    """The modules that a look asks and all that they import, by their places, and a digest of them all."""
    core = Path(next(iter(importlib.util.find_spec("ansible").submodule_search_locations or ())))  # type: ignore[union-attr]
    ours = paths.collection() / "plugins"
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
