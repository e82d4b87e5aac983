"""Writes files so that they appear whole or not at all, and looks after who may use them."""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
import tempfile
from pathlib import Path

from r1prov.common.errors import Problem, SiteError


def write_whole(path: Path, content: str | bytes, mode: int = 0o600) -> Path:
    """Write a file under another name in its folder, then rename it. Nobody ever sees half of it, or sees it with another mode.

    Returns:
        `path`.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # its mode is 0600 from the beginning
    part = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(content.encode() if isinstance(content, str) else content)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return path


def keep_private(folder: Path) -> None:
    """Take away all rights that others have on a folder of ours and on what lies in it. Certificates stay readable for copying.

    Raises:
        SiteError: something belongs to another user, who could change it at any time; or a link leads to what is open to others, which
            is not ours to change.
    """
    problems = []
    inside = (Path(at) / name for at, folders, files in os.walk(folder) for name in (*folders, *files))
    for path in (folder, *inside):
        with contextlib.suppress(FileNotFoundError):  # another run may be at work
            found = path.lstat()
            if os.geteuid() not in {0, found.st_uid}:
                remedy = "let it belong to you, or work as that user"
                problems.append(Problem(str(path), f"belongs to {_name(found.st_uid)}", remedy))
            elif stat.S_ISLNK(found.st_mode):
                if what := looseness(path, secret=path.suffix != ".crt"):
                    remedy = "put a file there instead of a link"
                    problems.append(Problem(str(path), f"leads to {path.resolve()}: {what}", remedy))
            else:
                mode = stat.S_IMODE(found.st_mode)
                kept = mode & (0o744 if path.suffix == ".crt" else 0o700)
                if kept != mode:
                    path.chmod(kept)
    if problems:
        raise SiteError(*problems)


def looseness(path: Path, *, secret: bool) -> str:
    """What other users of this machine may do with a file of the operator's, and should not, as a predicate; empty where all is well.

    As ssh does, it lets a file of another owner be read by a group.

    Args:
        path: the file, which may not exist.
        secret: whether nobody else may read it. Otherwise it only matters whether everybody may write to it.
    """
    try:
        found = path.stat()
    except OSError:
        return ""
    forbidden = (0o077 if found.st_uid == os.geteuid() else 0o007) if secret else 0o002
    mode = stat.S_IMODE(found.st_mode)
    if not mode & forbidden:
        return ""
    may = "change" if mode & forbidden & 0o022 else "read"
    return f"other users of this machine may {may} this file (its mode is {mode:04o})"


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"the user with the number {uid}"
