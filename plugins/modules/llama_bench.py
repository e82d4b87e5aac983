#!/usr/bin/python
"""Ansible module r1.prov.llama_bench: waits for the unit that measures settings, while the engine pauses."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: llama_bench
short_description: Measures settings with llama-bench in a unit of its own, and returns the best
description:
  - Stock Ansible cannot do it, because its module for services does not wait for a unit to end, nor stop one for which nobody waits.
  - Starts I(unit) and waits until it has ended. Its start stops the engine, and its end starts it again.
  - If the caller goes away, the unit is stopped, and the engine starts again. Another start
    goes on where this one was.
  - A job that was measured to its end is not measured again.
options:
  unit:
    description: The unit, without C(.service).
    type: str
    default: r1prov-tune
  engine:
    description: The unit that pauses, without C(.service). It must be installed.
    type: str
    default: r1prov-llama-server
  job:
    description: What the unit is told to do, a file.
    type: path
    default: /etc/r1prov/tune/job.json
  result:
    description: Where the unit writes what it finds.
    type: path
    default: /var/lib/r1prov/tune/result.json
  force:
    description: Whether to measure anew what was measured.
    type: bool
    default: false
author:
  - The r1prov team
"""

EXAMPLES = r"""
- name: Measure
  r1.prov.llama_bench:
    force: true
"""

RETURN = r"""
result:
  description: What was measured, and what is best; see roles/tune/files/tune.py.
  type: dict
  returned: success
"""

import select
import sys
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils import units
from ansible_collections.r1.prov.plugins.module_utils.files import read_json

POLL_S = 0.5
STDOUT = 1
_KEYS = ("ActiveState", "Job", "Result", "InvocationID")


def is_done(result: dict[str, Any], job: dict[str, Any]) -> bool:
    """Whether the result is of this job, and of all of it."""
    return bool(job) and result.get("job") == job and result.get("state") == "done"


def heard(descriptor: int) -> bool:
    """Whether somebody still reads what is written there."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "unit": {"type": "str", "default": "r1prov-tune"},
            "engine": {"type": "str", "default": "r1prov-llama-server"},
            "job": {"type": "path", "default": "/etc/r1prov/tune/job.json"},
            "result": {"type": "path", "default": "/var/lib/r1prov/tune/result.json"},
            "force": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    unit, job, file = module.params["unit"], read_json(Path(module.params["job"])), Path(module.params["result"])
    if units.show(module.params["engine"], "LoadState")["LoadState"] != "loaded":
        module.fail_json(msg=f"{module.params['engine']} is not there to pause. Remedy: run `r1prov up` first")
    result = read_json(file)
    if is_done(result, job) and not module.params["force"]:
        module.exit_json(changed=False, result=result)
    if module.check_mode:
        module.exit_json(changed=True, result=result)
    if module.params["force"]:
        file.unlink(missing_ok=True)
    units.reset_failed(f"{unit}.service")
    # One that is still at work, for a controller that is gone, is started anew: it goes on where it was.
    units.systemctl("restart", "--no-block", f"{unit}.service")
    time.sleep(POLL_S)
    # Its start waits until the engine has stopped: a job without a process.
    while (state := units.show(unit, *_KEYS)).get("Job") or state["ActiveState"] not in ("inactive", "failed"):
        if not heard(STDOUT):
            units.systemctl("stop", f"{unit}.service")
            sys.exit(1)
        time.sleep(POLL_S)
    result = read_json(file)
    if not is_done(result, job):
        why = units.last_words(state["InvocationID"]) or state["Result"]
        module.fail_json(
            msg=f"{why}. Remedy: mend that and run the same again; the whole story: journalctl -u {unit}", result=result
        )
    module.exit_json(changed=True, result=result)


if __name__ == "__main__":
    main()
