#!/usr/bin/python
"""Ansible module r1.prov.measurement: waits for the unit that measures, while the engine pauses."""

from __future__ import annotations

DOCUMENTATION = r"""
module: llama_bench
short_description: Measures in a unit of its own while the engine pauses, and returns the result
description:
  - Stock Ansible cannot do it, because its module for services does not wait for a unit to end, nor stop one for which nobody waits.
  - It starts the unit C(r1prov-measure) and waits until that has ended. The start of the unit stops the engine, and its end starts it
    again.
  - If the caller goes away, the unit is stopped, and the engine starts again. The next start goes on where this one was.
  - A job that was measured to its end is not measured again.
author: The r1prov team
options: {
  "engine": {"type": "str", "default": "r1prov-llama-server", "description": "The unit of the engine that pauses."},
  "result": {"type": "path", "required": true, "description": "The file to which the unit writes its result."},
  "force": {"type": "bool", "default": false, "description": "Whether to measure again what was measured."}
  }
"""

EXAMPLES = r"""
- name: Measure the settings
  r1.prov.measurement:
    result: /var/lib/r1prov/measure/settings.json
    force: true
"""

RETURN = r"""
result: {type: dict, returned: success, description: "What was measured; see roles/measure/files."}
"""

import select
import sys
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils import units
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments
from ansible_collections.r1.prov.plugins.module_utils.files import read_json

JOB = Path("/etc/r1prov/measure/job.json")
UNIT = "r1prov-measure.service"
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
    module = AnsibleModule(argument_spec=arguments(DOCUMENTATION), supports_check_mode=True)
    job, file, force = read_json(JOB), Path(module.params["result"]), module.params["force"]
    engine = module.params["engine"]
    if units.show(engine, "LoadState")["LoadState"] != "loaded":
        module.fail_json(msg=f"{engine} is not there to pause. Remedy: run `r1prov up` first")
    result = read_json(file)
    done = is_done(result, job) and not force
    if done or module.check_mode:
        module.exit_json(changed=not done, result=result)
    if force:
        file.unlink(missing_ok=True)
    units.reset_failed(UNIT)
    # A unit that still works for a controller that is gone is started again, and goes on where it was.
    units.systemctl("restart", "--no-block", UNIT)
    time.sleep(POLL_S)
    # Its start waits until the engine has stopped: a job without a process.
    while (state := units.show(UNIT, *_KEYS)).get("Job") or state["ActiveState"] not in ("inactive", "failed"):
        if not heard(STDOUT):
            units.systemctl("stop", UNIT)
            sys.exit(1)
        time.sleep(POLL_S)
    result = read_json(file)
    if not is_done(result, job):
        why = units.last_words(state["InvocationID"]) or state["Result"]
        remedy = f"mend that and run the same again; the whole log: journalctl -u {UNIT.removesuffix('.service')}"
        module.fail_json(msg=f"{why}. Remedy: {remedy}", result=result)
    module.exit_json(changed=True, result=result)


if __name__ == "__main__":
    main()
