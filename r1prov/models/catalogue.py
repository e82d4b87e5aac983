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

# These names become paths on the host, so a name must not leave its folder, be hidden or need quoting.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
FolderName = Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$")]

R1_TEMPLATE = "<｜User｜>{{ .System }} {{ .Prompt }}<｜Assistant｜>"  # noqa: RUF001 - R1 spells its special tokens with these bars
"""R1's turn for Ollama, as the published guides write it."""


class ShardFile(BaseModel):
    """One file of a quant."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: FileName
    """The file's name without a folder."""
    bytes: int = Field(gt=0)
    """The file's size in bytes."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """The checksum of the file's content, in hexadecimal."""


class Quant(BaseModel):
    """One published form of a model. A file's path on the hub is `folder/name`; the engine is given the first of `files`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: FileName
    """The name by which `serving.quant` chooses this quant."""
    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    """The repository's owner and name on the hub."""
    revision: str = "main"
    """The commit, tag or branch of the repository."""
    folder: FolderName = ""
    """The folder inside the repository; an empty text means its root."""
    unpublished: str = ""
    """Why no public hub has the repository, and who has it, as a sentence; empty where the hub has it."""
    files: tuple[ShardFile, ...] = Field(min_length=1)
    """All files of the quant, in the order of the shards."""

    @property
    def bytes(self) -> int:
        """The size of all files together, in bytes."""
        return sum(file.bytes for file in self.files)


def quants() -> list[str]:
    """The names of the known quants of DeepSeek-R1, the smallest dynamic ones first."""
    return list(_published())


def quant(name: str) -> Quant:
    """The quant of that name; capital and small letters count as equal.

    Raises:
        SiteError: No quant has that name. The remedy shows similar names.
    """
    known = _published()
    folded = {known_name.casefold(): known_name for known_name in known}
    if name.casefold() in folded:
        return known[folded[name.casefold()]]
    near = [folded[match] for match in difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)]
    remedy = f"did you mean {' or '.join(near)}? " if near else ""
    raise SiteError(Problem("quant", f"no quant is called `{name}`", f"{remedy}known: {', '.join(known)}"))


def is_published(quant: Quant) -> bool:
    """Whether the catalogue holds exactly this quant, with the same files."""
    return _published().get(quant.name) == quant


def ollama_template(quant: Quant) -> str:
    """The template of a turn that Ollama is given. It is empty for an operator's own model, whose file brings its template."""
    return R1_TEMPLATE if is_published(quant) else ""


@cache
def _published() -> dict[str, Quant]:
    text = resources.files("r1prov.models").joinpath("data/catalogue.json").read_text(encoding="utf-8")
    return {quant.name: quant for quant in TypeAdapter(list[Quant]).validate_json(text)}
