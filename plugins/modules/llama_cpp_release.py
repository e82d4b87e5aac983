#!/usr/bin/python
"""Ansible module r1.prov.llama_cpp_release: one built llama.cpp, and the link that says which one serves."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: llama_cpp_release
short_description: Builds llama.cpp into a release folder and makes it the current one
description:
  - Compiles llama.cpp with CMake, Ninja and ccache into C(HOME/releases/ID/bin), where ID is the version, the backend and a
    digest of everything that decides the build (source, options, compiler, CUDA toolkit, CPU).
  - C(HOME/current) is switched, atomically, only when the new llama-server has answered C(--version). A failed build leaves it alone.
  - The current and the previous release are kept.
options:
  source:
    description: Where the source comes from.
    type: str
    choices: [pypi, git, archive]
    required: true
  version:
    description: Label of the release; for C(pypi) the version of llama-cpp-python whose sdist carries llama.cpp.
    type: str
    required: true
  archive:
    description: For C(archive), a URL or a file on the host.
    type: str
    default: ""
  sha256:
    description: For C(pypi) and C(archive), what the archive must have.
    type: str
    default: ""
  git_url:
    description: For C(git), the repository.
    type: str
    default: ""
  git_ref:
    description: For C(git), a tag or a full commit.
    type: str
    default: ""
  backend:
    description: What computes.
    type: str
    choices: [cpu, cuda]
    required: true
  cuda_architectures:
    description: For C(cuda), compute capabilities without the dot.
    type: list
    elements: str
    default: []
  cuda_root:
    description: For C(cuda), the toolkit's folder.
    type: path
    default: /opt/r1prov/cuda/current
  rpc:
    description: Whether the RPC backend and its server are built.
    type: bool
    default: false
  jobs:
    description: Compilers at once; 0 is one per core, as far as the memory goes.
    type: int
    default: 0
  home:
    description: Holds C(releases) and C(current).
    type: path
    default: /opt/r1prov/llama.cpp
  cache:
    description: Holds downloads, the build tree, its log and ccache. May be deleted at any time.
    type: path
    default: /var/cache/r1prov
author:
  - The r1prov team
"""

EXAMPLES = r"""
- name: Compile llama.cpp for the RTX 4090
  r1.prov.llama_cpp_release:
    source: archive
    version: b9999
    archive: https://mirror.example.com/llama.cpp-b9999.tar.gz
    sha256: 832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
    backend: cuda
    cuda_architectures: ["89"]
"""

RETURN = r"""
release_id:
  description: The release that is current now, or would be.
  type: str
  returned: success
previous:
  description: The release that was current before; empty where there was none.
  type: str
  returned: success
path:
  description: The release's folder.
  type: str
  returned: success
built:
  description: Whether something was compiled (or would be).
  type: bool
  returned: success
build_s:
  description: Seconds the build took, all of it; 0 where nothing was compiled.
  type: float
  returned: success
"""

import errno
import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils import releases
from ansible_collections.r1.prov.plugins.module_utils.download import DownloadError
from ansible_collections.r1.prov.plugins.module_utils.files import alone
from ansible_collections.r1.prov.plugins.module_utils.llama_cpp import contradiction, remedy
from ansible_collections.r1.prov.plugins.module_utils.llama_cpp_build import BuildError, Release
from ansible_collections.r1.prov.plugins.module_utils.progress import Progress


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "str", "choices": ["pypi", "git", "archive"], "required": True},
            "version": {"type": "str", "required": True},
            "archive": {"type": "str", "default": ""},
            "sha256": {"type": "str", "default": ""},
            "git_url": {"type": "str", "default": ""},
            "git_ref": {"type": "str", "default": ""},
            "backend": {"type": "str", "choices": ["cpu", "cuda"], "required": True},
            "cuda_architectures": {"type": "list", "elements": "str", "default": []},
            "cuda_root": {"type": "path", "default": "/opt/r1prov/cuda/current"},
            "rpc": {"type": "bool", "default": False},
            "jobs": {"type": "int", "default": 0},
            "home": {"type": "path", "default": "/opt/r1prov/llama.cpp"},
            "cache": {"type": "path", "default": "/var/cache/r1prov"},
        },
        supports_check_mode=True,
    )
    if wrong := contradiction(module.params):
        module.fail_json(msg=wrong)
    os.umask(0o022)  # the service's user must be able to read what lies here, whatever root's habits are
    release = Release(module.params)
    previous = releases.current(release.home)
    result = {
        "changed": previous != release.id,
        "release_id": release.id,
        "previous": previous,
        "path": str(release.path),
        "built": not release.exists,
        "build_s": 0.0,
        "diff": releases.switch_diff(release.home, previous, release.id),
    }
    result["changed"] = result["changed"] or result["built"]
    if not result["changed"] or module.check_mode:
        module.exit_json(**result)
    progress = Progress("llama_cpp")
    try:
        progress.begin("waiting for an earlier build", 0, "steps")
        with alone(release.tree.parent):
            if not release.exists:
                result["build_s"] = round(release.build(progress), 1)
            releases.make_current(release.home, release.id)
    except (BuildError, DownloadError, OSError) as error:
        progress.finish(failed=True)
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        advice = f"\n{remedy([str(error)], str(release.log))}" if full else ""
        serving = f"{previous} stays current." if previous else "Nothing was installed."
        module.fail_json(msg=f"llama.cpp {release.id}: {error}{advice}\n{serving}", log=str(release.log))
    progress.finish()
    module.exit_json(**result)


if __name__ == "__main__":
    main()
