#!/usr/bin/python
"""Ansible module r1.prov.weights: a model's files, from an empty folder to the one file that is served."""

from __future__ import annotations

DOCUMENTATION = r"""
module: weights
short_description: Prepares the folder of a model, waits for its files, merges and verifies them, and removes what is not served
description:
  - Stock Ansible cannot do it, because it does not know when a transfer is complete, nor what is in GGUF files.
  - C(prepared) makes the folder and its missing parents. Only its owner and the group C(r1prov-operators), which must exist, may enter it.
    A folder that everybody may enter stays so until C(settled), because a process that serves from it may lack the group. A link or a file
    where the folder for unverified files should be is removed, and never what a link leads to. Where the files are served as they are,
    it hard-links files from other folders of the same disk to where the transfer keeps unverified files, and the transfer names them when
    it has verified them. It stops a transfer that counts as done although its files are gone or were changed, so that the transfer can
    start anew.
  - C(transferred) returns when the transfer is complete, or after 25 seconds. Call it again until C(complete), so that a lost connection
    costs nothing. It fails when the transfer has failed for good.
  - C(merged) does nothing where the transfer has brought the files straight into the one file that is made of them. Where they lie here as
    published, it writes the tensors of all into one file in one pass, compares each with its source, and computes the new file's digests.
    Only then does the file get its name, and C(NAME.json) beside it says what it was made of. It may be interrupted anywhere and run again.
    It acts as the user of the transfer. The disk must have room for the model a second time. Where a source has changed since it was
    verified, nothing is made of it and nothing is removed. Then C(damaged) names it, and C(prepared) has the transfer fetch it anew.
  - C(settled) removes the published files and those that were made of them, except the file that is served. Run it when that has answered.
    It removes nothing where the served file is not there as it was verified. Then it closes whatever holds weights to all who are not in
    the group, whether or not it is served now - this folder, those of other models beside it, and I(registries).
  - C(verified) reads all files of the model that are there, and fails where one is damaged or what is served is not there. It changes no
    file. The transfer is made to forget that a damaged file was verified, so that the next C(prepared) has it check and replace that file.
    With I(mend) it brings those pieces anew, and writes each where it lies, if its sha256 is right.
    It compares the sha256 of each 16 MiB where these are recorded, so that damage has a place. Where they are not, and a file is
    whole, it records them. What it found is kept in C(/var/lib/r1prov/weights/read.json).
  - C(pruned) removes what nobody needs of models, in the model's folder and in those of other models beside it. It leaves what a process
    has mapped, and what is not r1prov's.
author: The r1prov team
options: {
  "state": {"type": "str", "required": true, "choices": ["prepared", "transferred", "merged", "settled",
      "verified", "pruned"], "description": "The step."},
  "path": {"type": "path", "description": "The model's folder. Needed unless I(state) is C(transferred)."},
  "files": {"type": "list", "elements": "dict", "description": "The published files, in order. Needed unless I(state) is C(transferred).",
      "suboptions": {
    "name": {"type": "str", "required": true, "description": "Its name."},
    "bytes": {"type": "int", "required": true, "description": "Its size."},
    "sha256": {"type": "str", "required": true, "description": "The digest of its content."}
  }},
  "merged": {"type": "str", "default": "", "description": "The file that is made of them and served in their place. Empty for none."},
  "attention": {"type": "str", "default": "legacy", "choices": ["mla", "legacy"], "description": "C(mla) brings the legacy attention of
      C(deepseek2) files into MLA form (C(attn_k_b) as Q8_0), which needs numpy. Other files are merged as they are. A file that was
      merged in the published form counts in place of the published files too. C(legacy) merges all files as they are."},
  "folders": {"type": "list", "elements": "path", "default": [], "description": "Folders of this host that may hold the files already."},
  "mend": {"type": "bool", "default": false, "description": "Whether C(verified) brings damaged pieces anew, of those files of which the
      digests of pieces are recorded. They come from the sources that the transfer was given last."},
  "environment_file": {"type": "str", "default": "", "description": "A shell script that is sourced before something is fetched with
      I(mend). Empty for none."},
  "surplus": {"type": "list", "elements": "path", "default": [], "description": "The files that C(pruned) may remove. Empty for all that
      nobody needs."},
  "registries": {"type": "list", "elements": "path", "default": [], "description": "Folders in which other programs keep models
      under names of their own, as Ollama does. C(settled) closes those that are there, and they keep their owners."}
  }
"""

EXAMPLES = r"""
- name: Wait for the files
  r1.prov.weights:
    state: transferred
  register: transfer
  until: transfer.complete
  retries: 1000
"""

RETURN = r"""
actions: {type: list, elements: str, returned: with prepared, description: "What was done to the folder, or would be."}
complete: {type: bool, returned: with transferred, description: Whether all files are there and verified.}
differences:
  type: list
  elements: str
  returned: with prepared, merged and settled
  description: What is not as it should be, in a sentence each.
progress: {type: dict, returned: with transferred, description: "What the transfer says of itself, see ARCHITECTURE.md."}
made:
  type: dict
  returned: with merged
  description: >-
    The merged file - C(path), C(sha256), C(bytes), C(attention) and the C(seconds) that it took. Digest and size are empty in check mode
    where the file is not there yet.
damaged:
  type: list
  elements: str
  returned: with merged and transferred
  description: >-
    With C(merged), the sources that have changed since they were verified. With C(transferred), the files that the transfer found damaged
    and has fetched anew, or that will be made anew. The first call that finds the transfer complete names them, and no later one.
removed: {type: list, elements: str, returned: with settled, description: "The files that were removed, or would be."}
closed: {type: list, elements: str, returned: with settled, description: "The folders that were closed, or would be."}
pruned:
  type: dict
  returned: with pruned
  description: >-
    What was removed, or would be - of each of C(removed) its C(path), C(bytes), C(state) (C(other quant) or C(orphan)) and the bytes that
    it C(frees); and C(in_use), the files that stay because a process has mapped them, in a sentence each.
verified:
  type: dict
  returned: with verified
  description: >-
    What was read - C(seconds), and of each of the C(files) its C(path), C(bytes), C(sha256), C(state) (C(whole) or C(damaged)), C(why),
    the C(places) of the damage as far as they are known - C(start), C(end), and the tensors that it C(holds) - and whether it was
    C(mended). C(fetched_bytes) is what came for that.
"""

import json
import os
import pwd
import stat
import subprocess
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils.account_look import own_uid
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments
from ansible_collections.r1.prov.plugins.module_utils.difference import Difference, owner_and_mode_of
from ansible_collections.r1.prov.plugins.module_utils.files import access_lists, give, read_json
from ansible_collections.r1.prov.plugins.module_utils.gguf_header import GgufError
from ansible_collections.r1.prov.plugins.module_utils.gguf_stream import DamagedError, StreamError
from ansible_collections.r1.prov.plugins.module_utils.locks import alone
from ansible_collections.r1.prov.plugins.module_utils.merged_weights import NotThereError, remove, replaced, stand_in
from ansible_collections.r1.prov.plugins.module_utils.pieces import recorded_pieces
from ansible_collections.r1.prov.plugins.module_utils.progress import RUN, Progress
from ansible_collections.r1.prov.plugins.module_utils.sourced import SourcedError, variables
from ansible_collections.r1.prov.plugins.module_utils.units import in_words, last_words, show, stop, untold
from ansible_collections.r1.prov.plugins.module_utils.users import acting_as, exists
from ansible_collections.r1.prov.plugins.module_utils.weights_kept import (
    DAMAGED,
    STATE,
    WHOLE,
    damage,
    forget,
    is_as_verified,
    remember,
    remember_reading,
    said_damaged,
)
from ansible_collections.r1.prov.plugins.module_utils.weights_merge import Merge, MergeError
from ansible_collections.r1.prov.plugins.module_utils.weights_prune import in_use, surplus
from ansible_collections.r1.prov.plugins.module_utils.weights_prune import remove as remove_surplus
from ansible_collections.r1.prov.plugins.module_utils.weights_verify import expected, joined, keep, verified

UNIT = "r1prov-weights.service"
USER = "r1prov-weights"
JOB = Path("/etc/r1prov/weights/job.json")
"""The transfer's: it names the sources, and holds the token."""
PROGRAM = Path("/usr/local/lib/r1prov-weights/mend.py")
READERS = "r1prov-operators"
"""The group whose members may read models, as the engines do."""
CLOSED = 0o750
OPEN = 0o755
_OF_OTHERS = ("nfs", "cifs", "smb", "9p", "ceph", "lustre", "fuse")
WAIT_S = 25
POLL_S = 0.5

Actions = Dict[str, Callable[[], object]]


class TransferError(Exception):
    """The transfer will not complete by itself."""


def is_elsewhere(path: Path, mounts: str) -> bool:
    """Whether another machine keeps a path's file system, where root may have no say. `mounts` is the text of /proc/self/mounts."""
    rows = [line.split()[1:3] for line in mounts.splitlines()]
    over = [(place, kind) for place, kind in rows if path.is_relative_to(place)]
    return bool(over) and max(over, key=lambda row: len(row[0]))[1].startswith(_OF_OTHERS)


def above(path: Path) -> list[Path]:
    """The folders above the model's that carry r1prov's name, or lie in one that does. They are root's, unless somebody lives there."""
    homes = {each.pw_dir for each in pwd.getpwall()}
    return [
        each
        for each in path.parents
        if "r1prov" in (each.name, each.parent.name) and not {str(each), str(each.parent)} & homes
    ]


def wrong_folders(path: Path) -> list[Difference]:
    """The folders that have another owner or mode than r1prov has given them."""
    found = []
    for parent in above(path):
        if parent.is_dir() and not parent.is_symlink():
            has, wanted = owner_and_mode_of(parent.stat()), "0:0 0755"
            if has != wanted:
                said = f"{parent} has owner and mode {has}, and should have {wanted}"
                found.append(Difference("mode", str(parent), wanted, has, said))
    return found


def wrong_files(path: Path, files: list[dict[str, Any]], merged: str) -> list[Difference]:
    """The model's files that others may write to, or that not all may read. A file that was made here must be the transfer's."""
    found = []
    with suppress(KeyError):
        uid = own_uid(USER)
        for name in [*(file["name"] for file in files), *([merged] if merged else [])]:
            file = path / name
            if file.is_symlink() or not file.is_file():
                continue
            status = file.stat()
            mode = stat.S_IMODE(status.st_mode)
            # What was linked from elsewhere stays what it is.
            is_ours = name == merged or status.st_uid == uid
            if is_ours and (status.st_uid != uid or mode not in (0o444, 0o644)):
                has = owner_and_mode_of(status)
                said = f"{file} has owner and mode {has}, and should belong to {USER} and have 0644"
                found.append(Difference("file mode", str(file), str(uid), has, said))
    return found


def put_right(difference: Difference) -> None:
    """Gives a folder above the models back to root, and a file of a model the owner and the mode that it should have."""
    place = Path(difference.place)
    if difference.kind == "mode":
        give(place, "root")
        return
    folder = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        file = os.open(place.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        try:
            os.fchown(file, int(difference.expected), -1)
            os.fchmod(file, 0o644)
        finally:
            os.close(file)
    finally:
        os.close(folder)


def folder_actions(path: Path) -> Actions:
    """What makes the folder. Missing parents become root's. The folder, and the folder in which files grow, become the transfer's.

    A folder of ours that is open to all is not closed here: an engine that serves from it could not start again before its unit is written.
    """
    todo: Actions = {}
    for parent in reversed(path.parents):
        if not parent.is_dir():
            todo[f"made {parent}"] = partial(give, parent, "root")
    incoming = path / ".incoming"
    if incoming.is_symlink() or (incoming.exists() and not incoming.is_dir()):
        todo[f"removed {incoming}, which is no folder"] = incoming.unlink
    for folder in (path.resolve(), incoming):
        if not (is_ours(folder) and (is_closed(folder) or folder.stat().st_mode & 0o777 == OPEN)):
            todo[f"made {folder}"] = partial(give, folder, USER, CLOSED, READERS)
    return todo


def is_ours(folder: Path) -> bool:
    """Whether this is a folder, and the transfer's."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    with suppress(KeyError):  # Its user may be gone.
        return folder.stat().st_uid == own_uid(USER)
    return False


def is_closed(folder: Path) -> bool:
    """Whether only the transfer and the group of readers may enter a folder."""
    with suppress(KeyError):
        is_for_readers = folder.group() == READERS and folder.stat().st_mode & 0o777 == CLOSED
        return is_for_readers and not access_lists(folder)
    return False


def holds_models(folder: Path) -> bool:
    """Whether the transfer has made this folder: it has its user, or files grow in it. Then another may have got it when that user went."""
    incoming = folder / ".incoming"
    return is_ours(folder) or (not folder.is_symlink() and incoming.is_dir() and not incoming.is_symlink())


def open_folders(path: Path, registries: list[str]) -> dict[Path, str]:
    """The folders with weights into which others than the group can look, each with the user whose it is to be."""
    folders = sorted({folder for folder in path.parent.iterdir() if not folder.is_symlink()} | {path.resolve()})
    owners = {folder: USER for folder in folders if holds_models(folder)}
    owners |= {folder: owner_of(folder) for folder in (Path(name).resolve() for name in registries) if folder.is_dir()}
    return {folder: owner for folder, owner in owners.items() if not is_closed(folder)}


def owner_of(folder: Path) -> str:
    """The user whose a folder is; root where that user is gone."""
    try:
        return folder.owner()
    except KeyError:
        return "root"


def link_actions(path: Path, files: list[dict[str, Any]], folders: list[str]) -> Actions:
    """What links those files that are there, have the right size, lie on the same disk, and may be read by all."""
    todo: Actions = {}
    disk = next(parent for parent in (path, *path.parents) if parent.is_dir()).stat().st_dev
    for file in files:
        link = path / ".incoming" / file["sha256"]
        if link.exists() or (path / file["name"]).exists():
            continue
        for candidate in (Path(folder, file["name"]) for folder in folders):
            if not candidate.is_file() or candidate.is_symlink():
                continue
            status = candidate.stat()
            if (status.st_dev, status.st_size) == (disk, file["bytes"]) and status.st_mode & 0o004:
                todo[f"linked {candidate}"] = partial(os.link, candidate, link)
                break
    return todo


def is_transferring() -> bool:
    """Whether the transfer is at work."""
    return show(UNIT, "SubState")["SubState"] in ("running", "start", "auto-restart")


def is_complete(unit: dict[str, str], state: dict[str, Any]) -> bool:
    """Whether all files are there, by systemd's properties of the unit and by what this start of the unit wrote down.

    Raises:
        TransferError: the transfer has failed, or is not under way.
    """
    if state.get("invocation") == unit["InvocationID"]:
        if state["state"] == "done":
            return True
        if state["state"] == "failed":
            raise TransferError(state["message"])
    if unit["LoadState"] != "loaded":
        raise TransferError("the transfer was never set up: run the role weights before joining it")
    if unit["ActiveState"] == "failed":
        raise TransferError(f"the transfer failed ({unit['Result']}): {last_words(UNIT, unit['InvocationID'])}")
    if unit["ActiveState"] == "inactive":
        raise TransferError("the transfer was stopped")
    return False


def prepare(module: AnsibleModule, options: dict[str, Any]) -> None:
    path, files = Path(options["path"]), options["files"]
    todo = folder_actions(path)
    differences = [_in_words(path, name) for name in todo]
    far = is_elsewhere(path, Path("/proc/self/mounts").read_text(encoding="utf-8"))
    wrong = [] if far else [*wrong_folders(path), *wrong_files(path, files, options["merged"])]
    differences += map(str, wrong)
    todo |= {f"gave {each.place} its owner and mode": partial(put_right, each) for each in wrong}
    if merged := stand_in(path, options["merged"], options["attention"], files):
        files = [merged]
    elif not options["merged"]:
        todo |= link_actions(path, files, options["folders"])
    # A unit whose program has ended well still counts as started.
    if show(UNIT, "SubState")["SubState"] == "exited" and not is_as_verified(path, files):
        lacking = [file["name"] for file in files if not is_as_verified(path, [file])]
        if options["merged"] and not any((path / name).exists() for name in lacking):
            lacking = [options["merged"]]
        differences += [_unlike(path / name) for name in lacking]
        todo[f"stopped {UNIT}, whose files are not as it left them"] = partial(stop, UNIT)
    if not module.check_mode:
        try:
            for act in todo.values():
                act()
        except OSError as error:
            module.fail_json(msg=f"{error.filename or path}: {error.strerror}")
    # Where no transfer was, a first run makes it all.
    drift = differences if STATE.exists() else []
    module.exit_json(changed=bool(todo), actions=list(todo), differences=differences, drift=drift)


def _in_words(path: Path, action: str) -> str:
    """What is wrong where a folder has to be made or given back."""
    place = Path(action.removeprefix("made ").removeprefix("removed ").removesuffix(", which is no folder"))
    if action.startswith("removed "):
        return f"{place} is no folder"
    if not place.is_dir():
        return f"{place} is gone"
    has = owner_and_mode_of(place.stat())
    if access_lists(place):
        has += " and an access list"
    return f"{place} has owner and mode {has}, and should belong to {USER} and be closed to others than {READERS}"


def _unlike(file: Path) -> str:
    if not file.exists():
        return f"{file} is gone"
    if found := damage(file):
        return f"{file} is damaged, as was found on {found['day']}: {found['why']}"
    return f"{file} is not as it was when it was verified"


def wait(module: AnsibleModule, _options: dict[str, Any]) -> None:
    if module.check_mode and (said := untold(UNIT)):
        module.exit_json(changed=False, complete=False, differences=[said], untold=True)
    end_s, keys = time.monotonic() + WAIT_S, ("LoadState", "ActiveState", "Result", "InvocationID")
    try:
        while not (complete := is_complete(show(UNIT, *keys), read_json(STATE))) and time.monotonic() < end_s:
            time.sleep(POLL_S)
    except TransferError as error:
        remedy = f"Mend that and run the same again: what has arrived is kept. The whole log: {in_words('log', UNIT)}"
        module.fail_json(msg=f"{str(error).rstrip('.')}. {remedy}")
    damaged = read_json(STATE).get("damaged", []) if complete else []
    for name in damaged:
        module.warn(f"{name} was damaged, and is replaced")
    if (
        damaged and not module.check_mode
    ):  # Later runs, for which the same start of the unit counts, do not say it again.
        with acting_as(USER):
            said_damaged(STATE)
    progress = read_json(RUN / "weights" / "progress.json")
    module.exit_json(changed=False, complete=complete, damaged=damaged, progress=progress)


def merge(module: AnsibleModule, options: dict[str, Any]) -> None:
    work = Merge(Path(options["path"]), options["files"], name=options["merged"], attention=options["attention"])
    merged, seconds = work.known, 0.0
    changed = not merged
    differences = [_unlike(work.file)] if changed else []
    if changed and not module.check_mode:
        started = time.monotonic()
        try:
            # The lock is root's and does not lie in the transfer's folder, where its user could keep it.
            with alone(work.run / ".merge.lock", Progress("weights", work.run).wait), acting_as(USER):
                os.umask(0o022)
                merged = work.complete()
        except DamagedError as error:
            module.warn(f"{error}. It is fetched anew")
            module.exit_json(changed=False, damaged=[str(error.path)], msg=str(error))
        except (MergeError, GgufError, StreamError, OSError) as error:
            module.fail_json(msg=f"{str(error).rstrip('.')}. What was there is as it was.")
        seconds = round(time.monotonic() - started, 1)
    record = merged or {"sha256": "", "bytes": 0, "attention": work.attention}
    made = {key: record[key] for key in ("sha256", "bytes", "attention")}
    module.exit_json(
        changed=changed,
        damaged=[],
        made={"path": str(work.file), **made, "seconds": seconds},
        differences=differences,
        drift=[],  # It may be a new wish, and `prepared` tells of a file that somebody has changed.
    )


def verify(module: AnsibleModule, options: dict[str, Any]) -> None:
    path, began, started = Path(options["path"]), time.time(), time.monotonic()
    if module.check_mode:
        module.exit_json(skipped=True, msg="Verifying reads everything and takes long, so a check leaves it out")
    if not exists(USER) or not path.is_dir():
        module.fail_json(
            msg=f"{path} is not there: no weights were brought to this host. Remedy: `r1prov up` brings them"
        )
    if is_transferring():
        label = read_json(RUN / "weights" / "progress.json").get("label", "")
        module.fail_json(
            msg=f"the weights are still being transferred ({label}), and the transfer verifies what it brings. "
            "Remedy: `r1prov up` waits for it; verify then"
        )
    files = expected(path, options["files"], options["merged"])
    try:
        give(RUN / "weights", USER)
        with alone(RUN / ".verify.lock", Progress("weights").wait):
            rows = joined(began, RUN / ".verify.json", files)
            if not rows:
                with acting_as(USER):
                    rows = verified(path, files, Progress("weights"))
                    forget([Path(row["path"]) for row in rows if row["state"] == DAMAGED])
                    remember_reading(rows, "run")
                keep(RUN / ".verify.json", files, rows)
    except OSError as error:
        module.fail_json(msg=f"{error.filename or path} cannot be read: {error.strerror}")
    is_to_mend = options["mend"] and any(row["places"] for row in rows)
    fetched = mend(rows, options["environment_file"]) if is_to_mend else None
    found = {"files": rows, "seconds": round(time.monotonic() - started, 1), "fetched_bytes": fetched}
    if damaged := [row for row in rows if row["state"] == DAMAGED]:
        words = "; ".join(f"{row['path']} is damaged: {row['why']}" for row in damaged)
        module.fail_json(msg=f"{words}. Remedy: `r1prov up` brings it anew, and keeps it until then", verified=found)
    module.exit_json(changed=any(row["mended"] for row in rows), verified=found)


def mend(rows: list[dict[str, Any]], environment_file: str) -> int:
    """Brings the damaged pieces of files anew, and says in the rows what came of it. Returns the bytes that were fetched."""
    damaged = [row for row in rows if row["places"]]
    job = read_json(JOB)
    job["damaged"] = [
        {
            "name": Path(row["path"]).name,
            **{key: row[key] for key in ("bytes", "places")},
            "pieces": recorded_pieces(Path(row["path"]), row["bytes"], row["sha256"]),
        }
        for row in damaged
    ]
    job["damaged"] = [each for each in job["damaged"] if each["pieces"]]  # What its disk cannot read has places, too.
    said = mended(job, environment_file)
    for row, name in ((row, Path(row["path"]).name) for row in damaged):
        if name not in {each["name"] for each in job["damaged"]}:
            continue
        if why := said["faults"].get(name):
            row["why"] += f". It could not be mended: {why}"
        else:
            row |= {"state": WHOLE, "why": "", "mended": True}
            with acting_as(USER):
                remember(Path(row["path"]), row["sha256"])
    with acting_as(USER):
        remember_reading([row for row in rows if row["mended"]], "run")
    return int(said["fetched"])


def mended(job: dict[str, Any], environment_file: str) -> dict[str, Any]:
    """What the program says that brings damaged pieces anew: the bytes that it has `fetched`, and `faults`, why files were not mended."""
    user = pwd.getpwnam(USER)
    try:
        environment = variables(environment_file)
    except SourcedError as error:
        why = str(error)
    else:
        done = subprocess.run(
            ["/usr/bin/python3", str(PROGRAM)],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env=os.environ | environment,
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=os.getgrouplist(USER, user.pw_gid),
        )
        if not done.returncode:
            said: dict[str, Any] = json.loads(done.stdout)
            return said
        why = "the program failed: " + done.stderr.strip().rpartition("\n")[2]
    return {"fetched": 0, "faults": {each["name"]: why for each in job["damaged"]}}


def prune(module: AnsibleModule, options: dict[str, Any]) -> None:
    path = Path(options["path"])
    if not exists(USER) or not path.parent.is_dir():
        module.exit_json(changed=False, pruned={"removed": [], "in_use": []})
    if is_transferring():
        module.fail_json(msg="the weights are still being transferred. Remedy: prune when `r1prov up` has ended")
    rows = surplus(path, options["files"], options["merged"], options["surplus"])
    used = in_use([row["path"] for row in rows])
    rows = [row for row in rows if row["path"] not in used]
    if rows and not module.check_mode:
        try:
            remove_surplus(path, rows, USER)
        except OSError as error:
            module.fail_json(msg=f"{error.filename or path} cannot be removed: {error.strerror}")
    said = [f"{name} stays, because {process} uses it" for name, process in used.items()]
    removed = [{key: row[key] for key in ("path", "bytes", "state", "frees")} for row in rows]
    module.exit_json(changed=bool(rows), pruned={"removed": removed, "in_use": said})


def settle(module: AnsibleModule, options: dict[str, Any]) -> None:
    try:
        path = Path(options["path"])
        surplus = replaced(path, options["merged"], options["files"])
        ajar = open_folders(path, options["registries"])
        if surplus and not module.check_mode:
            with acting_as(USER):
                remove(surplus)
        for folder, owner in {} if module.check_mode else ajar.items():
            give(folder, owner, CLOSED, READERS)
    except (NotThereError, OSError) as error:
        if module.check_mode:  # before a first run nothing is there
            module.exit_json(skipped=True, removed=[], closed=[], msg=str(error))
        module.fail_json(msg=f"{error}.")
    differences = [f"{file} lies there and is not served" for file in surplus]
    differences += [f"{folder} is open to others than {READERS}" for folder in ajar]
    module.exit_json(
        changed=bool(differences),
        removed=list(map(str, surplus)),
        closed=list(map(str, ajar)),
        differences=differences,
        drift=[],  # An earlier version has left them so.
    )


def main() -> None:
    states = {"prepared": prepare, "transferred": wait, "merged": merge, "settled": settle}
    states |= {"verified": verify, "pruned": prune}
    module = AnsibleModule(
        argument_spec=arguments(DOCUMENTATION),
        required_if=[("state", state, ("path", "files")) for state in states if state != "transferred"],
        supports_check_mode=True,
    )
    states[module.params["state"]](module, module.params)


if __name__ == "__main__":
    main()
