"""Makes one file of a model's published files, in MLA form where that is wanted.

It may be interrupted anywhere and run again. A run whose connection was lost goes on, and the next one waits for it.

A file that is served is never removed to make room. Its successor is written beside it. Where the disk has no room for both, what is wrong
in it is written anew in its place.
"""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, Any

from ansible_collections.r1.prov.plugins.module_utils import gguf_layout, gguf_stream, merged_weights, mla_form
from ansible_collections.r1.prov.plugins.module_utils.digest import sha256_of
from ansible_collections.r1.prov.plugins.module_utils.files import free_bytes, sync_folder
from ansible_collections.r1.prov.plugins.module_utils.gguf_header import Gguf, GgufError, read
from ansible_collections.r1.prov.plugins.module_utils.gguf_stream import DamagedError, SourceError
from ansible_collections.r1.prov.plugins.module_utils.merged_weights import recorded
from ansible_collections.r1.prov.plugins.module_utils.mla_form import LEGACY, MLA
from ansible_collections.r1.prov.plugins.module_utils.progress import RUN, Progress
from ansible_collections.r1.prov.plugins.module_utils.weights_kept import STATE, forget, is_as_verified, remember

if TYPE_CHECKING:
    from pathlib import Path

    from ansible_collections.r1.prov.plugins.module_utils.gguf_layout import Part
    from ansible_collections.r1.prov.plugins.module_utils.piece_digests import Sums

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
        if not self._has(self.file, record["sha256"]):
            return None
        remember(self.file, record["sha256"], self.state)
        return record

    def _has(self, file: Path, sha256: str) -> bool:
        """Whether a file has this sha256. It is read, and a file that its disk cannot read has none."""
        progress = Progress("weights", self.run)
        progress.begin(f"checking {file.name}", file.stat().st_size, "bytes")
        try:
            return sha256_of(file, progress.update) == sha256
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False

    def _make(self) -> dict[str, Any]:
        """Makes it, and forgets of a source that turns out to be damaged that it was verified."""
        digests = self._sources()
        try:
            return self._made_of(digests)
        except DamagedError as error:
            forget([error.path], self.state)
            raise
        except (GgufError, MergeError, SourceError) as error:
            # A damaged head or tensor may look as if the model were no good.
            for path, sha256 in digests.items():
                if not self._has(path, sha256):
                    forget([path], self.state)
                    raise DamagedError(path, f"it is not what was verified, and so {error}") from error
            raise

    def _made_of(self, digests: dict[Path, str]) -> dict[str, Any]:
        progress = Progress("weights", self.run)
        try:
            keys, parts, attention = self._changed([read(path) for path in digests])
            label = "bringing the weights into MLA form" if attention == MLA else "merging the weights into one file"
            is_room = gguf_layout.takes(keys, parts) <= free_bytes(self.folder)
            if not is_room and not self.file.exists() and (merged := self._merged_beside(digests)):
                return self._after(merged)
            write, path, publish = gguf_stream.write, self.growing, self._publish
            if not is_room and self.file.is_file():
                write, path, publish = gguf_stream.mend, self.file, self._seal
                self._refuse_damaged(digests)
            progress.begin(label, 0, "bytes")
            sums = write(path, keys, parts, progress.update, partial(publish, attention), digests=digests)
        except BaseException:
            progress.finish(failed=True)
            raise
        remember(self.file, sums.sha256, self.state)
        progress.finish()
        return merged_weights.about(self.file, sums, attention)

    def _refuse_damaged(self, digests: dict[Path, str]) -> None:
        """Reads the sources before anything is written over a file that is served.

        Raises:
            DamagedError: one of them is not what was verified.
        """
        for path, sha256 in digests.items():
            if not self._has(path, sha256):
                raise DamagedError(path, f"its sha256 is not {sha256}")

    def _merged_beside(self, digests: dict[Path, str]) -> Path | None:
        """A file beside its sources that they were merged into as published. It may be damaged."""
        published = [
            record for record in merged_weights.made(self.folder, self.shards) if record["attention"] == LEGACY
        ]
        files = [self.folder / record["name"] for record in published]
        return next((file for file in files if file not in digests), None)

    def _after(self, merged: Path) -> dict[str, Any]:
        """Makes it where the disk has no room beside the shards and what they were merged into: that is mended, and replaces the shards."""
        one = Merge(self.folder, self.shards, name=merged.name, attention=LEGACY, state=self.state, run=self.run)
        one.complete()
        merged_weights.remove([self.folder / shard["name"] for shard in self.shards], self.state)
        return self._make()

    def _publish(self, attention: str, sums: Sums) -> None:
        """Gives the new file its record, then its name."""
        self._seal(attention, sums)
        self.growing.replace(self.file)
        sync_folder(self.folder)

    def _seal(self, attention: str, sums: Sums) -> None:
        merged_weights.record(self.file, sums, attention, self.shards)

    def _sources(self) -> dict[Path, str]:
        """The verified files that it is made of, with their sha256: the shards, or what they were merged into before."""
        merged = [[file] for file in merged_weights.made(self.folder, self.shards) if file["attention"] == LEGACY]
        for files in (self.shards, *merged):
            if is_as_verified(self.folder, files, self.state):
                return {self.folder / file["name"]: file["sha256"] for file in files}
        raise MergeError(
            f"{self.file} cannot be made: what it is made of is not in {self.folder}, or was changed since it was verified. "
            "Let the role weights bring it"
        )

    def _changed(self, sources: list[Gguf]) -> tuple[dict[str, bytes], list[Part], str]:
        """Keys and tensors of the new file, and the form that it has."""
        first = sources[0]
        try:
            form = mla_form.wanted(sources, self.attention)
        except GgufError as error:
            raise MergeError(
                f"{first.path} and its set cannot be used: {error}. Fetch them anew from one source"
            ) from error
        except mla_form.FormError as error:
            raise MergeError(mla_form.refusal(first.path.name, error)) from error
        if form.attention == LEGACY:
            return form.keys, form.parts, LEGACY
        if mla is None:
            raise MergeError("MLA form takes numpy. The role weights installs it")
        return form.keys, mla.able(form), MLA
