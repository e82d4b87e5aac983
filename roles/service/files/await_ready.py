#!/usr/bin/python3
"""Waits until a URL answers 200. Run by systemd after a service's start: ends with 1 when the service's main process has ended.

At a URL such as `tcp://127.0.0.1:50052` nobody is asked. It is enough that somebody listens there, because a server that has one client at
a time would take whoever asks for that one.
"""

import os
import ssl
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

url, main_pid = sys.argv[1], int(os.environ["MAINPID"])
# It is this host that is asked, whatever name its certificate is for.
anyone = ssl._create_unverified_context()  # noqa: S323, SLF001
no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=anyone))


def is_ready() -> bool:
    """Whether the URL answers, or somebody listens there."""
    asked = urlsplit(url)
    if asked.scheme == "tcp":
        listens = f":{asked.port:04X} 00000000:0000 0A "
        return listens in Path("/proc/self/net/tcp").read_text(encoding="ascii")
    try:
        with no_proxy.open(url, timeout=5):
            return True
    except OSError:  # nothing listens yet, or HTTP 503: still loading
        return False


while True:
    # This comes first: another program on the same port must not be taken for a service that has just failed because the port is taken.
    try:
        os.kill(main_pid, 0)
    except ProcessLookupError:
        sys.exit(1)
    if is_ready():
        break
    time.sleep(0.2)
