"""Knocks at the gateway from outside, in one of the ways below. Ends with a traceback where it is not as it should be.

Arguments: address, server name, file of the authority, API key, way, what that way takes.
"""

import http.client
import json
import resource
import socket
import ssl
import sys
import time
from pathlib import Path

ADDRESS, NAME, AUTHORITY, KEY, WAY, *MORE = sys.argv[1:]
TRUST = ssl.create_default_context(cafile=AUTHORITY)
RIGHT = {"Authorization": f"Bearer {KEY}"}


def connection():
    """One that has checked the certificate."""
    raw = socket.create_connection((ADDRESS, 443), timeout=60)
    opened = http.client.HTTPConnection(NAME)
    opened.sock = TRUST.wrap_socket(raw, server_hostname=NAME)
    return opened


def answer(path, headers=None, body=None):
    """Status and text. `headers` may be pairs, to give one twice; the path is sent as it is."""
    opened = connection()
    opened.putrequest("POST" if body else "GET", path)
    pairs = headers.items() if isinstance(headers, dict) else headers or ()
    for name, value in (*pairs, *([("Content-Length", str(len(body)))] if body else [])):
        opened.putheader(name, value)
    opened.endheaders(body)
    got = opened.getresponse()
    return got.status, got.read().decode()


def at_once(count, path, headers=None, body=None):
    """The statuses of so many requests, all sent before the first answer is read: a busy machine slows only the answers."""
    doors = [connection() for _ in range(count)]
    for door in doors:
        door.request("POST" if body else "GET", path, body, headers or {})
    return [door.getresponse().status for door in doors]


def question(**more):
    return json.dumps({"messages": [{"role": "user", "content": "Tell a long story."}], **more}).encode()


def refused():
    wrong = ({}, {"Authorization": KEY}, {"Authorization": f"Bearer {KEY.upper()}"}, {"Authorization": f"bearer {KEY}"})
    wrong += ({"Authorization": f"Bearer {KEY}x"}, {"Authorization": f"Bearer {KEY[:-1]}"}, {"X-Api-Key": KEY})
    for headers in wrong:
        assert answer("/v1/models", headers)[0] == 401, headers
        assert answer("/v1/chat/completions", headers, question(max_tokens=1))[0] == 401, headers
    assert answer("/v1/models", [("Authorization", "Bearer x"), *RIGHT.items()])[0] in (400, 401)
    for path in ("//v1/models", "/v1//models", "/x/../v1/models", "/v1/%6dodels", "/%761/models", "/./v1/models"):
        assert answer(path)[0] == 401, path
    # Whatever leads elsewhere than to /v1/ leads to the page, with the key or without, and the page asks for a login.
    for path in (
        "/v1/../metrics",
        "/v1/..%2fmetrics",
        "/V1/models",
        "/metrics",
        "/props",
        "/slots",
        "/v1",
        "/api/tags",
    ):
        for headers in ({}, RIGHT):
            status, text = answer(path, headers)
            assert text.startswith("log in") or status in (301, 400), (path, status, text)
            time.sleep(0.2)  # below the limit
    assert answer("/api/chat/completions", {}, question())[0] in (401, 501)


def answers():
    status, text = answer("/v1/models", RIGHT)
    assert (status, json.loads(text)["data"][0]["id"]) == (200, "demo")
    status, text = answer("/", {"X-Forwarded-For": "192.0.2.1"})
    assert status == 200
    assert "192.0.2.1" not in text
    assert answer("/health") == (200, '{"status": true}')


def streams():
    # Five times, for a busy machine may hold back what has come. A proxy that buffers holds all of them back to the end.
    assert any(share_after_the_first_piece() > 0.2 for _ in range(5))


def share_after_the_first_piece():
    """Of the time that an answer takes. It has fewer bytes than a proxy's buffer."""
    opened = connection()
    times, last = [time.monotonic()], b""
    opened.request("POST", "/v1/chat/completions", question(stream=True, max_tokens=10, ignore_eos=True), RIGHT)
    for line in opened.getresponse():
        times.append(time.monotonic())
        last = line if line.strip() else last
    assert last == b"data: [DONE]\n", last
    assert len(times) > 10
    return (times[-1] - times[1]) / (times[-1] - times[0])


def websocket():
    opened = connection()
    opened.putrequest("GET", "/ws/socket.io/")
    for name, value in (("Upgrade", "websocket"), ("Connection", "Upgrade")):
        opened.putheader(name, value)
    opened.endheaders()
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += opened.sock.recv(1)
    assert head.startswith(b"HTTP/1.1 101"), head
    answered(opened)
    return opened


def answered(opened):
    opened.sock.sendall(b"ping")
    assert opened.sock.recv(4) == b"ping"


def stays(tells, told):
    """A WebSocket that is open when the one file is made, and still answers when the other one is there."""
    opened = websocket()
    Path(tells).touch()
    while not Path(told).exists():
        answered(opened)
        time.sleep(0.5)
    answered(opened)


def limited():
    time.sleep(5)  # what was asked before this counts, too
    found = at_once(60, "/v1/models", RIGHT)
    assert found.count(200) >= 20, found
    assert 429 in found, found
    time.sleep(3)
    assert answer("/v1/models", RIGHT)[0] == 200
    body = json.dumps({"email": "a@example.com", "password": "guess"}).encode()
    assert 429 in at_once(10, "/api/v1/auths/signin", {}, body)


def taken():
    return int(answer("/taken")[1])


def misdirected():
    """Requests under another name, in the header and in the first line."""
    with_host = ("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", "GET /v1 HTTP/1.1\r\nHost: {}\r\n\r\n")
    with_host += ("GET https://{}/ HTTP/1.1\r\nHost: " + NAME + "\r\n\r\n", "GET / HTTP/1.0\r\n\r\n")
    with_host += ("GET /health HTTP/1.1\r\nHost: {}\r\n\r\n",)
    for request in with_host:
        opened = connection()
        opened.sock.sendall(request.format("evil.example.com").encode())
        head = opened.sock.recv(4096).decode()
        assert head.split()[1] == "421", (request, head)
        assert "evil" not in head, head
    opened = connection()
    opened.sock.sendall(f"GET https://{NAME}/ HTTP/1.1\r\nHost: evil.example.com\r\nConnection: close\r\n\r\n".encode())
    told = b"".join(iter(lambda: opened.sock.recv(4096), b""))
    assert b" 200 " in told.split(b"\r\n")[0], told
    assert b"evil" not in told, told


def bodies():
    """Large bodies reach the page only behind a login, and the engine only behind the key."""
    time.sleep(5)  # what was asked before this counts, too
    large, before = b"x" * (8 << 20), taken()
    for path in ("/api/v1/auths/signin", "/api/v1/auths/signup", "/", "/ws/socket.io/"):
        assert (status := begun(path, len(large))) == 413, (path, status)
    for path in (
        "/api/chat/completions",
        "/api/v1/files/",
        "/api/v1/audio/transcriptions",
        "/ollama/models/upload",
        "/api/v1/chats/new",
    ):
        assert (status := begun(path, len(large))) == 401, (path, status)
    assert begun("/v1/chat/completions", len(large)) == 401
    assert begun("/api/v1/files/", 500 << 20) == 413
    for path in ("/api/v1/auths/signup", "/api/chat/completions"):
        assert in_chunks(path, large) in (401, 413, None), path
    assert taken() - before < 2 << 20
    assert answer("/api/chat/completions", {"Authorization": "Bearer a-login"}, large)[0] == 200
    assert taken() - before >= len(large)


def begun(path, length):
    """The answer to a request whose body never comes."""
    opened = connection()
    opened.putrequest("POST", path)
    opened.putheader("Content-Length", str(length))
    opened.endheaders()
    return opened.getresponse().status


def in_chunks(path, body):
    opened = connection()
    try:
        opened.request(
            "POST", path, iter([body[i : i + 65536] for i in range(0, len(body), 65536)]), encode_chunked=True
        )
    except OSError:  # the gateway has closed the connection
        return None
    return opened.getresponse().status


def flood(tells, told):
    """8,300 connections of four bytes, opened again as they end, until the second file is there. The first one says that all were tried."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
    doors, silent, tried, until = set(), set(), 0, time.monotonic() + 60
    while not Path(told).exists() and time.monotonic() < until:
        for _ in range(min(500, 8300 - len(doors))):
            door = socket.socket()
            door.setblocking(False)
            door.connect_ex((ADDRESS, 443))
            doors.add(door)
            silent.add(door)
            tried += 1
            # A connection without a byte is one that nginx closes when it needs room.
            says_little(door, doors, silent)
        for door in tuple(doors):
            says_little(door, doors, silent)
        if tried >= 8300:
            Path(tells).touch()


def says_little(door, doors, silent):
    try:
        if door in silent:
            door.sendall(b"\x16\x03\x01\x02")
            silent.remove(door)
        elif not door.recv(1):
            raise ConnectionError
    except BlockingIOError:
        pass
    except OSError:
        doors.remove(door)
        silent.discard(door)
        door.close()


globals()[WAY](*MORE)
