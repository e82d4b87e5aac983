#!/usr/bin/python
"""Ansible module r1.prov.llama_server_fit: asks the engine itself, before it is started, whether the model finds room on this host."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: llama_server_fit
short_description: Fails when a llama-server would not find room, before anything is stopped for it
description:
  - Runs llama-fit-params of an installed llama.cpp on the real file with the arguments that the service will get. It reads the header only
    and takes no memory, so a service that fills the cards goes on serving.
  - Compares what it says with the whole memory of each card and of the host, for the old service may still hold them.
  - What was confirmed is remembered in I(remember) and asked again only when release, file, arguments, cards, RAM or reserves are others.
    It changes nothing else, and does the same in check mode but for that file; where engine or file are not there yet, check mode skips it.
options:
  release:
    description: Folder of a built llama.cpp, or a link to one.
    type: path
    required: true
  model:
    description: The GGUF file, or the first shard.
    type: path
    required: true
  arguments:
    description: llama-server's.
    type: list
    elements: str
    required: true
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
    description: What is to stay free on each card.
    type: int
    required: true
  host_reserve_bytes:
    description: What is to stay free of the RAM.
    type: int
    required: true
  accept:
    description: Whether a misfit is only warned of.
    type: bool
    default: false
  remedies:
    description: What to say when the engine refuses. The first whose pattern is found in its words is shown.
    type: list
    elements: dict
    default: []
    suboptions:
      pattern:
        description: Regular expression.
        type: str
        required: true
      remedy:
        description: What to do next.
        type: str
        required: true
  remember:
    description: The file that remembers what was confirmed.
    type: path
    default: /var/lib/r1prov/llama_server/fit.json
author:
  - The r1prov team
"""

EXAMPLES = r"""
- name: See that the model finds room
  r1.prov.llama_server_fit:
    release: /opt/r1prov/llama.cpp/current
    model: /srv/r1prov/models/R1/R1.gguf
    arguments: [--ctx-size, "8192", --parallel, "1", --fit, "off"]
    card_reserve_bytes: 1073741824
    host_reserve_bytes: 1073741824
"""

RETURN = r"""
devices:
  description: What each device will hold. C(name), C(weights_bytes), C(kv_bytes), C(compute_bytes); whole MiB.
  type: list
  elements: dict
  returned: success
asked:
  description: Whether the engine was asked now.
  type: bool
  returned: success
"""

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils.host_probe import probe
from ansible_collections.r1.prov.plugins.module_utils.llama_memory import MIB, asked, misfits, surprises, told

GOES_ON = "What runs on the host goes on as it was."
_LIMIT_S = 300  # a driver that nothing keeps awake takes seconds per card
_TRIES = 5


class FitError(Exception):
    """The engine does not take the arguments, or not this file; its words."""


class CardsFullError(Exception):
    """The cards are so full that the engine cannot even be asked."""


def run(argv: list[str], environment: dict[str, Any], known: list[str]) -> str:
    """What a program of the engine prints.

    llama-fit-params aborts where it cannot load a model. Its log is written by a thread of its own, which then often does not get to the
    reason on a busy host. So it is asked again, ahead of all else that wants the processors, until it has told one.

    Args:
        argv: the program and its arguments.
        environment: variables to add.
        known: patterns of reasons.

    Raises:
        CardsFullError: it found no room on a card for its own beginnings.
        FitError: it failed otherwise.
    """
    for attempt in range(_TRIES):
        done = subprocess.run(
            argv,
            preexec_fn=_ahead if attempt else None,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_LIMIT_S,
            env={**os.environ, **environment},
        )
        words = (done.stderr + done.stdout).strip()
        if done.returncode != -signal.SIGABRT or any(re.search(pattern, words) for pattern in known):
            break
    if done.returncode:
        raise CardsFullError(words) if "CUDA error: out of memory" in words else FitError(words)
    return done.stdout


def _ahead() -> None:
    """Lets no thread of this process wait that is ready to run."""
    with contextlib.suppress(OSError):  # a container may forbid it
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def measured(bin_: Path, wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """What each device will hold, by the engine's own word.

    Raises:
        CardsFullError, FitError: as `run`.
    """
    environment = {name: str(value) for name, value in wanted["environment"].items()}
    known = [row["pattern"] for row in wanted["remedies"]]
    # It reads all arguments, says its version, and ends: so a wrong one is found before anything is stopped for it.
    run([str(bin_ / "llama-server"), *wanted["arguments"], "--version"], environment, known)
    help_text = run([str(bin_ / "llama-fit-params"), "--help"], environment, known)
    words = [str(bin_ / "llama-fit-params"), "--model", wanted["model"], "--fit-print", "on"]
    devices = told(run([*words, *asked(wanted["arguments"], help_text)], environment, known))
    if not devices:
        raise FitError("llama-fit-params named no device")
    return devices


def advice(rooms: dict[str, Any]) -> str:
    """What to do about a misfit, with what the profile must say for the plan to be made for this host."""
    sizes = [f"{name} has {room // MIB:,} MiB" for name, room in rooms.items()]
    return (
        f"Compare the profile's `machine` with this host ({', '.join(sizes)}): where they differ, correct the profile, and it is planned "
        "anew; else lower context_per_slot or slots, or choose a smaller quant. To go on nevertheless: --override fit."
    )


def remedy(words: str, remedies: list[dict[str, Any]]) -> str:
    """What to do about the engine's refusal."""
    return next(
        (known["remedy"] for known in remedies if re.search(known["pattern"], words)), "Correct llama_server_arguments."
    )


def main() -> None:
    remedies = {"pattern": {"type": "str", "required": True}, "remedy": {"type": "str", "required": True}}
    module = AnsibleModule(
        argument_spec={
            "release": {"type": "path", "required": True},
            "model": {"type": "path", "required": True},
            "arguments": {"type": "list", "elements": "str", "required": True},
            "environment": {"type": "dict", "default": {}},
            "plan": {"type": "list", "elements": "dict", "default": []},
            "card_reserve_bytes": {"type": "int", "required": True},
            "host_reserve_bytes": {"type": "int", "required": True},
            "accept": {"type": "bool", "default": False},
            "remedies": {"type": "list", "elements": "dict", "default": [], "options": remedies},
            "remember": {"type": "path", "default": "/var/lib/r1prov/llama_server/fit.json"},
        },
        supports_check_mode=True,
    )
    wanted = module.params
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
    try:
        known = json.loads(remembered.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
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


if __name__ == "__main__":
    main()
