#!/usr/bin/python
"""Ansible module r1.prov.release: a release in a folder of its own, and the link that says which one serves."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: release
short_description: Makes a release in a folder of its own, tries it, and makes it the current one
description:
  - Stock Ansible cannot do it, because C(unarchive) fills a folder in place, tries nothing before a switch, and compiles nothing.
  - The folder C(HOME/releases/ID) appears whole or not at all. ID begins with the version and ends with a digest of everything that
    decides the release. Nothing is fetched or made where that folder is there already.
  - C(HOME/current) is switched, atomically, only when the new program has run. A failure leaves C(current) alone.
  - The current and the previous release are kept, and older ones are removed.
  - What is fetched is not used before its sha256 is right. A broken download goes on where it broke.
options:
  step:
    description: The role that asks, for its progress file and for messages.
    type: str
    required: true
  version:
    description: The version. The new program must say it.
    type: str
    required: true
  home:
    description: Holds C(releases) and C(current).
    type: path
    required: true
  cache:
    description:
      - Holds downloads, the build tree, its log, and what uv and ccache keep. May be deleted at any time.
      - Wheels that lie in its folder C(sources/wheels), uv's among them, are not fetched.
    type: path
    default: /var/cache/r1prov
  archive:
    description: The release is an archive, unpacked.
    type: dict
    suboptions:
      source:
        description: A URL, or a file on the host. Any compression that GNU tar knows.
        type: str
        required: true
      sha256:
        description: What the archive must have.
        type: str
        required: true
      variable:
        description: The role's variable that names the source. Messages name it, and the same with C(_sha256).
        type: str
        required: true
      program:
        description: Pattern of the path of the program that is tried, below the release's folder.
        type: str
        required: true
      arguments:
        description: What the program is called with.
        type: list
        elements: str
        required: true
      says:
        description: Regular expression that its output must match. The group in it, where there is one, must be the version.
        type: str
        required: true
  llama_cpp:
    description: The release is llama.cpp, compiled with CMake, Ninja and ccache.
    type: dict
    suboptions:
      source:
        description: Where the source comes from. C(pypi) is the sdist of llama-cpp-python, which carries llama.cpp.
        type: str
        choices: [pypi, git, archive]
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
      git_commit:
        description: For a tag, the full commit that it must have.
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
  open_webui:
    description: The release is the chat page, in a virtual environment that uv makes of pinned wheels.
    type: dict
    suboptions: &wheels
      requirements:
        description: A requirements file with hashes, on the host.
        type: path
        required: true
      requirements_sha256:
        description: Its sha256, so that check mode works where the file is only promised.
        type: str
        required: true
      python:
        description: For C(open_webui), the interpreter that the environment is made with.
        type: path
  cuda_toolkit:
    description: The release is a CUDA toolkit, which uv makes of NVIDIA's wheels.
    type: dict
    suboptions: *wheels
extends_documentation_fragment: r1.prov.fetching
author:
  - The r1prov team
"""

EXAMPLES = r"""
- name: Install Ollama
  r1.prov.release:
    step: ollama
    version: 0.12.11
    home: /opt/r1prov/ollama
    archive:
      source: https://mirror.example.com/ollama-linux-amd64.tgz
      sha256: 832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
      variable: ollama_archive
      program: bin/ollama
      arguments: [--version]
      says: version is (\S+)
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
program:
  description: For C(archive), the program that was tried; empty where it is only promised.
  type: str
  returned: success
"""

import errno
import os
import re
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils import build_archive, fetching, release
from ansible_collections.r1.prov.plugins.module_utils.artefact import ArtefactError, without_credentials
from ansible_collections.r1.prov.plugins.module_utils.build_llama_cpp import LlamaCpp
from ansible_collections.r1.prov.plugins.module_utils.build_wheels import CudaToolkit, OpenWebui
from ansible_collections.r1.prov.plugins.module_utils.llama_cpp import contradiction
from ansible_collections.r1.prov.plugins.module_utils.progress import Progress

_WHEELS = {
    "requirements": {"type": "path", "required": True},
    "requirements_sha256": {"type": "str", "required": True},
    "python": {"type": "path"},
}
_KINDS = {
    "archive": {
        "source": {"type": "str", "required": True},
        "sha256": {"type": "str", "required": True},
        "variable": {"type": "str", "required": True},
        "program": {"type": "str", "required": True},
        "arguments": {"type": "list", "elements": "str", "required": True},
        "says": {"type": "str", "required": True},
    },
    "llama_cpp": {
        "source": {"type": "str", "choices": ["pypi", "git", "archive"], "required": True},
        "archive": {"type": "str", "default": ""},
        "sha256": {"type": "str", "default": ""},
        "git_url": {"type": "str", "default": ""},
        "git_ref": {"type": "str", "default": ""},
        "git_commit": {"type": "str", "default": ""},
        "backend": {"type": "str", "choices": ["cpu", "cuda"], "required": True},
        "cuda_architectures": {"type": "list", "elements": "str", "default": []},
        "cuda_root": {"type": "path", "default": "/opt/r1prov/cuda/current"},
        "rpc": {"type": "bool", "default": False},
        "jobs": {"type": "int", "default": 0},
    },
    "open_webui": _WHEELS,
    "cuda_toolkit": _WHEELS,
}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "step": {"type": "str", "required": True},
            "version": {"type": "str", "required": True},
            "home": {"type": "path", "required": True},
            "cache": {"type": "path", "default": "/var/cache/r1prov"},
            **{kind: {"type": "dict", "options": options} for kind, options in _KINDS.items()},
            "environment": fetching.OPTION,
        },
        mutually_exclusive=[list(_KINDS)],
        required_one_of=[list(_KINDS)],
        supports_check_mode=True,
    )
    fetching.set_environment(module)
    os.umask(0o022)  # the service's user must be able to read what lies here, whatever root's habits are
    wanted, version, step = module.params, module.params["version"], module.params["step"]
    home, cache = Path(wanted["home"]), Path(wanted["cache"])
    build: release.Build
    if wanted["llama_cpp"]:
        if wrong := contradiction({**wanted["llama_cpp"], "version": version}):
            module.fail_json(msg=wrong)
        build = LlamaCpp(wanted["llama_cpp"], version, cache)
    elif wanted["open_webui"]:
        build = OpenWebui(wanted["open_webui"], version, cache)
    elif wanted["cuda_toolkit"]:
        build = CudaToolkit(wanted["cuda_toolkit"], version, cache)
    else:
        build = build_archive.Archive(wanted["archive"], version, cache / step)
    previous = release.current(home)
    serving = f"{previous} stays current." if previous else "Nothing was installed."
    if wanted["archive"] and not re.fullmatch(r"[0-9a-f]{64}", wanted["archive"]["sha256"]):
        variable, source = wanted["archive"]["variable"], without_credentials(wanted["archive"]["source"])
        module.fail_json(
            msg=f"{step} {version} cannot be installed: nothing says which sha256 {source} must have. Set {variable}_sha256 "
            f"(64 hex digits), as whoever published it says it.\n{serving}"
        )
    changed = previous != build.id or not release.exists(home, build.id)
    if changed and not module.check_mode:
        progress = Progress(step)
        try:
            release.install(home, build, progress)
        except (release.ReleaseError, ArtefactError, OSError) as error:
            progress.finish(failed=True)
            advice = " Free some space and run again." if getattr(error, "errno", 0) == errno.ENOSPC else ""
            said = without_credentials(str(error))
            module.fail_json(msg=f"{step} {build.id} cannot be installed: {said}{advice}\n{serving}")
        progress.finish()
    path = release.path(home, build.id)
    program = build_archive.program(path, wanted["archive"]["program"]) if wanted["archive"] else None
    module.exit_json(
        changed=changed,
        release_id=build.id,
        previous=previous,
        path=str(path),
        program=str(program or ""),
        diff=release.switch_diff(home, previous, build.id) if changed else {},
    )


if __name__ == "__main__":
    main()
