#!/usr/bin/python
"""Ansible module r1.prov.ollama_model: a model's file, registered with Ollama without a copy."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ollama_model
short_description: Registers a model's file with Ollama
description:
  - Stock Ansible cannot do it, because it neither links a model's file into Ollama's store nor sees whether the release knows the model.
  - The file becomes a blob of Ollama's by a hard link, which takes no room; it stays its owner's, so Ollama cannot write it. Then the
    model is created through the API, from what the Modelfile says.
  - Registers again only when the file or the Modelfile changed, or what was registered is gone. Otherwise nothing is started or asked.
  - A service that is stopped is started for the registration and stopped again. No model is loaded.
  - What could not be registered is refused in check mode too, so that a task in check mode can ask before anything is changed.
  - A name that an earlier run registered and that is not wanted any more is removed.
options:
  name:
    description: The model's name, with or without a tag.
    type: str
    required: true
  modelfile:
    description: The Modelfile's text. FROM names the file.
    type: str
    required: true
  models_dir:
    description: OLLAMA_MODELS, on the file system of the model's file.
    type: path
    required: true
  owner:
    description: The user that Ollama runs as.
    type: str
    required: true
  release:
    description: Folder of the Ollama that serves, or a link to it.
    type: path
    required: true
  url:
    description: Where Ollama answers, without a path.
    type: str
    required: true
  unit:
    description: Its systemd unit, without C(.service).
    type: str
    required: true
  state:
    description: What the unit is left as.
    type: str
    choices: [started, stopped]
    required: true
author:
  - The r1prov team
"""

EXAMPLES = r"""
- name: Register the model
  r1.prov.ollama_model:
    name: deepseek-r1
    modelfile: |
      FROM /srv/r1prov/models/R1/R1.gguf
      PARAMETER num_gpu 7
    models_dir: /srv/r1prov/ollama
    owner: r1prov-ollama
    release: /opt/r1prov/ollama/current
    url: http://127.0.0.1:11434
    unit: r1prov-ollama
    state: started
"""

RETURN = r"""
actions:
  description: What was done, or would be.
  type: list
  elements: str
  returned: success
digest:
  description: The sha256 of the model's file; empty in check mode where it is not known yet.
  type: str
  returned: success
"""

import hashlib
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils import units
from ansible_collections.r1.prov.plugins.module_utils.artefact import sha256_of
from ansible_collections.r1.prov.plugins.module_utils.files import give, write_whole
from ansible_collections.r1.prov.plugins.module_utils.gguf_header import GgufError, read
from ansible_collections.r1.prov.plugins.module_utils.http_api import Api, ApiError
from ansible_collections.r1.prov.plugins.module_utils.merged_weights import record_of, remembered
from ansible_collections.r1.prov.plugins.module_utils.modelfile import parse

REGISTERED = Path("/var/lib/r1prov/service/ollama-model.json")
_CREATE_LIMIT_S = 600.0  # reading the head of the file from a slow disk, no more


class ModelError(Exception):
    """The model cannot be registered; the message says why and what to do next."""


class Model:
    """One model: what is wanted of it, and what was registered."""

    def __init__(self, wanted: dict[str, Any], registered: Path = REGISTERED) -> None:
        self.wanted = wanted
        self.name = wanted["name"]
        self.models = Path(wanted["models_dir"])
        self.modelfile = parse(wanted["modelfile"])
        self.file = Path(self.modelfile.file)
        self.record = registered
        self.before = remembered(registered)

    def looks(self) -> dict[str, Any]:
        """How the file looks from outside."""
        status = self.file.stat()
        return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}

    def reason(self) -> str:
        """Why it has to be registered; empty where it is as it should be."""
        if not self.file.is_file():
            raise ModelError(f"{self.file} is not there. Let the role weights bring it, or correct ollama_model_file")
        if self.before.get("name") != self.name:
            return f"{self.name} is not registered"
        if self.before["file"] != {"path": str(self.file), **self.looks()}:
            return "the model's file changed"
        if self.before["modelfile"] != self.wanted["modelfile"]:
            return "the Modelfile changed"
        blob = self.blob(self.before["digest"])
        if not blob.exists() or not blob.samefile(self.file) or self.manifest() != self.before["manifest"]:
            return "what Ollama has of it was changed"
        return ""

    def blob(self, digest: str) -> Path:
        return self.models / "blobs" / f"sha256-{digest}"

    def manifest(self) -> str:
        """The digest of what Ollama wrote down about the model, and of whether all of that is there; empty where it has nothing."""
        name, _, tag = self.name.partition(":")
        found = sorted((self.models / "manifests").glob(f"*/*/{name.rpartition('/')[2]}/{tag or 'latest'}"))
        if not found:
            return ""
        content = found[0].read_bytes()
        try:
            layers = [*json.loads(content)["layers"], json.loads(content)["config"]]
            whole = all(
                self.blob(layer["digest"].partition(":")[2]).stat().st_size == layer["size"] for layer in layers
            )
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        return hashlib.sha256(content).hexdigest() if whole else ""

    def digest(self) -> str:
        """The file's sha256: as the role weights recorded it, as it was found before, or by reading it once."""
        beside = remembered(record_of(self.file))
        if (beside.get("name"), beside.get("bytes")) == (self.file.name, self.file.stat().st_size):
            return str(beside["sha256"])
        if self.before.get("file") == {"path": str(self.file), **self.looks()}:
            return str(self.before["digest"])
        return sha256_of(self.file)

    def check(self) -> None:
        """Refuses what Ollama could not run or would copy."""
        there = next(folder for folder in (self.models, *self.models.parents) if folder.is_dir())
        if there.stat().st_dev != self.file.stat().st_dev:
            raise ModelError(
                f"{self.models} is not on the file system of {self.file}, and the model would be copied. Correct ollama_models_dir"
            )
        architecture = read(self.file).text("general.architecture")
        if not knows(Path(self.wanted["release"]), architecture):
            raise ModelError(
                f"this Ollama ({Path(self.wanted['release']).resolve().name}) does not know the architecture {architecture} of "
                f"{self.file}. Set ollama_version to a newer one"
            )

    def register(self) -> str:
        """Links the file and creates the model; returns the file's digest."""
        digest = self.digest()
        unit, stop = f"{self.wanted['unit']}.service", self.wanted["state"] == "stopped"
        if stop:
            units.systemctl("start", unit)
        try:
            # When it is running: a start removes blobs that no model has.
            replaced = self._link(self.blob(digest))
            self._create(digest, unload=replaced)
            self._drop(digest)
        finally:
            if stop:
                units.systemctl("stop", unit)
        manifest = self.manifest()
        if not manifest:
            raise ModelError(
                f"Ollama has created {self.name}, but not below {self.models}. Another Ollama answers at {self.wanted['url']}"
            )
        found = {"name": self.name, "file": {"path": str(self.file), **self.looks()}, "digest": digest}
        self.record.parent.mkdir(parents=True, exist_ok=True)
        record = {**found, "modelfile": self.wanted["modelfile"], "manifest": manifest}
        write_whole(self.record, json.dumps(record))
        return digest

    def _link(self, blob: Path) -> bool:
        """Makes the file a blob. Root may link what belongs to others, and it stays theirs.

        Returns:
            Whether another file was in its place, which may have been loaded.
        """
        give(blob.parent, self.wanted["owner"])
        replaced = blob.exists()
        if replaced and blob.samefile(self.file):
            return False
        new = f".{blob.name}.new"
        # Ollama may put a link in the place of this folder at any time, which must not lead root elsewhere.
        folder = os.open(blob.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            with suppress(FileNotFoundError):
                os.unlink(new, dir_fd=folder)
            os.link(self.file, new, dst_dir_fd=folder)
            os.replace(new, blob.name, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            os.close(folder)
        return replaced

    def _drop(self, digest: str) -> None:
        """Lets go of the file that was registered before: Ollama would at its next start, and until then the disk holds it."""
        before = self.before.get("digest", digest)
        if before != digest:
            self.blob(before).unlink(missing_ok=True)

    def _create(self, digest: str, *, unload: bool) -> None:
        api = Api(self.wanted["url"], timeout_s=_CREATE_LIMIT_S)
        body = {
            "model": self.name,
            "files": {self.file.name: f"sha256:{digest}"},
            "parameters": self.modelfile.parameters,
        }
        if self.modelfile.template:
            body["template"] = self.modelfile.template
        answer = api.post("/api/create", body | {"stream": False})
        if answer.get("status") != "success":
            raise ModelError(f"Ollama does not create {self.name}: {answer}")
        if unload:
            api.post("/api/generate", {"model": self.name, "keep_alive": 0, "stream": False})
        old = self.before.get("name")
        if old and old != self.name:
            try:
                api.delete("/api/delete", {"model": old})
            except ApiError as error:
                if error.status != 404:
                    raise


def knows(release: Path, architecture: str) -> bool:
    """Whether the name of an architecture is in one of a release's programs. Its engine has a table of them.

    True where no release is there yet, in check mode: there is nothing to be found wrong.
    """
    word = re.compile(rb"(?<![\w-])" + re.escape(architecture.encode()) + rb"(?![\w-])")
    ollama = release / "lib" / "ollama"
    programs = [path for path in (release / "bin" / "ollama", *sorted(ollama.glob("*"))) if path.is_file()]
    return not programs or any(word.search(path.read_bytes()) for path in programs)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "modelfile": {"type": "str", "required": True},
            "models_dir": {"type": "path", "required": True},
            "owner": {"type": "str", "required": True},
            "release": {"type": "path", "required": True},
            "url": {"type": "str", "required": True},
            "unit": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["started", "stopped"], "required": True},
        },
        supports_check_mode=True,
    )
    try:
        model = Model(module.params)
        if module.check_mode and not model.file.is_file():
            module.exit_json(changed=True, actions=[f"registered {model.name}"], digest="")
        reason = model.reason()
        digest = model.before.get("digest", "")
        if reason:
            model.check()
        if reason and not module.check_mode:
            digest = model.register()
    except GgufError as error:
        remedy = "It is damaged or not whole: let the role weights verify and fetch the model's files again."
        module.fail_json(msg=f"Ollama's model {module.params['name']}: {str(error).rstrip('.')}. {remedy}")
    except (ModelError, ApiError, units.UnitError, ValueError, OSError) as error:
        module.fail_json(msg=f"Ollama's model {module.params['name']}: {str(error).rstrip('.')}.")
    actions = [f"registered {model.name}: {reason}"] if reason else []
    module.exit_json(changed=bool(reason), actions=actions, digest=digest)


if __name__ == "__main__":
    main()
