#!/usr/bin/python
"""Test module: some CUDA sources of llama.cpp, configured and compiled exactly as the role llama_cpp would, without the rest."""

from __future__ import annotations

import json
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils.build_llama_cpp import LlamaCpp
from ansible_collections.r1.prov.plugins.module_utils.progress import Progress
from ansible_collections.r1.prov.plugins.module_utils.release import ReleaseError


def main() -> None:
    """Compiles `sources` (names below ggml/src/ggml-cuda) for `architecture`."""
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "required": True},
            "sha256": {"type": "str", "required": True},
            "architecture": {"type": "str", "required": True},
            "sources": {"type": "list", "elements": "str", "required": True},
        }
    )
    build = LlamaCpp(
        {
            "source": "pypi",
            "archive": "",
            "git_ref": "",
            "git_commit": "",
            "sha256": module.params["sha256"],
            "backend": "cuda",
            "cuda_architectures": [module.params["architecture"]],
            "cuda_root": "/opt/r1prov/cuda/current",
            "rpc": False,
            "jobs": 0,
        },
        module.params["version"],
        Path("/var/cache/r1prov"),
    )
    objects = [f"ggml/src/ggml-cuda/CMakeFiles/ggml-cuda.dir/{source}.o" for source in module.params["sources"]]
    progress = Progress("llama_cpp")
    started = time.monotonic()
    try:
        build.configure(progress)
        build.compile(objects, progress)
    except ReleaseError as error:
        module.fail_json(msg=str(error))
    tree = build.tree / "build"
    code = f"code=[sm_{module.params['architecture']}]"
    commands = [entry["command"] for entry in json.loads((tree / "compile_commands.json").read_text(encoding="utf-8"))]
    built = [
        name
        for name in objects
        if (tree / name).stat().st_size and any(name in command and code in command for command in commands)
    ]
    module.exit_json(changed=True, built=built, seconds=round(time.monotonic() - started, 1), flags=build.flags)


if __name__ == "__main__":
    main()
