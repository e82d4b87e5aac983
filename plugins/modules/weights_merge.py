#!/usr/bin/python
"""Ansible module r1.prov.weights_merge: one file made of a model's published files."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: weights_merge
short_description: Makes one file of a model's published files
description:
  - Writes the tensors of all files into one, in one pass, and holds each against its source behind the writer's back, while the file's
    sha256 is computed. Only then it gets its name. Where I(attention) says so, the attention is brought into MLA form on the way.
  - A file that was merged in the published form takes the place of the shards where they are gone.
  - C(NAME.json) beside it says what it was made of and its sha256. With it, the file counts as the shards do. They stay;
    M(r1.prov.weights_settle) removes them when the new file has proved itself.
  - May be interrupted anywhere and run again. A run whose connection was lost goes on, and the next one waits for it.
  - Acts as the folder's owner, with no more rights than the transfer has. The disk must have room for the model a second time.
extends_documentation_fragment: r1.prov.weights
options:
  name:
    description: The new file's name.
    type: str
    required: true
  attention:
    description:
      - C(mla) brings the legacy attention of C(deepseek2) files into MLA form (C(attn_k_b) as Q8_0); other files are merged as they are. It
        needs numpy.
      - C(legacy) merges whatever there is as it is.
    type: str
    choices: [mla, legacy]
    required: true
author:
  - The r1prov team
"""

EXAMPLES = r"""
- name: Merge
  r1.prov.weights_merge:
    path: /srv/r1prov/models/R1
    owner: r1prov-weights
    name: R1.mla.gguf
    attention: mla
    files: "{{ shards }}"
"""

RETURN = r"""
path:
  description: The new file.
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
attention:
  description: The form that it has.
  type: str
  returned: success
seconds:
  description: How long it took.
  type: float
  returned: success
"""

import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils import gguf_stream
from ansible_collections.r1.prov.plugins.module_utils.artefact import sha256_of
from ansible_collections.r1.prov.plugins.module_utils.files import alone, sync_folder, write_whole
from ansible_collections.r1.prov.plugins.module_utils.gguf_header import Gguf, GgufError, read
from ansible_collections.r1.prov.plugins.module_utils.merged_weights import (
    FOLDER,
    LEGACY,
    MLA,
    STATE,
    is_as_verified,
    made,
    record_of,
    recorded,
    remembered,
    seen,
)
from ansible_collections.r1.prov.plugins.module_utils.progress import RUN, Progress
from ansible_collections.r1.prov.plugins.module_utils.users import acting_as

try:  # here, for what this module brings along can be read by root alone
    from ansible_collections.r1.prov.plugins.module_utils import mla
except ImportError:  # numpy is wanted for MLA form only
    mla = None  # type: ignore[assignment]

ARCHITECTURE = "deepseek2"
"""What has a legacy form of attention."""


class MergeError(Exception):
    """The file cannot be made; the message says why and what to do next."""


class Merge:
    """One model's folder: its published files, and the one that they shall become."""

    def __init__(self, wanted: dict[str, Any], state: Path = STATE, run: Path = RUN) -> None:
        self.folder = Path(wanted["path"])
        self.shards = wanted["files"]
        self.attention = wanted["attention"]
        self.file = self.folder / wanted["name"]
        self.growing = self.folder / ".incoming" / wanted["name"]
        self.state = state
        self.run = run

    @property
    def known(self) -> dict[str, Any] | None:
        """The new file, where it looks as it did when it was verified."""
        found = recorded(self.file, self.shards)
        return found if found and is_as_verified(self.folder, [found], self.state) else None

    def complete(self) -> dict[str, Any]:
        """Ends with the verified new file, from wherever an earlier run was cut off."""
        return self.known or self._found_again() or self._make()

    def _found_again(self) -> dict[str, Any] | None:
        """The new file, read once more because nothing is known of how it looks."""
        found = recorded(self.file, self.shards)
        if not found or not self.file.is_file() or self.file.stat().st_size != found["bytes"]:
            return None
        if sha256_of(self.file) != found["sha256"]:
            return None
        self._remember(found["sha256"])
        return found

    def _make(self) -> dict[str, Any]:
        sources = [read(path) for path in self._sources()]
        progress = Progress("weights", self.run)
        try:
            keys, parts, attention = self._changed(sources)
            what = "bringing the weights into MLA form" if attention == MLA else "merging the weights into one file"
            progress.begin(what, 0, "bytes")
            digest = gguf_stream.write(self.growing, keys, parts, progress.update, partial(self._publish, attention))
        except BaseException:
            progress.finish(failed=True)
            raise
        self._remember(digest)
        progress.finish()
        return self._record(self.file, attention, digest)

    def _record(self, file: Path, attention: str, digest: str) -> dict[str, Any]:
        return {"name": self.file.name, "bytes": file.stat().st_size, "sha256": digest, "attention": attention}

    def _publish(self, attention: str, digest: str) -> None:
        """Gives the new file its record, then its name: a file without its record is made anew, a record alone means nothing."""
        record = self._record(self.growing, attention, digest)
        write_whole(record_of(self.file), json.dumps({**record, "shards": self.shards}))
        self.growing.replace(self.file)
        sync_folder(self.folder)

    def _sources(self) -> list[Path]:
        """The verified files that it is made of: the shards, or what they were merged into before."""
        merged = [[found] for found in made(self.folder, self.shards) if found["attention"] == LEGACY]
        for files in (self.shards, *merged):
            if is_as_verified(self.folder, files, self.state):
                return [self.folder / file["name"] for file in files]
        raise MergeError(
            f"{self.file} cannot be made: what it is made of is not in {self.folder}, or was changed since it was verified. "
            "Let the role weights bring it"
        )

    def _changed(self, sources: list[Gguf]) -> tuple[dict[str, bytes], list[gguf_stream.Part], str]:
        """Keys and tensors of the new file, and the form that it has."""
        first = sources[0]
        if self.attention == MLA and first.text("general.architecture") == ARCHITECTURE:
            if mla is None:
                raise MergeError("MLA form takes numpy. The role weights installs it")
            try:
                return (*mla.converted(sources, "Q8_0"), MLA)
            except mla.AlreadyError:
                pass
            except mla.FormError as error:
                raise MergeError(
                    f"{first.path.name} cannot be brought into MLA form: {error}. With `attention: legacy` it is served as it is"
                ) from error
        keys = {key: value for key, value in first.keys.items() if not key.startswith("split.")}
        parts = [gguf_stream.copied(source.path, tensor) for source in sources for tensor in source.tensors]
        return keys, parts, LEGACY

    def _remember(self, sha256: str) -> None:
        """Adds the file to what the transfer knows."""
        before = remembered(self.state)
        known = {**before.get("verified", {}), str(self.file): seen(self.file, sha256)}
        write_whole(self.state, json.dumps({**before, "verified": known}))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **FOLDER,
            "name": {"type": "str", "required": True},
            "attention": {"type": "str", "choices": [MLA, LEGACY], "required": True},
        },
        supports_check_mode=True,
    )
    merge = Merge(module.params)
    merged = merge.known
    result = {"path": str(merge.file), "sha256": "", "bytes": 0, "attention": merge.attention, "seconds": 0.0}
    result["changed"] = not merged
    if result["changed"] and not module.check_mode:
        started = time.monotonic()
        try:
            with acting_as(module.params["owner"]):
                os.umask(0o022)
                with alone(merge.run / "weights"):
                    merged = merge.complete()
        except (MergeError, GgufError, gguf_stream.StreamError, OSError) as error:
            module.fail_json(msg=f"{str(error).rstrip('.')}. What was there is as it was.")
        result["seconds"] = round(time.monotonic() - started, 1)
    if merged:
        result |= {key: merged[key] for key in ("sha256", "bytes", "attention")}
    module.exit_json(**result)


if __name__ == "__main__":
    main()
