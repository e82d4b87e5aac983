"""What a cut has left on a host, by a program that runs there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from r1prov import lab

if TYPE_CHECKING:
    from r1prov.lab.hosts import LabHost

_PROGRAM = (Path(__file__).parent / "left.py").read_text()


class Files:
    """The files that r1prov writes whole, and with which content each was part of a host that was well."""

    def __init__(self) -> None:
        self._good: dict[str, set[str]] = {}
        self._seen: dict[str, dict[str, str]] = {}

    def see(self, cut: str, host: LabHost, *, torn: bool = False) -> list[str]:
        """Looks at what a cut has left. Returns what is used there although it is not whole; files are judged by `partial`.

        Args:
            cut: what it is called.
            host: where.
            torn: whether files may be empty, as a power cut leaves them. Then they must not be used.
        """
        wrong, files = left(host)
        for path, digest in ({} if torn else files).items():
            if digest not in self._good.get(path, set()):
                self._seen.setdefault(path, {}).setdefault(digest, cut)
        return wrong

    def learn(self, host: LabHost) -> None:
        """Takes the files of a host that is well as they must be."""
        for path, digest in left(host)[1].items():
            self._good.setdefault(path, set()).add(digest)

    def partial(self) -> list[str]:
        """The files that a cut has left with a content that none was well with. They are told once."""
        found = [
            f"{path} after {cut}"
            for path, digests in self._seen.items()
            for digest, cut in digests.items()
            if path in self._good and digest not in self._good[path]
        ]
        self._seen.clear()
        return found


def left(host: LabHost) -> tuple[list[str], dict[str, str]]:
    """What is used on a host although it is not whole, and the digest of each file that r1prov writes whole."""
    done = lab.ssh(host, ["python3", "-c", _PROGRAM], timeout_s=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return found["wrong"], found["files"]
