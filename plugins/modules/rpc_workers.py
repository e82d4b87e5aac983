#!/usr/bin/python
"""Ansible module r1.prov.rpc_workers: whether the machines over which a model is spread are there."""

from __future__ import annotations

DOCUMENTATION = r"""
module: rpc_workers
short_description: Waits until the workers of llama.cpp's RPC can be reached, and changes nothing
description:
  - Stock Ansible cannot do it, because a tunnel takes every connection, whether or not somebody is behind it.
  - A worker that is free answers a greeting. One that serves an engine keeps the connection and says nothing, because it has one client
    at a time. Both are there. Where the connection is closed, the worker is away, or its tunnel does not offer what is asked for.
  - In check mode nobody is asked, because one that serves takes seconds to say nothing.
author: The r1prov team
options: {
  "workers": {"type": "list", "elements": "dict", "required": true, "description": "The workers.", "suboptions": {
    "machine": {"type": "str", "required": true, "description": "What the machine is called."},
    "socket": {"type": "path", "required": true, "description": "The socket that leads to it."},
    "address": {"type": "str", "description": "Where the engine reaches it, which is not asked."}
  }},
  "wait_s": {"type": "int", "default": 0, "description": "How long to wait for them, in seconds."}
  }
"""

EXAMPLES = r"""
- name: Wait until the worker is up
  r1.prov.rpc_workers:
    workers: [{machine: gpu4, socket: /run/r1prov/tunnel/gpu4-rpc.sock}]
    wait_s: 3600
"""

RETURN = r"""
waited_s: {type: float, returned: success, description: How long it took until all were there.}
"""

import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments
from ansible_collections.r1.prov.plugins.module_utils.progress import Progress
from ansible_collections.r1.prov.plugins.module_utils.rpc import is_there

ASK_EVERY_S = 2


def main() -> None:
    module = AnsibleModule(argument_spec=arguments(DOCUMENTATION), supports_check_mode=True)
    if module.check_mode:
        module.exit_json(skipped=True, msg="nothing is started, so nobody has to be there")
    began, progress = time.monotonic(), Progress("llama_server")
    while away := [each["machine"] for each in module.params["workers"] if not is_there(each["socket"])]:
        waited_s = time.monotonic() - began
        if waited_s >= module.params["wait_s"]:
            module.fail_json(
                msg=f"{', '.join(away)} cannot be reached, and the model is to be spread over it. It is down, or it runs another version "
                "of llama.cpp, which its tunnel does not offer to this host. Bring both hosts to the same version with one `r1prov up`, "
                "and look at r1prov-rpc-server and r1prov-tunnel there. What runs here goes on as it was."
            )
        progress.wait(f"{', '.join(away)} to lend its devices")
        time.sleep(ASK_EVERY_S)
    module.exit_json(waited_s=round(time.monotonic() - began, 1))


if __name__ == "__main__":
    main()
