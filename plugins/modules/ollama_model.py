#!/usr/bin/python
"""Ansible module r1.prov.ollama_model: a model's file, registered with Ollama without a copy."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ollama_model
short_description: Registers a model's file with Ollama
description:
  - Stock Ansible cannot do it, because it neither links a model's file into Ollama's store nor sees whether the release knows the model.
  - The file becomes a blob of Ollama by a hard link, which takes no room. It keeps its owner, so Ollama cannot write it. Then the model is
    created through the API.
  - It registers again only when the file or an option changed, or when what was registered is gone. Otherwise it starts and asks nothing.
  - A stopped service is started for the registration and stopped again. No model is loaded.
  - It refuses in check mode too what could not be registered, so a task in check mode can ask before anything is changed.
  - It removes a model that an earlier run registered under another name.
author: The r1prov team
options: {
  "name": {"type": "str", "required": true, "description": "The model's name, with or without a tag."},
  "file": {"type": "path", "required": true, "description": "The model's file."},
  "parameters": {"type": "dict", "default": {}, "description": "The parameters of a Modelfile, by name."},
  "template": {"type": "str", "default": "", "description": "The template of a Modelfile. Empty for the model's own."},
  "models_dir": {"type": "path", "required": true, "description": "OLLAMA_MODELS, on the file system of the model's file."},
  "release": {"type": "path", "required": true, "description": "Folder of the Ollama that serves, or a link to it."},
  "url": {"type": "str", "required": true, "description": "The address of Ollama, without a path."},
  "state": {"type": "str", "required": true, "choices": ["started", "stopped"], "description": "The state in which the unit is left."}
  }
"""

EXAMPLES = r"""
- name: Register the model
  r1.prov.ollama_model:
    name: deepseek-r1
    file: /srv/r1prov/models/R1/R1.gguf
    parameters: {num_gpu: 7}
    models_dir: /srv/r1prov/ollama
    release: /opt/r1prov/ollama/current
    url: http://127.0.0.1:11434
    state: started
"""

RETURN = r"""
actions: {type: list, elements: str, returned: success, description: "What was done, or would be."}
differences: {type: list, elements: str, returned: success, description: "What is not as it should be, in a sentence each."}
digest:
  type: str
  returned: success
  description: The sha256 of the model's file; empty in check mode where it is not known yet.
"""

import hashlib
import json
import os
import pwd
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils import units
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments
from ansible_collections.r1.prov.plugins.module_utils.digest import sha256_of
from ansible_collections.r1.prov.plugins.module_utils.files import give, give_within, looks_of, read_json, write_whole
from ansible_collections.r1.prov.plugins.module_utils.gguf_header import GgufError, read
from ansible_collections.r1.prov.plugins.module_utils.http_api import Api, ApiError
from ansible_collections.r1.prov.plugins.module_utils.merged_weights import record_of

REGISTERED = Path("/var/lib/r1prov/service/ollama-model.json")
UNIT = "r1prov-ollama.service"
USER = "r1prov-ollama"
CHANGED = "what Ollama has of it was changed"
_CREATE_LIMIT_S = 600.0  # Ollama reads the head of the file, perhaps from a slow disk.


class ModelError(Exception):
    """The model cannot be registered. The message says why and what to do next."""


class Model:
    """One model: the options of the module, and what was registered before."""

    def __init__(self, options: dict[str, Any], registered: Path = REGISTERED) -> None:
        self.name, self.file = options["name"], Path(options["file"])
        self.models, self.release = Path(options["models_dir"]), Path(options["release"])
        self.url, self.is_stopped = options["url"], options["state"] == "stopped"
        self.modelfile = {key: options[key] for key in ("parameters", "template")}
        self.record, self.before = registered, read_json(registered)

    def looks(self) -> dict[str, Any]:
        """How the file looks from outside."""
        return {"path": str(self.file), **looks_of(self.file.stat())}

    def reason(self) -> str:
        """Why it has to be registered; empty where it is as it should be."""
        if not self.file.is_file():
            raise ModelError(f"{self.file} is not there. Let the role weights bring it, or correct ollama_model_file")
        if self.before.get("name") != self.name:
            return f"{self.name} is not registered"
        if self.before["file"] != self.looks():
            return "the model's file changed"
        if self.before["modelfile"] != self.modelfile:
            return "the Modelfile changed"
        blob = self.blob(self.before["digest"])
        if not blob.exists() or not blob.samefile(self.file) or self.manifest() != self.before["manifest"]:
            return CHANGED
        if others := not_its_own(self.models, self.file):
            return f"{CHANGED}, and {others[0]} does not belong to {USER}"
        return ""

    def blob(self, digest: str) -> Path:
        return self.models / "blobs" / f"sha256-{digest}"

    def manifest(self) -> str:
        """The digest of Ollama's manifest of the model; empty where there is none, or where a blob that it names is missing."""
        name, _, tag = self.name.partition(":")
        manifests = sorted((self.models / "manifests").glob(f"*/*/{name.rpartition('/')[2]}/{tag or 'latest'}"))
        if not manifests:
            return ""
        content = manifests[0].read_bytes()
        try:
            layers = [*json.loads(content)["layers"], json.loads(content)["config"]]
            sizes = [(self.blob(layer["digest"].partition(":")[2]).stat().st_size, layer["size"]) for layer in layers]
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        return hashlib.sha256(content).hexdigest() if all(size == listed for size, listed in sizes) else ""

    def digest(self) -> str:
        """The file's sha256: as the role weights recorded it, as it was registered before, or by reading the file once."""
        record = read_json(record_of(self.file))
        if (record.get("name"), record.get("bytes")) == (self.file.name, self.file.stat().st_size):
            return str(record["sha256"])
        if self.before.get("file") == self.looks():
            return str(self.before["digest"])
        return sha256_of(self.file)

    def check(self) -> None:
        """Refuses what Ollama could not run or would copy."""
        existing = next(folder for folder in (self.models, *self.models.parents) if folder.is_dir())
        if existing.stat().st_dev != self.file.stat().st_dev:
            raise ModelError(
                f"{self.models} is not on the file system of {self.file}, and the model would be copied. Correct ollama_models_dir"
            )
        architecture = read(self.file).text("general.architecture")
        if not knows(self.release, architecture):
            raise ModelError(
                f"this Ollama ({self.release.resolve().name}) does not know the architecture {architecture} of "
                f"{self.file}. Set ollama_version to a newer one"
            )

    def register(self) -> str:
        """Links the file and creates the model. Returns the file's digest."""
        digest = self.digest()
        if self.models.is_dir():
            give_within(self.models, USER)
        if self.is_stopped:
            units.systemctl("start", UNIT)
        try:
            # The file is linked when Ollama is running, because a start removes blobs that no model has.
            replaced = self._link(self.blob(digest))
            # A run that was cut off may have replaced the file, and Ollama has the one before in memory still.
            self._create(digest, unload=replaced or self.before.get("file", self.looks()) != self.looks())
            before = self.before.get("digest", digest)
            if (
                before != digest
            ):  # Ollama would remove the old blob at its next start, and until then the disk holds it.
                self.blob(before).unlink(missing_ok=True)
        finally:
            if self.is_stopped:
                units.systemctl("stop", UNIT)
        manifest = self.manifest()
        if not manifest:
            raise ModelError(
                f"Ollama has created {self.name}, but not below {self.models}. Another Ollama answers at {self.url}"
            )
        record = {"name": self.name, "file": self.looks(), "digest": digest}
        self.record.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.record, json.dumps({**record, "modelfile": self.modelfile, "manifest": manifest}))
        return digest

    def _link(self, blob: Path) -> bool:
        """Makes the file a blob. Root may link what belongs to others, and it stays theirs.

        Returns:
            Whether another file was in its place, which may have been loaded.
        """
        give(blob.parent, USER)
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

    def _create(self, digest: str, *, unload: bool) -> None:
        api = Api(self.url, timeout_s=_CREATE_LIMIT_S)
        body = {key: value for key, value in self.modelfile.items() if key == "parameters" or value}
        body |= {"model": self.name, "files": {self.file.name: f"sha256:{digest}"}, "stream": False}
        answer = api.post("/api/create", body)
        if answer.get("status") != "success":
            raise ModelError(f"Ollama does not create {self.name}: {answer}")
        if unload:
            api.post("/api/generate", {"model": self.name, "keep_alive": 0, "stream": False})
        old = self.before.get("name", self.name)
        if old != self.name:
            try:
                api.delete("/api/delete", {"model": old})
            except ApiError as error:
                if error.status != 404:
                    raise


def not_its_own(models: Path, file: Path) -> list[Path]:
    """What lies in Ollama's registry and is not Ollama's. The blob that is the model is the transfer's."""
    try:
        uid = pwd.getpwnam(USER).pw_uid
        return [
            path
            for path in sorted(models.rglob("*"))
            if path.lstat().st_uid != uid and not (path.is_file() and path.samefile(file))
        ]
    except (KeyError, FileNotFoundError):  # Ollama may be at work on it.
        return []


def knows(release: Path, architecture: str) -> bool:
    """Whether one of a release's programs names an architecture, because its engine has a table of them. True without a release."""
    word = re.compile(rb"(?<![\w-])" + re.escape(architecture.encode()) + rb"(?![\w-])")
    ollama = release / "lib" / "ollama"
    programs = [path for path in (release / "bin" / "ollama", *sorted(ollama.glob("*"))) if path.is_file()]
    return not programs or any(word.search(path.read_bytes()) for path in programs)


def main() -> None:
    module = AnsibleModule(argument_spec=arguments(DOCUMENTATION), supports_check_mode=True)
    model = Model(module.params)
    try:
        if module.check_mode and not model.file.is_file():
            module.exit_json(changed=True, actions=[f"registered {model.name}"], digest="")
        reason = model.reason()
        digest = model.before.get("digest", "")
        if reason:
            model.check()
        if reason and not module.check_mode:
            digest = model.register()
    except (GgufError, ModelError, ApiError, units.UnitError, OSError) as error:
        damaged = " It is damaged or not whole: let the role weights verify and fetch the model's files again."
        remedy = damaged if isinstance(error, GgufError) else ""
        module.fail_json(msg=f"Ollama's model {model.name}: {str(error).rstrip('.')}.{remedy}")
    actions = [f"registered {model.name}: {reason}"] if reason else []
    differences = [f"Ollama's model {model.name} is not as r1prov has registered it: {reason}"] if reason else []
    drift = differences if reason.startswith(CHANGED) else []
    module.exit_json(changed=bool(reason), actions=actions, digest=digest, differences=differences, drift=drift)


if __name__ == "__main__":
    main()
