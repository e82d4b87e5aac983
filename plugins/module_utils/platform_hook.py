"""The line with which a platform starts r1prov's services when it starts a container, in a script that may be somebody else's, too."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from ansible_collections.r1.prov.plugins.module_utils.files import text_of, write_whole
from ansible_collections.r1.prov.plugins.module_utils.host_probe import PLATFORMS

_BLOCK = re.compile(r"^# r1prov: BEGIN\r?$.*?^# r1prov: END\r?$\n?", re.MULTILINE | re.DOTALL)
_HEAD = re.compile(r"(?:#!.*(?:\n|\Z))?")


def here() -> Path | None:
    """The script that the platform of this container runs when it starts it. None where that is no platform that is known."""
    return next((Path(hook) for seen, hook in PLATFORMS.items() if Path(seen).exists()), None)


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
    head = _HEAD.match(rest).group()  # type: ignore[union-attr]
    return head + "\n" * (head[-1:] not in ("", "\n")) + _block(command) + rest[len(head) :]


def _block(command: str) -> str:
    # What comes behind it in the script is done in any case, and reads the script's own input.
    return f"# r1prov: BEGIN\n{command} </dev/null || true\n# r1prov: END\n"


def written() -> list[str]:
    """The scripts that have the line."""
    return [path for path in PLATFORMS.values() if _BLOCK.search(text_of(Path(path)))]


def take_out(path: Path) -> None:
    """Takes the line out of a script. A script that has nothing else goes."""
    rest = _BLOCK.sub("", _read(path))
    if rest.strip():
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
