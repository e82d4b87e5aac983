"""Opens ssh connections with paramiko as OpenSSH would, with its known hosts, keys, agent and jump hosts."""

from __future__ import annotations

import logging
import socket
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import paramiko

from r1prov.common.errors import Problem, UnreachableError
from r1prov.hosts import known_hosts
from r1prov.hosts.keys import candidates
from r1prov.hosts.target import Target, describe, split_jump

if TYPE_CHECKING:
    from collections.abc import Callable

    from r1prov.hosts.known_hosts import KnownKey
    from r1prov.site import Host

TIMEOUT_S = 10.0
"""How many seconds each of the TCP connection, the ssh handshake and the login may take."""

# paramiko also logs what it raises, with a traceback. Without a handler, logging would print that to stderr.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


def say_nothing(_host: str, _text: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Access:
    """How to log in to the hosts of a site.

    Attributes:
        known_hosts: the site's file of accepted host keys.
        host_keys: `accept-new` trusts a key at first sight and records it; `strict` wants it known beforehand.
            Both refuse a key that has changed.
        ssh_password: the password for the login, which is tried after the keys.
        sudo_password: the password for hosts where sudo asks for one.
        ssh_config: the file to read instead of ~/.ssh/config.
        tell: is told, with the name of a host, which key was trusted at first sight. It may be called from any thread.
        confirm: asks a person whether a host, given by its name, has the key that it shows. None says that nobody can be asked.
    """

    known_hosts: Path
    host_keys: Literal["accept-new", "strict"] = "accept-new"
    ssh_password: str | None = field(default=None, repr=False)
    sudo_password: str | None = field(default=None, repr=False)
    ssh_config: Path | None = None
    tell: Callable[[str, str], None] = say_nothing
    confirm: Callable[[str, str], bool] | None = None

    @property
    def has_password(self) -> bool:
        """Whether a host may be sent a password."""
        return self.ssh_password is not None or self.sudo_password is not None


class StrangerError(UnreachableError):
    """A password would go to a host whose key nobody here has accepted. A person may accept the key.

    Attributes:
        where: the name of the host.
        shown: the type and the fingerprint of the key that it shows.
    """

    def __init__(self, where: str, target: Target, key: paramiko.PKey) -> None:
        self.where = where
        self.shown = f"{key.get_name()} {key.fingerprint}"
        self._line = target.key_name, key.get_name(), key.get_base64()
        super().__init__(
            Problem(
                where,
                f"is not known here, so no password is sent to it before somebody confirms its host key: {self.shown}",
                "run the same command in a terminal, where it asks; or compare the fingerprint, and accept the key once "
                f"by hand: ssh -p {target.port} {target.user}@{target.alias}",
            )
        )

    def is_accepted(self, access: Access) -> bool:
        """Ask a person about the key, if there is one to ask. A key that the person accepts is remembered."""
        if not access.confirm or not access.confirm(self.where, self.shown):
            return False
        known_hosts.remember(access.known_hosts, *self._line)
        return True


class Link:
    """A logged-in ssh transport, with the jump hosts and helper processes that it goes through."""

    def __init__(self, host: Host, access: Access) -> None:
        """Connect and log in.

        Raises:
            StrangerError: the host is not known, and a password would be sent to it.
            UnreachableError: the host cannot be reached, has an unexpected key, or refuses the login.
        """
        self._below: list[paramiko.Transport | _Proxy] = []
        target = describe(host.address, host.user, host.port, access.ssh_config, host.identity_file)
        self.user = target.user
        # The site's own file counts for its hosts only. The key of a jump host must stand in the operator's files.
        site_rules = replace(
            target,
            known_hosts=(access.known_hosts, *target.known_hosts),
            accepts_new_keys=access.host_keys == "accept-new",
        )
        try:
            self.transport = self._reach(
                site_rules, host.name, access, access.ssh_password, own_file=access.known_hosts
            )
        except (paramiko.SSHException, EOFError) as error:
            self.close()
            _fail(host.name, f"the ssh connection breaks off ({_text(error)})", f"look at sshd's log on {target.host}")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close everything, the far end first."""
        while self._below:
            self._below.pop().close()

    def _reach(
        self,
        target: Target,
        where: str,
        access: Access,
        password: str | None,
        *,
        own_file: Path | None,
        depth: int = 0,
    ) -> paramiko.Transport:
        transport = paramiko.Transport(self._open_socket(target, where, access, depth))
        self._below.append(transport)
        transport.banner_timeout = transport.auth_timeout = TIMEOUT_S
        _handshake(transport, target, where, access, own_file)
        _log_in(transport, target, where, password)
        transport.set_keepalive(15)
        return transport

    def _open_socket(self, target: Target, where: str, access: Access, depth: int) -> socket.socket | paramiko.Channel:
        if depth > 8:
            _fail(
                where,
                f"the jump hosts of your ssh configuration lead round in a circle, at {target.alias}",
                "look at ProxyJump in ~/.ssh/config",
            )
        if target.proxy_jump:
            return self._through_jump(target, where, access, depth)
        if target.proxy_command:
            proxy = _Proxy(target.proxy_command)
            self._below.append(proxy)
            return proxy.socket
        try:
            return socket.create_connection((target.host, target.port), timeout=TIMEOUT_S)
        except socket.gaierror as error:
            _fail(
                where,
                f"the name {target.host} is not known here ({error.strerror})",
                "check the spelling, DNS, /etc/hosts or ~/.ssh/config",
            )
        except ConnectionRefusedError:
            _fail(
                where,
                f"{target.host} refuses connections on port {target.port}",
                "check that sshd runs there; if it has another port, name it: host:port",
            )
        except TimeoutError:
            _fail(
                where,
                f"{target.host} does not answer on port {target.port} within {TIMEOUT_S:.0f} s",
                "check that the machine is on, that this is its address, and that no firewall drops the port",
            )
        except OSError as error:
            _fail(
                where,
                f"{target.host} port {target.port} cannot be reached: {error.strerror or error}",
                "check the address and the network of this machine",
            )

    def _through_jump(self, target: Target, where: str, access: Access, depth: int) -> paramiko.Channel:
        *before, last = target.proxy_jump.split(",")
        user, port, alias = split_jump(last)
        jump = describe(alias, user, port, access.ssh_config)
        if before:
            jump = replace(jump, proxy_jump=",".join(before), proxy_command="")
        transport = self._reach(
            jump, f"{where.partition(' ')[0]} (jump host {alias})", access, None, own_file=None, depth=depth + 1
        )
        try:
            return transport.open_channel(
                "direct-tcpip", (target.host, target.port), ("127.0.0.1", 0), timeout=TIMEOUT_S
            )
        except (paramiko.SSHException, OSError, EOFError) as error:
            _fail(
                where,
                f"the jump host {alias} cannot reach {target.host} port {target.port} ({_text(error)})",
                f"try it from the jump host: ssh {alias} nc -vz {target.host} {target.port}",
            )


class _Proxy:
    """A ProxyCommand on one end of a socket pair, so that paramiko sees at once when the command ends."""

    def __init__(self, command: str) -> None:
        self.socket, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {command}"],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()

    def close(self) -> None:
        self.socket.close()
        self._process.terminate()
        self._process.wait(TIMEOUT_S)


def _handshake(
    transport: paramiko.Transport, target: Target, where: str, access: Access, own_file: Path | None
) -> None:
    """Bring the encryption up with a server that has the right key.

    What the site's own file says of a host outranks all other files, because Ansible's ssh reads that file.

    Args:
        transport: a connection to the server.
        target: the server.
        where: its name in errors.
        access: whom to tell of a key that is trusted at first sight, and whether a password waits to be sent.
        own_file: the site's own file; None for a jump host, whose key stands in the operator's files.
    """
    known = known_hosts.lookup(target.known_hosts, target.key_name)
    accepted = [key for key in known if not key.revoked]
    accepted = [key for key in accepted if key.file == own_file] or accepted
    _prefer(transport, {key.type for key in accepted})
    try:
        transport.start_client(timeout=TIMEOUT_S)
        offered = transport.get_remote_server_key()  # start_client says nothing when its time is over
    except (paramiko.SSHException, OSError, EOFError) as error:
        _fail(
            where,
            f"{target.host} port {target.port} takes the connection, but does not complete an ssh handshake ({_text(error)})",
            f"check that it is an ssh server: ssh -v -p {target.port} {target.host}",
        )
    _refuse_revoked(offered, known, target, where)
    if accepted:
        _refuse_other_keys(offered, accepted, target, where, own_file)
    # The ssh of a jump host asks Ansible's ssh for a password, too, and nothing that a person confirms here reaches it.
    elif not target.accepts_new_keys or (not own_file and access.ssh_password is not None):
        _fail(
            where,
            f"its host key is not known: {offered.get_name()} {offered.fingerprint}",
            f"compare the fingerprint, then accept it once by hand: ssh -p {target.port} {target.user}@{target.alias}",
        )
    elif own_file and access.has_password:
        raise StrangerError(where, target, offered)
    else:
        access.tell(where, f"not known before; its host key is {offered.get_name()} {offered.fingerprint}")
    if own_file and not any(key.file == own_file for key in accepted):
        known_hosts.remember(own_file, target.key_name, offered.get_name(), offered.get_base64())


def _refuse_revoked(offered: paramiko.PKey, known: list[KnownKey], target: Target, where: str) -> None:
    """Refuse a key that known_hosts files or the configuration's RevokedHostKeys mark as revoked."""
    marks = [f"{key.file}:{key.line}" for key in known if key.revoked and key.key == offered.get_base64()]
    marks += [str(file) for file in target.revoked_keys if known_hosts.revokes(file, offered)]
    if marks:
        _fail(
            where,
            f"its host key is marked as revoked ({marks[0]})",
            "do not trust this machine before you know why",
        )


def _refuse_other_keys(
    offered: paramiko.PKey, accepted: list[KnownKey], target: Target, where: str, own_file: Path | None
) -> None:
    """Refuse a key that is none of those accepted, or that shares its type with another one in the site's own file."""
    others = [key for key in accepted if key.key != offered.get_base64()]
    if len(others) == len(accepted):
        _fail(
            where,
            f"its host key has changed: it offers {offered.get_name()} {offered.fingerprint}, "
            f"not what {accepted[0].file}:{accepted[0].line} says",
            f"if the host was installed anew, forget the old key: ssh-keygen -R '{target.key_name}' -f {accepted[0].file}. "
            "If not, someone may sit between you and the host",
        )
    for key in others:
        if key.file == own_file and key.type == offered.get_name():
            _fail(
                where,
                f"{key.file}:{key.line} lists another {key.type} key for it than the one that it has",
                "find out whose key that is, then remove the line: who holds that key could pass for this host",
            )


def _prefer(transport: paramiko.Transport, types: set[str]) -> None:
    """Ask the server for a host key of a known type, as OpenSSH does, for a server has a key of each type."""
    wanted = {name for type_ in types for name in ({"rsa-sha2-512", "rsa-sha2-256"} if type_ == "ssh-rsa" else {type_})}
    options = transport.get_security_options()
    options.key_types = sorted(options.key_types, key=lambda name: name not in wanted)


def _log_in(transport: paramiko.Transport, target: Target, where: str, password: str | None) -> None:
    try:
        transport.auth_none(target.user)
    except paramiko.BadAuthenticationType as error:
        methods = error.allowed_types
    except (paramiko.SSHException, OSError, EOFError) as error:
        _fail(where, f"the login as {target.user} ended early ({_text(error)})", f"look at sshd's log on {target.host}")
    else:
        return
    tried, locked = 0, list[Path]()
    if "publickey" in methods:
        for key in candidates(target, locked):
            tried += 1
            if _accepts(transport, target, where, key):
                return
    if password is not None and {"password", "keyboard-interactive"} & set(methods):
        try:
            transport.auth_password(target.user, password)
        except (paramiko.SSHException, OSError, EOFError):
            _fail(where, f"the password of {target.user} is refused", "type it again, or check the user name")
        return
    _refuse(target, where, methods, tried, locked, password_given=password is not None)


def _accepts(transport: paramiko.Transport, target: Target, where: str, key: paramiko.PKey) -> bool:
    try:
        further = transport.auth_publickey(target.user, key)
    except (paramiko.SSHException, OSError, EOFError) as error:
        if not transport.is_active():
            _fail(
                where,
                f"sshd hung up after too many keys ({_text(error)})",
                "name the right key in ~/.ssh/config, with IdentityFile and IdentitiesOnly yes",
            )
        return False
    if further:
        _fail(
            where,
            f"sshd wants a second factor after the key ({', '.join(further)})",
            "use an account that logs in by key alone, for Ansible cannot give a second factor",
        )
    return True


def _refuse(
    target: Target, where: str, methods: list[str], tried: int, locked: list[Path], *, password_given: bool
) -> NoReturn:
    if locked:
        names = " ".join(str(path) for path in locked)
        _fail(where, f"the key {names} is encrypted, and no ssh-agent holds it", f"unlock it once: ssh-add {names}")
    reason = f"none of {tried} keys is accepted" if tried else "there is no key to try"
    if "publickey" not in methods:
        reason = f"sshd takes no keys, only {', '.join(methods)}"
    refusal = f"login as {target.user}: {reason}"
    if password_given:
        _fail(
            where,
            f"{refusal}, and sshd takes no passwords",
            f"give the account a key: ssh-copy-id -p {target.port} {target.user}@{target.alias}",
        )
    by_password = (
        ", or log in by password with --ask-pass" if {"password", "keyboard-interactive"} & set(methods) else ""
    )
    copy = f"ssh-copy-id -p {target.port} {target.user}@{target.alias}"
    _fail(where, refusal, f"{copy}; or name another user: user@host{by_password}")


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _fail(where: str, what: str, remedy: str) -> NoReturn:
    raise UnreachableError(Problem(where, what, remedy)) from None
