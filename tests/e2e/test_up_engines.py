"""Two servers change their engine and their versions. The tests build on each other, in this order."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from r1prov.common.errors import Exit
from r1prov.lab.hosts import LabHost
from r1prov.site import TESTED_LLAMA_CPP, TESTED_OPEN_WEBUI
from tests.fixtures import ollama

from .people import IN_HASTE, MODEL, QUESTION, Operator, told

pytestmark = pytest.mark.host


def ollama_releases(pair: list[LabHost]) -> list[str]:
    return [told(host, "readlink /opt/r1prov/ollama/current").split("/")[-1] for host in pair]


def assert_served_by(engine: str, other: str, operator: Operator, pair: list[LabHost]) -> None:
    """The one engine runs and answers, the other does not run, and the page asks the one, through the balancer."""
    for host in pair:
        states = told(host, f"systemctl is-active r1prov-{engine} r1prov-{other} || true").split()
        assert states == ["active", "inactive"]
        assert "Paris" in operator.asks(host)
        with operator.opens(host) as doors:
            page = operator.logs_in(doors)
            (model,) = page.models()
            assert "Paris" in page.ask(model, QUESTION)
        path = {"llama-server": "/v1/chat/completions", "ollama": "/api/chat"}[engine]
        assert f"site POST {path} 200" in told(host, "journalctl --unit=r1prov-balancer --output=cat")


def test_two_servers_answer_by_llama_server(operator: Operator, pair: list[LabHost], sources: dict[str, Any]) -> None:
    gateway = {"server_name": "r1.example.com", "tls": {"type": "local-authority"}}
    operator.site(pair, sources=sources, gateway=gateway)
    operator.does("up")
    assert_served_by("llama-server", "ollama", operator, pair)


def test_the_engine_is_switched_and_the_page_follows(operator: Operator, pair: list[LabHost]) -> None:
    operator.does("engine", "ollama")
    assert_served_by("ollama", "llama-server", operator, pair)


def test_a_bad_upgrade_is_put_back_and_the_next_host_is_not_touched(operator: Operator, pair: list[LabHost]) -> None:
    before = ollama_releases(pair)
    talk = operator.does("upgrade", "--ollama", "9.9.9", code=Exit.RUN_FAILED).stderr
    assert f"Put back, and as before: {pair[0].name}\nNot touched: {pair[1].name}\n" in talk
    assert ollama_releases(pair) == before
    assert not [host for host in pair if "9.9.9" in told(host, "ls /opt/r1prov/ollama/releases")]
    assert "Paris" in operator.asks(pair[0])


def test_half_an_upgrade_is_left_as_it_is(operator: Operator, pair: list[LabHost]) -> None:
    """The first server cannot fetch the archive, and the second comes next nevertheless."""
    first, second = pair
    cache = "/var/cache/r1prov/ollama"
    told(first, f"rm -rf {cache}; touch {cache}")
    words = ("upgrade", "--ollama", ollama.OTHER_VERSION, *IN_HASTE, "--batch", "50%", "--keep-going")
    talk = operator.does(*words, code=Exit.RUN_FAILED).stderr
    assert f"Put back, and as before: {first.name}\nDone: {second.name}\n" in talk
    told(first, f"rm {cache}")
    talk = operator.does("up").stderr
    assert f"{second.name}: keeps Ollama {ollama.OTHER_VERSION}" in " ".join(talk.split())
    assert operator.changes == {host.name: [] for host in pair}
    versions = [release.rpartition("-")[0] for release in ollama_releases(pair)]
    assert versions == [ollama.VERSION, ollama.OTHER_VERSION]
    status = json.loads(operator.does("status", "--json").stdout)["hosts"]
    there = {"installed": ollama.OTHER_VERSION, "wanted": ollama.OTHER_VERSION, "site": ollama.VERSION}
    assert {name: host["differs"] for name, host in status.items()} == {first.name: {}, second.name: {"ollama": there}}


def test_an_upgrade_goes_host_by_host(operator: Operator, pair: list[LabHost]) -> None:
    operator.does("upgrade", "--ollama", ollama.OTHER_VERSION, *IN_HASTE)
    assert all(name.startswith(f"{ollama.OTHER_VERSION}-") for name in ollama_releases(pair))
    for host in pair:
        assert "Paris" in operator.asks(host)


def test_a_roll_out_in_two_halves_is_taken_back_without_its_source(operator: Operator, pair: list[LabHost]) -> None:
    """Nothing can be fetched to where an archive would come. A second rollback says that this is all."""
    cache = "/var/cache/r1prov/ollama"
    for host in pair:
        told(host, f"rm -rf {cache}; touch {cache}")
    inodes = [told(host, f"stat -c %i /opt/r1prov/ollama/releases/{ollama.VERSION}-*") for host in pair]
    talk = " ".join(operator.does("rollback", "--batch", "2").stderr.split())
    for host, inode in zip(pair, inodes, strict=True):
        told(host, f"rm {cache}")
        assert f"{host.name}: downgrade of Ollama from {ollama.OTHER_VERSION} to {ollama.VERSION}" in talk
        assert f"{host.name}: the release before lies there still, so nothing is fetched or built" in talk
        assert told(host, "stat -Lc %i /opt/r1prov/ollama/current") == inode
        assert "Paris" in operator.asks(host)
    assert "there is nothing before" in operator.does("rollback", code=Exit.SITE).stderr
    for host in pair:
        history = json.loads(operator.does("history", "--last", "1", "--json", host.name).stdout)
        (record,) = history["hosts"][host.name]["runs"]
        assert (record["command"], record["state"]) == ("r1prov rollback --batch 2", "ok")
    operator.does("up")
    assert operator.changes == {host.name: [] for host in pair}


def test_an_upgrade_whose_controller_was_killed_is_taken_back(operator: Operator, pair: list[LabHost]) -> None:
    """It is killed when the link on the first server leads to the new release. The lock that it has left is taken over."""
    first, second = pair
    running = operator.start("upgrade", "--ollama", ollama.OTHER_VERSION, *IN_HASTE, stderr=subprocess.DEVNULL)
    leads = f"readlink /opt/r1prov/ollama/current | grep -q releases/{ollama.OTHER_VERSION}-"
    told(first, f"for i in $(seq 1200); do if {leads}; then exit 0; fi; sleep 0.2; done; exit 1", limit_s=300)
    running.kill()
    running.wait()
    talk = " ".join(operator.does("rollback").stderr.split())
    assert f"{first.name}: downgrade of Ollama from {ollama.OTHER_VERSION} to {ollama.VERSION}" in talk
    assert f"{second.name}: there is nothing before the versions that it has" in talk
    assert [release.rpartition("-")[0] for release in ollama_releases(pair)] == [ollama.VERSION] * 2
    assert "Paris" in operator.asks(first)
    operator.does("rollback", code=Exit.SITE)
    operator.does("up")
    assert operator.changes == {host.name: [] for host in pair}


def test_the_engine_is_switched_back(operator: Operator, pair: list[LabHost]) -> None:
    operator.does("engine", "llama-server")
    assert_served_by("llama-server", "ollama", operator, pair)


def test_engine_and_page_go_to_another_version_and_back(operator: Operator, pair: list[LabHost]) -> None:
    """On one host: another compiler would have to compile the other version all over again."""
    host = pair[0]
    other = ("--llama-cpp", "0.3.35", "--open-webui", "0.12.3")
    for words, llama_cpp, open_webui in (
        (("upgrade", *other, *IN_HASTE), "0.3.35", "0.12.3"),
        (("rollback",), TESTED_LLAMA_CPP["pypi"], TESTED_OPEN_WEBUI),
    ):
        talk = operator.does(*words, host.name).stderr
        assert f"While llama-server loads the model, {host.name} will not answer; last time that took" in talk
        links = "readlink /opt/r1prov/llama.cpp/current /opt/r1prov/open-webui/current"
        releases = told(host, links).splitlines()
        assert releases[0].startswith(f"releases/{llama_cpp}-")
        assert releases[1].startswith(f"releases/{open_webui}-")
        with operator.opens(host) as doors:
            assert "Paris" in operator.logs_in(doors).ask(MODEL, QUESTION)
