#!/usr/bin/python
"""Ansible module r1.prov.llama_server_props: what a llama-server really runs, held against what was asked for."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: llama_server_props
short_description: Fails when a running llama-server is not what was asked for
description:
  - Reads C(/props) and compares the model, the context per slot and the number of slots. Changes nothing.
  - With I(gpu), looks whether the server has a card open. Where the driver fails, llama-server only warns and computes on the CPU.
  - Reads what the server's log says of its load. Other layers on the cards than asked for are a failure; other weights or another KV cache
    than I(confirmed), or larger compute buffers, a warning.
options:
  url:
    description: Where the server answers, without a path.
    type: str
    required: true
  api_key_file:
    description: File on the host that holds the API key.
    type: path
    required: true
  model:
    description: Path of the model's file.
    type: str
    required: true
  arguments:
    description: The arguments it was given.
    type: list
    elements: str
    required: true
  gpu:
    description: Whether it must use a GPU.
    type: bool
    default: false
  confirmed:
    description: What the module llama_server_fit returned of each device before the start.
    type: list
    elements: dict
    default: []
  unit:
    description: Its systemd unit, without C(.service).
    type: str
    default: r1prov-llama-server
author:
  - The r1prov team
"""

EXAMPLES = r"""
- name: See that it runs what was asked for
  r1.prov.llama_server_props:
    url: http://127.0.0.1:8000
    api_key_file: /etc/r1prov/llama-server/api-key
    model: /srv/r1prov/models/R1/R1.gguf
    arguments: [--ctx-size, "8192", --parallel, "1"]
"""

RETURN = r"""
model:
  description: Path of the model that is served.
  type: str
  returned: success
context_per_slot:
  description: Tokens.
  type: int
  returned: success
slots:
  description: Number of slots.
  type: int
  returned: success
build:
  description: What the server calls its build.
  type: str
  returned: success
load:
  description: What the log says of the load. C(devices) with what each took, C(offloaded) layers on cards.
  type: dict
  returned: success
"""

import itertools
import re
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils.http_api import Api, ApiError
from ansible_collections.r1.prov.plugins.module_utils.llama_memory import load_surprises, loaded
from ansible_collections.r1.prov.plugins.module_utils.units import first_lines, show

_LOAD_LINES = 5000  # within these a load is told; what follows is the talk of its work
_CONTEXT_STEP = 256  # llama.cpp rounds each slot's context up to this many tokens


def differences(props: dict[str, Any], model: str, arguments: list[str]) -> list[str]:
    """One sentence per value that is not what was asked for; what was not asked for is not compared."""
    context, slots = _value(arguments, "--ctx-size", "-c"), _value(arguments, "--parallel", "-np")
    runs_context, runs_slots = props["default_generation_settings"]["n_ctx"], props["total_slots"]
    found = []
    if props["model_path"] != model:
        found.append(f"it serves {props['model_path']}, not {model}")
    if slots and runs_slots != slots:
        found.append(f"it has {runs_slots} slots, not {slots}")
    if context and slots:
        per_slot = context if {"--kv-unified", "-kvu"} & set(arguments) else context // slots
        if not per_slot <= runs_context < per_slot + _CONTEXT_STEP:
            found.append(f"it has {runs_context} tokens of context per slot, not {per_slot}")
    return found


def _value(arguments: list[str], *names: str) -> int:
    """The number that follows the last of these options; 0 where there is none, or a word such as `all`."""
    values = [value for argument, value in itertools.pairwise(arguments) if argument in names]
    return int(values[-1]) if values and values[-1].isdigit() else 0


def misplaced(load: dict[str, Any], arguments: list[str]) -> str:
    """What is wrong with the number of layers on the cards; empty where nothing is, or the log does not reach back to it."""
    wanted = _value(arguments, "--n-gpu-layers", "--gpu-layers", "-ngl")
    if not load["whole"] or not wanted:
        return ""
    found, of = load["offloaded"] or (0, wanted)
    return "" if found == min(wanted, of) else f"it put {found} layers on the cards, not {min(wanted, of)}"


def uses_gpu(pid: str, proc: Path = Path("/proc")) -> bool:
    """Whether a process has an NVIDIA card open."""
    return any(re.fullmatch(r"/dev/nvidia\d+", str(link.readlink())) for link in (proc / pid / "fd").iterdir())


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "api_key_file": {"type": "path", "required": True, "no_log": False},
            "model": {"type": "str", "required": True},
            "arguments": {"type": "list", "elements": "str", "required": True},
            "gpu": {"type": "bool", "default": False},
            "confirmed": {"type": "list", "elements": "dict", "default": []},
            "unit": {"type": "str", "default": "r1prov-llama-server"},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    if module.check_mode:
        module.exit_json(skipped=True, msg="nothing was started, so there is nothing to compare")
    try:
        props = Api(wanted["url"], wanted["api_key_file"]).get("/props")
    except ApiError as error:
        module.fail_json(msg=f"llama-server: {error}. Look at its log: journalctl -u {wanted['unit']}")
    load = loaded(first_lines(f"{wanted['unit']}.service", _LOAD_LINES))
    found = differences(props, wanted["model"], wanted["arguments"])
    if wanted["gpu"]:
        if not uses_gpu(show(f"{wanted['unit']}.service", "MainPID")["MainPID"]):
            module.fail_json(
                msg="llama-server computes on the CPU, for it could not open a GPU. nvidia-smi tells whether the driver works; "
                f"then start it again: systemctl restart {wanted['unit']}"
            )
        found += filter(None, [misplaced(load, wanted["arguments"])])
    if found:
        module.fail_json(
            msg=f"llama-server at {wanted['url']} is not what was asked for: {'; '.join(found)}. "
            "Correct its arguments; where they are right, another server has taken its place, or the model cannot take them."
        )
    for surprise in load_surprises(load["devices"], wanted["confirmed"]):
        module.warn(f"the log of llama-server's load: {surprise}")
    if load["unlocked"]:
        module.warn(
            "the kernel did not let llama-server lock the model in RAM, so other programs can push parts of it out. In a container that is "
            "for whoever runs it to allow"
        )
    module.exit_json(
        model=props["model_path"],
        context_per_slot=props["default_generation_settings"]["n_ctx"],
        slots=props["total_slots"],
        build=props["build_info"],
        load=load,
    )


if __name__ == "__main__":
    main()
