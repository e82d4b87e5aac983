"""Knocks at the tunnel of a host from another machine. Ends with a traceback where it is not as it should be.

Arguments: address, folder of certificates, key of the engine, way.
"""

import contextlib
import http.client
import json
import socket
import ssl
import sys
import threading
from pathlib import Path

ADDRESS, CERTIFICATES, KEY, WAY = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]
PROMPT = "a-prompt-that-nobody-else-reads"


def opened(machine, service="engine", least=ssl.TLSVersion.TLSv1_3):
    """A connection with the certificate of a machine, or with none."""
    context = ssl.create_default_context(cafile=str(CERTIFICATES / "authority.crt"))
    context.set_alpn_protocols([service])
    context.maximum_version = least
    if machine:
        context.load_cert_chain(CERTIFICATES / f"{machine}.crt", CERTIFICATES / f"{machine}.key")
    raw = socket.create_connection((ADDRESS, 7443), timeout=30)
    return context.wrap_socket(raw, server_hostname="gpu1.r1prov.internal")


def hears(machine, **more):
    """What somebody hears who asks for the health of the engine; nothing where the connection is closed."""
    try:
        door = opened(machine, **more)
        door.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: door.recv(4096), b""))
    except (ssl.SSLError, ConnectionError):
        return b""


def strangers():
    assert b"200 OK" in hears("gpu1")
    for machine in ("", "stranger", "gpu2"):
        assert hears(machine) == b"", machine
    assert hears("gpu1", service="other") == b""
    assert hears("gpu1", least=ssl.TLSVersion.TLSv1_2) == b""
    with socket.create_connection((ADDRESS, 7443), timeout=30) as plain:  # without TLS
        plain.sendall(b"GET /health HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert b"HTTP" not in plain.recv(4096)
    for port in (8000, 8010):
        with socket.socket() as door:
            door.settimeout(10)
            assert door.connect_ex((ADDRESS, port)) != 0, port


def captured():
    """Everything that goes over the network while a question is asked and answered."""
    heard, done = bytearray(), threading.Event()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3)) as tap:
        tap.settimeout(0.2)

        def listen():
            while not done.is_set():
                try:
                    packet = tap.recv(65536)
                except TimeoutError:
                    continue
                if socket.inet_aton(ADDRESS) in packet[:64]:
                    heard.extend(packet)

        thread = threading.Thread(target=listen)
        thread.start()
        asking = http.client.HTTPConnection("engine")
        asking.sock = opened("gpu1")
        question = json.dumps({"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4})
        asking.request("POST", "/v1/chat/completions", question, {"Authorization": f"Bearer {KEY}"})
        answer = asking.getresponse()
        text = answer.read().decode()
        done.set()
        thread.join()
    assert answer.status == 200, text
    assert len(heard) > len(question), "nothing was heard, so this shows nothing"
    for secret in (PROMPT, KEY, json.loads(text)["choices"][0]["message"]["content"][:12] or PROMPT, "choices"):
        assert secret.encode() not in heard, secret


globals()[WAY]()
