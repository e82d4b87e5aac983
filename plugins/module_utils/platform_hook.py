"""The line with which a platform starts r1prov's services when it starts a container, in a script that may be somebody else's, too."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from ansible_collections.r1.prov.plugins.module_utils.files import mounts, text_of, write_whole
from ansible_collections.r1.prov.plugins.module_utils.host_probe import PLATFORMS, is_platform

_BLOCK = re.compile(r"^# r1prov: BEGIN\r?$.*?^# r1prov: END\r?$\n?", re.MULTILINE | re.DOTALL)


def here() -> Path | None:
    """The script that the platform of this container runs when it starts it. None where that is no platform that is known."""
    return next((Path(hook) for seen, hook in PLATFORMS.items() if is_platform(seen, hook)), None)


def fault(path: Path) -> dict[str, str]:
    """What keeps even root from writing a script, and what to do: `what` and `remedy`; nothing where it can be written."""
    real, named = _real(path), str(path)
    if real != path:
        named += f", a link to {real},"
    folder, said = real.parent, ("", "")
    if real.is_symlink():
        said = f"{path} is a link that leads to itself", f"remove it: `rm {path}`"
    elif not folder.is_dir():
        why = f"{folder} is no folder" if folder.exists() else f"there is no folder {folder}"
        said = (
            f"{named} cannot be written: {why}",
            f"remove the link: `rm {path}`" if real != path else f"make {folder} a folder",
        )
    elif real.is_dir():
        said = f"{named} is a folder, and should be a script", f"move the folder away: `mv {path} {path}.old`"
    elif real.exists() and not real.is_file():
        said = f"{named} is no file, and should be a script", f"move it away: `mv {path} {path}.old`"
    # The numbers of file systems do not tell this: those of a layered one differ from file to file.
    elif str(real) in mounts(text_of(Path("/proc/self/mountinfo"))):
        said = f"{named} is mounted there, so that no other file can have its place", f"unmount it: `umount {real}`"
    elif os.statvfs(folder).f_flag & os.ST_RDONLY:
        said = f"{named} lies on a read-only file system", "start the container with a writable system disk"
    else:
        locked = [each for each in (real, folder) if each.exists() and not os.access(each, os.W_OK)]
        if locked:
            said = f"{named} cannot be written, for {locked[0]} is immutable", f"allow changes: `chattr -i {locked[0]}`"
    return {"what": said[0], "remedy": said[1]} if said[0] else {}


def obstacle() -> dict[str, str]:
    """What keeps the script of this platform from having the line, as `fault` says it; nothing where the script has it."""
    path = here()
    if not path:
        return {}
    text = _read(path)
    is_first = _BLOCK.match(text, len(_head(text)))
    return {} if is_first else fault(path)


def differences(path: Path, command: str) -> list[str]:
    """What a script lacks, in a sentence each, so that its platform runs a command."""
    text = _read(path)
    if text == with_line(text, command):
        return []
    if found := _BLOCK.search(text):
        if found.group() != _block(command):
            return [f"r1prov's line in {path} is another one than it should be"]
        return [
            f"r1prov's line in {path} is at a place that may not be reached, and should be the first one of the script"
        ]
    return [f"{path} lacks the line that starts r1prov's services with the container"]


def put_in(path: Path, command: str) -> None:
    """Lets a script run a command first. The script keeps its owner and its mode: platforms have bash read it, and do not execute it."""
    _write(path, with_line(_read(path), command))


def with_line(text: str, command: str) -> str:
    """A script that runs a command first. Nothing that it ends, waits for or becomes comes before that."""
    rest = _BLOCK.sub("", text)
    head = _head(rest)
    return head + "\n" * (head[-1:] not in ("", "\n")) + _block(command) + rest[len(head) :]


def _head(text: str) -> str:
    """The line of a script that names its shell; empty where there is none."""
    first, end, _ = text.partition("\n")
    return first + end if first.startswith("#!") else ""


def _block(command: str) -> str:
    # What comes behind it in the script is done in any case, and reads the script's own input.
    return f"# r1prov: BEGIN\n{command} </dev/null || true\n# r1prov: END\n"


def written() -> list[str]:
    """The scripts that have the line."""
    return [path for path in PLATFORMS.values() if _BLOCK.search(text_of(Path(path)))]


def take_out(path: Path) -> None:
    """Takes the line out of a script. A script that has nothing else goes."""
    rest = _BLOCK.sub("", _read(path))
    if rest:
        _write(path, rest)
    else:
        _real(path).unlink()


def _real(path: Path) -> Path:
    """The file itself, where links lead to it."""
    return Path(os.path.realpath(path))


def _read(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "surrogateescape") if path.is_file() else ""


def _write(path: Path, text: str) -> None:
    """Writes a script anew, because a shell that runs the old one at this moment reads on in it."""
    real, content = _real(path), text.encode("utf-8", "surrogateescape")
    try:
        status = real.stat()
    except FileNotFoundError:
        write_whole(real, content, 0o755)
        return
    write_whole(real, content, stat.S_IMODE(status.st_mode))
    os.chown(real, status.st_uid, status.st_gid, follow_symlinks=False)
