#!/usr/bin/python
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Says everything that keeps a host from doing what is asked of it, and changes nothing."""

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight
short_description: Says everything that keeps a host from doing what is asked of it
description:
  - Stock Ansible cannot do it, because it takes dozens of round trips for the same, and stops at the first problem.
  - Reads the host in one round trip, compares it with what is asked, and fails once with all problems and remedies.
  - Changes nothing, and does the same in check mode.
  - The names of the checks are C(os), C(arch), C(init), C(sudo), C(clock), C(cpu), C(ram), C(floor), C(driver),
    C(gpu_count), C(gpu_memory), C(gpu_compute), C(gpu_busy), C(gpu_devices), C(disk), C(ports), C(network), C(sources). C(fit) is made
    later, by the role llama_server.
  - For C(network) it starts a unit for a moment, which must not reach the host's network.
author: The r1prov team
attributes:
  check_mode: {support: full, description: It reads only.}
  diff_mode: {support: none, description: It changes nothing.}
options:
  expect:
    description: The hardware that is asked for. What is absent is not asked.
    type: dict
    default: {}
    suboptions:
      backend: {description: Whether the cards are used., type: str, choices: [cpu, cuda], default: cpu}
      gpu_count: {description: Cards., type: int}
      gpu_memory_bytes: {description: Memory of each card in bytes; 2 % less is taken as equal., type: int}
      gpu_compute_capability: {description: "What the engine is compiled for, such as C(8.9).", type: str}
      driver_minimum: {description: "The oldest NVIDIA driver that the toolkit runs with, such as C(580).", type: str}
      ram_bytes: {description: RAM in bytes., type: int}
      memory_floor_bytes: {description: RAM and memory of all cards together in bytes., type: int}
      cores: {description: "CPUs to use, as C(nproc) counts them.", type: int}
      threads: {description: Threads that will compute. Where there are fewer CPUs to use it is warned of., type: int}
      numa_nodes: {description: Parts of the RAM that the plan is made for. Another number is warned of., type: int}
  disk:
    description: What will be written. Entries on one filesystem add up.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: Where; need not exist., type: path, required: true}
      bytes: {description: How much in bytes, type: int, required: true}
      what: {description: "A name for messages, such as C(weights).", type: str, required: true}
      have:
        description:
          - Parts of it that may be there from an earlier run; they need no room again.
          - A file counts with the disk space it takes, up to its C(bytes). A folder counts as whole, so name only those
            that appear complete, by a rename.
        type: list
        elements: dict
        default: []
        suboptions:
          path: {description: The file or folder., type: path, required: true}
          bytes: {description: Its size in bytes when complete., type: int, required: true}
  ports:
    description: TCP ports that will be listened on.
    type: list
    elements: dict
    default: []
    suboptions:
      port: {description: The port., type: int, required: true}
      unit: {description: The unit that will listen there; it may already., type: str, required: true}
  sources:
    description:
      - What the host must be able to reach.
      - Any answer of the server itself counts. Proxy variables are followed.
    type: list
    elements: dict
    default: []
    suboptions:
      what: {description: "A name for messages, such as C(the weights).", type: str, required: true}
      any_of:
        description: URLs (http, https, file), C(pypi:NAME) and absolute paths on the host, of which one must answer.
        type: list
        elements: str
        required: true
      have:
        description: Patterns of paths; once each is there, nothing is asked.
        type: list
        elements: str
        default: []
  source_limit_s:
    description: How long all sources together may take, in seconds.
    type: float
    default: 10
  ca_certificates:
    description: The text of certificates (PEM) to trust beside the host's own, for they will be installed later.
    type: str
    default: ""
  clock_s:
    description: The controller's time in seconds since 1970; not compared unless given.
    type: float
  clock_skew_s:
    description: How far the host's clock may be off, in seconds.
    type: float
    default: 120
  override:
    description: Names of checks whose problems are only warned of.
    type: list
    elements: str
    default: []
extends_documentation_fragment: r1.prov.fetching
"""

EXAMPLES = r"""
- name: See whether the host fits
  r1.prov.preflight:
    expect: {backend: cuda, gpu_count: 4, gpu_memory_bytes: 25757220864, memory_floor_bytes: 200000000000}
    disk:
      - path: /srv/r1prov/models
        bytes: 140228548032
        what: weights
        have: [{path: /srv/r1prov/models/r1/DeepSeek-R1-UD-IQ1_S-00001-of-00003.gguf, bytes: 49000000000}]
    ports: [{port: 8080, unit: r1prov-llama-server.service}]
    clock_s: "{{ now().timestamp() }}"
"""

RETURN = r"""
problems:
  description: What keeps the host from it.
  type: list
  elements: dict
  returned: always
  contains:
    check: {description: The name of the check., type: str}
    what: {description: What is wrong in one sentence with its figures., type: str}
    remedy: {description: What to do next., type: str}
overridden:
  description: The same for problems that an override lets pass.
  type: list
  elements: dict
  returned: always
facts:
  description: What the host has; see plugins/module_utils/host_probe.py.
  type: dict
  returned: always
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils import fetching
from ansible_collections.r1.prov.plugins.module_utils.host_judge import CHECKS, judge, remarks
from ansible_collections.r1.prov.plugins.module_utils.host_probe import probe
from ansible_collections.r1.prov.plugins.module_utils.private_network import fault
from ansible_collections.r1.prov.plugins.module_utils.source_probe import out_of_reach

ARGUMENTS = {
    "expect": {
        "type": "dict",
        "default": {},
        "options": {
            "backend": {"type": "str", "choices": ["cpu", "cuda"], "default": "cpu"},
            "gpu_count": {"type": "int"},
            "gpu_memory_bytes": {"type": "int"},
            "gpu_compute_capability": {"type": "str"},
            "driver_minimum": {"type": "str"},
            "ram_bytes": {"type": "int"},
            "memory_floor_bytes": {"type": "int"},
            "cores": {"type": "int"},
            "threads": {"type": "int"},
            "numa_nodes": {"type": "int"},
        },
    },
    "disk": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "path": {"type": "path", "required": True},
            "bytes": {"type": "int", "required": True},
            "what": {"type": "str", "required": True},
            "have": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "bytes": {"type": "int", "required": True},
                },
            },
        },
    },
    "ports": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {"port": {"type": "int", "required": True}, "unit": {"type": "str", "required": True}},
    },
    "sources": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "what": {"type": "str", "required": True},
            "any_of": {"type": "list", "elements": "str", "required": True},
            "have": {"type": "list", "elements": "str", "default": []},
        },
    },
    "source_limit_s": {"type": "float", "default": 10},
    "ca_certificates": {"type": "str", "default": ""},
    "clock_s": {"type": "float"},
    "clock_skew_s": {"type": "float", "default": 120},
    "override": {"type": "list", "elements": "str", "default": []},
    "environment": fetching.OPTION,
}


def wrong_arguments(override: list[str], sources: list[str]) -> str:
    """What is wrong with the arguments that the argument spec cannot say; empty if nothing."""
    unknown = [name for name in override if name not in CHECKS]
    if unknown:
        return f"there is no check named {', '.join(unknown)} to override; there are: {', '.join(CHECKS)}"
    kinds = ("http://", "https://", "file://", "pypi:", "/")
    odd = [source for source in sources if not source.startswith(kinds)]
    if odd:
        what = "URLs (http, https, file), projects of the package index (pypi:NAME), or absolute paths"
        return f"cannot tell whether {', '.join(odd)} answers; sources are {what}"
    return ""


def present_bytes(files: list[dict[str, Any]]) -> dict[str, int]:
    """{path: bytes of disk it takes} for what exists of `files`; a folder counts as whole.

    A file's size does not say what it takes: one made at its full length before the transfer is mostly a hole.
    """
    present = {}
    for file in files:
        path = Path(file["path"])
        if path.is_dir():
            present[file["path"]] = file["bytes"]
        elif path.is_file():
            status = path.stat()
            present[file["path"]] = min(status.st_size, status.st_blocks * 512)
    return present


def summary(problems: list[dict[str, Any]]) -> str:
    """All problems as text for people."""
    count = "one problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = [f"- {problem['check']}: {problem['what']}.\n  Remedy: {problem['remedy']}." for problem in problems]
    return "\n".join([f"The host does not fit what is asked of it ({count}); nothing was changed.", *lines])


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    fetching.set_environment(module)
    asked = module.params
    wrong = wrong_arguments(asked["override"], [source for need in asked["sources"] for source in need["any_of"]])
    if wrong:
        module.fail_json(msg=wrong, problems=[], overridden=[], facts={})
    facts = probe([item["path"] for item in asked["disk"]], [item["port"] for item in asked["ports"]])
    facts["present_bytes"] = present_bytes([file for item in asked["disk"] for file in item["have"]])
    facts["private_network"] = fault() if facts["init"] == "systemd" else ""
    facts["sources"] = out_of_reach(asked["sources"], asked["ca_certificates"], asked["source_limit_s"])
    found = judge(
        facts, {**asked["expect"], **{key: asked[key] for key in ("disk", "ports", "clock_s", "clock_skew_s")}}
    )
    problems = [problem for problem in found if problem["check"] not in asked["override"]]
    overridden = [problem for problem in found if problem["check"] in asked["override"]]
    for problem in overridden:
        module.warn(f"overridden: {problem['check']}: {problem['what']}")
    for remark in remarks(facts, asked["expect"]):
        module.warn(remark)
    result = {"changed": False, "problems": problems, "overridden": overridden, "facts": facts}
    if problems:
        module.fail_json(msg=summary(problems), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
