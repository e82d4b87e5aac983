"""Knocks from a third machine at llama.cpp's RPC of another. A traceback says where it is open.

Arguments: folder of certificates, name of the service, addresses of the worker and of the coordinator.
"""

import socket
import ssl
import sys
from pathlib import Path

CERTIFICATES, SERVICE, WORKER, COORDINATOR = Path(sys.argv[1]), *sys.argv[2:5]
GREETING = bytes([14]) + (24).to_bytes(8, "little") + bytes(24)


def heard(machine, service, seconds=6):
    """What comes back for the first word of the protocol. None says that the connection is kept, so somebody is behind it."""
    context = ssl.create_default_context(cafile=str(CERTIFICATES / "authority.crt"))
    context.set_alpn_protocols([service])
    if machine:
        context.load_cert_chain(CERTIFICATES / f"{machine}.crt", CERTIFICATES / f"{machine}.key")
    try:
        with (
            socket.create_connection((WORKER, 7443), timeout=30) as raw,
            context.wrap_socket(raw, server_hostname="gpu2.r1prov.internal") as door,
        ):
            door.settimeout(seconds)
            door.sendall(GREETING)
            return door.recv(64)
    except TimeoutError:
        return None
    except (ssl.SSLError, ConnectionError):
        return b""


assert heard("gpu1", SERVICE) is None, "the coordinator itself would not get in, so this shows nothing"
for machine in ("", "stranger", "gpu2"):
    assert heard(machine, SERVICE) == b"", machine
assert heard("gpu1", "engine") == b""
with socket.create_connection((WORKER, 7443), timeout=30) as plain:
    plain.settimeout(30)
    plain.sendall(GREETING)
    assert b"\0\0\0\0" not in plain.recv(64)
for address in (WORKER, COORDINATOR):
    for port in (50052, 7444, 8000):
        with socket.socket() as door:
            door.settimeout(10)
            assert door.connect_ex((address, port)) != 0, (address, port)
