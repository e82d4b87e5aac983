"""Converts a model's files into MLA form on the controller, for `r1prov weights convert`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from r1prov.common import paths
from r1prov.common.errors import Problem, SiteError
from r1prov.models import gguf

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEY_TYPES = ("Q8_0", "F16")
"""The types that `attn_k_b` can have. The first is the default."""


@dataclass(frozen=True)
class Written:
    """A file that was written.

    Attributes:
        path: the file.
        n_bytes: its size.
        sha256: of its content; `path.sha256` beside it holds it as sha256sum writes it.
    """

    path: Path
    n_bytes: int
    sha256: str


def convert(source: Path, target: Path, key_type: str, report: Callable[[int, int], None]) -> Written | None:
    """Writes the model of `source`, in MLA form and in one file, to `target`; the name appears when the file is whole.

    Args:
        source: a GGUF file with legacy attention, or any shard of a set.
        target: the new file.
        key_type: one of `KEY_TYPES`.
        report: told bytes done and bytes in all, now and then.

    Returns:
        What was written; None where `source` has MLA form already.

    Raises:
        SiteError: the source cannot be converted, or the target cannot be written. No partial file remains.
    """
    _check_target(target)
    gguf.read(source)  # says what is wrong with it, or with its set
    names = ("mla", "mla_form", "gguf_stream", "gguf_header")
    mla, form, stream, header = map(paths.module_util, names)
    growing = target.with_name(f".{target.name}.growing")
    try:
        new = form.converted([header.read(path) for path in gguf.files(source)], key_type)
        digest = stream.write(growing, new.keys, mla.able(new), report, partial(_publish, growing, target))
    except form.AlreadyError:
        return None
    except (form.FormError, stream.StreamError, header.GgufError) as error:
        what, _, remedy = str(error).partition(". ")
        raise SiteError(Problem(str(source), what, remedy or "take another file")) from None
    except FileExistsError as error:
        raise _there(error.filename) from None
    except OSError as error:
        raise _unwritable(target, error) from None
    return Written(target, target.stat().st_size, digest)


def _check_target(target: Path) -> None:
    """Checks that the target and its digest can be written.

    Raises:
        SiteError: The name is taken or impossible, or its folder does not exist.
    """
    try:
        str(target).encode()
        if target.is_dir():
            raise SiteError(Problem(str(target), "it is a folder", "name a file in it"))
        if not target.parent.is_dir():
            raise SiteError(Problem(str(target), "its folder does not exist", "make it, or name another file"))
    except UnicodeEncodeError:
        raise SiteError(Problem(ascii(str(target)), "its name is no UTF-8", "name another file")) from None
    except OSError as error:
        raise _unwritable(target, error) from None
    for path in (target, _digest_of(target)):
        if os.path.lexists(path):
            raise _there(path)


def _publish(growing: Path, target: Path, digest: str) -> None:
    """Writes the digest beside the file, then gives the file its name. Afterwards both exist, or neither."""
    with _digest_of(target).open("x", encoding="utf-8") as beside:
        try:
            beside.write(f"{digest}  {target.name}\n")
            beside.flush()
            os.fsync(beside.fileno())
            paths.module_util("files").name_anew(growing, target)
        except BaseException:
            _digest_of(target).unlink()
            raise


def _digest_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _unwritable(target: Path, error: OSError) -> SiteError:
    what = f"it cannot be written: {error.strerror}"
    return SiteError(Problem(str(target), what, "write it elsewhere, or under another name"))


def _there(path: Path | str) -> SiteError:
    return SiteError(Problem(str(path), "it is there already", "remove it, or name another file"))
