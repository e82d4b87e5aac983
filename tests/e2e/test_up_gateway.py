"""The gateway of one of the servers that test_up.py has set up: what others reach through it, and that they reach nothing else."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from r1prov import lab
from r1prov.common.errors import Exit
from r1prov.lab.hosts import LabHost

from .conftest import Operator
from .page import Page
from .test_up import changed
from .test_up_doors import MODEL, QUESTION, logged_in, opened

pytestmark = pytest.mark.host
CREDENTIALS = "/run/credentials/r1prov-gateway.service"
SCAN = """
import socket, sys
from concurrent.futures import ThreadPoolExecutor
def opens(port):
    with socket.socket() as knocking:
        knocking.settimeout(5)
        return knocking.connect_ex((sys.argv[1], port)) == 0
ports = range(1, 65536)
with ThreadPoolExecutor(64) as pool:
    print(*[port for port, found in zip(ports, pool.map(opens, ports)) if found])
"""


def open_ports(host: LabHost, seen_from: LabHost) -> list[str]:
    """Every TCP port of a host that answers another host."""
    return lab.ssh(seen_from, ["python3", "-c", SCAN, host.address], timeout_s=600).stdout.split()


@pytest.fixture(scope="module")
def door(operator: Operator, pair: list[LabHost], sources: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What `r1prov open` says of the second host, whose gateway is open as long as this lasts."""
    operator.site(
        pair,
        sources=sources,
        gateway={"server_name": pair[1].address, "tls": {"type": "local-authority"}},
    )
    done = operator.run("up", pair[1].name)
    assert done.returncode == 0, done.stderr
    with opened(operator, pair[1]) as doors:
        yield doors


def secret(operator: Operator, name: str) -> str:
    return (operator.folder / ".r1prov" / "secrets" / name).read_text()


def test_the_second_run_changes_nothing(operator: Operator, pair: list[LabHost], door: dict[str, Any]) -> None:
    assert operator.run("up", pair[1].name).returncode == 0
    assert set(changed(operator).values()) == {0}
    status = json.loads(operator.run("status", "--json", pair[1].name).stdout)
    assert status["hosts"][pair[1].name]["gateway"] == "ok"


def test_others_reach_sshd_and_the_gateway_only(pair: list[LabHost], door: dict[str, Any]) -> None:
    assert open_ports(pair[1], seen_from=pair[0]) == ["22", "443"]


def test_the_page_answers_who_logs_in(operator: Operator, pair: list[LabHost], door: dict[str, Any]) -> None:
    assert door["gateway"] == f"https://{pair[1].address}"
    page = Page(door["gateway"], trust=door["authority"])
    assert page.call("/api/models")[0] in {401, 403}
    assert page.call("/api/v1/auths/signup", {"name": "s", "email": "s@example.com", "password": "horse-7-x"})[0] == 403
    assert page.log_in(door["email"], secret(operator, "webui-admin-password")) == 200
    assert "Paris" in page.ask(MODEL, QUESTION)


def test_the_api_answers_who_has_the_key(operator: Operator, door: dict[str, Any]) -> None:
    question = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    for key, status in (("", 401), ("wrong", 401), (secret(operator, "api-key"), 200)):
        found, answer = Page(door["gateway"], key, door["authority"]).call("/v1/chat/completions", question)
        assert found == status
        assert "Paris" in (answer["choices"][0]["message"]["content"] if answer else "Paris")


def test_the_tunnel_still_leads_to_the_page(operator: Operator, door: dict[str, Any]) -> None:
    assert "Paris" in logged_in(operator, door).ask(MODEL, QUESTION)


def test_nginx_takes_every_form_of_the_configuration(pair: list[LabHost], door: dict[str, Any]) -> None:
    script = "mkdir -p /tmp/try && cat > /tmp/try/nginx.conf && nginx -t -q -c /tmp/try/nginx.conf"
    for golden in sorted((Path(__file__).parents[1] / "golden/gateway").glob("*.conf")):
        text = re.sub(
            r"/var/lib/r1prov/gateway-renew/\S+/fullchain.pem", f"{CREDENTIALS}/tls-chain", golden.read_text()
        )
        text = re.sub(r"/var/lib/r1prov/gateway-renew/\S+/privkey.pem", f"{CREDENTIALS}/tls-key", text)
        text = text.replace("/run/r1prov/gateway", "/tmp/try")  # or the pid of the one that runs would be overwritten
        done = subprocess.run([*pair[1].ssh_argv(), script], input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{golden.name}: {done.stderr}"


def test_a_certificate_for_another_name_is_refused_at_once(
    operator: Operator, pair: list[LabHost], sources: dict[str, Any], door: dict[str, Any]
) -> None:
    tls = {"type": "certificate", "chain": ".r1prov/authority/server.crt", "key": ".r1prov/authority/server.key"}
    operator.site(pair, sources=sources, gateway={"server_name": "r1.example.com", "tls": tls})
    done = operator.run("up", pair[1].name, limit_s=30)
    assert done.returncode == Exit.SITE
    assert "not for r1.example.com" in done.stderr


def test_a_site_without_a_gateway_closes_it(
    operator: Operator, pair: list[LabHost], sources: dict[str, Any], door: dict[str, Any]
) -> None:
    operator.site(pair, sources=sources)
    done = operator.run("up", pair[1].name)
    assert done.returncode == 0, done.stderr
    assert open_ports(pair[1], seen_from=pair[0]) == ["22"]
    left = "find / -xdev -path /proc -prune -o -name '*r1prov-gateway*' -print; getent passwd r1prov-gateway"
    assert lab.ssh(pair[1], ["sh", "-c", left]).stdout == ""
