"""The host's own watch: what a run leaves on a host, so that the host can look by itself whether it is still as that run has left it."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict
from importlib import resources
from typing import TYPE_CHECKING

from r1prov.common import paths
from r1prov.hosts import Expectation, ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from r1prov.hosts import HostConnection

FILE = "/var/lib/r1prov/watch/look.pyz"
LIMIT_S = 60

LEFT = Expectation(
    step="watch",
    task="Leave the host what it looks by",
    module="ansible.modules.file",
    arguments={"path": FILE, "state": "file", "owner": "root", "group": "root", "mode": "0600"},
)
"""What is expected of the file by whoever looks from here. Its content is the last run's, from whichever controller that was."""


def leave(connection: HostConnection, expectations: Sequence[Expectation], every_s: int) -> None:
    """Leave a host what it looks by. It holds no secrets, as expectations hold none.

    Args:
        connection: to the host.
        expectations: what the run that has just ended expects of it; none where that is not known. Then the host does not look.
        every_s: how often it looks, in seconds.

    Raises:
        UnreachableError: the connection is lost, or the file cannot be written.
    """
    content = program(expectations, every_s) if expectations else b""
    job = {"content": base64.b64encode(content).decode()}
    ask(connection, _on_host("leave.py"), job, "it cannot be left what it looks by", LIMIT_S)


def program(expectations: Sequence[Expectation], every_s: int) -> bytes:
    """The program with which a host looks: a zip file that Python executes, with all modules that it asks."""
    look = paths.module_util("look_job")
    code, _ = look.modules(paths.collection())
    job = {
        "asked": [asdict(each) for each in expectations],
        "version": look.ansible_version,
        "every_s": every_s,
    }
    own = {
        "__main__.py": _on_host("watch.py").encode(),
        "job.json": json.dumps(job).encode(),
    }
    return bytes(look.zipped({**code, **own}))


def _on_host(name: str) -> str:
    return (resources.files("r1prov.runs") / "on_host" / name).read_text()
