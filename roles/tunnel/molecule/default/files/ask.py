"""Asks a balancer that has two engines, one of them behind the tunnel, while that is killed. Runs on the host."""

import http.client
import json
import socket
import subprocess
import threading
import time

KEY = {"Authorization": "Bearer the-key-of-ann"}
FIGURES = "/run/r1prov/balancer/master.sock"


def figures():
    """Engine -> its state, and how many questions it has had."""
    with socket.socket(socket.AF_UNIX) as door:
        door.connect(FIGURES)
        door.sendall(b"@1 show stat engines 4 -1\n")
        door.shutdown(socket.SHUT_WR)
        lines = b"".join(iter(lambda: door.recv(65536), b"")).decode().removeprefix("# ").strip().splitlines()
    keys = lines[0].split(",")
    rows = [dict(zip(keys, line.split(","), strict=False)) for line in lines[1:]]
    return {row["svname"]: (row["status"], int(row["stot"])) for row in rows}


def ask(tokens, ends):
    opened = http.client.HTTPConnection("127.0.0.1", 8010, timeout=120)
    story = [{"role": "user", "content": "Tell a story."}]
    question = json.dumps({"messages": story, "stream": True, "max_tokens": tokens, "ignore_eos": True})
    opened.request("POST", "/v1/chat/completions", question, KEY)
    try:
        answer = opened.getresponse()
        text = answer.read()
        ends.append("whole" if text.rstrip().endswith(b"[DONE]") else f"{answer.status} {text[-200:]}")
    except (http.client.HTTPException, OSError) as error:
        ends.append("cut" if isinstance(error, http.client.IncompleteRead) else repr(error))


def asked(count, tokens):
    ends = []
    threads = [threading.Thread(target=ask, args=(tokens, ends)) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, ends


def wait_for(engine, state):
    until = time.monotonic() + 20
    while figures()[engine][0] != state:
        assert time.monotonic() < until, figures()
        time.sleep(0.1)


wait_for("gpu1", "UP")
threads, ends = asked(8, 8)
for thread in threads:
    thread.join()
assert ends == ["whole"] * 8, ends
assert all(count > 1 for _, count in figures().values()), figures()

# Two answers flow, one on each way, and six questions wait.
threads, ends = asked(8, 200)
time.sleep(1)
began = time.monotonic()
subprocess.run(["systemctl", "stop", "r1prov-tunnel"], check=True)
while not ends:
    assert time.monotonic() - began < 5, "nobody was told within five seconds"
    time.sleep(0.05)
for thread in threads:
    thread.join()
assert sorted(ends) == ["cut", *["whole"] * 7], ends
wait_for("gpu1", "DOWN")
subprocess.run(["systemctl", "start", "r1prov-tunnel"], check=True)
wait_for("gpu1", "UP")
