"""Boots throwaway test hosts with a real systemd and a real sshd, for which no server is needed.

from r1prov import lab
host = lab.up("web", "trixie")
lab.ssh(host, ["systemctl", "is-system-running"]).stdout
lab.down("web")
"""

from r1prov.lab.base import RELEASES, Release
from r1prov.lab.hosts import (
    LabHost,
    as_platform,
    boot,
    cut,
    down,
    down_all,
    forget,
    get,
    halt,
    hosts,
    keep,
    kept,
    rebuild,
    restart,
    restore,
    ssh,
    up,
)
from r1prov.lab.needs import requirements
from r1prov.lab.network import GATEWAY

__all__ = [
    "GATEWAY",
    "RELEASES",
    "LabHost",
    "Release",
    "as_platform",
    "boot",
    "cut",
    "down",
    "down_all",
    "forget",
    "get",
    "halt",
    "hosts",
    "keep",
    "kept",
    "rebuild",
    "requirements",
    "restart",
    "restore",
    "ssh",
    "up",
]
