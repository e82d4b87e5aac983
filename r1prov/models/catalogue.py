"""The published files of a model: names, bytes, sha256.

A quant is one published form of a model: a folder of GGUF shards in a repository. Those of `unsloth/DeepSeek-R1-GGUF`
are known beforehand (`data/catalogue.json`); the demo's and an operator's own are described in a profile file.
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib import resources
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from r1prov.common.errors import Problem, SiteError

# These become paths on the host: nothing that leaves the folder, hides in it or needs quoting.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
FolderName = Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$")]


class ShardFile(BaseModel):
    """One file of a quant."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: FileName
    """Without a folder."""
    bytes: int = Field(gt=0)
    """Its size."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of its content."""


class Quant(BaseModel):
    """One published form of a model. A file's path on the hub is `folder/name`; the engine is given the first of `files`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: FileName
    """As `serving.quant` names it."""
    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    """Owner and name on the hub."""
    revision: str = "main"
    """A commit, tag or branch."""
    folder: FolderName = ""
    """Inside the repository; empty for its root."""
    files: tuple[ShardFile, ...] = Field(min_length=1)
    """All of them, in order."""

    @property
    def bytes(self) -> int:
        """The size of all files together."""
        return sum(file.bytes for file in self.files)


def quants() -> list[str]:
    """The names of the known quants of DeepSeek-R1, the smallest dynamic ones first."""
    return list(_published())


def quant(name: str) -> Quant:
    """The quant of that name, in capitals or not.

    Raises:
        SiteError: no quant has that name; the remedy shows near ones.
    """
    known = _published()
    folded = {known_name.casefold(): known_name for known_name in known}
    if name.casefold() in folded:
        return known[folded[name.casefold()]]
    near = [folded[match] for match in difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)]
    remedy = f"did you mean {' or '.join(near)}? " if near else ""
    raise SiteError(Problem("quant", f"no quant is called `{name}`", f"{remedy}known: {', '.join(known)}"))


def is_published(quant: Quant) -> bool:
    """These very files are in the catalogue."""
    return _published().get(quant.name) == quant


@cache
def _published() -> dict[str, Quant]:
    text = resources.files("r1prov.models").joinpath("data/catalogue.json").read_text(encoding="utf-8")
    return {quant.name: quant for quant in TypeAdapter(list[Quant]).validate_json(text)}
