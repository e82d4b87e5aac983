"""Files and folders that appear whole or not at all, also when the power goes."""

from __future__ import annotations

import errno
import grp
import json
import os
import pwd
import re
import shutil
import stat
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


def write_whole(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Writes a file beside its place, then moves it there. Nobody ever sees half of the file, or sees it with another mode."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600 from the beginning
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            # The mode of this very file, whatever the owner of the folder has put in its place meanwhile.
            os.fchmod(descriptor, mode)
            file.flush()
            os.fsync(descriptor)
        _make_way(path)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def mounts(mountinfo: str) -> list[str]:
    """Where something is mounted, in the order in which that was done, from the text of /proc/self/mountinfo."""
    # The kernel writes blanks and the like as octal numbers.
    places = (line.split()[4] for line in mountinfo.splitlines())
    return [re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), place) for place in places]


def _make_way(path: Path) -> None:
    """Removes an empty folder from the place of a file."""
    if path.is_dir() and not path.is_symlink():
        try:
            path.rmdir()
        except OSError as error:
            raise OSError(
                error.errno, "it is a folder, and should be a file. Move the folder away", str(path)
            ) from None


def name_anew(temporary: Path, path: Path) -> None:
    """Moves a whole file to a name that nothing has, safely to the disk. Where that fails, nothing has the name.

    Raises:
        FileExistsError: something has the name, and stays as it is.
    """
    try:
        os.link(temporary, path)
    except OSError:  # the name is taken, or the disk gives a file one name only
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        temporary.rename(path)
    try:
        temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    except BaseException:
        path.unlink()
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder, which is moved to its place when the caller has filled it, and removed where filling it fails.

    Nobody else can look into it before. What fills it may leave files there that everybody could lock or write to.
    """
    temporary = path.with_name(f".{path.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)  # a process that was killed may have left it
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.mkdir(mode=0o700)
    try:
        yield temporary
        temporary.chmod(0o755)
        os.sync()  # else a power cut may leave a folder that looks whole and has empty files
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def give(folder: Path, owner: str, mode: int = 0o755, group: str = "") -> None:
    """Makes a folder, or gives it the owner, the mode and the group that it should have, and no access list.

    A link that lies in its place is refused.

    The folder above may belong to a service, and what it puts there must not lead root elsewhere.

    Args:
        folder: where.
        owner: a user.
        mode: the permissions.
        group: a group; the owner's own if it is empty.

    Raises:
        OSError: something else has the name.
    """
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    entry = pwd.getpwnam(owner)
    gid = grp.getgrnam(group).gr_gid if group else entry.pw_gid
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchown(descriptor, entry.pw_uid, gid)
        for name in access_lists(descriptor):
            os.removexattr(descriptor, name)
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def access_lists(entry: Path | int) -> list[str]:
    """The access lists of a file or a folder, which give rights to more users than its mode tells of. Few file systems have none."""
    try:
        return [name for name in os.listxattr(entry) if name.startswith("system.posix_acl_")]
    except OSError:  # The file system has no extended attributes.
        return []


def give_within(folder: Path, owner: str) -> None:
    """Gives a service what lies in its folder. No link in it leads root elsewhere, for the service may have made that."""
    entry = pwd.getpwnam(owner)
    for _, folders, files, descriptor in os.fwalk(folder):
        for name in (*folders, *files):
            status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            if status.st_uid != entry.pw_uid and (status.st_nlink == 1 or stat.S_ISDIR(status.st_mode)):
                os.chown(name, entry.pw_uid, entry.pw_gid, dir_fd=descriptor, follow_symlinks=False)


def text_of(path: Path) -> str:
    """The text of a file; empty where it cannot be read. Nothing else is read, for a pipe in its place would never end."""
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    except OSError:
        return ""


def looks_of(status: os.stat_result) -> dict[str, int]:
    """By what a file is told from another one of its name, and from itself after a change."""
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}


def looks(path: Path) -> dict[str, int] | None:
    """The same of the file that has this name; None where there is none."""
    try:
        return looks_of(path.stat())
    except FileNotFoundError:
        return None


def has_name(status: os.stat_result, path: Path) -> bool:
    """Whether an open file of this status has this name itself, and no link to it has."""
    try:
        return os.path.samestat(status, path.lstat())
    except FileNotFoundError:
        return False


def allocated_bytes(status: os.stat_result) -> int:
    """What a file takes of its disk. One that has gaps takes less than its size."""
    return min(status.st_size, status.st_blocks * 512)


def free_bytes(folder: Path) -> int:
    """What the disk of a folder has free for everybody."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def write_at(descriptor: int, content: bytes | memoryview, position: int) -> None:
    """Writes all bytes to a place of an open file. On a disk that is filling up, the kernel may take fewer at once than it was given."""
    rest = memoryview(content)
    while rest:
        count = os.pwrite(descriptor, rest, position)
        rest, position = rest[count:], position + count


def sync_folder(folder: Path) -> None:
    """Sees the names in a folder safely to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is no such file, or no object in it."""
    try:
        if not path.is_file():  # A pipe in its place would never end.
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def file_diff(path: Path, before: str, after: str) -> dict[str, str]:
    """What Ansible shows of a changed file; nothing where it is the same."""
    header = str(path)
    return (
        {"before_header": header, "after_header": header, "before": before, "after": after} if before != after else {}
    )
