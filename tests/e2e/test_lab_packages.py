"""What r1prov writes for programs of the distribution is understood by those of the oldest and of the newest release of the lab."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jinja2
import pytest
import yaml
from ansible_collections.r1.prov.plugins.module_utils import balancer_drained

from r1prov import lab

from .conftest import fresh
from .people import told

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("bootable")]

ROOT = Path(__file__).parents[2]
# The other way to say it is unknown before nginx 1.25.1, and so to Debian 12 and to Ubuntu 22.04 and 24.04.
OLD_HTTP2 = 'the "listen ... http2" directive is deprecated'
LIMITS = {"__gateway_listens": [80, 443], "gateway_connections_per_second": 20}
# A service that has everything for which rules have a form.
RULED = {
    "service_user": "nobody",
    "service_port": 8000,
    "service_calls_itself": True,
    "service_callers": "nogroup",
    "__service_may_call": [8000, 8001],
    "__service_members": [65534],
    "__service_namespace": "",
    "__service_alone": "alone_nobody",
}
PREPARED = """
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq --no-install-recommends install nginx haproxy openssl nftables > /dev/null 2>&1
mkdir -p /run/r1prov/gateway /run/credentials/r1prov-gateway.service /etc/r1prov/network /etc/r1prov/balancer /etc/try
mkdir -p /var/lib/r1prov/balancer
cd /run/credentials/r1prov-gateway.service
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=r1 -keyout tls-key -out tls-chain 2> /dev/null
live=/var/lib/r1prov/gateway-renew/config/live/r1.example.com
mkdir -p $live
cp tls-key $live/privkey.pem
cp tls-chain $live/fullchain.pem
"""


@pytest.fixture(scope="module", params=["bullseye", "forky"])
def host(bootable: None, request: pytest.FixtureRequest) -> Iterator[lab.LabHost]:
    with fresh({f"lab-packages-{request.param}": request.param}) as (host,):
        told(host, PREPARED)
        yield host


def written(host: lab.LabHost, path: str | Path, text: str) -> None:
    told(host, f"cat > {path} <<'THE END'\n{text}THE END\n")


@pytest.mark.parametrize("name", ["both", "api", "page", "acme", "waits", "external"])
def test_nginx_takes_the_gateway(host: lab.LabHost, name: str) -> None:
    written(host, "/etc/try/nginx.conf", (ROOT / f"tests/golden/gateway/{name}.conf").read_text())
    said = told(host, "nginx -t -c /etc/try/nginx.conf 2>&1").splitlines()
    assert [line for line in said if "[warn]" in line and OLD_HTTP2 not in line] == []


def test_haproxy_takes_the_balancer(host: lab.LabHost) -> None:
    written(host, "/etc/r1prov/balancer/keys.map", f"# A comment, as the role writes it\n{'0' * 64} ann\n")
    written(host, balancer_drained.FILE, balancer_drained.record(["engine"], {"engine": "127.0.0.1:8000"}))
    written(host, "/etc/try/haproxy.cfg", (ROOT / "tests/golden/balancer/haproxy.cfg").read_text())
    assert "[WARNING]" not in told(host, "haproxy -c -f /etc/try/haproxy.cfg 2>&1")


def test_nftables_takes_the_rules(host: lab.LabHost) -> None:
    written(host, "/etc/r1prov/network/network.nft", (ROOT / "roles/service/files/network.nft").read_text())
    known = yaml.safe_load((ROOT / "roles/service/vars/main.yml").read_text())
    rules = (ROOT / "roles/service/templates/rules.nft.j2").read_text()
    values = RULED | {"__service_answer": known["__service_answer"]}
    template = jinja2.Template(rules, keep_trailing_newline=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    written(host, "/etc/r1prov/network/r1prov-one.nft", template.render(values))
    limits = (ROOT / "roles/gateway/templates/limits.nft.j2").read_text()
    written(host, "/etc/try/limits.nft", jinja2.Template(limits, keep_trailing_newline=True).render(LIMITS))
    told(host, "nft --file /etc/r1prov/network/network.nft && nft --file /etc/try/limits.nft")
    assert "update @alone_nobody" in told(host, "nft list chain inet r1prov called")
    assert 'skuid != "nobody" drop' in told(host, "nft list chain inet r1prov answers").replace("65534", '"nobody"')
    assert "limit rate over 20/second" in told(host, "nft list table inet r1prov_gateway")
