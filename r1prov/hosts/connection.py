"""One open connection to one host, which runs commands, follows their output and speaks http. It goes over ssh, or stays here."""

from __future__ import annotations

import contextlib
import http.client
import io
import shlex
import subprocess
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import paramiko

from r1prov.common.errors import Problem, UnreachableError
from r1prov.hosts.ssh import TIMEOUT_S, Access, Link, StrangerError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from r1prov.site import Host


class Sudo(Enum):
    """How a command becomes root on a host."""

    ROOT = "root"
    PASSWORDLESS = "passwordless"
    PASSWORD = "password"  # noqa: S105 - this is no password


@dataclass(frozen=True)
class Result:
    """The exit code, stdout and stderr of a command that has ended."""

    code: int
    out: str
    err: str


class HostConnection(ABC):
    """An open connection to `host`. Commands are argument lists, and secrets go through stdin."""

    def __init__(self, host: Host, access: Access) -> None:
        self.host = host
        self.access = access
        self.sudo = Sudo.ROOT
        """How `run` becomes root. The first contact finds it out."""
        self.user: str | None = None
        """The user who is logged in over ssh; None on this machine itself."""

    def run(self, argv: Sequence[str], stdin: str = "", *, root: bool = False, timeout_s: float = 30) -> Result:
        """Run a command to its end.

        Args:
            argv: the command and its arguments.
            stdin: the text that the command reads.
            root: whether it runs as root, in the way that `sudo` names.
            timeout_s: how long it may take, in seconds.

        Raises:
            UnreachableError: the connection is lost, or the command took too long.
        """
        if root and self.sudo is Sudo.PASSWORDLESS:
            argv = ["sudo", "-n", "--", *argv]
        elif root and self.sudo is Sudo.PASSWORD:
            # Without -k, a sudo that remembers the password would not read it, and the command would.
            argv = ["sudo", "-S", "-k", "-p", "", "--", *argv]
            stdin = f"{self.access.sudo_password}\n{stdin}"
        try:
            return self._run(argv, stdin, timeout_s)
        except (TimeoutError, subprocess.TimeoutExpired):
            raise self._lost(f"`{argv[0]}` did not end within {timeout_s:.0f} s") from None
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise self._lost(f"the connection is lost ({error or type(error).__name__})") from None

    def open_http(self, port: int, address: str = "127.0.0.1") -> http.client.HTTPConnection:
        """Make an http connection to `port` of `address`, as the host itself sees them; it opens at the first request."""
        return _Http(self, address, port)

    @abstractmethod
    def follow(self, argv: Sequence[str]) -> Generator[str, None, None]:
        """Yield the lines of a command's stdout while they come.

        Closing the generator closes the command's stdin. The command must then end by itself.
        """

    @abstractmethod
    def open_socket(self, address: str, port: int) -> paramiko.Channel | None:
        """Open a stream to a port of the host; None on this machine itself, where a plain socket does.

        Raises:
            paramiko.SSHException: the host refuses the stream, or the connection is lost.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""

    @abstractmethod
    def _run(self, argv: Sequence[str], stdin: str, timeout_s: float) -> Result: ...

    def _lost(self, what: str) -> UnreachableError:
        return UnreachableError(
            Problem(self.host.name, what, "check the machine and the network, then run the same command again")
        )


def connect(host: Host, access: Access) -> HostConnection:
    """Open a connection to a host, over ssh unless the host is this machine. A person may be asked to confirm the host's key.

    Raises:
        UnreachableError: the host cannot be reached, or refuses the login.
    """
    if host.local:
        return LocalConnection(host, access)
    try:
        return SshConnection(host, access)
    except StrangerError as stranger:
        if not stranger.is_accepted(access):
            raise
        return SshConnection(host, access)


class SshConnection(HostConnection):
    """A connection over ssh: one transport, with a channel for each command."""

    def __init__(self, host: Host, access: Access) -> None:
        super().__init__(host, access)
        self._link = Link(host, access)
        self.user = self._link.user

    def follow(self, argv: Sequence[str]) -> Generator[str, None, None]:
        """See `HostConnection.follow`."""
        with contextlib.closing(self._link.transport.open_session(timeout=TIMEOUT_S)) as channel:
            channel.exec_command(shlex.join(argv))
            yield from channel.makefile("r")

    def open_socket(self, address: str, port: int) -> paramiko.Channel:
        """See `HostConnection.open_socket`."""
        return self._link.transport.open_channel("direct-tcpip", (address, port), ("127.0.0.1", 0), timeout=TIMEOUT_S)

    def close(self) -> None:
        """See `HostConnection.close`."""
        self._link.close()

    def _run(self, argv: Sequence[str], stdin: str, timeout_s: float) -> Result:
        with contextlib.closing(self._link.transport.open_session(timeout=TIMEOUT_S)) as channel:
            channel.settimeout(timeout_s)
            channel.exec_command(shlex.join(argv))
            with contextlib.suppress(OSError):  # a command may end before it has read its stdin
                channel.sendall(stdin.encode())
                channel.shutdown_write()
            out = channel.makefile("rb").read()
            err = channel.makefile_stderr("rb").read()
            if not channel.status_event.wait(timeout_s):  # the host died after the last line
                raise TimeoutError
            return Result(channel.recv_exit_status(), out.decode(errors="replace"), err.decode(errors="replace"))


class LocalConnection(HostConnection):
    """A connection to this machine itself."""

    def follow(self, argv: Sequence[str]) -> Generator[str, None, None]:
        """See `HostConnection.follow`."""
        with subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            try:
                yield from process.stdout or ()
            finally:
                process.terminate()

    def open_socket(self, address: str, port: int) -> None:
        """See `HostConnection.open_socket`."""
        return

    def close(self) -> None:
        """Do nothing, since nothing is open."""

    def _run(self, argv: Sequence[str], stdin: str, timeout_s: float) -> Result:
        done = subprocess.run(
            argv, input=stdin, capture_output=True, text=True, errors="replace", check=False, timeout=timeout_s
        )
        return Result(done.returncode, done.stdout, done.stderr)


NOBODY_LISTENS = 2
"""The code with which sshd says that a port refuses connections, and not that sshd itself does (RFC 4254, section 5.1)."""


class _Http(http.client.HTTPConnection):
    """An http connection that goes through an open connection to the host."""

    def __init__(self, connection: HostConnection, address: str, port: int) -> None:
        super().__init__(address, port)
        self._connection = connection

    def connect(self) -> None:
        try:
            tunnel = self._connection.open_socket(self.host, self.port)
        except paramiko.ChannelException as error:
            kind = ConnectionRefusedError if error.code == NOBODY_LISTENS else ConnectionError
            raise kind(error.text) from None
        except (paramiko.SSHException, EOFError) as error:
            raise ConnectionError(f"the ssh connection is lost: {error}") from None
        if tunnel is None:
            super().connect()
        else:
            self.sock = _Tunnel(tunnel)


class _Tunnel:
    """The part of a socket that http.client uses, over a channel.

    http.client closes the socket and reads on from its file. A channel's own file would be closed with the channel.
    """

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel
        self.sendall = channel.sendall

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Incoming(self._channel))

    def close(self) -> None:
        """The response's file ends the channel."""


class _Incoming(io.RawIOBase):
    """The bytes that come in on a channel, as a file. Closing it closes the channel."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._channel.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._channel.close()
        super().close()
