"""Makes one file of a model's published files, in MLA form where that is wanted.

It may be interrupted anywhere and run again. A run whose connection was lost goes on, and the next one waits for it.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from ansible_collections.r1.prov.plugins.module_utils import gguf_stream
from ansible_collections.r1.prov.plugins.module_utils.artefact import sha256_of
from ansible_collections.r1.prov.plugins.module_utils.files import sync_folder, write_whole
from ansible_collections.r1.prov.plugins.module_utils.gguf_header import Gguf, GgufError, check_set, read
from ansible_collections.r1.prov.plugins.module_utils.merged_weights import (
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

if TYPE_CHECKING:
    from pathlib import Path

try:  # here, for while this class acts as another user, only root can read what Ansible has brought along
    from ansible_collections.r1.prov.plugins.module_utils import mla
except ImportError:  # numpy is wanted for MLA form only
    mla = None  # type: ignore[assignment]

ARCHITECTURE = "deepseek2"
"""The architecture that has a legacy form of attention."""


class MergeError(Exception):
    """The file cannot be made; the message says why and what to do next."""


class Merge:
    """One model's folder: its published files, and the one that they shall become."""

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
        self.folder = folder
        self.shards = files
        self.attention = attention
        self.file = folder / name
        self.growing = folder / ".incoming" / name
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
        try:
            check_set(sources)
        except GgufError as error:
            raise MergeError(
                f"{first.path} and its set cannot be used: {error}. Fetch them anew from one source"
            ) from error
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
