"""Acts on the verdict of the watcher: restarts an engine that does not live, or stops it for good.

    /usr/bin/python3 -I /usr/local/lib/r1prov-liveness/act.py systemctl r1prov-llama-server.service

Root runs it when r1prov-liveness.service has ended, and so it is short: the watcher can do no more to the host than these two things to
this one unit. The words are the program that controls units, and the unit. The environment says how the watcher has ended.

An engine that is about to start is left alone, whatever the watcher has seen: it may load for as long as its unit lets it. The unit is
stopped before it is started, so whoever balances between several engines sees a closed port meanwhile.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

VERBS = {"70": "restart", "71": "stop", "72": "restart"}
"""What each verdict of the watcher means."""
PATIENCE_S = 10
"""An engine that does not live has no answer to end. One that has not ended after so long does not hear the signal, and is killed."""


def main() -> int:
    """Does what the verdict says. Returns the exit code."""
    systemctl, unit = sys.argv[1:]
    verb = VERBS.get(os.environ.get("EXIT_STATUS", ""))
    if not verb or os.environ.get("EXIT_CODE") != "exited":
        return 0

    def state() -> str:
        shown = subprocess.run(
            [systemctl, "show", "--property=ActiveState", unit], capture_output=True, text=True, check=True
        )
        return shown.stdout.strip().removeprefix("ActiveState=")

    if (now := state()) != "active":
        sys.stdout.write(f"{unit} is {now}, and is left as it is\n")
        return 0
    # These starts are counted by the watcher. They must not use up the starts that systemd allows an engine that crashes.
    subprocess.run([systemctl, "reset-failed", unit], check=False)
    subprocess.run([systemctl, "--no-block", verb, unit], check=True)
    for _ in range(PATIENCE_S):
        time.sleep(1)
        if state() not in ("active", "deactivating"):
            return 0
    if state() == "deactivating":
        sys.stdout.write(f"{unit} does not end, and is killed\n")
        sys.stdout.flush()
        subprocess.run([systemctl, "kill", "--signal=KILL", unit], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
