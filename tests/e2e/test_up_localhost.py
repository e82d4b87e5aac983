"""The controller may be the server itself: r1prov from a checkout on a fresh host, as the README says it, against `localhost`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from r1prov import lab
from r1prov.common import paths
from r1prov.lab.hosts import LabHost

pytestmark = pytest.mark.host
AUTHORITIES = "/usr/local/share/ca-certificates"


@pytest.fixture
def alone(pair: list[LabHost]) -> Iterator[LabHost]:
    """A fresh host that sees this checkout, and trusts whom this machine trusts. After `pair`, so that its engine is in the cache."""
    lab.down("e2e-alone")
    host = lab.up("e2e-alone", binds=[f"{paths.collection().resolve()}:/src", f"{AUTHORITIES}:/authorities"])
    yield host
    lab.down("e2e-alone")


def test_the_controller_may_be_the_server_itself(alone: LabHost, sources: dict[str, Any]) -> None:
    site = yaml.safe_dump({"profile": "demo", "hosts": ["localhost"], "sources": sources})
    script = f"""set -e
        apt-get -qq update >&2
        mkdir -p {AUTHORITIES}
        find /authorities -name '*.crt' -exec cp {{}} {AUTHORITIES} \\;
        DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes ca-certificates >/dev/null 2>&1
        mkdir site; cd site; echo {shlex.quote(site)} >r1prov.yml
        PATH="$(/src/bootstrap):$PATH"
        r1prov up >&2
        r1prov up --json | python3 -c 'import json, sys; print([h["changed"] for h in json.load(sys.stdin)["hosts"].values()])'
        r1prov ask "What is the capital of France? Answer in one short sentence."
    """
    done = lab.ssh(alone, ["bash", "-c", script], timeout_s=1200)
    assert done.returncode == 0, done.stderr
    assert "[0]" in done.stdout
    assert "Paris" in done.stdout
