"""The first contact with all hosts at once. It takes seconds, says of each host what is wrong, and changes nothing on a host."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from r1prov.common import paths
from r1prov.common.errors import Problem, UnreachableError
from r1prov.common.systemctl import systemctl
from r1prov.hosts.connection import HostConnection, Sudo, connect
from r1prov.hosts.ssh import StrangerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from r1prov.hosts.ssh import Access
    from r1prov.site import Host

OLDEST_PYTHON = (3, 10)
"""The Python that our own programs need on a host, as in Ubuntu 22.04. It is newer than what ansible-core asks of a host."""

AT_ONCE = 64
"""So many hosts are contacted at once. A host that does not answer costs a thread that waits; a login costs the controller's CPU."""

Meanwhile = Callable[[HostConnection], None]
"""Lets something go on over a connection while the facts of its host are read."""

T = TypeVar("T")
R = TypeVar("R")

# These lines ask only what must be known before a Python is known to be there. They are plain POSIX shell and go in
# through stdin, so that any login shell can start them.
_BASICS = r"""
export LC_ALL=C
echo "system=$(uname -s)"
echo "machine=$(uname -m)"
echo "boot=$(IS_RUNNING 2>/dev/null </dev/null)"
echo "python=$(python3 -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null </dev/null)"
if [ "$(id -u)" = 0 ]; then echo sudo=root
elif ! command -v sudo >/dev/null 2>&1; then echo sudo=missing
elif said=$(sudo -k -n true 2>&1 </dev/null); then echo sudo=passwordless
else echo "sudo=$(printf '%s\n' "$said" | tail -n 1)"
fi
"""


@dataclass
class Contact:
    """A host that can be used.

    Attributes:
        connection: the connection, which is still open.
        facts: what plugins/module_utils/host_probe.py read on the host.
        notes: remarks that are no problems, each a predicate of the host.
    """

    connection: HostConnection
    facts: dict[str, Any]
    notes: list[str]


@dataclass
class Meeting:
    """What came of the first contact with hosts.

    Attributes:
        contacts: host name -> its contact, with an open connection.
        away: host name -> why that host cannot be used. Nobody contacts it again in the same run.
    """

    contacts: dict[str, Contact]
    away: dict[str, UnreachableError]

    def somebody(self) -> dict[str, Contact]:
        """The contacts.

        Raises:
            UnreachableError: no host can be used. It carries the problems of all.
        """
        if not self.contacts:
            raise UnreachableError(*(problem for error in self.away.values() for problem in error.problems))
        return self.contacts

    def close(self) -> None:
        """Close all connections."""
        for contact in self.contacts.values():
            contact.connection.close()


def contact_all(
    hosts: Iterable[Host],
    access: Access,
    *,
    meanwhile: Meanwhile | None = None,
) -> Meeting:
    """Contact all hosts at once. A person is asked about the keys of hosts that are not known before a password goes to them.

    A host that cannot be used keeps nobody from the others, and holds them up for no longer than its own timeouts.

    Args:
        hosts: the hosts to contact.
        access: how to log in.
        meanwhile: is given the connection to each host before its facts are read. It returns at once. Where root logs in, it is given the
            connection before anything is known of the host, which may turn out not to be usable.
    """
    hosts = list(hosts)
    meeting = _meet_all(hosts, access, meanwhile)
    try:
        # A person is asked when no connection waits for the answer.
        strangers = {name: error for name, error in meeting.away.items() if isinstance(error, StrangerError)}
        accepted = {name for name, stranger in strangers.items() if stranger.is_accepted(access)}
        again = _meet_all([host for host in hosts if host.name in accepted], access, meanwhile)
    except BaseException:
        meeting.close()
        raise
    contacts = meeting.contacts | again.contacts
    away = meeting.away | again.away
    return Meeting(
        contacts={host.name: contacts[host.name] for host in hosts if host.name in contacts},
        away={host.name: away[host.name] for host in hosts if host.name not in contacts},
    )


def at_once(work: Callable[[T], R], each: Sequence[T]) -> list[R]:
    """What `work` returns for each of these, in their order. AT_ONCE of them are worked on at once."""
    with ThreadPoolExecutor(max_workers=max(1, min(AT_ONCE, len(each)))) as pool:
        return list(pool.map(work, each))


def _meet_all(hosts: Sequence[Host], access: Access, meanwhile: Meanwhile | None) -> Meeting:
    """Contact hosts at once, and ask no person anything."""
    access = replace(access, confirm=None)

    def meet(host: Host) -> Contact | UnreachableError:
        try:
            return _meet(host, access, meanwhile)
        except UnreachableError as error:
            return error

    outcomes = dict(zip((host.name for host in hosts), at_once(meet, hosts), strict=True))
    return Meeting(
        contacts={name: outcome for name, outcome in outcomes.items() if isinstance(outcome, Contact)},
        away={name: outcome for name, outcome in outcomes.items() if isinstance(outcome, UnreachableError)},
    )


def _meet(host: Host, access: Access, meanwhile: Meanwhile | None) -> Contact:
    connection = connect(host, access)
    try:
        return _look_around(connection, meanwhile)
    except (KeyError, ValueError) as error:
        connection.close()
        what = f"what it answers at first contact cannot be read ({error})"
        _fail(host.name, what, "log in there by hand, and see what `sh`, `python3` and sudo answer")
    except BaseException:
        connection.close()
        raise


def _look_around(connection: HostConnection, meanwhile: Meanwhile | None) -> Contact:
    where = connection.host.name
    # Who is root already need not wait until it is known how to become root. What comes of it counts only if the host can be used.
    is_root = connection.user == "root"
    if meanwhile and is_root:
        meanwhile(connection)
    basics_of = _BASICS.replace("IS_RUNNING", shlex.join(systemctl("is-system-running")))
    said = connection.run(["sh", "-s"], basics_of).out
    # It would stand in the facts, and in a secret that is read from the host.
    if chatter := said.partition("system=")[0].strip():
        _fail(
            where,
            f"its login shell adds text of its own to what commands print: `{chatter.splitlines()[0]}`",
            "let ~/.bashrc, or what else that shell reads, print nothing where there is no terminal",
        )
    basics = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    problems = _misfits(where, basics)
    if problems:
        raise UnreachableError(*problems)
    connection.sudo = _sudo(connection, basics["sudo"])
    probe = (paths.collection() / "plugins" / "module_utils" / "host_probe.py").read_text()
    if meanwhile and not is_root:
        meanwhile(connection)
    result = connection.run(["python3", "-"], probe, root=True, timeout_s=60)
    if result.code:
        _fail(where, f"its facts cannot be read: {_last_line(result.err)}", "does `sudo python3 --version` work there?")
    facts = json.loads(result.out)
    return Contact(connection, facts, _notes(basics, facts))


def _misfits(where: str, basics: dict[str, str]) -> list[Problem]:
    """The reasons why no later step could use this host; empty where there are none."""
    if basics.get("system") != "Linux":
        return [
            Problem(
                where,
                f"runs {basics.get('system') or 'no system with a POSIX shell'}, not Linux",
                "r1prov sets up Debian and Ubuntu servers",
            )
        ]
    problems = []
    if basics["machine"] != "x86_64":
        problems.append(
            Problem(
                where, f"is a {basics['machine']} machine, not x86-64", "use a server with an Intel or AMD processor"
            )
        )
    python = tuple(int(part) for part in basics["python"].split(".")[:2]) if basics["python"] else ()
    if python < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        has, remedy = (
            (f"only Python {basics['python']}", "set the server up with Debian 12, Ubuntu 22.04, or a newer release")
            if python
            else ("no python3", "apt install python3")
        )
        problems.append(Problem(where, f"has {has}; r1prov needs Python {oldest} or newer there", remedy))
    return problems


def _sudo(connection: HostConnection, answer: str) -> Sudo:
    """How commands can run as root here. `answer` is what sudo said when it was asked without a password.

    Raises:
        UnreachableError: no command can run as root.
    """
    where = connection.host.name
    if answer in {"root", "passwordless"}:
        return Sudo(answer)
    if answer == "missing":
        _fail(
            where,
            "sudo is not installed, and the login is not root",
            "log in as root (root@host), or install sudo there",
        )
    if "tty" in answer:
        _fail(where, "sudo there wants a terminal (requiretty)", "remove `Defaults requiretty` from its sudoers")
    if connection.access.sudo_password is None:
        _fail(
            where, "sudo there asks for a password", "give the password with --ask-become-pass (-K), or log in as root"
        )
    tried = connection.run(
        ["env", "LC_ALL=C", "sudo", "-S", "-k", "-p", "", "true"], f"{connection.access.sudo_password}\n"
    )
    if "sudoers" in tried.err or "not allowed" in tried.err:
        _fail(where, "this user may not use sudo there", "log in as another user, or add this one to the group sudo")
    if tried.code:
        _fail(where, "the sudo password is wrong", "type it again: --ask-become-pass (-K)")
    return Sudo.PASSWORD


def _notes(basics: dict[str, str], facts: dict[str, Any]) -> list[str]:
    notes = []
    if basics["boot"] in {"initializing", "starting"}:
        notes.append("is still starting; steps wait for it")
    if facts.get("package_locks"):
        notes.append("is busy installing packages, as a first boot or another run does; steps wait for it")
    return notes


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2] or "no reason given"


def _fail(where: str, what: str, remedy: str) -> NoReturn:
    raise UnreachableError(Problem(where, what, remedy))
