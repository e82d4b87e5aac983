"""The line with which a platform starts r1prov's services when it starts a container, in a script that may be somebody else's, too."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from ansible_collections.r1.prov.plugins.module_utils.files import text_of, write_whole

HOOKS = ("/etc/autodl.sh", "/etc/vast_boot.d/90-r1prov.sh", "/post_start.sh")
"""What platforms run when they start a container. The role `service` has the same list, and which platform has which."""
_BLOCK = re.compile(r"^# r1prov: BEGIN$.*?^# r1prov: END$\n?", re.MULTILINE | re.DOTALL)


def written() -> list[str]:
    """The scripts that have the line."""
    return [path for path in HOOKS if _BLOCK.search(text_of(Path(path)))]


def take_out(path: Path) -> None:
    """Takes the line out of a script. A script that has nothing else goes."""
    rest = _BLOCK.sub("", path.read_text(encoding="utf-8", errors="surrogateescape"))
    if rest.strip():
        write_whole(path, rest.encode("utf-8", "surrogateescape"), stat.S_IMODE(path.stat().st_mode))
    else:
        path.unlink()
