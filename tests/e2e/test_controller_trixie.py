"""Debian 13 as the controller: a newer Python than Debian 12 has, and with it a newer ansible-core.

A host with this checkout and an engine is the controller and the server at once. The unit tests that run there are those that import
Ansible or run it, except those that need hosts of their own. What tests our programs for hosts needs no Ansible, and Debian 13 runs these
programs where it is a host. `up` brings every role except those for Ollama and the chat page.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from r1prov import lab
from r1prov.lab.hosts import LabHost
from tests.fixtures import engine, saying, surroundings
from tests.fixtures.hub import Hub

from .conftest import HUB_TOKEN
from .people import QUESTION, told

pytestmark = pytest.mark.host

ROOT = Path(__file__).parents[2]
AUTHORITIES = "/usr/local/share/ca-certificates"
NAME = "e2e-controller"


@pytest.fixture(scope="module")
def controller(hub: Hub) -> Iterator[LabHost]:
    """A Debian 13 with an engine, which sees this checkout and trusts whom this machine trusts."""
    lab.down(NAME)
    try:
        image = engine.image("trixie", saying.to_stderr)
        host = lab.up(NAME, "trixie", image=image, binds=[f"{ROOT}:/src", f"{AUTHORITIES}:/authorities"])
        told(
            host,
            f"""
            apt-get -qq update
            mkdir -p {AUTHORITIES}
            find /authorities -name '*.crt' -exec cp {{}} {AUTHORITIES} \\;
            DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes ca-certificates
            /src/bootstrap
            """,
            limit_s=600,
        )
        yield host
    finally:
        lab.down(NAME)


def test_it_has_another_ansible_than_the_oldest_python(controller: LabHost) -> None:
    (pin,) = (
        line
        for line in (ROOT / "requirements.lock").read_text().splitlines()
        if line.startswith("ansible-core==") and ">=" in line
    )
    version = pin.split("==")[1].split()[0]
    assert f"[core {version}]" in told(controller, "$(/src/bootstrap)/ansible --version", limit_s=60)


def test_what_runs_ansible_passes_there(controller: LabHost) -> None:
    of_hosts = "ansible_collections.r1.prov.plugins.module_utils"
    tests = [
        path.relative_to(ROOT)
        for path in ROOT.glob("tests/unit/test_*.py")
        if "ansible" in path.read_text().replace(of_hosts, "")
    ]
    assert len(tests) > 20
    command = shlex.join(["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not host", *map(str, tests)])
    said = told(
        controller, f'export PATH="$(/src/bootstrap):$PATH" PYTHONDONTWRITEBYTECODE=1; cd /src; {command}', limit_s=900
    )
    assert " passed" in said


def test_it_brings_itself_to_an_answer(controller: LabHost, hub: Hub) -> None:
    keys = {
        "profile": "demo",
        "hosts": ["localhost"],
        "ollama": {"enabled": False},
        "open_webui": {"enabled": False},
        "sources": {**surroundings.sources(), "weights": [{"type": "hub", "endpoint": hub.url, "token_file": "token"}]},
    }
    said = told(
        controller,
        f"""
        mkdir site; cd site; echo {shlex.quote(yaml.safe_dump(keys))} >r1prov.yml
        umask 077; echo {HUB_TOKEN} >token; umask 022
        PATH="$(/src/bootstrap):$PATH"
        r1prov up >&2
        r1prov up --json | python3 -c 'import json, sys; print([h["changed"] for h in json.load(sys.stdin)["hosts"].values()])'
        r1prov ask {shlex.quote(QUESTION)}
        """,
        limit_s=1500,
    )
    changed, *answer = said.splitlines()
    assert changed == "[0]"
    assert "Paris" in "\n".join(answer)
