"""A real ssh server in this process. It uses paramiko's server side, runs the commands, and forwards the ports."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from dataclasses import dataclass, field

import paramiko


@dataclass
class Sshd:
    """An ssh server that listens on 127.0.0.1:`port`. Its commands get the environment `env`, such as a PATH with another sudo.

    It keeps the passwords that it was given, the ports that it forwarded to, the users who wanted to log in, and its connections.
    The `greeting` stands before what each command prints, as a start-up file of a shell may do it.
    """

    users_keys: list[paramiko.PKey] = field(default_factory=list)
    password: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    host_key: paramiko.PKey = field(default_factory=paramiko.ECDSAKey.generate)
    passwords: list[str] = field(default_factory=list)
    forwards: list[tuple[str, int]] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)
    connections: list[paramiko.Transport] = field(default_factory=list)
    greeting: str = ""

    def __enter__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Be away from now on."""
        # A thread that waits in accept() would still take one connection.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def ends(self):
        """Whether all connections end within some seconds."""
        for connection in self.connections:
            connection.join(10)
        return not any(connection.is_alive() for connection in self.connections)

    def _accept(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            transport = paramiko.Transport(connection)
            self.connections.append(transport)
            transport.add_server_key(self.host_key)
            transport.start_server(threading.Event(), _Server(self))


class _Server(paramiko.ServerInterface):
    def __init__(self, sshd):
        self.sshd = sshd

    def get_allowed_auths(self, username):
        self.sshd.logins.append(username)
        return ",".join(["publickey"] * bool(self.sshd.users_keys) + ["password"] * bool(self.sshd.password))

    def check_auth_publickey(self, username, key):
        return paramiko.AUTH_SUCCESSFUL if key in self.sshd.users_keys else paramiko.AUTH_FAILED

    def check_auth_password(self, username, password):
        self.sshd.passwords.append(password)
        return paramiko.AUTH_SUCCESSFUL if password == self.sshd.password else paramiko.AUTH_FAILED

    def check_channel_request(self, kind, chanid):
        return paramiko.OPEN_SUCCEEDED if kind == "session" else paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED

    def check_channel_pty_request(self, channel, term, width, height, pixelwidth, pixelheight, modes):
        # ssh closes a channel that was refused a terminal. A program that ends later ends without an exit status, like a lost connection.
        return True

    def check_channel_exec_request(self, channel, command):
        threading.Thread(target=self._execute, args=(channel, command.decode()), daemon=True).start()
        return True

    def _execute(self, channel, command):
        process = subprocess.Popen(
            command,
            shell=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | self.sshd.env,
        )
        threading.Thread(target=_pump_in, args=(channel, process.stdin), daemon=True).start()
        if self.sshd.greeting:
            channel.sendall(f"{self.sshd.greeting}\n".encode())
        errors = threading.Thread(target=_pump_out, args=(process.stderr, channel.sendall_stderr), daemon=True)
        errors.start()
        _pump_out(process.stdout, channel.sendall)
        errors.join()
        channel.send_exit_status(process.wait())
        channel.close()

    def check_channel_direct_tcpip_request(self, chanid, origin, destination):
        try:
            onward = socket.create_connection(destination, timeout=5)
        except OSError:
            return paramiko.OPEN_FAILED_CONNECT_FAILED
        self.sshd.forwards.append(destination)
        threading.Thread(target=self._forward, args=(chanid, onward), daemon=True).start()
        return paramiko.OPEN_SUCCEEDED

    def _forward(self, chanid, onward):
        channel = None
        while channel is None or channel.get_id() != chanid:
            channel = self.transport_of(chanid)
        threading.Thread(target=_relay, args=(channel, onward), daemon=True).start()
        _relay(onward, channel)

    def transport_of(self, chanid):
        for thread in threading.enumerate():
            if isinstance(thread, paramiko.Transport) and thread.server_object is self:
                return thread.accept(5)
        return None


def _pump_in(channel, pipe):
    while data := channel.recv(32768):
        try:
            pipe.write(data)
            pipe.flush()
        except OSError:
            return
    pipe.close()


def _pump_out(pipe, send):
    try:
        while data := os.read(pipe.fileno(), 32768):
            send(data)
    except OSError:
        pass


def _relay(source, destination):
    try:
        while data := source.recv(32768):
            destination.sendall(data)
    except OSError:
        pass
    source.close()
    destination.close()
