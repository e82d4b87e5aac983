"""Proves that this host can keep services in a private network. It tries, because systemd ignores a setting that is kept from it."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from pathlib import Path

from ansible_collections.r1.prov.plugins.module_utils import units

NFT = "/usr/sbin/nft"
_LIMIT_S = 20
_NFNETLINK_GETGEN = struct.pack("=IHHIIBBH", 20, (10 << 8) | 16, 1, 1, 0, 0, 0, 0)
"""A message that asks nf_tables (subsystem 10) which generation of rules it has (message 16)."""
_ERROR = 2
MACHINES_OWN = Path("/proc/sys/net/core/dev_weight")
"""The kernel shows this setting in the machine's own network alone: net/core/sysctl_net_core.c registers it for no other."""
_TRY = "import socket; socket.create_connection(('127.0.0.1', {port}), 3)"


def fault() -> str:
    """Why services cannot be kept in a private network; empty where they can, or where that cannot be tried without root."""
    if os.geteuid():
        return ""
    return leak() or without_rules()


def leak(*properties: str) -> str:
    """Starts a unit in a network of its own, which must not reach a port of this host that the host itself reaches.

    Args:
        properties: more properties of the unit.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), 3).close()
        listener.accept()[0].close()
        command = ["systemd-run", "--quiet", "--collect", "--property=Type=oneshot", "--property=PrivateNetwork=yes"]
        command += ["--property=SuccessExitStatus=1", *(f"--property={each}" for each in properties)]
        command += ["/usr/bin/python3", "-c", _TRY.format(port=port)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LIMIT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"a unit to try it with does not start ({error})"
        listener.settimeout(0)
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return f"a unit to try it with does not start ({done.stderr.strip()})" if done.returncode else ""
    return "a unit with PrivateNetwork=yes still reached the network of the host, because network namespaces are kept from it"


def takes_rules() -> bool:
    """Whether the kernel takes rules for services in the network of this process.

    In a container that shares the network of its machine, a rule for one of the container's users would hold for whoever has that number on
    the machine.
    """
    shares = not units.SYSTEMD.exists() and MACHINES_OWN.exists()
    return not os.geteuid() and not shares and not without_rules()


def without_rules() -> str:
    """Asks the kernel for nf_tables, whose rules tell the services in the private network apart."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as netlink:  # NETLINK_NETFILTER
            netlink.settimeout(3)
            netlink.send(_NFNETLINK_GETGEN)
            answer = netlink.recv(4096)
    except OSError as error:
        return f"the kernel has no nf_tables for it ({error.strerror or error})"
    kind, code = struct.unpack_from("=4xH10xi", answer)
    return f"the kernel has no nf_tables for it ({os.strerror(-code)})" if kind == _ERROR else ""
