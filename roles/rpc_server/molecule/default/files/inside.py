"""Knocks at llama.cpp's RPC as users of the machine, outside and inside the private network. A traceback says who gets in where."""

import errno
import subprocess
import sys
from pathlib import Path

CLOSED = (errno.EACCES, errno.ECONNREFUSED)
PORTS = [("127.0.0.1", 50052), ("127.0.0.2", 7444)]
KNOCK = """
import socket, sys
place = eval(sys.argv[1])
with socket.socket(socket.AF_UNIX if isinstance(place, str) else socket.AF_INET) as door:
    door.settimeout(5)
    sys.exit(door.connect_ex(place))
"""
ENTER = ["nsenter", "--net=/run/netns/r1prov", "--"]


def knock(user, place, enter=()):
    become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"]
    return subprocess.run([*enter, *become, sys.executable, "-c", KNOCK, repr(place)], check=False).returncode


users = [
    "games",
    "r1prov-door",
    *(line.split(":")[0] for line in Path("/etc/passwd").read_text().splitlines() if line.startswith("r1prov-")),
]
sockets = [str(path) for path in Path("/run/r1prov/tunnel").glob("*rpc*.sock")]
assert sockets
for user in dict.fromkeys(users):
    for place in sockets:
        assert user == "r1prov-tunnel" or knock(user, place) in CLOSED, (user, place)
    for place in PORTS:
        assert knock(user, place) in CLOSED, (user, place)
        # The end of the tunnel, and the engine on one machine or the server on the other.
        may = ("r1prov-tunnel", "r1prov-llama" if place[1] == 7444 else "r1prov-rpc-server")
        assert user in may or knock(user, place, ENTER) in CLOSED, (user, place)
