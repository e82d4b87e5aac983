#!/usr/bin/python
"""Ansible module r1.prov.weights_settle: removes the files of a model that the served one has replaced."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: weights_settle
short_description: Removes what a model's served file has replaced
description:
  - To be run when what is served has answered. Of a model's published files, and of the files that M(r1.prov.weights_merge) made of them,
    only those stay that are served.
  - Removes nothing where one of these is not there as it was verified.
extends_documentation_fragment: r1.prov.weights
options:
  keep:
    description: The name of the one file that is served; empty where the published files are.
    type: str
    required: true
author:
  - The r1prov team
"""

EXAMPLES = r"""
- name: Keep what is served
  r1.prov.weights_settle:
    path: /srv/r1prov/models/R1
    owner: r1prov-weights
    keep: R1.mla.gguf
    files: "{{ shards }}"
"""

RETURN = r"""
removed:
  description: The files that were removed, or would be.
  type: list
  elements: str
  returned: success
"""

import json
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils.files import sync_folder, write_whole
from ansible_collections.r1.prov.plugins.module_utils.merged_weights import (
    FOLDER,
    STATE,
    is_as_verified,
    made,
    record_of,
    recorded,
    remembered,
)
from ansible_collections.r1.prov.plugins.module_utils.users import acting_as


class NotThereError(Exception):
    """What is served is not there as it was verified; the message says so."""


def replaced(folder: Path, keep: str, files: list[dict[str, Any]], state: Path = STATE) -> list[Path]:
    """The files that are there and not served.

    Args:
        folder: the model's.
        keep: the one that is served; empty where `files` are.
        files: the published ones.
        state: what the transfer remembers.

    Raises:
        NotThereError: it is safer to keep all.
    """
    served = [recorded(folder / keep, files)] if keep else files
    if not all(served) or not is_as_verified(folder, [file for file in served if file], state):
        raise NotThereError(
            f"{folder / (keep or files[0]['name'])} is not there as it was verified, so nothing is removed"
        )
    names = [file["name"] for file in (*files, *made(folder, files)) if file not in served]
    return [folder / name for name in names if (folder / name).exists()]


def remove(files: list[Path], state: Path = STATE) -> None:
    """Removes files and what is remembered of them."""
    before = remembered(state)
    known = {path: looks for path, looks in before.get("verified", {}).items() if Path(path) not in files}
    # In this order: of a file that is gone nothing may be remembered.
    write_whole(state, json.dumps({**before, "verified": known}))
    for file in files:
        record_of(file).unlink(missing_ok=True)
        file.unlink()
    sync_folder(files[0].parent)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **FOLDER,
            "keep": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    folder = Path(wanted["path"])
    try:
        found = replaced(folder, wanted["keep"], wanted["files"])
        if found and not module.check_mode:
            with acting_as(wanted["owner"]):
                remove(found)
    except (NotThereError, OSError) as error:
        if module.check_mode:  # before a first run nothing is there
            module.exit_json(skipped=True, removed=[], msg=str(error))
        module.fail_json(msg=f"{error}.")
    module.exit_json(changed=bool(found), removed=list(map(str, found)))


if __name__ == "__main__":
    main()
