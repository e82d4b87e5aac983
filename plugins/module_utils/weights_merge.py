"""Makes one file of a model's published files, in MLA form where that is wanted.

It may be interrupted anywhere and run again. A run whose connection was lost goes on, and the next one waits for it.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from ansible_collections.r1.prov.plugins.module_utils import gguf_stream, merged_weights
from ansible_collections.r1.prov.plugins.module_utils.artefact import sha256_of
from ansible_collections.r1.prov.plugins.module_utils.files import sync_folder, write_whole
from ansible_collections.r1.prov.plugins.module_utils.gguf_header import Gguf, GgufError, read
from ansible_collections.r1.prov.plugins.module_utils.gguf_whole import check_set
from ansible_collections.r1.prov.plugins.module_utils.merged_weights import LEGACY, MLA, STATE, is_as_verified, recorded
from ansible_collections.r1.prov.plugins.module_utils.progress import RUN, Progress

if TYPE_CHECKING:
    from pathlib import Path

try:  # at the top, because only root can read Ansible's files, and the class below acts as another user
    from ansible_collections.r1.prov.plugins.module_utils import mla
except ImportError:  # numpy is needed for MLA form only
    mla = None  # type: ignore[assignment]


class MergeError(Exception):
    """The file cannot be made; the message says why and what to do next."""


class Merge:
    """The folder of a model: its published files, and the one file that is made of them."""

    def __init__(
        self,
        folder: Path,
        files: list[dict[str, Any]],
        *,
        name: str,
        attention: str,
        state: Path = STATE,
        run: Path = RUN,
    ) -> None:
        self.folder, self.shards, self.attention = folder, files, attention
        self.file, self.growing = folder / name, folder / ".incoming" / name
        self.state, self.run = state, run

    @property
    def known(self) -> dict[str, Any] | None:
        """The new file, where it looks as it did when it was verified."""
        record = recorded(self.file, self.shards)
        return record if record and is_as_verified(self.folder, [record], self.state) else None

    def complete(self) -> dict[str, Any]:
        """Ends with the verified new file, from wherever an earlier run was cut off."""
        return self.known or self._verified() or self._make()

    def _verified(self) -> dict[str, Any] | None:
        """The new file, read once more because nothing is known of how it looks."""
        record = recorded(self.file, self.shards)
        if not record or not self.file.is_file() or self.file.stat().st_size != record["bytes"]:
            return None
        if sha256_of(self.file) != record["sha256"]:
            return None
        merged_weights.remember(self.file, record["sha256"], self.state)
        return record

    def _make(self) -> dict[str, Any]:
        sources = [read(path) for path in self._sources()]
        progress = Progress("weights", self.run)
        try:
            keys, parts, attention = self._changed(sources)
            label = "bringing the weights into MLA form" if attention == MLA else "merging the weights into one file"
            progress.begin(label, 0, "bytes")
            digest = gguf_stream.write(self.growing, keys, parts, progress.update, partial(self._publish, attention))
        except BaseException:
            progress.finish(failed=True)
            raise
        merged_weights.remember(self.file, digest, self.state)
        progress.finish()
        return self._record(self.file, attention, digest)

    def _record(self, file: Path, attention: str, digest: str) -> dict[str, Any]:
        return {"name": self.file.name, "bytes": file.stat().st_size, "sha256": digest, "attention": attention}

    def _publish(self, attention: str, digest: str) -> None:
        """Gives the new file its record, then its name. A file without a record is made anew, and a record alone means nothing."""
        record = self._record(self.growing, attention, digest)
        write_whole(merged_weights.record_of(self.file), json.dumps({**record, "shards": self.shards}))
        self.growing.replace(self.file)
        sync_folder(self.folder)

    def _sources(self) -> list[Path]:
        """The verified files that it is made of: the shards, or what they were merged into before."""
        merged = [[file] for file in merged_weights.made(self.folder, self.shards) if file["attention"] == LEGACY]
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
        try:
            check_set(sources)
        except GgufError as error:
            raise MergeError(
                f"{first.path} and its set cannot be used: {error}. Fetch them anew from one source"
            ) from error
        if self.attention == MLA and first.text("general.architecture") == "deepseek2":  # the one with a legacy form
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
