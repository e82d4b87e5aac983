"""Compares the gateway's configuration with golden files. tests/e2e/test_up_gateway.py lets nginx check it on a host."""

from __future__ import annotations

import os
from pathlib import Path

import jinja2
import pytest
import yaml
from loader import Loader

from r1prov import inventory, site
from r1prov.decision import decide

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden/gateway"
ACME = "/var/lib/r1prov/gateway-renew"
# The role's vars compute these from its variables.
MADE = {
    "__gateway_credentials": "/run/credentials/r1prov-gateway.service",
    "__gateway_chain": "/run/credentials/r1prov-gateway.service/tls-chain",
    "__gateway_tls_key": "/run/credentials/r1prov-gateway.service/tls-key",
    "__gateway_waits": False,
    "__gateway_reached": "127.0.0.1",
    "__gateway_name": "r1.example.com",
    "__gateway_authority": "r1.example.com",
    "__gateway_public_port": "443",
    "__gateway_access_log": "syslog:server=unix:/dev/log,tag=r1prov_gateway,nohostname",
}
BOTH = MADE | {
    "gateway_acme_directory": "",
    "gateway_external_tls": False,
    "gateway_server_name": "r1.example.com",
    "gateway_address": "0.0.0.0",
    "gateway_port": 443,
    "gateway_page_url": "http://127.0.0.1:8080",
    "gateway_api_url": "http://127.0.0.1:8010",
    "gateway_requests_per_second": 20,
    "gateway_open_requests": 500,
    "gateway_upload_bytes": 104857600,
}
DECLARED = {
    "both": BOTH,
    "api": BOTH | {"gateway_page_url": ""},
    "page": BOTH | {"gateway_api_url": "", "gateway_address": "::"},
    "acme": BOTH
    | {
        "gateway_acme_directory": "https://acme.example.com/directory",
        "__gateway_acme": ACME,
        "__gateway_chain": f"{ACME}/config/live/r1.example.com/fullchain.pem",
        "__gateway_tls_key": f"{ACME}/config/live/r1.example.com/privkey.pem",
    },
}
DECLARED["external"] = BOTH | {
    "gateway_external_tls": True,
    "gateway_port": 6006,
    "__gateway_public_port": "8443",
    "__gateway_authority": "r1.example.com:8443",
    "__gateway_access_log": "/dev/stdout",
}
DECLARED["waits"] = DECLARED["acme"] | {"__gateway_waits": True}


def rendered(values: dict) -> str:
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return environment.from_string((ROOT / "roles/gateway/templates/nginx.conf.j2").read_text()).render(values)


@pytest.mark.parametrize("name", DECLARED)
def test_configuration_is_the_golden_one(name: str) -> None:
    golden = GOLDEN / f"{name}.conf"
    if os.environ.get("R1PROV_GOLDEN") == "write":
        golden.write_text(rendered(DECLARED[name]))
    assert rendered(DECLARED[name]) == golden.read_text()


def of_profile(profile: str, **keys: object) -> dict:
    """The role's variables on a reference machine, including the defaults."""
    gateway = {"server_name": "r1.example.com", "tls": {"type": "local-authority"}}
    chosen = site.load(None, profile=profile, hosts=["gpu1"], gateway=gateway, **keys)
    values = yaml.load(inventory.rendered(decide(chosen))["group_vars/all.yml"], Loader=Loader)
    defaults = yaml.safe_load((ROOT / "roles/gateway/defaults/main.yml").read_text())
    return MADE | defaults | values


@pytest.mark.parametrize(
    ("profile", "engine"), [("4x4090", "llama-server"), ("4xh800", "llama-server"), ("4x4090", "ollama")]
)
def test_a_reference_machine_is_given_the_configuration_for_page_and_api(profile: str, engine: str) -> None:
    """Which engine answers is the balancer's business, and so is its key."""
    assert rendered(of_profile(profile, engine=engine)) == (GOLDEN / "both.conf").read_text()
