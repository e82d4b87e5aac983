"""Asks a port of this host once, and prints the status of the answer.

    ask.py PORT HOW PATH

HOW is the Host header; or `close`, which sends a deletion of the model and closes at once, so that the kernel lists the connection as
root's; or `second`, which sends another request on the same connection, with another Host header.
"""

import socket
import struct
import sys
import time

PORT, HOW, PATH = sys.argv[1:]
try:
    connection = socket.create_connection(("127.0.0.1", int(PORT)), timeout=10)
except ConnectionRefusedError:
    sys.exit(print("refused"))
except TimeoutError:
    sys.exit(print("silent"))
if HOW == "close":
    body = b'{"model": "demo"}'
    head = f"DELETE {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    for _ in range(50):
        connection.sendall(head.encode() + body)
        connection.close()
        connection = socket.create_connection(("127.0.0.1", int(PORT)), timeout=10)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    time.sleep(1)
    sys.exit(print("gone"))
if HOW == "second":
    request = "".join(f"GET {PATH} HTTP/1.1\r\nHost: {host}\r\n\r\n" for host in ("127.0.0.1", "x.local"))
else:
    request = f"GET {PATH} HTTP/1.1\r\nHost: {HOW}\r\nConnection: close\r\n\r\n"
connection.sendall(request.encode())
heard = b""
while block := connection.recv(65536):
    heard += block
statuses = [part[:3].decode() for part in heard.split(b"HTTP/1.1 ")[1:]]
print(" ".join(statuses))
