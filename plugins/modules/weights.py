#!/usr/bin/python
"""Ansible module r1.prov.weights: a model's files, from an empty folder to the one file that is served."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: weights
short_description: Prepares the folder of a model, waits for its files, merges them, and removes what is not served
description:
  - Stock Ansible cannot do it, because it does not know when a transfer is complete, nor what is in GGUF files.
  - With C(prepared), makes the folder and its missing parents. Files that lie in other folders of the same disk are hard-linked to where
    the transfer keeps unverified files; the transfer gives them their names when it has verified them. Stops a transfer that counts itself
    as done although its files are gone or were changed, so that it can start anew.
  - With C(transferred), returns when the transfer is complete, or after I(limit_s). Call it again until C(complete), so that a lost
    connection costs nothing. Fails when the transfer has failed for good.
  - With C(merged), writes the tensors of all files into one, in one pass, and holds each against its source, while the new file's sha256
    is computed. Only then the file gets its name, and C(NAME.json) beside it says what it was made of. May be interrupted anywhere and run
    again. Acts as the folder's owner. The disk must have room for the model a second time.
  - With C(settled), removes the published files and those that were made of them, but for what is served. To be run when that has
    answered. Removes nothing where what is served is not there as it was verified.
options:
  state:
    description: How far to go.
    type: str
    choices: [prepared, transferred, merged, settled]
    required: true
  path:
    description: The model's folder. Needed unless I(state) is C(transferred).
    type: path
  files:
    description: The published files, in order. Needed unless I(state) is C(transferred).
    type: list
    elements: dict
    suboptions:
      name:
        description: Its name.
        type: str
        required: true
      bytes:
        description: Its size.
        type: int
        required: true
      sha256:
        description: The digest of its content.
        type: str
        required: true
  merged:
    description: Name of the file that is made of them and served in their place. Empty for none.
    type: str
    default: ""
  attention:
    description:
      - C(mla) brings the legacy attention of C(deepseek2) files into MLA form (C(attn_k_b) as Q8_0), which needs numpy. Other files are
        merged as they are. A file that was merged in the published form counts in place of the published files too.
      - C(legacy) merges all files as they are.
    type: str
    choices: [mla, legacy]
    default: legacy
  folders:
    description: Folders of this host that may hold the files already.
    type: list
    elements: path
    default: []
  owner:
    description: The user whose folder it is.
    type: str
    default: r1prov-weights
  unit:
    description: The unit that transfers.
    type: str
    default: r1prov-weights.service
  limit_s:
    description: Seconds to wait for the transfer at most.
    type: int
    default: 25
author:
  - The r1prov team
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
actions:
  description: What was done to the folder, or would be.
  type: list
  elements: str
  returned: with prepared
complete:
  description: Whether all files are there and verified.
  type: bool
  returned: with transferred
progress:
  description: What the transfer says of itself, see ARCHITECTURE.md.
  type: dict
  returned: with transferred
made:
  description: >-
    The merged file - C(path), C(sha256), C(bytes), C(attention) and the C(seconds) that it took. Digest and size are empty in check mode
    where the file is not there yet.
  type: dict
  returned: with merged
removed:
  description: The files that were removed, or would be.
  type: list
  elements: str
  returned: with settled
"""

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils.files import read_json
from ansible_collections.r1.prov.plugins.module_utils.gguf_header import GgufError
from ansible_collections.r1.prov.plugins.module_utils.gguf_stream import StreamError
from ansible_collections.r1.prov.plugins.module_utils.locks import alone
from ansible_collections.r1.prov.plugins.module_utils.merged_weights import (
    LEGACY,
    MLA,
    STATE,
    NotThereError,
    is_as_verified,
    remove,
    replaced,
    stand_in,
)
from ansible_collections.r1.prov.plugins.module_utils.progress import RUN, Progress
from ansible_collections.r1.prov.plugins.module_utils.units import show, systemctl
from ansible_collections.r1.prov.plugins.module_utils.users import acting_as
from ansible_collections.r1.prov.plugins.module_utils.weights_merge import Merge, MergeError
from ansible_collections.r1.prov.plugins.module_utils.weights_transfer import (
    UNIT_KEYS,
    TransferError,
    folder_actions,
    is_complete,
    link_actions,
)

POLL_S = 0.5


def prepare(module: AnsibleModule, wanted: dict[str, Any]) -> None:
    path, files = Path(wanted["path"]), wanted["files"]
    todo = folder_actions(path, wanted["owner"])
    if instead := stand_in(path, wanted["merged"], wanted["attention"], files):
        files = [instead]
    else:
        todo |= link_actions(path, files, wanted["folders"])
    # A unit whose program has ended well still counts as started.
    has_ended = show(wanted["unit"], "SubState")["SubState"] == "exited"
    if has_ended and not is_as_verified(path, files):
        what = f"stopped {wanted['unit']}, whose files are not as it left them"
        todo[what] = partial(systemctl, "stop", wanted["unit"])
    if not module.check_mode:
        try:
            for act in todo.values():
                act()
        except OSError as error:
            module.fail_json(msg=f"{error.filename or path}: {error.strerror}")
    module.exit_json(changed=bool(todo), actions=list(todo))


def wait(module: AnsibleModule, wanted: dict[str, Any]) -> None:
    unit, end_s = wanted["unit"], time.monotonic() + wanted["limit_s"]
    try:
        while not (complete := is_complete(show(unit, *UNIT_KEYS), read_json(STATE))) and time.monotonic() < end_s:
            time.sleep(POLL_S)
    except TransferError as error:
        remedy = f"Mend that and run the same again: what has arrived is kept. The whole story: journalctl -u {unit}"
        module.fail_json(msg=f"{str(error).rstrip('.')}. {remedy}")
    module.exit_json(changed=False, complete=complete, progress=read_json(RUN / "weights" / "progress.json"))


def merge(module: AnsibleModule, wanted: dict[str, Any]) -> None:
    work = Merge(Path(wanted["path"]), wanted["files"], name=wanted["merged"], attention=wanted["attention"])
    merged, seconds = work.known, 0.0
    changed = not merged
    if changed and not module.check_mode:
        started = time.monotonic()
        try:
            # The lock is root's and does not lie in the transfer's folder, where its user could keep it.
            with alone(work.run / ".merge.lock", Progress("weights", work.run).wait), acting_as(wanted["owner"]):
                os.umask(0o022)
                merged = work.complete()
        except (MergeError, GgufError, StreamError, OSError) as error:
            module.fail_json(msg=f"{str(error).rstrip('.')}. What was there is as it was.")
        seconds = round(time.monotonic() - started, 1)
    found = merged or {"sha256": "", "bytes": 0, "attention": work.attention}
    made = {key: found[key] for key in ("sha256", "bytes", "attention")}
    module.exit_json(changed=changed, made={"path": str(work.file), **made, "seconds": seconds})


def settle(module: AnsibleModule, wanted: dict[str, Any]) -> None:
    try:
        found = replaced(Path(wanted["path"]), wanted["merged"], wanted["files"])
        if found and not module.check_mode:
            with acting_as(wanted["owner"]):
                remove(found)
    except (NotThereError, OSError) as error:
        if module.check_mode:  # before a first run nothing is there
            module.exit_json(skipped=True, removed=[], msg=str(error))
        module.fail_json(msg=f"{error}.")
    module.exit_json(changed=bool(found), removed=list(map(str, found)))


def main() -> None:
    file = {
        key: {"type": kind, "required": True} for key, kind in (("name", "str"), ("bytes", "int"), ("sha256", "str"))
    }
    steps = {"prepared": prepare, "transferred": wait, "merged": merge, "settled": settle}
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": list(steps), "required": True},
            "path": {"type": "path"},
            "files": {"type": "list", "elements": "dict", "options": file},
            "merged": {"type": "str", "default": ""},
            "attention": {"type": "str", "choices": [MLA, LEGACY], "default": LEGACY},
            "folders": {"type": "list", "elements": "path", "default": []},
            "owner": {"type": "str", "default": "r1prov-weights"},
            "unit": {"type": "str", "default": "r1prov-weights.service"},
            "limit_s": {"type": "int", "default": 25},
        },
        required_if=[("state", state, ("path", "files")) for state in steps if state != "transferred"],
        supports_check_mode=True,
    )
    steps[module.params["state"]](module, module.params)


if __name__ == "__main__":
    main()
