"""`r1prov down`, after everything else: what it leaves, and what it was told to leave."""

from __future__ import annotations

import pytest

from r1prov import lab
from r1prov.common.errors import Exit
from r1prov.lab.hosts import LabHost

from .conftest import Operator

pytestmark = pytest.mark.host

# Caches that the lab shares among its hosts are mounted, so they are not the host's own; a reboot empties /run.
OURS = r"""
find / -xdev -path /proc -prune -o -path /run -prune -o -path /var/cache/r1prov -prune -o -path /srv -prune -o -name '*r1prov*' -print
find /srv -mindepth 2 -path /srv/r1prov/models -prune -o -print
getent passwd | grep r1prov
getent group | grep r1prov
systemctl list-unit-files --no-legend '*r1prov*'
"""
PORTS = "ss --listening --tcp --numeric --no-header | awk '{print $4}'"


def test_down_asks_first(operator: Operator, pair: list[LabHost]) -> None:
    done = operator.run("down", pair[1].name)
    assert done.returncode == Exit.USAGE
    assert "--keep-weights" in done.stderr


def test_down_leaves_nothing_but_what_it_was_told_to_leave(operator: Operator, pair: list[LabHost]) -> None:
    host = pair[1]
    kept = "find /srv/r1prov/models -type f -printf '%i %s %P\n' | sort"
    weights = lab.ssh(host, ["sh", "-c", kept]).stdout
    assert weights
    done = operator.run("down", "--keep-weights", "--yes", host.name)
    assert done.returncode == 0, done.stderr
    assert lab.ssh(host, ["sh", "-c", OURS]).stdout == ""
    ports = lab.ssh(host, ["sh", "-c", PORTS]).stdout.split()
    assert ports
    assert all(port.endswith(":22") for port in ports)
    assert lab.ssh(host, ["sh", "-c", kept]).stdout == weights


def test_the_next_up_takes_up_what_was_left(operator: Operator, pair: list[LabHost]) -> None:
    host = pair[1]
    model = "stat -c %i /srv/r1prov/models/*/*.gguf"
    before = lab.ssh(host, ["sh", "-c", model]).stdout
    done = operator.run("up", host.name)
    assert done.returncode == 0, done.stderr
    assert lab.ssh(host, ["sh", "-c", model]).stdout == before


def test_without_a_word_everything_goes(operator: Operator, pair: list[LabHost]) -> None:
    host = pair[1]
    done = operator.run("down", "--yes", host.name)
    assert done.returncode == 0, done.stderr
    assert lab.ssh(host, ["sh", "-c", "ls -A /srv"]).stdout == ""
