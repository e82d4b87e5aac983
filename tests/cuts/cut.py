"""A run that is watched by what Ansible says, and the ways to cut it off."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from r1prov import lab
from tests.cuts import torn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from r1prov.lab.hosts import LabHost
    from tests.e2e.people import Operator

LIMIT_S = 900
"""How long a run may go on after its connection or its host was cut."""
ON_THE_CONTROLLER = "Validating arguments against arg spec"
"""How the names of tasks begin that look at a role's variables. Nothing happens on the host in them."""
SILENT_S = 6
"""How long nothing comes through to sshd after a connection was cut."""


@dataclass(frozen=True)
class Task:
    """A task that has ended on the host. It was not skipped, and was none that only looks at variables.

    Attributes:
        name: of its role and itself, and the number of its turn where a run has several of that name.
        changed: whether it has changed something.
        at: when it ended, in seconds since the run began.
    """

    name: str
    changed: bool
    at: float


class Run:
    """A run, and the host in it that is watched."""

    def __init__(self, operator: Operator, host: LabHost, *arguments: str) -> None:
        self.host = host
        self.process = operator.start(*arguments, "-v", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.talk = ""
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends a run that somebody does not want to wait for."""
        if self.process.poll() is None:
            kill(self)

    def tasks(self) -> Iterator[Task]:
        """The tasks, each as it ends."""
        assert self.process.stderr
        name, turns = "", dict[str, int]()
        for line in self.process.stderr:
            self.talk += line
            if begun := re.match(r"(?:TASK|RUNNING HANDLER) \[(.*)\]", line):
                name = begun[1]
            elif (
                name
                and ON_THE_CONTROLLER not in name
                and (ended := re.match(rf"(ok|changed): \[{self.host.name}\]", line))
            ):
                turns[name] = turns.get(name, 0) + 1
                turn = f" ({turns[name]})" if turns[name] > 1 else ""
                yield Task(name + turn, ended[1] == "changed", time.monotonic() - self._began)
                name = ""

    def end(self) -> int:
        """Waits for the end of the run. Returns its exit code."""
        self.talk += self.process.communicate(timeout=LIMIT_S)[1]
        return self.process.returncode


def kill(run: Run) -> None:
    """SIGKILL for the controller and all that it has started. They are stopped first, so that none hears of another's end and tidies up."""
    stopped: set[int] = set()
    while new := set(_descendants(run.process.pid)) - stopped:
        for process in new:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGSTOP)
        stopped |= new
    for process in stopped:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The second field behind the program's name, which is in brackets and may hold blanks.
            parent = int(file.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(file.parent.name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


CUT = f"""
sleep 0.3
nft 'add table inet cut
add chain inet cut in {{ type filter hook input priority -300; tcp dport 22 drop; }}
add chain inet cut out {{ type filter hook output priority -300; tcp sport 22 drop; }}'
listens=$(systemctl show --property=MainPID --value ssh)
kill -9 $(grep --files-with-matches '^sshd' /proc/[0-9]*/comm | cut -d / -f 3 | grep --invert-match --line-regexp $listens)
sleep {SILENT_S}
nft delete table inet cut
"""


def cut_connection(run: Run) -> None:
    """Ends all sessions of sshd. They cannot say so for some seconds, in which nobody can log in either."""
    # Some versions of systemd-run replace variables in what they are given, so the script is a file.
    script = f"cat > /run/cut << 'END'\n{CUT}END\nsystemd-run --quiet --collect sh /run/cut"
    lab.ssh(run.host, ["sh", "-c", script])


def reboot(run: Run) -> None:
    """As an administrator does, with an end for each service. Without one it would be what `cut_power` does."""
    lab.ssh(run.host, ["systemctl", "reboot"])
    lab.up(run.host.name, run.host.release, image=run.host.image)


def cut_power(run: Run) -> None:
    """All processes of the host end at once, and what was not brought to the disk is lost (`torn`)."""
    lab.halt(run.host)
    torn.tear(run.host.directory / "upper")
    lab.boot(run.host)


KINDS: dict[str, Callable[[Run], None]] = {
    "kill": kill,
    "connection": cut_connection,
    "reboot": reboot,
    "power": cut_power,
}
