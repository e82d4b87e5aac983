#!/usr/bin/python
"""Ansible module r1.prov.weights_merge: one file in place of a model's shards."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: weights_merge
short_description: Merges the verified shards of a model into one file
description:
  - Merges with llama-gguf-split, then compares the file with the shards, key by key and tensor by tensor, all bytes of them, in the
    same pass in which its sha256 is computed. Only then it gets its name, and the shards are removed.
  - C(merged.json) beside it says what it was made of and its sha256. With it, the file counts as the shards do.
  - May be interrupted anywhere and run again. A run whose connection was lost goes on, and the next one waits for it.
  - Acts as the folder's owner, with no more rights than the transfer has. The disk must have room for the model a second time.
options:
  path:
    description: The folder.
    type: path
    required: true
  owner:
    description: The user whose folder it is.
    type: str
    required: true
  name:
    description: The merged file's name.
    type: str
    required: true
  files:
    description: The shards, in order.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Its name.
        type: str
        required: true
      bytes:
        description: Its size.
        type: int
        required: true
      sha256:
        description: The digest of its content.
        type: str
        required: true
  program:
    description: llama-gguf-split.
    type: path
    required: true
author:
  - The r1prov team
"""

EXAMPLES = r"""
- name: Merge
  r1.prov.weights_merge:
    path: /srv/r1prov/models/R1
    owner: r1prov-weights
    name: R1.gguf
    files: "{{ shards }}"
    program: /opt/r1prov/llama.cpp/current/bin/llama-gguf-split
"""

RETURN = r"""
path:
  description: The merged file.
  type: str
  returned: success
sha256:
  description: Its digest; empty in check mode where it is not there yet.
  type: str
  returned: success
bytes:
  description: Its size; 0 in check mode where it is not there yet.
  type: int
  returned: success
seconds:
  description: How long merging and comparing took.
  type: float
  returned: success
"""

import hashlib
import json
import os
import subprocess
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils.download import sha256_of
from ansible_collections.r1.prov.plugins.module_utils.files import alone, sync_folder, write_whole
from ansible_collections.r1.prov.plugins.module_utils.gguf_header import Gguf, GgufError, read
from ansible_collections.r1.prov.plugins.module_utils.merged_weights import (
    RECORD,
    STATE,
    is_as_verified,
    recorded,
    remembered,
    seen,
)
from ansible_collections.r1.prov.plugins.module_utils.progress import RUN, Progress
from ansible_collections.r1.prov.plugins.module_utils.users import acting_as

_BLOCK_BYTES = 4 << 20
_GIB = 1 << 30


class MergeError(Exception):
    """The shards cannot be merged; the message says why and what to do next."""


class Merge:
    """One model's folder: its shards, and the file that they shall become."""

    def __init__(self, wanted: dict, state: Path = STATE, run: Path = RUN) -> None:
        self.folder = Path(wanted["path"])
        self.shards = wanted["files"]
        self.program = Path(wanted["program"])
        self.file = self.folder / wanted["name"]
        self.growing = self.folder / ".incoming" / wanted["name"]
        self.state = state
        self.run = run
        self.total = sum(shard["bytes"] for shard in self.shards)

    @property
    def known(self) -> dict | None:
        """The merged file, where it looks as it did when it was verified."""
        found = recorded(self.folder, self.file.name, self.shards)
        return found if found and is_as_verified(self.folder, [found], self.state) else None

    @property
    def left(self) -> list[Path]:
        """Shards that are still there."""
        return [path for path in (self.folder / shard["name"] for shard in self.shards) if path.exists()]

    def complete(self) -> dict:
        """Ends with the verified merged file and no shards, from wherever an earlier run was cut off."""
        merged = self.known or self._found_again() or self._make()
        for path in self.left:
            path.unlink()
        sync_folder(self.folder)
        return merged

    def _found_again(self) -> dict | None:
        """The merged file, read once more because nothing is known of how it looks."""
        found = recorded(self.folder, self.file.name, self.shards)
        if not found or not self.file.is_file() or self.file.stat().st_size != found["bytes"]:
            return None
        if sha256_of(self.file) != found["sha256"]:
            return None
        self._remember(found["sha256"])
        return found

    def _make(self) -> dict:
        if not is_as_verified(self.folder, self.shards, self.state):
            raise MergeError(
                f"{self.file} cannot be made: its shards are not in {self.folder}, or were changed since they were verified. "
                "Let the role weights bring them"
            )
        self.growing.unlink(missing_ok=True)
        self._check_room()
        progress = Progress("weights", self.run)
        try:
            self._merge(progress)
            digest = self._compare(progress)
        except BaseException:
            progress.finish(failed=True)
            self.growing.unlink(missing_ok=True)
            raise
        # In this order: a file without its record is made anew, a record without its file means nothing.
        record = {"name": self.file.name, "bytes": self.growing.stat().st_size, "sha256": digest, "shards": self.shards}
        write_whole(self.folder / RECORD, json.dumps(record))
        self.growing.replace(self.file)
        sync_folder(self.folder)
        self._remember(digest)
        progress.finish()
        return {key: record[key] for key in ("name", "bytes", "sha256")}

    def _check_room(self) -> None:
        disk = os.statvfs(self.folder)
        free = disk.f_bavail * disk.f_frsize
        if free < self.total:
            raise MergeError(
                f"the disk of {self.folder} has {free / _GIB:.1f} GiB free, and merging needs {self.total / _GIB:.1f} GiB until the "
                "shards are removed. Make room, or do without Ollama"
            )

    def _merge(self, progress: Progress) -> None:
        """Writes the file, safely to the disk, under a name that nothing else uses."""
        progress.begin("merging the shards", self.total, "bytes")
        command = [self.program, "--merge", self.folder / self.shards[0]["name"], self.growing]
        try:
            with subprocess.Popen(
                list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
            ) as tool:
                lines = []
                for line in tool.stdout or ():  # it says a line per shard and tensor
                    lines.append(line.strip())
                    if self.growing.exists():
                        progress.update(min(self.growing.stat().st_size, self.total))
        except OSError as error:
            raise MergeError(f"{self.program} does not run: {error.strerror}. The role llama_cpp builds it") from error
        if tool.returncode or not self.growing.exists():
            said = "; ".join([line for line in lines if line][-3:])
            raise MergeError(f"{self.program.name} failed (status {tool.returncode}): {said}")
        with self.growing.open("rb") as stream:
            os.fsync(stream.fileno())
            # So that what is compared is what the disk has.
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self.growing.chmod(0o644)

    def _compare(self, progress: Progress) -> str:
        """Holds the file against the shards; returns its sha256, computed in the same pass.

        Raises:
            MergeError: a key or a tensor is not the shards'.
        """
        merged, shards = read(self.growing), [read(self.folder / shard["name"]) for shard in self.shards]
        if wrong := difference(merged, shards):
            raise MergeError(
                f"the merged file is not what the shards are: {wrong}. Run it again; if it stays, check the disk"
            )
        sources = {tensor.name: (shard.path, tensor) for shard in shards for tensor in shard.tensors}
        digest, position = hashlib.sha256(), 0
        progress.begin("comparing the merged file with the shards", self.growing.stat().st_size, "bytes")
        with self.growing.open("rb") as stream:
            for tensor in merged.tensors:
                digest.update(stream.read(tensor.start - position))
                path, source = sources[tensor.name]
                with path.open("rb") as other:
                    other.seek(source.start)
                    rest = tensor.bytes
                    while rest:
                        block = stream.read(min(rest, _BLOCK_BYTES))
                        if not block or block != other.read(len(block)):
                            raise MergeError(
                                f"{tensor.name} in the merged file differs from {path.name}. Run it again; if it stays, check the disk"
                            )
                        digest.update(block)
                        rest -= len(block)
                        progress.update(stream.tell())
                position = tensor.start + tensor.bytes
            digest.update(stream.read())
        return digest.hexdigest()

    def _remember(self, sha256: str) -> None:
        """Adds the file to what the transfer knows, in place of the shards."""
        before = remembered(self.state).get("verified", {})
        known = {path: looks for path, looks in before.items() if Path(path).parent != self.folder}
        known[str(self.file)] = seen(self.file, sha256)
        write_whole(self.state, json.dumps({**remembered(self.state), "verified": known}))


def difference(merged: Gguf, shards: list[Gguf]) -> str:
    """What the heads disagree about; empty where the merged file has all keys and tensors of the shards, and no others.

    The keys of a model are in its first shard; those that count the shards are not compared.
    """
    keys, wanted = (
        {name: value for name, value in gguf.keys.items() if not name.startswith("split.")}
        for gguf in (merged, shards[0])
    )
    if keys != wanted:
        return (
            f"the key {min(name for name in keys.keys() | wanted.keys() if keys.get(name) != wanted.get(name))} differs"
        )
    has, wants = (
        {tensor.name: (tensor.shape, tensor.type, tensor.bytes) for gguf in ggufs for tensor in gguf.tensors}
        for ggufs in ([merged], shards)
    )
    if has != wants:
        return (
            f"the tensor {min(name for name in has.keys() | wants.keys() if has.get(name) != wants.get(name))} differs"
        )
    return ""


def main() -> None:
    files = {"name": {"type": "str", "required": True}, "bytes": {"type": "int", "required": True}}
    files["sha256"] = {"type": "str", "required": True}
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "owner": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "files": {"type": "list", "elements": "dict", "required": True, "options": files},
            "program": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    merge = Merge(module.params)
    merged, left = merge.known, merge.left
    result = {"path": str(merge.file), "sha256": "", "bytes": 0, "seconds": 0.0, "changed": not merged or bool(left)}
    if result["changed"] and not module.check_mode:
        started = time.monotonic()
        try:
            with acting_as(module.params["owner"]):
                os.umask(0o022)
                with alone(merge.run / "weights"):
                    merged = merge.complete()
        except (MergeError, GgufError, OSError) as error:
            module.fail_json(msg=f"{str(error).rstrip('.')}. The shards are as they were.")
        result["seconds"] = round(time.monotonic() - started, 1)
    if merged:
        result |= {"sha256": merged["sha256"], "bytes": merged["bytes"]}
    module.exit_json(**result)


if __name__ == "__main__":
    main()
