#!/usr/bin/python
"""Ansible module r1.prov.cuda_toolkit_choice: which CUDA toolkit this host is to use."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cuda_toolkit_choice
short_description: Decides which CUDA toolkit this host is to use
description:
  - Stock Ansible cannot do it, because it neither compares compilers with drivers and cards nor tries a compiler.
  - It looks at the host and changes nothing. The order is - the wheels where they are installed already, an nvcc that is there, the wheels,
    NVIDIA's packages, the distribution's packages.
  - A toolkit fits when its compiler knows the architectures and the driver can run what it compiles.
author: The r1prov team
options: {
  "source": {"type": "str", "required": true, "choices": ["auto", "system", "distribution", "nvidia", "pypi"], "description": "C(auto), or
      the only way that is allowed."},
  "architectures": {"type": "list", "elements": "str", "required": true, "description": "Compute capabilities without the dot."},
  "driver_version": {"type": "str", "default": "", "description": "Version of the NVIDIA driver; empty asks nvidia-smi. On a host without
      a driver every toolkit is allowed."},
  "nvidia_repository": {"type": "str", "default": "", "description": "Base URL of NVIDIA's apt repository or a mirror; empty for none."},
  "nvidia_version": {"type": "str", "required": true, "description": "The version of NVIDIA's packages, e.g. C(12.4)."},
  "wheels_root": {"type": "path", "required": true, "description": "The folder of the wheels, which need not exist."}
  }
"""

EXAMPLES = r"""
- name: Choose a toolkit
  r1.prov.cuda_toolkit_choice:
    source: auto
    architectures: ["89"]
    nvidia_version: "12.4"
    wheels_root: /opt/r1prov/cuda/wheels-0123456789ab
"""

RETURN = r"""
way: {type: str, returned: success, description: "C(system), C(pypi), C(nvidia) or C(distribution)."}
root: {type: str, returned: success, description: "The toolkit's folder, which need not exist."}
considered: {type: list, elements: str, returned: always, description: "What was preferred but does not fit, and why."}
"""

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Tuple

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments

Version = Tuple[int, int]

# The oldest toolkit that knows a compute capability.
_KNOWN_SINCE: dict[int, Version] = {
    70: (9, 0), 75: (10, 0), 80: (11, 0), 86: (11, 1), 87: (11, 4), 89: (11, 8), 90: (11, 8), 100: (12, 8), 120: (12, 8),
}  # fmt: skip
_OLDEST_OF_13 = 75  # CUDA 13 no longer knows the capabilities below it
# The oldest driver that runs what a toolkit of a major version compiled. Minor versions are compatible with each other.
_DRIVER_SINCE = {11: 450, 12: 525, 13: 580}
_WHEELS_VERSION = (13, 0)
_CURRENT = Path("/opt/r1prov/cuda/current")
_DISTRIBUTION_PACKAGE = "nvidia-cuda-toolkit"
_KERNEL = "__global__ void one(float *x) { *x = 1; }\nint main() { one<<<1, 1>>>(nullptr); }\n"


@dataclass(frozen=True)
class Candidate:
    """A toolkit that could be used.

    Attributes:
        way: `system`, `pypi`, `nvidia` or `distribution`.
        root: its folder, which need not exist.
        version: None where it cannot be had.
        problem: why it cannot be had or does not work; empty where nothing is known against it.
        architectures: what its compiler says it knows; empty where it is not installed.
    """

    way: str
    root: str
    version: Version | None
    problem: str = ""
    architectures: tuple[str, ...] = ()

    def knows(self, architecture: str) -> bool:
        """Whether its compiler compiles for a compute capability, e.g. `89`."""
        if self.architectures:
            return architecture in self.architectures
        number, version = int(architecture.rstrip("af")), self.version or (0, 0)
        too_old = version[0] >= 13 and number < _OLDEST_OF_13
        return not too_old and version >= _KNOWN_SINCE.get(number, (13, 0))


def unfit(candidate: Candidate, architectures: list[str], driver: int | None) -> str:
    """Why a candidate cannot be used; empty where it can. A host without a driver (None) allows every toolkit."""
    if candidate.problem or candidate.version is None:
        return candidate.problem or "cannot be had"
    name, needed = "CUDA {}.{}".format(*candidate.version), _DRIVER_SINCE.get(candidate.version[0])
    if driver is not None and needed is not None and driver < needed:
        return f"{name} needs a driver of {needed} or newer, this host has {driver}"
    unknown = [f"sm_{architecture}" for architecture in architectures if not candidate.knows(architecture)]
    return f"{name} does not know {', '.join(unknown)}" if unknown else ""


def choose(
    candidates: list[Candidate], source: str, architectures: list[str], driver: int | None
) -> tuple[Candidate | None, list[str]]:
    """The first candidate that fits, and one sentence about each that was looked at before it.

    Args:
        candidates: in the order in which they are preferred.
        source: `auto`, or the only way that is allowed.
        architectures: see `unfit`.
        driver: see `unfit`.
    """
    considered: list[str] = []
    for candidate in candidates:
        if source not in ("auto", candidate.way):
            continue
        reason = unfit(candidate, architectures, driver)
        if not reason:
            return candidate, considered
        considered.append(f"{candidate.way} ({candidate.root}): {reason}")
    return None, considered


def driver_major(version: str) -> int | None:
    """The major version of the driver; None where there is none."""
    version = version or _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    match = re.match(r"\d+", version)
    return int(match[0]) if match else None


def version_of(text: str) -> Version | None:
    """The first two numbers of a version, e.g. (12, 4) for `12.4.131~12.4.1-4`; None where there is no version."""
    match = re.match(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


def installed_toolkits() -> list[Candidate]:
    """The toolkits whose nvcc is where people and packages put it."""
    local = map(str, sorted(Path("/usr/local").glob("cuda-*/bin/nvcc")))
    toolkits: dict[str, Candidate] = {}
    for nvcc in filter(None, [shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc", *local]):
        # A distribution's /usr/bin/nvcc is a script that calls a compiler elsewhere. Its headers and libraries lie below /usr.
        root = "/usr" if nvcc == "/usr/bin/nvcc" else str(Path(nvcc).resolve().parent.parent)
        release = re.search(r"release (\d+\.\d+)", _output([nvcc, "--version"]))
        if root not in toolkits and release:
            known = re.findall(r"compute_(\w+)", _output([nvcc, "--list-gpu-arch"]))
            toolkits[root] = Candidate("system", root, version_of(release[1]), architectures=tuple(known))
    return list(toolkits.values())


def tried(candidate: Candidate, architectures: list[str]) -> Candidate:
    """The candidate, with a problem where its compiler and the host's C++ compiler cannot make a program together."""
    if _CURRENT.is_symlink() and os.path.realpath(_CURRENT) == os.path.realpath(candidate.root):
        return candidate
    codes = [f"--generate-code=arch=compute_{a},code=sm_{a}" for a in architectures]
    with tempfile.TemporaryDirectory() as folder:
        kernel = Path(folder) / "kernel.cu"
        kernel.write_text(_KERNEL, encoding="utf-8")
        command = [f"{candidate.root}/bin/nvcc", *codes, "-o", f"{folder}/kernel", str(kernel)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.returncode:
        return candidate
    output = done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}"
    return replace(candidate, problem=f"its nvcc does not compile: {output.splitlines()[0]}")


def distribution(*, assume: bool) -> Candidate:
    """The distribution's package. `assume` takes a host whose package lists were never fetched to offer a fitting one."""
    offered = re.search(r"Candidate: (\S+)", _output(["apt-cache", "policy", _DISTRIBUTION_PACKAGE]))
    version = version_of(offered[1].rpartition(":")[2]) if offered else None
    if version or assume:
        return Candidate("distribution", "/usr", version or (12, 8))
    repositories = "(Debian has it in non-free, Ubuntu in multiverse)"
    problem = f"the package sources do not offer {_DISTRIBUTION_PACKAGE} {repositories}"
    return Candidate("distribution", "/usr", None, problem)


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def main() -> None:
    module = AnsibleModule(argument_spec=arguments(DOCUMENTATION), supports_check_mode=True)
    options = module.params
    source, architectures, driver = (
        options["source"],
        options["architectures"],
        driver_major(options["driver_version"]),
    )
    pypi = Candidate("pypi", options["wheels_root"], _WHEELS_VERSION)
    version = options["nvidia_version"]
    problem = "" if options["nvidia_repository"] else "cuda_toolkit_nvidia_repository is not set"
    nvidia = Candidate("nvidia", f"/usr/local/cuda-{version}", version_of(version), problem)
    system = [
        candidate if unfit(candidate, architectures, driver) else tried(candidate, architectures)
        for candidate in installed_toolkits()
    ]
    # A re-run changes nothing: the wheels that were installed once stay, even when another toolkit turns up on the host later.
    pypi_and_system = [pypi, *system] if Path(pypi.root).is_dir() else [*system, pypi]
    candidates = [*pypi_and_system, nvidia, distribution(assume=module.check_mode)]
    choice, considered = choose(candidates, source, architectures, driver)
    if choice is None:
        if source in ("auto", "system") and not system:
            considered.insert(0, "system: no nvcc in PATH or below /usr/local")
        module.fail_json(
            msg="No CUDA toolkit fits this host.\n"
            + "".join(f"  {line}\n" for line in considered)
            + "Install a driver of 580 or newer, or set cuda_toolkit_nvidia_repository, or cuda_toolkit_source to another way.",
            considered=considered,
        )
    else:
        module.exit_json(changed=False, way=choice.way, root=choice.root, considered=considered)


if __name__ == "__main__":
    main()
