"""The lab's network: one bridge, and per host a network namespace with one address, set from outside.

The kernel objects are the state: what exists is found by name (`r1prov0`, `r1vN`, `r1prov-NAME`), so that nothing can be
left behind because a file was lost. Callers hold the machine's lock.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

from r1prov.common.errors import LabError, Problem

BRIDGE = "r1prov0"
PREFIX = "r1prov-"
GATEWAY = "10.209.0.1"
_SUBNET = "10.209.0.0/24"
_TABLE = "r1prov_lab"
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


def namespaces() -> set[str]:
    """Names of the hosts that have a network namespace."""
    return {name.removeprefix(PREFIX) for name in _names("netns", "list") if name.startswith(PREFIX)}


def attach(name: str, address: str, run_dir: Path) -> None:
    """Gives a host its namespace, link, address and default route; makes the bridge for the first host."""
    _ensure_bridge(run_dir)
    namespace, link = PREFIX + name, f"r1v{address.rpartition('.')[2]}"
    mtu = _mtu()
    _ip("netns", "add", namespace)
    # The peer is born inside the namespace: there is no moment at which it lies about in ours.
    _ip("link", "add", link, "mtu", mtu, "type", "veth", "peer", "name", "host0", "mtu", mtu, "netns", namespace)
    _ip("link", "set", link, "master", BRIDGE, "up")
    _ip("-n", namespace, "link", "set", "lo", "up")
    _ip("-n", namespace, "address", "add", f"{address}/24", "dev", "host0")
    _ip("-n", namespace, "link", "set", "host0", "up")
    restore(name)


def detach(name: str) -> None:
    """Removes a host's namespace with its link; does nothing where there is none."""
    if name in namespaces():
        # Deleting the link first takes both ends at once; with the namespace alone it would go some time later.
        subprocess.run(["ip", "-n", PREFIX + name, "link", "delete", "host0"], check=False, capture_output=True)
        _ip("netns", "delete", PREFIX + name)


def cut(name: str) -> None:
    """Takes a host's way to the outside; this machine and the other hosts stay reachable."""
    _ip("-n", PREFIX + name, "route", "delete", "default")


def restore(name: str) -> None:
    """Gives a host its way to the outside (back)."""
    _ip("-n", PREFIX + name, "route", "replace", "default", "via", GATEWAY)


def remove_bridge(run_dir: Path) -> None:
    """Leaves this machine's network as it was before the first host."""
    if _bridge_exists():
        _ip("link", "delete", BRIDGE)
    subprocess.run(["nft", "delete", "table", "ip", _TABLE], check=False, capture_output=True)
    _forward_rules("-D")
    before = run_dir / "ip_forward_before"
    if before.exists():
        _FORWARD.write_text(before.read_text())
        before.unlink()


def _ensure_bridge(run_dir: Path) -> None:
    """Bridge, forwarding and masquerading; each step may have been done before, also by a run that was cut off."""
    if not _bridge_exists():
        _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("address", "replace", f"{GATEWAY}/24", "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")
    before = run_dir / "ip_forward_before"
    if _FORWARD.read_text() == "0\n":
        before.write_text("0\n")
        _FORWARD.write_text("1\n")
    # One table of our own: deleting it deletes every rule, and nobody else's rules are touched.
    rules = f"""
        table ip {_TABLE}
        delete table ip {_TABLE}
        table ip {_TABLE} {{
            chain postrouting {{
                type nat hook postrouting priority srcnat
                ip saddr {_SUBNET} oifname != "{BRIDGE}" masquerade
            }}
        }}
    """
    _run("nft", "--file", "-", text=rules)
    _forward_rules("-D")
    _forward_rules("-I")


def _bridge_exists() -> bool:
    return any(link["ifname"] == BRIDGE for link in json.loads(_ip("-json", "link", "show", "type", "bridge") or "[]"))


def _forward_rules(action: str) -> None:
    """Where another program (Docker) drops forwarded packets by default, an accept in our own table would not count."""
    if not shutil.which("iptables"):
        return
    policy = subprocess.run(["iptables", "-S", "FORWARD"], check=False, capture_output=True, text=True).stdout
    if "-P FORWARD DROP" in policy:
        for side in ("-i", "-o"):
            rule = ["iptables", action, "FORWARD", side, BRIDGE, "-j", "ACCEPT"]
            subprocess.run(rule, check=False, capture_output=True)


def _mtu() -> str:
    """The size of packets that the way out takes: tunnels and clouds often have less than 1500 bytes."""
    routes = json.loads(_ip("-json", "route", "show", "default") or "[]")
    if not routes:
        return "1500"
    return str(json.loads(_ip("-json", "link", "show", "dev", routes[0]["dev"]))[0]["mtu"])


def _names(*argv: str) -> list[str]:
    return re.findall(r"^(\S+)", _ip(*argv), flags=re.MULTILINE)


def _ip(*argv: str) -> str:
    return _run("ip", *argv)


def _run(*argv: str, text: str = "") -> str:
    done = subprocess.run(argv, input=text, check=False, capture_output=True, text=True)
    if done.returncode:
        what = f"`{' '.join(argv)}` failed: {done.stderr.strip()}"
        raise LabError(
            Problem(where="the lab's network", what=what, remedy="remove what is half made: r1prov lab down --all")
        )
    return done.stdout
