"""Where the files of a model come from: the kinds of sources of weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from r1prov.common.documents import Keys

if TYPE_CHECKING:
    from r1prov.models.catalogue import Quant


class Hub(Keys):
    """The Hugging Face hub or a mirror of it."""

    type: Literal["hub"]
    endpoint: str = "https://huggingface.co"
    """The address of the hub or of a mirror, as HF_ENDPOINT names it."""
    token_file: str | None = None
    """A file on the controller that holds the token for repositories with a login. Its mode is 0600. Only this endpoint gets the token."""

    def token(self) -> str:
        """The token; empty where the hub wants none.

        Raises:
            OSError: its file cannot be read.
            ValueError: its file holds something else. The message does not show it.
        """
        if not self.token_file:
            return ""
        token = Path(self.token_file).read_bytes().strip()
        if not re.fullmatch(
            rb"[!-~]+", token
        ):  # Anything else could not stand in a header, and an error would show it.
            raise ValueError("it holds no token: one word of ASCII characters on one line")
        return token.decode("ascii")


class ModelScope(Keys):
    """ModelScope, which carries the same repository under the same name."""

    type: Literal["modelscope"]
    endpoint: str = "https://modelscope.cn"
    """The address of ModelScope."""


class Mirror(Keys):
    """A web server, or a folder of the host as a `file://` address."""

    type: Literal["http"]
    url: str
    """The address of the folder that holds the files, or of the folder above the quant's folder."""


class Folder(Keys):
    """A folder on the host, or a disk mounted there, that already holds the files."""

    type: Literal["folder"]
    path: str = Field(pattern=r"^/")
    """The folder that holds the files, or the folder above the quant's folder."""


WeightSource = Annotated[Hub | ModelScope | Mirror | Folder, Field(discriminator="type")]

PUBLIC: tuple[WeightSource, ...] = (Hub(type="hub"), ModelScope(type="modelscope"))
"""The sources of a site that names none."""


def places(source: WeightSource, quant: Quant) -> list[dict[str, Any]]:
    """The places of a source where the files may be, in the form in which role `weights` takes them.

    A mirror or a folder gives two places, because it may hold the files themselves or the quant's folder. A place with `login` is the only
    one that is shown the token.
    """
    if isinstance(source, Hub | ModelScope):
        revision = quant.revision if source.type == "hub" else "master"  # ModelScope has commits of its own
        place = {
            "type": source.type,
            "endpoint": source.endpoint.rstrip("/"),
            "repo": quant.repo,
            "revision": revision,
            "folder": quant.folder,
        }
        return [place | ({"login": True} if source.type == "hub" and source.token_file else {})]
    key, base = ("url", source.url) if source.type == "http" else ("path", source.path)
    folders = dict.fromkeys((f"{base.rstrip('/')}/{quant.folder}".rstrip("/"), base.rstrip("/")))
    return [{"type": source.type, key: folder} for folder in folders]
