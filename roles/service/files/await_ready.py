#!/usr/bin/python3
"""Waits until a URL answers 200. Run by systemd after a service's start: ends with 1 when the service's main process has ended."""

import os
import ssl
import sys
import time
import urllib.request

url, main_pid = sys.argv[1], int(os.environ["MAINPID"])
# It is this host that is asked, whatever name its certificate is for.
anyone = ssl._create_unverified_context()  # noqa: S323, SLF001
no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=anyone))
while True:
    # This comes first: another program on the same port must not be taken for a service that has just failed because the port is taken.
    try:
        os.kill(main_pid, 0)
    except ProcessLookupError:
        sys.exit(1)
    try:
        with no_proxy.open(url, timeout=5):
            break
    except OSError:  # nothing listens yet, or HTTP 503: still loading
        time.sleep(0.2)
