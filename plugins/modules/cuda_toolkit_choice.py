#!/usr/bin/python
"""Ansible module r1.prov.cuda_toolkit_choice: which CUDA toolkit this host is to use."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: cuda_toolkit_choice
short_description: Decides which CUDA toolkit this host is to use
description:
  - Stock Ansible cannot do it, because it neither compares compilers with drivers and cards nor tries a compiler.
  - Looks at the host and changes nothing. The order is - the wheels where they are installed already, an nvcc that is there, the wheels,
    NVIDIA's packages, the distribution's packages.
  - A toolkit fits when its compiler knows the architectures and the driver can run what it compiles.
options:
  source:
    description: C(auto), or the only way that is allowed.
    type: str
    choices: [auto, system, distribution, nvidia, pypi]
    required: true
  architectures:
    description: Compute capabilities without the dot.
    type: list
    elements: str
    required: true
  driver_version:
    description: Version of the NVIDIA driver; empty asks nvidia-smi. On a host without a driver every toolkit is allowed.
    type: str
    default: ""
  nvidia_repository:
    description: Base URL of NVIDIA's apt repository or a mirror of it; empty where there is none.
    type: str
    default: ""
  nvidia_version:
    description: Which version of NVIDIA's packages, e.g. C(12.4).
    type: str
    required: true
  wheels_root:
    description: Where the wheels lie, or would lie.
    type: path
    required: true
author:
  - The r1prov team
"""

EXAMPLES = r"""
- name: Choose a toolkit for the RTX 4090
  r1.prov.cuda_toolkit_choice:
    source: auto
    architectures: ["89"]
    nvidia_version: "12.4"
    wheels_root: /opt/r1prov/cuda/wheels-0123456789ab
"""

RETURN = r"""
way:
  description: C(system), C(pypi), C(nvidia) or C(distribution).
  type: str
  returned: success
root:
  description: The toolkit's folder, where it lies or will lie.
  type: str
  returned: success
considered:
  description: What was preferred but does not fit, and why.
  type: list
  elements: str
  returned: always
"""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils.cuda import WHEELS_VERSION, Candidate, choose, unfit

_CURRENT = Path("/opt/r1prov/cuda/current")
_DISTRIBUTION_PACKAGE = "nvidia-cuda-toolkit"
_KERNEL = "__global__ void one(float *x) { *x = 1; }\nint main() { one<<<1, 1>>>(nullptr); }\n"


def driver_major(version: str) -> int | None:
    """The major version of the driver; None where there is none."""
    version = version or _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    match = re.match(r"\d+", version)
    return int(match[0]) if match else None


def version_of(text: str) -> tuple[int, int] | None:
    """The first two numbers of a version, e.g. (12, 4) for `12.4.131~12.4.1-4`; None where there is no version."""
    match = re.match(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


def installed_toolkits() -> list[Candidate]:
    """The toolkits whose nvcc is where people and packages put it."""
    places = [
        shutil.which("nvcc"),
        "/usr/local/cuda/bin/nvcc",
        *map(str, sorted(Path("/usr/local").glob("cuda-*/bin/nvcc"))),
    ]
    found = {}
    for place in filter(None, places):
        # A distribution's /usr/bin/nvcc is a script that calls a compiler elsewhere. Its headers and libraries lie below /usr.
        root = "/usr" if place == "/usr/bin/nvcc" else str(Path(place).resolve().parent.parent)
        said = re.search(r"release (\d+\.\d+)", _output([place, "--version"]))
        if root not in found and said:
            architectures = re.findall(r"compute_(\w+)", _output([place, "--list-gpu-arch"]))
            found[root] = Candidate("system", root, version_of(said[1]), architectures=tuple(architectures))
    return list(found.values())


def tried(candidate: Candidate, architectures: list[str]) -> Candidate:
    """The candidate, with a problem where its compiler and the host's C++ compiler cannot make a program together."""
    if _CURRENT.is_symlink() and os.path.realpath(_CURRENT) == os.path.realpath(candidate.root):
        return candidate
    with tempfile.TemporaryDirectory() as folder:
        kernel = Path(folder) / "kernel.cu"
        kernel.write_text(_KERNEL, encoding="utf-8")
        codes = [f"--generate-code=arch=compute_{a},code=sm_{a}" for a in architectures]
        nvcc = f"{candidate.root}/bin/nvcc"
        done = subprocess.run(
            [nvcc, *codes, "-o", f"{folder}/kernel", str(kernel)], capture_output=True, text=True, check=False
        )
    if not done.returncode:
        return candidate
    said = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()[0]
    return Candidate(candidate.way, candidate.root, candidate.version, f"its nvcc does not compile: {said}")


def distribution(*, assume: bool) -> Candidate:
    """The distribution's package.

    Args:
        assume: whether a host whose package lists were never fetched is taken to offer a fitting one.
    """
    offered = re.search(r"Candidate: (\S+)", _output(["apt-cache", "policy", _DISTRIBUTION_PACKAGE]))
    version = version_of(offered[1].rpartition(":")[2]) if offered else None
    if version is None and assume:
        version = (12, 8)
    problem = (
        ""
        if version
        else f"the package sources do not offer {_DISTRIBUTION_PACKAGE} (Debian has it in non-free, Ubuntu in multiverse)"
    )
    return Candidate("distribution", "/usr", version, problem)


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "source": {
                "type": "str",
                "choices": ["auto", "system", "distribution", "nvidia", "pypi"],
                "required": True,
            },
            "architectures": {"type": "list", "elements": "str", "required": True},
            "driver_version": {"type": "str", "default": ""},
            "nvidia_repository": {"type": "str", "default": ""},
            "nvidia_version": {"type": "str", "required": True},
            "wheels_root": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    source, architectures, driver = wanted["source"], wanted["architectures"], driver_major(wanted["driver_version"])
    pypi = Candidate("pypi", wanted["wheels_root"], WHEELS_VERSION)
    nvidia_problem = "" if wanted["nvidia_repository"] else "cuda_toolkit_nvidia_repository is not set"
    nvidia = Candidate(
        "nvidia", f"/usr/local/cuda-{wanted['nvidia_version']}", version_of(wanted["nvidia_version"]), nvidia_problem
    )
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
