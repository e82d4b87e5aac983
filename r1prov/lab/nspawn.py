"""Starts the processes of a host: a supervisor, systemd-nspawn below it, and the host's first process below that."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from r1prov.lab import caches, container

if TYPE_CHECKING:
    from r1prov.lab.base import Release
    from r1prov.lab.hosts import LabHost

# systemd 258 and newer refuse the control groups of old, and a container has those of its machine unless it is told otherwise.
_NEW_CONTROL_GROUPS: dict[Release, dict[str, str]] = {"forky": {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}}


def start(host: LabHost, lower: str, shared: Path) -> subprocess.Popen[bytes]:
    """Start a host on these lower layers. It outlives this process.

    Args:
        host: the host, whose folders and network exist.
        lower: the lower layers of its disk for the kernel's `lowerdir` option.
        shared: the folder that all containers of the lab share.
    """
    if host.container:
        environment = container.ENVIRONMENT
        options = container.nspawn_options(host.directory, shared, rules=host.rules)
        command = container.first_command(rules=host.rules)
    else:
        environment = _NEW_CONTROL_GROUPS.get(host.release, {})
        options, command = _server_options(bpf=host.bpf), []
    argv = [
        "systemd-nspawn",
        f"--machine={host.machine}",
        f"--hostname={host.name}",
        f"--directory={host.directory / 'root'}",
        f"--network-namespace-path=/run/netns/{host.machine}",
        # These two let it run where the outer machine has no systemd, or one that would not register it.
        "--register=no",
        "--keep-unit",
        "--link-journal=no",  # the journal of the host must not appear in that of this machine
        "--resolv-conf=off",  # it is written already, without resolvers that listen on this machine's loopback
        "--timezone=off",
        "--console=read-only",
        *options,
        *(f"--bind={pair}" for pair in (*caches.binds(), *host.binds)),
        *command,
    ]
    supervise = Path(__file__).with_name("supervise.sh")
    # `nice`: a host would inherit the priority of whoever boots it, and its services would not run as they are declared.
    # `slave`: mounts that go away on this machine go away in there too, and none of its own mounts appears here.
    around = ("nice", "-n", str(-os.nice(0)), "unshare", "--mount", "--propagation=slave")
    with (host.directory / "console.log").open("wb") as console:
        return subprocess.Popen(
            [*around, "sh", supervise, host.machine, lower, host.directory, *argv],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=os.environ | environment,
            start_new_session=True,
        )


def _server_options(*, bpf: bool) -> list[str]:
    return [
        "--boot",
        "--capability=CAP_NET_ADMIN",  # root of a server may change its network, and the namespace is the host's own
        *(("--capability=CAP_BPF", "--system-call-filter=bpf") if bpf else ()),
    ]
