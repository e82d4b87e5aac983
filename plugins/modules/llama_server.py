#!/usr/bin/python
"""Ansible module r1.prov.llama_server: whether a model finds room, and whether what runs is what was asked for."""

from __future__ import annotations

DOCUMENTATION = r"""
module: llama_server
short_description: Fails when a llama-server would not find room, or is not what was asked for. Changes nothing that serves
description:
  - Stock Ansible cannot do it, because it does not know how much memory a model takes where, nor how many layers and slots serve.
  - C(fits) comes before the service is stopped or started. It runs llama-fit-params of an installed llama.cpp on the real file with the
    arguments that the service will get. That reads the header only and takes no memory, so a service that fills the cards goes on serving.
    The result is compared with the whole memory of each card and of the host, because the old service may still hold them. A result that
    fits is kept in C(/var/lib/r1prov/llama_server/fit.json). The engine is asked again only when release, file, arguments, cards, RAM or
    reserves change. Check mode skips it where engine or file are not there yet.
  - C(serves) comes when the service runs. It reads C(/props) and compares the model, the context per slot and the number of slots. With
    I(gpu) it looks whether the server has a card open, because llama-server only warns where the driver fails, and computes on the CPU. It
    also reads what the server's log says of its load. Other layers on the cards than asked for are a failure. Other weights or another KV
    cache than I(confirmed), or larger compute buffers, are a warning.
author: The r1prov team
options: {
  "state": {"type": "str", "required": true, "choices": ["fits", "serves"], "description": "What to check."},
  "model": {"type": "path", "required": true, "description": "The GGUF file, or the first shard."},
  "arguments": {"type": "list", "elements": "str", "required": true, "description": "The arguments of llama-server."},
  "release": {"type": "path", "description": "Folder of a built llama.cpp, or a link to one. Needed for C(fits)."},
  "environment": {"type": "dict", "default": {}, "description": "Environment variables of the service."},
  "plan": {"type": "list", "elements": "dict", "default": [], "description": "The plan for each device - C(name), C(weights_bytes),
      C(kv_bytes), C(compute_bytes). A difference is a warning."},
  "card_reserve_bytes": {"type": "int", "description": "What is to stay free on each card. Needed for C(fits)."},
  "host_reserve_bytes": {"type": "int", "description": "What is to stay free of the RAM. Needed for C(fits)."},
  "accept": {"type": "bool", "default": false, "description": "Whether a misfit is a warning only."},
  "url": {"type": "str", "description": "The address of the server, without a path. Needed for C(serves)."},
  "api_key_file": {"type": "path", "description": "File on the host that holds the API key. Needed for C(serves)."},
  "gpu": {"type": "bool", "default": false, "description": "Whether it must use a GPU."},
  "confirmed": {"type": "list", "elements": "dict", "default": [], "description": "What C(fits) returned of each device."},
  "remedies": {"type": "list", "elements": "dict", "default": [], "description": "What to do about what a failed program says. The
      first remedy whose pattern is found is shown.", "suboptions": {
    "pattern": {"type": "str", "required": true, "description": "Regular expression."},
    "remedy": {"type": "str", "required": true, "description": "What to do next."}
  }}
  }
"""

EXAMPLES = r"""
- name: Check that the model fits in memory
  r1.prov.llama_server:
    state: fits
    release: /opt/r1prov/llama.cpp/current
    model: /srv/r1prov/models/R1/R1.gguf
    arguments: [--ctx-size, "8192", --parallel, "1", --fit, "off"]
    card_reserve_bytes: 1073741824
    host_reserve_bytes: 1073741824

- name: Check that the server runs with these settings
  r1.prov.llama_server:
    state: serves
    url: http://127.0.0.1:8000
    api_key_file: /etc/r1prov/llama-server/api-key
    model: /srv/r1prov/models/R1/R1.gguf
    arguments: [--ctx-size, "8192", --parallel, "1"]
"""

RETURN = r"""
devices:
  type: list
  elements: dict
  returned: with fits
  description: "What each device will hold. C(name), C(weights_bytes), C(kv_bytes), C(compute_bytes); whole MiB."
asked: {type: bool, returned: with fits, description: Whether the engine was asked now.}
model: {type: str, returned: with serves, description: Path of the model that is served.}
context_per_slot: {type: int, returned: with serves, description: Tokens.}
slots: {type: int, returned: with serves, description: Number of slots.}
build: {type: str, returned: with serves, description: What the server calls its build.}
load:
  type: dict
  returned: with serves
  description: "What the log says of the load. C(devices) with what each took, C(offloaded) layers on cards."
"""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments
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
from ansible_collections.r1.prov.plugins.module_utils.units import first_lines, in_words, show

GOES_ON = "What runs on the host goes on as it was."
CONFIRMED = Path("/var/lib/r1prov/llama_server/fit.json")
UNIT = "r1prov-llama-server"
_LOAD_LINES = 5000  # these hold the load, and what follows is the log of its work


def fits(module: AnsibleModule, options: dict[str, Any]) -> None:
    programs, model = Path(options["release"]).resolve() / "bin", Path(options["model"])
    if module.check_mode and not (model.is_file() and (programs / "llama-fit-params").is_file()):
        module.exit_json(skipped=True, msg="engine or model are not there yet, so nothing can be asked")
    for file, symptom in ((model, "failed to open GGUF file"), (programs / "llama-fit-params", "status=203/EXEC")):
        if not file.is_file():
            module.fail_json(msg=f"there is no {file}: {remedy(symptom, options['remedies'])} {GOES_ON}")
    facts = probe()
    rooms = {f"CUDA{card['index']}": card["memory_bytes"] for card in facts["gpu"]["cards"]}
    rooms["host"] = facts["ram"]["total_bytes"]
    status = model.stat()
    keys = ("arguments", "environment", "plan", "card_reserve_bytes", "host_reserve_bytes")
    decides = [str(programs), str(model), status.st_size, status.st_mtime_ns, rooms, [options[key] for key in keys]]
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    confirmed = read_json(CONFIRMED)
    if confirmed.get("digest") == digest:
        module.exit_json(devices=confirmed["devices"], asked=False)
    try:
        devices = measured(programs, options)
    except CardsFullError:
        module.warn(
            "the cards are so full that the engine cannot be asked whether the model will find room on them; the run relies on the plan"
        )
        module.exit_json(devices=[], asked=False)
    except (FitError, subprocess.TimeoutExpired) as error:
        last = "".join(f"\n    {line}" for line in str(error).splitlines()[-6:])
        module.fail_json(
            msg=f"llama.cpp would not start with these arguments: {remedy(str(error), options['remedies'])} "
            f"{GOES_ON} Its words:{last}"
        )
    for surprise in surprises(devices, options["plan"]):
        module.warn(f"the engine's word on the real file: {surprise}")
    reserves = dict.fromkeys(rooms, options["card_reserve_bytes"]) | {"host": options["host_reserve_bytes"]}
    too_large = misfits(devices, rooms, reserves)
    if too_large and not options["accept"]:
        module.fail_json(
            msg=f"the model does not find room as it is planned: {'; '.join(too_large)}. {GOES_ON} {advice(rooms)}",
            devices=devices,
        )
    for misfit in too_large:
        module.warn(f"overridden: {misfit}")
    if not too_large and not module.check_mode:
        CONFIRMED.parent.mkdir(parents=True, exist_ok=True)
        CONFIRMED.write_text(json.dumps({"digest": digest, "devices": devices}) + "\n", encoding="utf-8")
    module.exit_json(devices=devices, asked=True)


def serves(module: AnsibleModule, options: dict[str, Any]) -> None:
    if module.check_mode:
        module.exit_json(skipped=True, msg="nothing was started, so there is nothing to compare")
    try:
        props = Api(options["url"], options["api_key_file"]).get("/props")
    except ApiError as error:
        module.fail_json(msg=f"llama-server: {error}. Look at its log: {in_words('log', UNIT)}")
    load = loaded(first_lines(f"{UNIT}.service", _LOAD_LINES))
    wrong = differences(props, options["model"], options["arguments"])
    if options["gpu"]:
        if not uses_gpu(show(f"{UNIT}.service", "MainPID")["MainPID"]):
            module.fail_json(
                msg="llama-server computes on the CPU, because it could not open a GPU. nvidia-smi tells whether the driver works; "
                f"then start it again: {in_words('restart', UNIT)}"
            )
        wrong += filter(None, [misplaced(load, options["arguments"])])
    if wrong:
        module.fail_json(
            msg=f"llama-server at {options['url']} is not what was asked for: {'; '.join(wrong)}. "
            "Correct its arguments; where they are right, another server has taken its place, or the model cannot take them."
        )
    for surprise in load_surprises(load["devices"], options["confirmed"]):
        module.warn(f"the log of llama-server's load: {surprise}")
    if load["unlocked"]:
        module.warn(
            "the kernel did not let llama-server lock the model in RAM, so other programs can push parts of it out. In a container that is "
            "for whoever runs it to allow"
        )
    context = props["default_generation_settings"]["n_ctx"]
    served = {"model": props["model_path"], "slots": props["total_slots"], "build": props["build_info"]}
    module.exit_json(**served, context_per_slot=context, load=load)


def main() -> None:
    states = {"fits": fits, "serves": serves}
    module = AnsibleModule(
        argument_spec=arguments(DOCUMENTATION, api_key_file=False),
        required_if=[
            ("state", "fits", ("release", "card_reserve_bytes", "host_reserve_bytes")),
            ("state", "serves", ("url", "api_key_file")),
        ],
        supports_check_mode=True,
    )
    states[module.params["state"]](module, module.params)


if __name__ == "__main__":
    main()
