#!/usr/bin/python
"""Ansible module r1.prov.cuda_wheels: a CUDA toolkit from NVIDIA's wheels on a Python package index."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: cuda_wheels
short_description: Installs a CUDA toolkit from Python wheels
description:
  - Fetches the wheels that a hash-pinned requirements file names from the host's package index, and makes a toolkit folder of them
    that CMake and nvcc understand. A broken download goes on where it broke; the folder appears whole or not at all.
options:
  requirements:
    description: Text of the requirements file, with hashes.
    type: str
    required: true
  root:
    description: The toolkit's folder.
    type: path
    required: true
  wheels:
    description: Keeps the wheels. Where all of them lie here already, the network is not touched. May be deleted at any time.
    type: path
    default: /var/cache/r1prov/sources/wheels
author:
  - The r1prov team
"""

EXAMPLES = r"""
- name: Install the toolkit
  r1.prov.cuda_wheels:
    requirements: "{{ lookup('ansible.builtin.file', 'requirements.txt') }}"
    root: /opt/r1prov/cuda/wheels-0123456789ab
"""

RETURN = r"""
root:
  description: The toolkit's folder.
  type: str
  returned: success
"""

import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils.download import (
    DownloadError,
    download,
    index_links,
    index_url,
    sha256_of,
)
from ansible_collections.r1.prov.plugins.module_utils.files import whole_folder
from ansible_collections.r1.prov.plugins.module_utils.progress import Progress


class WheelError(Exception):
    """The toolkit cannot be installed; the message says why and what to do next."""


def pinned(requirements: str) -> list[tuple[str, str, list[str]]]:
    """(project, version, the sha256 of its files) from the text of a requirements file with hashes."""
    lines = requirements.replace("\\\n", " ").splitlines()
    pins = [re.match(r"([\w.-]+)==(\S+) (.*)", line) for line in lines]
    return [(pin[1], pin[2], re.findall(r"sha256:([0-9a-f]{64})", pin[3])) for pin in pins if pin]


def install(requirements: str, root: Path, wheels: Path, progress: Progress) -> None:
    """Builds the toolkit beside its final place, tries it, and gives it its name."""
    files = [_fetched(*pin, wheels, progress) for pin in pinned(requirements)]
    with whole_folder(root) as toolkit:
        progress.begin("unpacking", len(files), "steps")
        for done, file in enumerate(files):
            progress.update(done)
            unpack(file, toolkit)
        link_libraries(toolkit)
        tried = subprocess.run(
            [str(toolkit / "bin" / "nvcc"), "--version"], capture_output=True, text=True, check=False
        )
        if tried.returncode:
            raise WheelError(f"the compiler of the wheels does not run here: {tried.stderr.strip()}")


def _fetched(project: str, version: str, sha256: list, wheels: Path, progress: Progress) -> Path:
    """The wheel of a project for this machine; without the network where it already lies here."""
    begins = f"{project.replace('-', '_')}-{version}-"
    for kept in wheels.glob(f"{begins}*_x86_64.whl"):
        if sha256_of(kept) in sha256:
            return kept
    index = index_url()
    links = index_links(index, project)
    names = [name for name in links if name.startswith(begins) and name.endswith("_x86_64.whl") and "linux" in name]
    if not names:
        raise WheelError(
            f"the package index has no {begins}*.whl for Linux on x86-64; another index may (PIP_INDEX_URL)"
        )
    wheels.mkdir(parents=True, exist_ok=True)
    download(links[names[0]], wheels / names[0], sha256, progress)
    return wheels / names[0]


def unpack(wheel: Path, toolkit: Path) -> None:
    """Puts what a wheel has below `nvidia/cuNN/` into the toolkit's folder."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            inside = re.fullmatch(r"nvidia/cu\d+/(.*[^/])", member.filename)
            if not inside:
                continue
            place = toolkit / inside[1]
            place.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, place.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            place.chmod(0o755 if member.external_attr >> 16 & 0o100 else 0o644)


def link_libraries(toolkit: Path) -> None:
    """What the wheels leave out and CMake looks for: `lib64`, and library names without a version."""
    (toolkit / "lib64").symlink_to("lib")
    for library in (toolkit / "lib").glob("*.so.*"):
        plain = library.with_name(library.name.partition(".so.")[0] + ".so")
        if not plain.exists():
            plain.symlink_to(library.name)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "requirements": {"type": "str", "required": True},
            "root": {"type": "path", "required": True},
            "wheels": {"type": "path", "default": "/var/cache/r1prov/sources/wheels"},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)  # the service's user must be able to read what lies here, whatever root's habits are
    root = Path(module.params["root"])
    changed = not root.is_dir()
    if changed and not module.check_mode:
        progress = Progress("cuda_toolkit")
        try:
            install(module.params["requirements"], root, Path(module.params["wheels"]), progress)
        except (WheelError, DownloadError, OSError) as error:
            progress.finish(failed=True)
            module.fail_json(msg=f"the CUDA toolkit cannot be installed: {error}. Run again to go on.")
        progress.finish()
    module.exit_json(changed=changed, root=str(root), diff={"before": "", "after": f"{root}\n"} if changed else {})


if __name__ == "__main__":
    main()
