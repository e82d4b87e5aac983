#!/usr/bin/python
"""Ansible module r1.prov.release: a release in a folder of its own, and the link that says which one serves."""

from __future__ import annotations

DOCUMENTATION = r"""
module: release
short_description: Makes a release in a folder of its own, tries it, and makes it the current one
description:
  - Stock Ansible cannot do it, because C(unarchive) fills a folder in place, tries nothing before a switch, and compiles nothing.
  - The folder C(HOME/releases/ID) appears whole or not at all. ID begins with the version and ends with a digest of everything that
    decides the release. Nothing is fetched or made where that folder is there already.
  - C(HOME/current) is switched, atomically, only when the new program has run. A failure leaves C(current) alone.
  - What was current before is kept, and so are the last two releases that M(r1.prov.release_proven) has taken note of. Others are removed.
  - With I(on_path), C(/usr/local/bin) gets links to the programs of the current release.
  - What is fetched is not used before its sha256 is right. A broken download goes on where it broke. Downloads, the build tree, its log and
    what uv and ccache keep lie in C(/var/cache/r1prov). Wheels in its folder C(sources/wheels), uv's among them, are not fetched.
author: The r1prov team
extends_documentation_fragment: r1.prov.fetching
options: {
  "step": {"type": "str", "required": true, "description": "The role that asks, for its progress file and for messages."},
  "version": {"type": "str", "required": true, "description": "The version. The new program must say it."},
  "home": {"type": "path", "required": true, "description": "Holds C(releases) and C(current)."},
  "on_path": {"type": "str", "default": "", "description": "Pattern of the programs in the release, such as C(bin/llama-*), that every login
      shall find on its path. Empty for none. What others have put in C(/usr/local/bin) under such a name stays, and is a warning."},
  "archive": {"type": "dict", "description": "The release is an archive, unpacked.", "suboptions": {
    "source": {"type": "str", "required": true, "description": "A URL, or a file on the host. Any compression that GNU tar knows."},
    "sha256": {"type": "str", "required": true, "description": "The archive's sha256."},
    "variable": {"type": "str", "required": true, "description": "The role's variable with the source, for messages."},
    "program": {"type": "str", "required": true, "description": "Pattern of the path of the program that is tried, in the release."},
    "arguments": {"type": "list", "elements": "str", "required": true, "description": "Its arguments."},
    "says": {"type": "str", "required": true, "description": "Regular expression that its output must match. A group in it must be the
        version."}
  }},
  "llama_cpp": {"type": "dict", "description": "The release is llama.cpp, compiled with CMake, Ninja and ccache.", "suboptions": {
    "source": {"type": "str", "required": true, "choices": ["pypi", "git", "archive"], "description": "C(pypi) is the sdist of
        llama-cpp-python, which carries llama.cpp."},
    "archive": {"type": "str", "default": "", "description": "For C(archive), a URL or a file on the host."},
    "sha256": {"type": "str", "default": "", "description": "For C(pypi) and C(archive), the archive's sha256."},
    "git_url": {"type": "str", "default": "", "description": "For C(git), the repository."},
    "git_ref": {"type": "str", "default": "", "description": "For C(git), a tag or a full commit."},
    "git_commit": {"type": "str", "default": "", "description": "For a tag, the full commit that it must have."},
    "environment_file": {"type": "str", "default": "", "description": "For C(git), a shell script that is sourced before git fetches.
        What it sets is for git alone."},
    "backend": {"type": "str", "required": true, "choices": ["cpu", "cuda"], "description": "What the engine computes with."},
    "cuda_architectures": {"type": "list", "elements": "str", "default": [], "description": "For C(cuda), capabilities without the dot."},
    "cuda_root": {"type": "path", "default": "/opt/r1prov/cuda/current", "description": "For C(cuda), the toolkit's folder."},
    "rpc": {"type": "bool", "default": false, "description": "Whether the RPC backend and its server are built."},
    "jobs": {"type": "int", "default": 0, "description": "Compilers at once; 0 is one for each core, as far as memory allows."}
  }},
  "open_webui": {"type": "dict", "description": "The release is the chat page, in a virtual environment that uv makes of pinned wheels.",
      "suboptions": {
    "requirements": {"type": "path", "required": true, "description": "A requirements file with hashes, on the host."},
    "requirements_sha256": {"type": "str", "required": true, "description": "Its sha256, for check mode, where the file is not there yet."},
    "python": {"type": "path", "required": true, "description": "The interpreter with which the environment is made."}
  }},
  "cuda_toolkit": {"type": "dict", "description": "The release is a CUDA toolkit, which uv makes of NVIDIA's wheels.", "suboptions": {
    "requirements": {"type": "path", "required": true, "description": "A requirements file with hashes, on the host."},
    "requirements_sha256": {"type": "str", "required": true, "description": "Its sha256, for check mode, where the file is not there yet."}
  }}
  }
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
  type: str
  returned: success
  description: The release that is current now, or would be.
previous: {type: str, returned: success, description: The release that was current before; empty where there was none.}
path: {type: str, returned: success, description: "The release's folder."}
made: {type: bool, returned: success, description: "Whether the release was made, or would be, because it was not there as it should be."}
differences: {type: list, elements: str, returned: success, description: "What is not as it should be, in a sentence each."}
drift: {type: list, elements: str, returned: success, description: "What somebody has changed in a release, in a sentence each."}
program: {type: str, returned: success, description: "For C(archive), the program that was tried; empty where it is not there yet."}
"""

import errno
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils import build_archive, fetching, manifest, release
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments
from ansible_collections.r1.prov.plugins.module_utils.artefact import ArtefactError, without_credentials
from ansible_collections.r1.prov.plugins.module_utils.build_llama_cpp import LlamaCpp
from ansible_collections.r1.prov.plugins.module_utils.build_wheels import CudaToolkit, OpenWebui
from ansible_collections.r1.prov.plugins.module_utils.files import file_diff
from ansible_collections.r1.prov.plugins.module_utils.llama_cpp import contradiction
from ansible_collections.r1.prov.plugins.module_utils.on_path import OnPath
from ansible_collections.r1.prov.plugins.module_utils.progress import Progress

_KINDS = ["archive", "llama_cpp", "open_webui", "cuda_toolkit"]
_CACHE = Path("/var/cache/r1prov")


def look_ahead(asked: list[dict[str, Any]]) -> None:
    """Looks once at each release of which several questions are."""
    homes = Counter(Path(each["home"]) for each in asked)
    for home, times in homes.items():
        if times > 1 and (current := release.current(home)):
            manifest.look_ahead(release.path(home, current))


def _build(options: dict[str, Any]) -> release.Build:
    version = options["version"]
    if options["llama_cpp"]:
        return LlamaCpp(options["llama_cpp"], version, _CACHE)
    if options["open_webui"]:
        return OpenWebui(options["open_webui"], version, _CACHE)
    if options["cuda_toolkit"]:
        return CudaToolkit(options["cuda_toolkit"], version, _CACHE)
    return build_archive.Archive(options["archive"], version, _CACHE / options["step"])


def main() -> None:
    module = AnsibleModule(
        argument_spec=arguments(DOCUMENTATION) | {"environment": fetching.OPTION},
        mutually_exclusive=[_KINDS],
        required_one_of=[_KINDS],
        supports_check_mode=True,
    )
    fetching.set_environment(module)
    os.umask(0o022)  # the service's user must be able to read what lies here, whatever umask root has
    options, version, step = module.params, module.params["version"], module.params["step"]
    home, archive = Path(options["home"]), options["archive"]
    if options["llama_cpp"] and (wrong := contradiction({**options["llama_cpp"], "version": version})):
        module.fail_json(msg=wrong)
    build = _build(options)
    previous = release.current(home)
    serving = f"{previous} stays current." if previous else "Nothing was installed."
    if archive and not re.fullmatch(r"[0-9a-f]{64}", archive["sha256"]):
        variable, source = archive["variable"], without_credentials(archive["source"])
        module.fail_json(
            msg=f"{step} {version} cannot be installed: nothing says which sha256 {source} must have. Set {variable}_sha256 "
            f"(64 hex digits), as whoever published it says it.\n{serving}"
        )
    path = release.path(home, build.id)
    found = manifest.look(path) if path.is_dir() else manifest.Look({})
    is_current = release.is_current(home, build.id)
    differences = []
    if not is_current:
        differences.append(
            f"{home}/current leads to {release.target(home) or 'nothing'}, and should lead to {build.id}"
        )
    if found.wrong:
        differences.append(f"{path} is not as it was installed: {found}")
    elif not path.is_dir():
        differences.append(f"{path} is gone")
    made = not path.is_dir() or bool(found.wrong)
    changed = made or not is_current
    # What has served well here is no new wish.
    drift = differences if release.proven(home) == build.id else []
    if found.stale and not changed and not module.check_mode:
        manifest.put_right(path)
    if changed and not module.check_mode:
        progress = Progress(step)
        try:
            release.install(home, build, progress)
        except (release.ReleaseError, ArtefactError, OSError) as error:
            progress.finish(failed=True)
            advice = " Free some space and run again." if getattr(error, "errno", 0) == errno.ENOSPC else ""
            reason = without_credentials(str(error))
            module.fail_json(msg=f"{step} {build.id} cannot be installed: {reason}{advice}\n{serving}")
        progress.finish()
    program = build_archive.program(path, archive["program"]) if archive else None
    # In check mode a release that is not there yet has no programs that could be named.
    named = sorted(path.glob(options["on_path"])) if options["on_path"] and path.is_dir() else []
    links = OnPath(home, [each.relative_to(path) for each in named]) if named else None
    if links:
        differences += links.sentences
        for taken in links.taken:
            module.warn(f"{taken} is not r1prov's and stays, so a login does not find {home}/current/bin/{taken.name}")
        if not module.check_mode:
            links.put_right()
    module.exit_json(
        changed=changed or bool(links and links.differs),
        release_id=build.id,
        previous=previous,
        path=str(path),
        made=made,
        differences=differences,
        drift=drift,
        program=str(program or ""),
        diff=file_diff(home / "current", f"{previous}\n" if previous else "", f"{build.id}\n"),
    )


if __name__ == "__main__":
    main()
