#!/usr/bin/python
"""Ansible module r1.prov.weights_folder: the folder of a model's files, before its transfer starts."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: weights_folder
short_description: Makes the folder of a model's files ready for their transfer
description:
  - Makes the folder and its missing parents.
  - Hard-links files that lie in other folders of the same disk, so that they are not copied. They are linked to where the transfer
    keeps unverified files, and get their names when it has verified them. Only root may link what belongs to others.
  - Stops a transfer that counts itself as done although its files are gone or were changed, so that it can start anew.
extends_documentation_fragment: r1.prov.weights
options:
  merged:
    description: Name of the file that is made of them, which then counts in their place. Empty for none.
    type: str
    default: ""
  attention:
    description: The form that this file is wanted in. For C(mla), one that was merged in the published form counts in their place too.
    type: str
    choices: [mla, legacy]
    default: legacy
  folders:
    description: Folders of this host that may hold the files already.
    type: list
    elements: path
    default: []
  unit:
    description: The unit that transfers.
    type: str
    required: true
author:
  - The r1prov team
"""

EXAMPLES = r"""
- name: Make the folder
  r1.prov.weights_folder:
    path: /srv/r1prov/models/demo
    owner: r1prov-weights
    files: [{name: m.gguf, bytes: 5, sha256: "..."}]
    folders: [/mnt/usb]
    unit: r1prov-weights.service
"""

RETURN = r"""
actions:
  description: What was done, or would be.
  type: list
  elements: str
  returned: success
"""

import os
import pwd
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils.merged_weights import FOLDER, is_as_verified, stand_in
from ansible_collections.r1.prov.plugins.module_utils.units import show, systemctl

Actions = dict[str, Callable[[], object]]


def folder_actions(path: Path, owner: str) -> Actions:
    """What makes the folder: missing parents are root's, the folder and where files grow are the owner's."""
    todo: Actions = {}
    for parent in reversed(path.parents):
        if not parent.is_dir():
            todo[f"made {parent}"] = partial(make, parent, "root")
    for folder in (path, path / ".incoming"):
        if not folder.is_dir() or folder.owner() != owner or folder.stat().st_mode & 0o777 != 0o755:
            todo[f"made {folder}"] = partial(make, folder, owner)
    return todo


def link_actions(path: Path, files: list[dict[str, Any]], folders: list[str]) -> Actions:
    """Which files can be linked: there, of the right size, on the same disk, and for all to read."""
    todo: Actions = {}
    disk = next(parent for parent in (path, *path.parents) if parent.is_dir()).stat().st_dev
    for file in files:
        link = path / ".incoming" / file["sha256"]
        if link.exists() or (path / file["name"]).exists():
            continue
        for found in (Path(folder, file["name"]) for folder in folders):
            if not found.is_file() or found.is_symlink():
                continue
            status = found.stat()
            if (status.st_dev, status.st_size) == (disk, file["bytes"]) and status.st_mode & 0o004:
                todo[f"linked {found}"] = partial(os.link, found, link)
                break
    return todo


def make(folder: Path, owner: str) -> None:
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    entry = pwd.getpwnam(owner)
    os.chown(folder, entry.pw_uid, entry.pw_gid)


def has_ended(unit: str) -> bool:
    """Whether the unit counts as started though its program has ended."""
    return show(unit, "SubState")["SubState"] == "exited"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **FOLDER,
            "merged": {"type": "str", "default": ""},
            "attention": {"type": "str", "choices": ["mla", "legacy"], "default": "legacy"},
            "folders": {"type": "list", "elements": "path", "default": []},
            "unit": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    path = Path(wanted["path"])
    files = wanted["files"]
    todo = folder_actions(path, wanted["owner"])
    if instead := stand_in(path, wanted["merged"], wanted["attention"], files):
        files = [instead]
    else:
        todo |= link_actions(path, files, wanted["folders"])
    if has_ended(wanted["unit"]) and not is_as_verified(path, files):
        todo[f"stopped {wanted['unit']}, whose files are not as it left them"] = partial(
            systemctl, "stop", wanted["unit"]
        )
    if not module.check_mode:
        try:
            for act in todo.values():
                act()
        except OSError as error:
            module.fail_json(msg=f"{error.filename or path}: {error.strerror}")
    module.exit_json(changed=bool(todo), actions=list(todo))


if __name__ == "__main__":
    main()
