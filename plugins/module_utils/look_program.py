"""Runs on a host as root: asks modules of Ansible, in check mode and in a few processes, whether what a run left is still as it was.

The controller sends this file as text, followed by a call of `main`, so it needs only the standard library. It prints one line of JSON.
The modules come as a zip file. It stays in /run for the next look, in one file with what Python has compiled of it and with a digest, so
that nothing of a damaged file is ever run. The host's own watch (r1prov/runs/on_host/watch.py) imports this file.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import hashlib
import importlib.machinery
import importlib.util
import io
import json
import marshal
import os
import select
import shutil
import signal
import stat
import sys
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import CodeType, ModuleType

FOLDER = Path("/run/r1prov/look")
LOCK = Path("/run/r1prov/lock.json")
HISTORY = Path("/var/lib/r1prov/history")
LIMIT_S = 30
_LENGTH, _SUM = 4, 32
_LONGEST = ("embeddings_model", "apt_present", "release")
"""Modules whose answers take long, the longest last."""
_LATE = tuple(f"ansible.module_utils._internal._json._profiles._module_legacy_{way}" for way in ("c2m", "m2c"))
"""What Ansible imports when a module begins and when it answers. Versions of ansible-core from before 2.19 do not have it."""
SHOWN = ("changed", "failed", "msg", "differences", "diff", "result", "built_anew", "away", "untold")
"""What is told of an answer."""


def main(job: dict[str, Any]) -> None:
    """Asks, and prints what the modules answer.

    Args:
        job: `digest` of the modules, `code`, which is a zip file of them in base64 or empty, `version` of ansible-core, `dead`, which
            names a run whose lock does not count, and `asked`, a list of {module, arguments, sha1, said}.
    """
    gc.disable()  # Nothing here lives long. A collection would write to memory that the forked processes share.
    holder = document(LOCK)
    if isinstance(holder, dict) and holder.get("run") == job["dead"]:
        holder = None
    kept = FOLDER / f"{job['digest']}-{importlib.util.MAGIC_NUMBER.hex()}"
    modules = Modules(base64.b64decode(job["code"])) if job["code"] else _kept(kept)
    if holder or not modules:
        print(json.dumps({"holder": holder, "missing": not modules}))  # noqa: T201 - stdout is the interface
        return
    sys.meta_path.insert(0, modules)
    _import(job["asked"])
    utils = "ansible_collections.r1.prov.plugins.module_utils"
    version, history = (importlib.import_module(f"{utils}.{name}") for name in ("version", "run_history"))
    modules.keep(kept)
    gc.freeze()  # Otherwise Python goes through all that was imported once more when it ends, and the answer waits for that.
    if version.is_newer(last := str(history.last(HISTORY).get("r1prov", ""))):
        print(json.dumps({"holder": None, "newer": last}))  # noqa: T201
        return
    print(json.dumps({"answers": answers(job["asked"], job["version"], str(FOLDER))}))  # noqa: T201


def answers(asked: list[dict[str, Any]], version: str, scratch: str) -> list[dict[str, Any]]:
    """What the modules answer, which can be imported.

    Args:
        asked: as `main` is given it.
        version: of ansible-core.
        scratch: a folder for what modules write while they work.
    """
    os.environ["LC_ALL"] = "C.UTF-8"
    # All are imported before the processes begin, which then need not do so.
    modules = _import(asked)

    def look_ahead() -> None:
        for name, module in modules.items():
            if hasattr(module, "look_ahead"):
                with contextlib.suppress(Exception):  # Where that fails, each question says why.
                    module.look_ahead([each["arguments"] for each in asked if each["module"] == name])

    return _asked_at_once(asked, look_ahead, lambda each: _ask(each, version, scratch))


def _import(asked: list[dict[str, Any]]) -> dict[str, Any]:
    with contextlib.suppress(ImportError):
        for name in _LATE:
            importlib.import_module(name)
    return {name: importlib.import_module(name) for name in sorted({each["module"] for each in asked})}


def _asked_at_once(
    asked: list[dict[str, Any]], look_ahead: Callable[[], None], ask: Callable[[dict[str, Any]], dict[str, Any]]
) -> list[dict[str, Any]]:
    """What is answered to each question, by as many processes as the host has processors.

    They are copies of this process. multiprocessing does the same, but to import it takes longer than most questions.

    Args:
        asked: the questions.
        look_ahead: lets modules read at once what several questions are about. The longest question is asked meanwhile.
        ask: asks one.
    """
    # What takes longest comes first, so that no process works alone at the end.
    waiting = sorted(range(len(asked)), key=lambda number: _length(asked[number]["module"]))
    found: dict[int, dict[str, Any]] = {}
    first = [_Worker(asked, ask, waiting.pop())] if waiting else []
    workers = list(first)
    look_ahead()
    while waiting or workers:
        while waiting and len(workers) < len(os.sched_getaffinity(0)):
            workers.append(_Worker(asked, ask, waiting.pop()))
        patience_s = max(0.0, min(worker.until for worker in workers) - time.monotonic())
        ready = select.select([worker.answers for worker in workers], [], [], patience_s)[0]
        for worker in list(workers):
            if worker.answers in ready:
                worker.hear()
            if worker.answer is not None:
                found[worker.number] = worker.answer
                if waiting and worker not in first:  # That one does not know what was read meanwhile.
                    worker.take(waiting.pop())
                    continue
            elif not worker.ended and time.monotonic() < worker.until:
                continue
            else:
                why = "it ended without an answer" if worker.ended else f"it did not answer within {LIMIT_S} s"
                found[worker.number] = {"error": why}
            worker.stop()
            workers.remove(worker)
    return [found[number] for number in range(len(asked))]


def _length(module: str) -> int:
    """The place of a module among those that take long; -1 for all others."""
    name = module.rpartition(".")[2]
    return _LONGEST.index(name) if name in _LONGEST else -1


class _Worker:
    """A process that answers questions, one after the other.

    Attributes:
        number: of its question.
        answer: what it has answered; None as long as it has not.
        answers: where it answers.
        until: when it must have answered, by a steady clock.
        ended: whether it answers no more.
    """

    def __init__(
        self, asked: list[dict[str, Any]], ask: Callable[[dict[str, Any]], dict[str, Any]], number: int
    ) -> None:
        questions, self._questions = os.pipe()
        self.answers, answers = os.pipe()
        self.ended = False
        self._pid = os.fork()
        if not self._pid:
            try:
                os.setpgid(0, 0)  # What a module has started ends with it.
                _alone()
                os.close(self._questions)
                while text := os.read(questions, _LENGTH):
                    answer = json.dumps(ask(asked[int.from_bytes(text, "big")])).encode()
                    with open(answers, "wb", closefd=False) as pipe:
                        pipe.write(len(answer).to_bytes(_LENGTH, "big") + answer)
            finally:
                os._exit(0)
        os.close(questions)
        os.close(answers)
        self.take(number)

    def take(self, number: int) -> None:
        """Let it answer this question next."""
        self.number, self._heard = number, b""
        self.answer: dict[str, Any] | None = None
        self.until = time.monotonic() + LIMIT_S
        with contextlib.suppress(BrokenPipeError):  # Then it has ended, and says no more.
            os.write(self._questions, number.to_bytes(_LENGTH, "big"))

    def hear(self) -> None:
        """Take what it has said."""
        said = os.read(self.answers, 1 << 16)
        self.ended = not said
        self._heard += said
        length, text = int.from_bytes(self._heard[:_LENGTH], "big"), self._heard[_LENGTH:]
        if length and len(text) == length:
            self.answer = json.loads(text)

    def stop(self) -> None:
        """End it, and what it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._questions)
        os.close(self.answers)


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


class Modules:
    """The modules of a zip file, for Python to import: a finder and a loader as importlib.abc has them, which takes long to import itself.

    Args:
        sources: the zip file.
        compiled: what Python has compiled of it, by places in the file.
        places: all places in the file, where they are known.
    """

    def __init__(
        self, sources: bytes, compiled: dict[str, CodeType] | None = None, places: Iterable[str] | None = None
    ) -> None:
        self._sources, self._compiled, self._known = sources, compiled or {}, len(compiled or ())
        self._places = frozenset(places or zipfile.ZipFile(io.BytesIO(sources)).namelist())

    def find_spec(self, fullname: str, _path: Any, _target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        place = fullname.replace(".", "/")
        for name in (f"{place}/__init__.py", f"{place}.py"):
            if name in self._places:
                is_package = name.endswith("/__init__.py")
                spec = importlib.machinery.ModuleSpec(fullname, self, origin=name, is_package=is_package)  # type: ignore[arg-type]
                spec.has_location = True
                return spec
        return None

    def create_module(self, _spec: importlib.machinery.ModuleSpec) -> None:
        """Python makes it as it makes others."""

    def exec_module(self, module: ModuleType) -> None:
        """See `importlib.abc.Loader`."""
        place = str(module.__file__)
        if place not in self._compiled:
            with zipfile.ZipFile(io.BytesIO(self._sources)) as archive:
                self._compiled[place] = compile(archive.read(place), place, "exec", dont_inherit=True)
        exec(self._compiled[place], vars(module))  # noqa: S102 - as importing does

    def keep(self, path: Path) -> None:
        """Keep them for the next look, if there is something new. What else lies in the folder is of other versions."""
        if len(self._compiled) == self._known:
            return
        content = marshal.dumps((self._sources, self._compiled, sorted(self._places)))
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir(mode=0o700, parents=True)
        part = path.with_name(f"{os.getpid()}.part")
        part.touch(mode=0o600)
        part.write_bytes(hashlib.sha256(content).digest() + content)
        part.replace(path)


def _kept(path: Path) -> Modules | None:
    """The modules that an earlier look has kept; None where there are none, they are damaged, or others may have written them."""
    try:
        is_ours = (path.parent.stat().st_uid, stat.S_IMODE(path.parent.stat().st_mode)) == (os.geteuid(), 0o700)
        whole = path.read_bytes() if is_ours else b""
    except OSError:
        return None
    told, content = whole[:_SUM], whole[_SUM:]
    return Modules(*marshal.loads(content)) if hashlib.sha256(content).digest() == told else None  # noqa: S302 - it is ours


def document(path: Path) -> Any:
    """A JSON object; None where there is no such file, and True where it is damaged."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return True
    return found if isinstance(found, dict) and found else True
