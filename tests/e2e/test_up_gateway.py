"""One fresh server: what the GPU profiles would bring to it, then its gateway, through which others reach the page and the API alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from r1prov import lab
from r1prov.common.errors import Exit
from r1prov.lab.hosts import LabHost
from tests import golden
from tests.drift import matrix
from tests.golden import assert_golden, kept

from .page import Page
from .people import MODEL, QUESTION, Operator, told

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
    done = lab.ssh(seen_from, ["python3", "-c", SCAN, host.address], timeout_s=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def files_shown(talk: str) -> dict[str, str]:
    """New files of our services that a `--check --diff` shows, by name: units, and what an engine or web server reads."""
    shown = re.findall(r"^\+\+\+ after: \S*/(\S+)\n@@ .* @@\n((?:\+.*\n)+)", talk, re.MULTILINE)
    ours = re.compile(
        r"r1prov-(?!.*-door).*\.service|.*\.j2"
    )  # a door is alike for all; tests/unit/test_service_unit.py has one
    # The RAM of this machine decides how much of it is for past prompts.
    return {
        name.removesuffix(".j2"): re.sub(
            r"--cache-ram \d+", "--cache-ram MIB", re.sub(r"^\+", "", text, flags=re.MULTILINE)
        )
        for name, text in shown
        if ours.fullmatch(name) and name != "r1prov-weights.service"  # its addresses are this machine's
    }


@pytest.fixture(scope="module")
def example() -> dict[str, str]:
    """The files of the 4x4090, which those of the 4xh800 are held against."""
    return {}


@pytest.mark.parametrize("profile", ["4x4090", "4xh800"])
def test_a_gpu_profile_passes_a_check_run_on_a_fresh_host(
    alone: LabHost, sources: dict[str, Any], tmp_path: Path, example: dict[str, str], profile: str
) -> None:
    other = Operator(tmp_path)
    override = ["gpu_count", "ram", "floor", "disk", "driver", "cpu"]
    other.site([alone], sources=sources, profile=profile, override=override)
    files = files_shown(other.does("up", "--check", "--diff").stderr)
    if profile == "4x4090":
        example.update(files)
        assert_golden(files, "services/4x4090")
    else:
        assert_golden(kept(files, example), f"services/{profile}")


@pytest.fixture(scope="module")
def door(owner: Operator, gateway: LabHost) -> Iterator[dict[str, Any]]:
    """What `r1prov open` says of the host, whose gateway is open as long as this lasts."""
    with owner.opens(gateway) as doors:
        yield doors


def test_status_tells_of_the_gateway(owner: Operator, alone: LabHost, door: dict[str, Any]) -> None:
    status = json.loads(owner.does("status", "--json").stdout)
    assert status["hosts"][alone.name]["gateway"] == "ok"


def test_others_reach_sshd_and_the_gateway_only(alone: LabHost, neighbour: LabHost, door: dict[str, Any]) -> None:
    assert open_ports(alone, seen_from=neighbour) == ["22", "443"]


def test_the_page_answers_who_logs_in(owner: Operator, alone: LabHost, door: dict[str, Any]) -> None:
    assert door["gateway"] == f"https://{alone.address}"
    page = Page(door["gateway"], trust=door["authority"])
    assert page.call("/api/models")[0] in {401, 403}
    assert page.call("/api/v1/auths/signup", {"name": "s", "email": "s@example.com", "password": "horse-7-x"})[0] == 403
    assert page.log_in(door["email"], owner.secret("webui-admin-password")) == 200
    before = requests_of_the_site(owner)
    assert "Paris" in page.ask(MODEL, QUESTION)
    assert requests_of_the_site(owner) == before + 1, "the page does not ask through the balancer"


def requests_of_the_site(owner: Operator) -> int:
    """How many questions the balancer has had with the site's own key."""
    found = json.loads(owner.does("keys", "list", "--json").stdout)["keys"]
    return int(next(key["requests"] for key in found if key["name"] == "site"))


def asked(door: dict[str, Any], key: str) -> tuple[int, Any]:
    """What the API answers to a question that comes with a key."""
    question = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    return Page(door["gateway"], key, door["authority"]).call("/v1/chat/completions", question)


def test_the_api_answers_who_has_the_key(owner: Operator, door: dict[str, Any]) -> None:
    assert asked(door, "") == asked(door, "wrong") == (401, None)
    status, answer = asked(door, owner.secret("api-key"))
    assert status == 200
    assert "Paris" in answer["choices"][0]["message"]["content"]


def test_a_key_by_name_is_one_until_it_is_revoked(owner: Operator, alone: LabHost, door: dict[str, Any]) -> None:
    before = told(alone, "systemctl show --property MainPID r1prov-balancer r1prov-llama-server r1prov-open-webui")
    keys = {name: owner.does("keys", "add", name).stdout.strip() for name in ("ann", "bob")}
    for key in keys.values():
        lasting(lambda key=key: asked(door, key)[0], 200)
    assert keys["ann"] not in told(alone, "cat /etc/r1prov/balancer/*; journalctl --no-pager; cat /proc/[0-9]*/cmdline")
    found = json.loads(owner.does("keys", "list", "--json").stdout)["keys"]
    assert [key["name"] for key in found] == ["site", "ann", "bob"]
    assert all(key["requests"] for key in found[1:])
    owner.does("keys", "revoke", "ann")
    lasting(lambda: asked(door, keys["ann"])[0], 401)
    assert asked(door, keys["bob"])[0] == asked(door, owner.secret("api-key"))[0] == 200
    assert before == told(
        alone, "systemctl show --property MainPID r1prov-balancer r1prov-llama-server r1prov-open-webui"
    )
    assert owner.does("drift").returncode == 0


def lasting(tell: Callable[[], int], wanted: int) -> None:
    """Wait for an answer: a new worker of the balancer takes over within seconds."""
    until = time.monotonic() + 20
    while tell() != wanted:
        assert time.monotonic() < until
        time.sleep(0.5)


def test_the_tunnel_still_leads_to_the_page(owner: Operator, door: dict[str, Any]) -> None:
    assert "Paris" in owner.logs_in(door).ask(MODEL, QUESTION)


def test_nginx_takes_every_form_of_the_configuration(alone: LabHost, door: dict[str, Any]) -> None:
    script = "mkdir -p /tmp/try && cat > /tmp/try/nginx.conf && nginx -t -q -c /tmp/try/nginx.conf"
    forms = sorted((golden.ROOT / "gateway").glob("*.conf"))
    assert len(forms) >= 5
    for form in forms:
        text = re.sub(r"/var/lib/r1prov/gateway-renew/\S+/fullchain.pem", f"{CREDENTIALS}/tls-chain", form.read_text())
        text = re.sub(r"/var/lib/r1prov/gateway-renew/\S+/privkey.pem", f"{CREDENTIALS}/tls-key", text)
        text = text.replace("/run/r1prov/gateway", "/tmp/try")  # or the pid of the one that runs would be overwritten
        done = subprocess.run([*alone.ssh_argv(), script], input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{form.name}: {done.stderr}"


def test_a_certificate_for_another_name_is_refused_before_anyone_is_contacted(
    owner: Operator, alone: LabHost, sources: dict[str, Any], door: dict[str, Any], tmp_path: Path
) -> None:
    other = Operator(tmp_path)
    folder = owner.folder / ".r1prov" / "authority"
    tls = {"type": "certificate", "chain": str(folder / "server.crt"), "key": str(folder / "server.key")}
    path = other.site([alone], sources=sources, gateway={"server_name": "r1.example.com", "tls": tls})
    path.write_text(path.read_text().replace(alone.address, "no-such-host.invalid"))
    assert "not for r1.example.com" in other.does("up", code=Exit.SITE).stderr


def test_the_host_sees_by_itself_what_drift_sees(owner: Operator, alone: LabHost, door: dict[str, Any]) -> None:
    def looked() -> dict[str, Any]:
        told(alone, "systemctl start r1prov-watch")
        return json.loads(owner.does("status", "--json").stdout)["hosts"][alone.name]["watch"]  # type: ignore[no-any-return]

    assert told(alone, "systemctl is-active r1prov-watch.timer").strip() == "active"
    clean = looked()
    assert (clean["differences"], clean["unknown"], clean["every_s"]) == ([], "", 3600)
    assert clean["asked"] > 40
    told(alone, "chmod 0777 /etc/r1prov/network; echo '# more' >> /usr/local/lib/r1prov-await-ready")
    drift = json.loads(owner.does("drift", "--json", "--diff", code=Exit.DRIFTED).stdout)["hosts"][alone.name]
    seen = looked()["differences"]
    assert len(seen) >= 2
    assert seen == drift["differences"]
    assert [each["path"] for each in drift["diffs"]] == ["/usr/local/lib/r1prov-await-ready"]
    assert "\n+# more" in drift["diffs"][0]["diff"]
    assert f"{alone.name} looked by itself" in owner.does("status").stderr
    said = told(alone, "journalctl --identifier=r1prov-watch --output=cat")
    assert all(each["what"] in said for each in seen)
    told(alone, "chmod 0755 /etc/r1prov/network; sed -i '$d' /usr/local/lib/r1prov-await-ready")
    assert looked()["differences"] == []


def test_ten_things_put_wrong_are_named_and_put_right_by_one_run(
    owner: Operator, alone: LabHost, door: dict[str, Any]
) -> None:
    """A sample of `make drift`, another one each time."""
    seed = int(os.environ.get("R1PROV_DRIFT_SEED") or time.time())
    mutations = matrix.sample(seed, 10)
    applied = matrix.apply(alone, mutations)
    before = matrix.drifted(owner, alone)
    owner.does("up")
    report, after = owner.report, matrix.drifted(owner, alone)
    outcomes = matrix.outcomes(alone, mutations, applied, before, report, after)
    missed = [each for each in outcomes if not (each.found and each.named and each.healed)]
    assert not missed, f"R1PROV_DRIFT_SEED={seed}: {missed}\n{before.text}\n{matrix.said(report)}\n{after.text}"
