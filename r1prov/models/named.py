"""The model that somebody names: by a quant of the catalogue, or by a GGUF file here or on a web server."""

from __future__ import annotations

import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

from r1prov.common.errors import Problem, SiteError
from r1prov.models import catalogue, gguf, layout

if TYPE_CHECKING:
    from collections.abc import Callable

    from r1prov.models.model import Model


def of_file(file: str, say: Callable[[str], None]) -> Model:
    """The model in a file. Of a file on a web server only the header is read.

    Args:
        file: a path, or an address with `file://`, `http://` or `https://`.
        say: told what is read from a web server.

    Raises:
        SiteError: the file cannot be read, is no model, or has an address of another kind.
    """
    scheme, separator, rest = file.partition("://")
    match scheme.lower() if separator else "":
        case "":
            return gguf.read(Path(file))
        case "file":
            return gguf.read(Path(urllib.parse.unquote(urllib.parse.urlsplit(file).path)))
        case "http" | "https":
            from r1prov.models import headers  # noqa: PLC0415 - brings what speaks HTTP

            return headers.at(f"{scheme.lower()}://{rest}", say)
        case _:
            raise SiteError(
                Problem(file, f"r1prov cannot read from `{scheme}://`", "name a file here, or its https:// address")
            )


def of_catalogue(name: str) -> tuple[Model, int]:
    """A published quant as the catalogue describes it, and the bytes of its files.

    Raises:
        SiteError: there is no such quant.
    """
    published = catalogue.quant(name)
    return layout.model(published.name), published.bytes


def smaller(model: Model) -> list[Model]:
    """The published quants of R1 that are smaller than one of them, largest first; none for another model."""
    published = [layout.model(name) for name in catalogue.quants()]
    if model not in published:
        return []
    return sorted((other for other in published if other.n_bytes < model.n_bytes), key=lambda other: -other.n_bytes)
