#!/usr/bin/python
"""Ansible module r1.prov.weights_wait: waits a while for the transfer of a model's files."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: weights_wait
short_description: Waits a while for the transfer of a model's files
description:
  - Returns when the transfer is complete, or after I(limit_s). Call it again until C(complete), so that a lost connection costs nothing.
  - Fails when the transfer has failed for good. Changes nothing.
options:
  unit:
    description: The unit that transfers.
    type: str
    required: true
  limit_s:
    description: Seconds to wait at most.
    type: int
    default: 25
author:
  - The r1prov team
"""

EXAMPLES = r"""
- name: Wait for the files
  r1.prov.weights_wait:
    unit: r1prov-weights.service
  register: wait
  until: wait.complete
  retries: 1000
"""

RETURN = r"""
complete:
  description: Whether all files are there and verified.
  type: bool
  returned: success
progress:
  description: What the transfer says of itself, see ARCHITECTURE.md.
  type: dict
  returned: success
"""

import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils.files import read_json
from ansible_collections.r1.prov.plugins.module_utils.units import last_words, show

STATE = Path("/var/lib/r1prov/weights/state.json")
PROGRESS = Path("/run/r1prov/weights/progress.json")
POLL_S = 0.5
_KEYS = ("LoadState", "ActiveState", "Result", "InvocationID")


class TransferError(Exception):
    """The transfer will not complete by itself."""


def is_complete(unit: dict[str, Any], state: dict[str, Any]) -> bool:
    """Whether all files are there.

    Args:
        unit: systemd's properties of the unit.
        state: what the transfer wrote down; counts only if this start of the unit did.

    Raises:
        TransferError: it has failed, or nothing is under way.
    """
    if state.get("invocation") == unit["InvocationID"]:
        if state["state"] == "done":
            return True
        if state["state"] == "failed":
            raise TransferError(state["message"])
    if unit["LoadState"] != "loaded":
        raise TransferError("the transfer was never set up: run the role weights before joining it")
    if unit["ActiveState"] == "failed":
        raise TransferError(f"the transfer failed ({unit['Result']}): {last_words(unit['InvocationID'])}")
    if unit["ActiveState"] == "inactive":
        raise TransferError("the transfer was stopped")
    return False


def main() -> None:
    module = AnsibleModule(
        argument_spec={"unit": {"type": "str", "required": True}, "limit_s": {"type": "int", "default": 25}},
        supports_check_mode=True,
    )
    name, end_s = module.params["unit"], time.monotonic() + module.params["limit_s"]
    try:
        while not (complete := is_complete(show(name, *_KEYS), read_json(STATE))) and time.monotonic() < end_s:
            time.sleep(POLL_S)
    except TransferError as error:
        remedy = f"Mend that and run the same again: what has arrived is kept. The whole story: journalctl -u {name}"
        module.fail_json(msg=f"{str(error).rstrip('.')}. {remedy}")
    module.exit_json(changed=False, complete=complete, progress=read_json(PROGRESS))


if __name__ == "__main__":
    main()
