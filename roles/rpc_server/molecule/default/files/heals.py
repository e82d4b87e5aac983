"""Asks the engine of this host.

heals.py answer                       a long question
heals.py heals BEFORE TOKENS LIMIT_S  until another process than BEFORE gives this answer
"""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

UNIT = "r1prov-llama-server"
KEY = Path("/etc/r1prov/llama-server/api-key").read_text()


def asked(tokens):
    question = {"prompt": "The capital of France is", "temperature": 0, "n_predict": tokens, "return_tokens": True}
    request = urllib.request.Request(
        "http://127.0.0.1:8000/completion",
        json.dumps({**question, "cache_prompt": False, "ignore_eos": True}).encode(),
        {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)["tokens"]


def shown(name):
    return subprocess.check_output(["systemctl", "show", f"--property={name}", "--value", UNIT], text=True).strip()


if sys.argv[1] == "answer":
    asked(4000)
else:
    before, wanted, limit_s = sys.argv[2], json.loads(sys.argv[3]), float(sys.argv[4])
    began = time.monotonic()
    while True:
        try:
            if shown("InvocationID") != before and asked(len(wanted)) == wanted:
                break
        except OSError:
            pass
        waited_s = time.monotonic() - began
        assert waited_s < limit_s, f"{UNIT} is {shown('ActiveState')} after {waited_s:.0f} s"
        time.sleep(0.5)
    print(f"{time.monotonic() - began:.0f} s")
