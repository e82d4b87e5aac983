"""The lab's network: one bridge, and for each host a network namespace with one address, which is set from outside.

The kernel objects are the only state. They are found by their names (`r1prov0`, `r1vN`, `r1prov-NAME`), so that nothing stays
behind because a file was lost. Callers hold the machine's lock.
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
    """The names of the hosts that have a network namespace."""
    return {name.removeprefix(PREFIX) for name in _names("netns", "list") if name.startswith(PREFIX)}


def attach(name: str, address: str, run_dir: Path) -> None:
    """Give a host its namespace, link, address and default route. The first host brings the bridge into being."""
    _ensure_bridge(run_dir)
    namespace, link = PREFIX + name, f"r1v{address.rpartition('.')[2]}"
    mtu = _mtu()
    _ip("netns", "add", namespace)
    # The peer is made inside the namespace, so that it never lies in that of this machine.
    _ip("link", "add", link, "mtu", mtu, "type", "veth", "peer", "name", "host0", "mtu", mtu, "netns", namespace)
    _ip("link", "set", link, "master", BRIDGE, "up")
    _ip("-n", namespace, "link", "set", "lo", "up")
    _ip("-n", namespace, "address", "add", f"{address}/24", "dev", "host0")
    _ip("-n", namespace, "link", "set", "host0", "up")
    restore(name)


def detach(name: str) -> None:
    """Remove a host's namespace with its link, if there is one."""
    if name in namespaces():
        # Deleting the link first removes both ends at once. Without that, they would go some time after the namespace.
        subprocess.run(["ip", "-n", PREFIX + name, "link", "delete", "host0"], check=False, capture_output=True)
        _ip("netns", "delete", PREFIX + name)


def cut(name: str) -> None:
    """Cut a host off from the outside. This machine and the other hosts stay reachable."""
    _ip("-n", PREFIX + name, "route", "delete", "default")


def restore(name: str) -> None:
    """Give a host its route to the outside, for the first time or again."""
    _ip("-n", PREFIX + name, "route", "replace", "default", "via", GATEWAY)


def remove_bridge(run_dir: Path) -> None:
    """Restore this machine's network to what it was before the first host."""
    if _bridge_exists():
        _ip("link", "delete", BRIDGE)
    subprocess.run(["nft", "delete", "table", "ip", _TABLE], check=False, capture_output=True)
    _forward_rules("-D")
    before = run_dir / "ip_forward_before"
    if before.exists():
        _FORWARD.write_text(before.read_text())
        before.unlink()


def _ensure_bridge(run_dir: Path) -> None:
    """Set up bridge, forwarding and masquerading. Each step may have been done before, even by a run that was cut off."""
    if not _bridge_exists():
        _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("address", "replace", f"{GATEWAY}/24", "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")
    before = run_dir / "ip_forward_before"
    if _FORWARD.read_text() == "0\n":
        before.write_text("0\n")
        _FORWARD.write_text("1\n")
    # All rules are in one table of our own, so that deleting it deletes them and touches nobody else's.
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
    """Insert (`-I`) or delete (`-D`) rules of iptables that forward the bridge's packets.

    They are needed where another program, such as Docker, drops forwarded packets by default. An accept in our own table would
    not count there.
    """
    if not shutil.which("iptables"):
        return
    policy = subprocess.run(["iptables", "-S", "FORWARD"], check=False, capture_output=True, text=True).stdout
    if "-P FORWARD DROP" in policy:
        for side in ("-i", "-o"):
            rule = ["iptables", action, "FORWARD", side, BRIDGE, "-j", "ACCEPT"]
            subprocess.run(rule, check=False, capture_output=True)


def _mtu() -> str:
    """The MTU of the default route, in bytes. Tunnels and clouds often have less than 1500."""
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
        fault = f"`{' '.join(argv)}` failed: {done.stderr.strip()}"
        raise LabError(
            Problem(
                where="the lab's network", what=fault, remedy="remove what was left half made: r1prov lab down --all"
            )
        )
    return done.stdout
