"""Runs on a host as root: asks modules of Ansible, in check mode and in a few processes, whether what a run left is still as it was.

The controller sends this file as text, followed by a call of `main`, so it needs only the standard library. It prints one line of JSON.
The modules come as a zip file. Unpacked they stay in /run for the next look, beside what Python has compiled of them. The host's own
watch (r1prov/runs/on_host/watch.py) imports this file.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib
import io
import json
import multiprocessing
import os
import shutil
import stat
import sys
import zipfile
from pathlib import Path
from typing import Any

FOLDER = Path("/run/r1prov/look")
LOCK = Path("/run/r1prov/lock.json")
LIMIT_S = 30
SHOWN = ("changed", "failed", "msg", "differences", "diff", "result")
"""What is told of an answer."""


def main(job: dict[str, Any]) -> None:
    """Asks, and prints what the modules answer.

    Args:
        job: `digest` of the modules, `code`, which is a zip file of them in base64 or empty, `version` of ansible-core, `dead`, which
            names a run whose lock does not count, and `asked`, a list of {module, arguments, sha1, said}.
    """
    holder = document(LOCK)
    if isinstance(holder, dict) and holder.get("run") == job["dead"]:
        holder = None
    code = _code(job["digest"], job["code"])
    if holder or not code:
        print(json.dumps({"holder": holder, "missing": not code}))  # noqa: T201 - stdout is the interface
        return
    sys.path.insert(0, str(code))
    print(json.dumps({"answers": answers(job["asked"], job["version"], str(FOLDER))}))  # noqa: T201


def answers(asked: list[dict[str, Any]], version: str, scratch: str) -> list[dict[str, Any]]:
    """What the modules answer, which can be imported.

    Args:
        asked: as `main` is given it.
        version: of ansible-core.
        scratch: a folder for what modules write while they work.
    """
    # All are imported before the processes begin, which then need not do so.
    for name in sorted({each["module"] for each in asked}):
        importlib.import_module(name)
    os.environ["LC_ALL"] = "C.UTF-8"
    context = multiprocessing.get_context("fork")
    with context.Pool(os.cpu_count() or 1, _alone) as pool:
        pending = [pool.apply_async(_ask, (each, version, scratch)) for each in asked]
        return [_answer(each) for each in pending]


def _answer(pending: Any) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = pending.get(LIMIT_S)
    except multiprocessing.TimeoutError:
        answer = {"error": f"it did not answer within {LIMIT_S} s"}
    return answer


def _ask(asked: dict[str, Any], version: str, scratch: str) -> dict[str, Any]:
    """What a module answers in check mode; `error` where it gives no answer."""
    basic = importlib.import_module("ansible.module_utils.basic")
    internal = {
        "check_mode": not asked["said"],  # A command that only reads answers nothing in check mode.
        "diff": True,
        "no_log": True,  # A module would write all its arguments to the journal each time.
        "version": version,
        "module_name": asked["module"],
        "remote_tmp": scratch,
    }
    arguments = asked["arguments"] | {f"_ansible_{name}": value for name, value in internal.items()}
    # Ansible hands a module its arguments in the same way.
    vars(basic).update(_ANSIBLE_ARGS=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode(), _ANSIBLE_PROFILE="legacy")
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            importlib.import_module(asked["module"]).main()
        answer = json.loads(said.getvalue())
    except Exception as error:  # One module that breaks must not hide the answers of others.
        return {"error": f"{type(error).__name__}: {error}"}
    shown = {name: answer[name] for name in SHOWN if name in answer}
    shown["warnings"] = [_words(each) for each in answer.get("warnings", ())]
    if any(answer.get(key) != expected for key, expected in asked["said"].items()):
        shown["changed"] = True
    elif asked["said"]:
        shown = {"changed": False}
    if asked.get("sha1") and not shown.get("failed") and _sha1(asked["arguments"]["path"]) != asked["sha1"]:
        shown |= {"changed": True, "content": True}
    return shown


def _words(warning: Any) -> str:
    """The text of a warning, which newer versions of ansible-core wrap."""
    return str(warning["event"]["msg"] if isinstance(warning, dict) else warning)


def _alone() -> None:
    """Keeps what a module or its programs print from stdout, which is for the answers."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)


def _sha1(path: str) -> str:
    """The digest of a file by which Ansible compares it, too; empty where something else lies there, such as a link or a pipe."""
    file = Path(path)
    is_plain = file.is_file() and not file.is_symlink()
    return hashlib.sha1(file.read_bytes()).hexdigest() if is_plain else ""  # noqa: S324 - Ansible does


def _code(digest: str, code: str) -> Path | None:
    """The folder with the modules of this digest; None where they are neither here nor sent along."""
    path = FOLDER / digest
    if code:
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.mkdir(mode=0o700, parents=True)
        part = FOLDER / f"{os.getpid()}.part"
        with zipfile.ZipFile(io.BytesIO(base64.b64decode(code))) as archive:
            archive.extractall(part)
        part.rename(path)
    if not path.is_dir() or (FOLDER.stat().st_uid, stat.S_IMODE(FOLDER.stat().st_mode)) != (os.geteuid(), 0o700):
        return None
    return path


def document(path: Path) -> Any:
    """A JSON object; None where there is no such file, and True where it is damaged."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return True
    return found if isinstance(found, dict) and found else True
