#!/usr/bin/python
"""Ansible module r1.prov.llama_server: whether a model finds room, and whether what runs is what was asked for."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: llama_server
short_description: Fails when a llama-server would not find room, or is not what was asked for. Changes nothing that serves
description:
  - Stock Ansible cannot do it, because it does not know how much memory a model takes where, nor how many layers and slots serve.
  - With C(fits), which comes before the service is stopped or started. Runs llama-fit-params of an installed llama.cpp on the real file
    with the arguments that the service will get. It reads the header only and takes no memory, so a service that fills the cards goes on
    serving. What it says is compared with the whole memory of each card and of the host, for the old service may still hold them. What
    was confirmed is remembered in I(remember), and asked again only when release, file, arguments, cards, RAM or reserves are others.
    Where engine or file are not there yet, check mode skips it.
  - With C(serves), which comes when the service runs. Reads C(/props) and compares the model, the context per slot and the number of slots.
    With I(gpu), looks whether the server has a card open. Where the driver fails, llama-server only warns and computes on the CPU. Reads
    what the server's log says of its load. Other layers on the cards than asked for are a failure; other weights or another KV cache than
    I(confirmed), or larger compute buffers, a warning.
options:
  state:
    description: What to make sure of.
    type: str
    choices: [fits, serves]
    required: true
  model:
    description: The GGUF file, or the first shard.
    type: path
    required: true
  arguments:
    description: The arguments of llama-server.
    type: list
    elements: str
    required: true
  release:
    description: Folder of a built llama.cpp, or a link to one. Needed for C(fits).
    type: path
  environment:
    description: Environment variables of the service.
    type: dict
    default: {}
  plan:
    description:
      - What a plan foresaw of each device, with C(name), C(weights_bytes), C(kv_bytes), C(compute_bytes). A difference is warned of.
    type: list
    elements: dict
    default: []
  card_reserve_bytes:
    description: What is to stay free on each card. Needed for C(fits).
    type: int
  host_reserve_bytes:
    description: What is to stay free of the RAM. Needed for C(fits).
    type: int
  accept:
    description: Whether a misfit is only warned of.
    type: bool
    default: false
  remember:
    description: The file that remembers what was confirmed.
    type: path
    default: /var/lib/r1prov/llama_server/fit.json
  url:
    description: Where the server answers, without a path. Needed for C(serves).
    type: str
  api_key_file:
    description: File on the host that holds the API key. Needed for C(serves).
    type: path
  gpu:
    description: Whether it must use a GPU.
    type: bool
    default: false
  confirmed:
    description: What the state C(fits) returned of each device before the start.
    type: list
    elements: dict
    default: []
  unit:
    description: Its systemd unit, without C(.service).
    type: str
    default: r1prov-llama-server
extends_documentation_fragment:
  - r1.prov.remedies
author:
  - The r1prov team
"""

EXAMPLES = r"""
- name: See that the model finds room
  r1.prov.llama_server:
    state: fits
    release: /opt/r1prov/llama.cpp/current
    model: /srv/r1prov/models/R1/R1.gguf
    arguments: [--ctx-size, "8192", --parallel, "1", --fit, "off"]
    card_reserve_bytes: 1073741824
    host_reserve_bytes: 1073741824

- name: See that it runs what was asked for
  r1.prov.llama_server:
    state: serves
    url: http://127.0.0.1:8000
    api_key_file: /etc/r1prov/llama-server/api-key
    model: /srv/r1prov/models/R1/R1.gguf
    arguments: [--ctx-size, "8192", --parallel, "1"]
"""

RETURN = r"""
devices:
  description: What each device will hold. C(name), C(weights_bytes), C(kv_bytes), C(compute_bytes); whole MiB.
  type: list
  elements: dict
  returned: with fits
asked:
  description: Whether the engine was asked now.
  type: bool
  returned: with fits
model:
  description: Path of the model that is served.
  type: str
  returned: with serves
context_per_slot:
  description: Tokens.
  type: int
  returned: with serves
slots:
  description: Number of slots.
  type: int
  returned: with serves
build:
  description: What the server calls its build.
  type: str
  returned: with serves
load:
  description: What the log says of the load. C(devices) with what each took, C(offloaded) layers on cards.
  type: dict
  returned: with serves
"""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils import remedies
from ansible_collections.r1.prov.plugins.module_utils.files import read_json
from ansible_collections.r1.prov.plugins.module_utils.host_probe import probe
from ansible_collections.r1.prov.plugins.module_utils.http_api import Api, ApiError
from ansible_collections.r1.prov.plugins.module_utils.llama_fit import (
    CardsFullError,
    FitError,
    advice,
    measured,
    remedy,
)
from ansible_collections.r1.prov.plugins.module_utils.llama_memory import load_surprises, loaded, misfits, surprises
from ansible_collections.r1.prov.plugins.module_utils.llama_props import differences, misplaced, uses_gpu
from ansible_collections.r1.prov.plugins.module_utils.units import first_lines, show

GOES_ON = "What runs on the host goes on as it was."
_LOAD_LINES = 5000  # within these a load is told; what follows is the talk of its work


def fits(module: AnsibleModule, wanted: dict[str, Any]) -> None:
    bin_, model = Path(wanted["release"]).resolve() / "bin", Path(wanted["model"])
    if module.check_mode and not (model.is_file() and (bin_ / "llama-fit-params").is_file()):
        module.exit_json(skipped=True, msg="engine or model are not there yet, so nothing can be asked")
    for file, words in ((model, "failed to open GGUF file"), (bin_ / "llama-fit-params", "status=203/EXEC")):
        if not file.is_file():
            module.fail_json(msg=f"there is no {file}: {remedy(words, wanted['remedies'])} {GOES_ON}")
    facts = probe()
    rooms = {f"CUDA{card['index']}": card["memory_bytes"] for card in facts["gpu"]["cards"]}
    rooms["host"] = facts["ram"]["total_bytes"]
    status = model.stat()
    remembered = Path(wanted["remember"])
    keys = ("arguments", "environment", "plan", "card_reserve_bytes", "host_reserve_bytes")
    decides = [str(bin_), str(model), status.st_size, status.st_mtime_ns, rooms, [wanted[key] for key in keys]]
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    known = read_json(remembered)
    if known.get("digest") == digest:
        module.exit_json(devices=known["devices"], asked=False)
    try:
        devices = measured(bin_, wanted)
    except CardsFullError:
        module.warn(
            "the cards are so full that the engine cannot be asked whether the model will find room on them; the run relies on the plan"
        )
        module.exit_json(devices=[], asked=False)
    except (FitError, subprocess.TimeoutExpired) as error:
        words = str(error)
        last = "".join(f"\n    {line}" for line in words.splitlines()[-6:])
        module.fail_json(
            msg=f"llama.cpp would not start with these arguments: {remedy(words, wanted['remedies'])} "
            f"{GOES_ON} Its words:{last}"
        )
    for surprise in surprises(devices, wanted["plan"]):
        module.warn(f"the engine's word on the real file: {surprise}")
    reserves = dict.fromkeys(rooms, wanted["card_reserve_bytes"]) | {"host": wanted["host_reserve_bytes"]}
    found = misfits(devices, rooms, reserves)
    if found and not wanted["accept"]:
        module.fail_json(
            msg=f"the model does not find room as it is planned: {'; '.join(found)}. {GOES_ON} {advice(rooms)}",
            devices=devices,
        )
    for misfit in found:
        module.warn(f"overridden: {misfit}")
    if not found and not module.check_mode:
        remembered.parent.mkdir(parents=True, exist_ok=True)
        remembered.write_text(json.dumps({"digest": digest, "devices": devices}) + "\n", encoding="utf-8")
    module.exit_json(devices=devices, asked=True)


def serves(module: AnsibleModule, wanted: dict[str, Any]) -> None:
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


def main() -> None:
    states = {"fits": fits, "serves": serves}
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": list(states), "required": True},
            "model": {"type": "path", "required": True},
            "arguments": {"type": "list", "elements": "str", "required": True},
            "release": {"type": "path"},
            "environment": {"type": "dict", "default": {}},
            "plan": {"type": "list", "elements": "dict", "default": []},
            "card_reserve_bytes": {"type": "int"},
            "host_reserve_bytes": {"type": "int"},
            "accept": {"type": "bool", "default": False},
            "remedies": remedies.OPTION,
            "remember": {"type": "path", "default": "/var/lib/r1prov/llama_server/fit.json"},
            "url": {"type": "str"},
            "api_key_file": {"type": "path", "no_log": False},
            "gpu": {"type": "bool", "default": False},
            "confirmed": {"type": "list", "elements": "dict", "default": []},
            "unit": {"type": "str", "default": "r1prov-llama-server"},
        },
        required_if=[
            ("state", "fits", ("release", "card_reserve_bytes", "host_reserve_bytes")),
            ("state", "serves", ("url", "api_key_file")),
        ],
        supports_check_mode=True,
    )
    states[module.params["state"]](module, module.params)


if __name__ == "__main__":
    main()
