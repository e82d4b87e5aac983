"""The controller may be the server itself: r1prov from a checkout on a fresh host, as the README says it, against `localhost`."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import yaml

from r1prov import lab
from r1prov.common import paths
from tests.fixtures import engine, saying

from .people import QUESTION, told

pytestmark = [pytest.mark.host, pytest.mark.xdist_group("localhost")]
AUTHORITIES = "/usr/local/share/ca-certificates"


def test_the_controller_may_be_the_server_itself(sources: dict[str, Any]) -> None:
    """The host sees this checkout, and trusts whom this machine trusts."""
    name, site = "e2e-itself", yaml.safe_dump({"profile": "demo", "hosts": ["localhost"], "sources": sources})
    script = f"""
        apt-get -qq update >&2
        mkdir -p {AUTHORITIES}
        find /authorities -name '*.crt' -exec cp {{}} {AUTHORITIES} \\;
        DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes ca-certificates >/dev/null 2>&1
        mkdir site; cd site; echo {shlex.quote(site)} >r1prov.yml
        PATH="$(/src/bootstrap):$PATH"
        r1prov up >&2
        r1prov up --json | python3 -c 'import json, sys; print([h["changed"] for h in json.load(sys.stdin)["hosts"].values()])'
        r1prov ask {shlex.quote(QUESTION)}
    """
    lab.down(name)
    try:
        binds = [f"{paths.collection().resolve()}:/src", f"{AUTHORITIES}:/authorities"]
        changed, *answer = told(
            lab.up(name, binds=binds, image=engine.image("bookworm", saying.to_stderr)), script, limit_s=1800
        ).splitlines()
    finally:
        lab.down(name)
    assert changed == "[0]"
    assert "Paris" in "\n".join(answer)
