"""What the unit of llama-server may not do on a machine with cards, from the template of all units: made here, and carried along.

The machine with cards may have neither Jinja nor systemd. So the bundle has the rendered directives, and the numbers of the system calls
that systemd's groups come to.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FILE = "restrictions.json"
HEADERS = ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h")

# What is not about restrictions, or names what only an installed host has.
_OTHERS = ("Exec", "Restart", "Timeout", "Type", "Environment", "LoadCredential", "RuntimeDirectory", "StateDirectory")
_OF_A_HOST = ("User", "Group", "SupplementaryGroups", "NetworkNamespacePath", "RemainAfterExit")


def write(bundle: Path) -> Path:
    """Writes the restrictions into the bundle."""
    found = directives(_rendered())
    path = bundle / FILE
    text = json.dumps({"directives": found, "system_calls": _numbers(found)}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def problems(bundle: Path) -> list[str]:
    """What is wrong with the restrictions of the bundle."""
    path = bundle / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return [f"{path}: {'not there' if isinstance(error, FileNotFoundError) else error.strerror}"]
    except ValueError as error:
        return [f"{path}: not whole, or no JSON ({error})"]
    whole = isinstance(found, dict) and found.get("directives") and "system_calls" in found
    return [] if whole else [f"{path}: not what was written: it lacks `directives` or `system_calls`"]


def read(bundle: Path) -> dict[str, Any]:
    """The restrictions of the bundle."""
    found: dict[str, Any] = json.loads((bundle / FILE).read_text(encoding="utf-8"))
    return found


def directives(unit: str) -> list[list[str]]:
    """The restrictions of a unit, as names and values in their order."""
    section = unit.partition("[Service]")[2].partition("[Install]")[0].replace("\\\n", "")
    pairs = [line.split("=", 1) for line in section.splitlines() if re.match(r"[A-Z]\w*=", line)]
    return [pair for pair in pairs if not pair[0].startswith(_OTHERS) and pair[0] not in _OF_A_HOST]


def _rendered() -> str:
    """The unit of llama-server with cards. Only this needs the project's environment."""
    import jinja2  # noqa: PLC0415
    import yaml  # noqa: PLC0415

    from r1prov.common import paths  # noqa: PLC0415

    paths.module_util("units")  # makes the collection known
    from ansible_collections.r1.prov.plugins.filter.systemd import FilterModule  # noqa: PLC0415

    declared = {
        **yaml.safe_load((ROOT / "roles/service/defaults/main.yml").read_text(encoding="utf-8")),
        "__service_socket": "",
        "__service_sees_callers": False,
        "__service_namespace": "r1prov",
        "__service_loads_rules": False,
        "__service_etc": "/etc/r1prov/llama-server",
        "service_name": "r1prov-llama-server",
        "service_description": "the engine",
        "service_user": "r1prov-llama",
        "service_argv": ["llama-server"],
        "service_devices": ["char-nvidia*"],
        "service_memory_lock": True,
        "service_start_timeout_s": 90,
    }
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters |= {f"r1.prov.{name}": filter_ for name, filter_ in FilterModule().filters().items()}
    template = (ROOT / "roles/service/templates/unit.service.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(declared)


def _numbers(found: list[list[str]]) -> list[int] | None:
    """The numbers of the system calls that are allowed on x86-64. None where this machine does not know systemd's groups."""
    header = next((path for path in map(Path, HEADERS) if path.exists()), None)
    if not shutil.which("systemd-analyze") or not header or platform.machine() != "x86_64":
        return None
    allowed = _expanded("@default")
    for name, value in found:
        if name == "SystemCallFilter":
            calls = {call for word in value.removeprefix("~").split() for call in _expanded(word)}
            allowed = allowed - calls if value.startswith("~") else allowed | calls
    numbers = dict(re.findall(r"^#define __NR_(\w+) (\d+)$", header.read_text(encoding="utf-8"), re.MULTILINE))
    return sorted(int(numbers[call]) for call in allowed if call in numbers)


def _expanded(word: str) -> set[str]:
    """The system calls of a word of `SystemCallFilter`, which is a call or a group of them."""
    if not word.startswith("@"):
        return {word}
    command = ["systemd-analyze", "--no-pager", "syscall-filter", word]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[1:]
    inside = {line.strip() for line in listed if line.strip() and not line.strip().startswith("#")}
    return {call for each in inside for call in _expanded(each)}
