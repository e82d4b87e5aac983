#!/usr/bin/python
"""Ansible module r1.prov.engine_drained: takes an engine out of the balancer of this host, and puts it back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: engine_drained
short_description: Lets an engine behind the balancer end its answers and get no new ones, and puts it back
description:
  - Stock Ansible cannot do it, because what it tells HAProxy is lost when HAProxy is reloaded, and it does not see the answers of processes
    that a reload has replaced.
  - With C(drained) the engine gets no new request from now on, also after reloads and restarts. Then it waits until its answers in flight
    have ended. The engine stays drained where they have not within I(limit_s), and the task fails.
  - With C(ready) it waits until the engine answers the balancer's checks. Then the engine gets requests again. It stays drained where it
    does not answer within I(limit_s), and the task fails.
  - With C(kept) who is drained stays so, and engines that the balancer no longer has are forgotten. The role C(balancer) calls it before it
    starts HAProxy.
author: The r1prov team
options: {
  "state": {"type": "str", "default": "drained", "choices": ["drained", "ready", "kept"], "description": "What the engine shall be."},
  "for_run": {"type": "bool", "default": false, "description": "Whether a run asks for that, which is about to stop the engine.
      With C(ready) only an engine that a run has drained is put back. With C(drained) the last engine that gets requests waits until one
      that a run has drained is back. The task goes on where answers are still in flight at the end, and where no balancer has the engine
      yet."},
  "name": {"type": "str", "default": "", "description": "The name of the engine at the balancer. Required except with C(kept)."},
  "limit_s": {"type": "int", "default": 600, "description": "How many seconds to wait at most."},
  "engines": {"type": "list", "elements": "dict", "default": [], "description": "With C(kept), all engines of the balancer, with C(name) and
      C(address)."}
  }
"""

EXAMPLES = r"""
- name: Let gpu1 end its answers
  r1.prov.engine_drained:
    name: gpu1
    limit_s: 1800

- name: Put it back
  r1.prov.engine_drained:
    name: gpu1
    state: ready
"""

RETURN = r"""
answering: {type: int, returned: except with kept, description: How many of its answers are still in flight.}
due: {type: bool, returned: with for_run, description: Whether the engine was not yet what it shall be.}
drained: {type: list, elements: str, returned: success, description: All engines that are drained.}
differences: {type: list, elements: str, returned: with kept, description: "What is not as it should be, in a sentence each."}
"""

import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments
from ansible_collections.r1.prov.plugins.module_utils.balancer_drained import (
    FILE,
    SURE_S,
    Balancer,
    DrainError,
    by_run,
    record,
    recorded,
    within,
)
from ansible_collections.r1.prov.plugins.module_utils.files import text_of, write_whole


def keep(module: AnsibleModule, engines: list[dict[str, Any]]) -> None:
    """Forgets engines that are gone."""
    wanted = record(recorded(FILE), by_run(FILE), {engine["name"]: engine["address"] for engine in engines})
    changed = text_of(FILE) != wanted
    if changed and not module.check_mode:
        FILE.parent.mkdir(parents=True, exist_ok=True)
        write_whole(FILE, wanted, 0o644)
    said = [f"{FILE} does not say which engines the balancer drains when it is started"] if changed else []
    module.exit_json(changed=changed, drained=recorded(FILE), differences=said, drift=said)


def stays(name: str, limit_s: int) -> str:
    """What to say of an engine that shall get requests and cannot be reached."""
    remedy = "Remedy: look at the engine's log, and whether r1prov-tunnel runs on both hosts"
    return f"{name} stays drained, because the balancer cannot reach it after {limit_s} s. {remedy}"


def bring(module: AnsibleModule, name: str, limit_s: int, *, drained: bool) -> None:
    """Drains an engine, or puts it back."""
    balancer = Balancer()
    try:
        changed = not balancer.is_so(name, drained=drained)
        if module.check_mode:
            module.exit_json(changed=changed, answering=balancer.in_flight(name), drained=recorded(FILE))
        if drained:
            balancer.drain(name)
            in_time = within(limit_s, lambda: not balancer.in_flight(name))
            wrong = (
                f"{name} gets no new requests, but after {limit_s} s some of its answers are still in flight. "
                "Remedy: drain it once more to wait longer"
            )
        else:
            in_time = within(limit_s, lambda: balancer.is_well(name), SURE_S)
            wrong = stays(name, limit_s)
            if in_time:
                balancer.put_back(name)
        left = balancer.in_flight(name)
    except (DrainError, OSError) as error:
        module.fail_json(msg=str(error))
    if not in_time:
        module.fail_json(msg=wrong, changed=changed, answering=left)
    module.exit_json(changed=changed, answering=left, drained=recorded(FILE))


def bring_for_run(module: AnsibleModule, name: str, limit_s: int, *, drained: bool) -> None:
    """Drains an engine that a run is about to stop, or puts back what the run has drained."""
    balancer, left, changed = Balancer(), 0, False
    try:
        changed = (drained or name in by_run(FILE)) and not balancer.is_so(name, drained=drained)
        if drained and not module.check_mode:
            left = _drain_in_turn(balancer, name, limit_s)
        elif changed and not module.check_mode:
            if not within(limit_s, lambda: balancer.is_well(name), SURE_S):
                module.fail_json(msg=stays(name, limit_s))
            balancer.put_back(name)
    except (DrainError, OSError):
        # The door is not set up yet, or does not have the engine yet. So nobody is asked through it.
        changed = False
    if left:
        module.warn(f"{name} still writes {left} answers after {limit_s} s, and these are cut off")
    module.exit_json(changed=changed, due=changed, answering=left, drained=recorded(FILE))


def _drain_in_turn(balancer: Balancer, name: str, limit_s: int) -> int:
    """Drains an engine when another one gets requests. Returns how many answers are in flight at the end."""
    if not within(limit_s, lambda: balancer.drain_for_run(name)):
        balancer.drain_for_run(name, in_turn=False)
    return 0 if within(limit_s, lambda: not balancer.in_flight(name)) else balancer.in_flight(name)


def main() -> None:
    module = AnsibleModule(
        argument_spec=arguments(DOCUMENTATION),
        required_if=[("state", "drained", ("name",)), ("state", "ready", ("name",))],
        supports_check_mode=True,
    )
    os.umask(0o022)  # The balancer reads the file, whatever root's habits are.
    wanted = module.params
    if wanted["state"] == "kept":
        keep(module, wanted["engines"])
    elif wanted["for_run"]:
        bring_for_run(module, wanted["name"], wanted["limit_s"], drained=wanted["state"] == "drained")
    else:
        bring(module, wanted["name"], wanted["limit_s"], drained=wanted["state"] == "drained")


if __name__ == "__main__":
    main()
