"""`r1prov tune` and `r1prov bench --modes` on a real host.

What is best on a busy lab host means little: that the service comes back, and keeps what was found, is what counts.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from benchmarks import order
from r1prov import lab
from r1prov.common.errors import Exit
from r1prov.lab.hosts import LabHost
from tests.fixtures import engine, saying

from .conftest import fresh
from .people import Operator, told

pytestmark = pytest.mark.host
UNIT = "/etc/systemd/system/r1prov-llama-server.service"
HEALTH = "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health')"
STARTED = "systemctl show r1prov-llama-server --property=InvocationID"


@pytest.fixture(scope="module")
def host(bootable: None) -> Iterator[LabHost]:
    """A host of its own, for that it pauses must disturb nobody; its engine is compiled already."""
    with fresh({"e2e-tune": "bookworm"}, engine.image("bookworm", saying.to_stderr)) as (host,):
        yield host


@pytest.fixture(scope="module")
def tuner(tmp_path_factory: pytest.TempPathFactory) -> Operator:
    return Operator(tmp_path_factory.mktemp("tuner"))


@pytest.fixture(scope="module")
def keys(sources: dict[str, Any]) -> dict[str, Any]:
    """A context so short that the measured prompt is. Ollama is there to be compared with."""
    short = {"exchanges": [{"prompt": 48, "answer": 96}]}
    small = {"open_webui": {"enabled": False}, "context_per_slot": 512, "workload": short}
    return {"sources": sources, **small}


@pytest.fixture(scope="module", autouse=True)
def served(tuner: Operator, host: LabHost, keys: dict[str, Any]) -> None:
    """Before there is a service, there is nothing to tune; then there is."""
    tuner.site([host], **keys)
    assert "run `r1prov up` first" in tuner.does("tune", "--yes", code=Exit.UNHEALTHY).stderr
    tuner.does("up")


@pytest.fixture
def kept(tuner: Operator, host: LabHost) -> Path:
    """Where the site keeps what its host was tuned to."""
    return tuner.folder / ".r1prov" / "tuned" / f"{host.name}.json"


def answers(host: LabHost) -> bool:
    return lab.ssh(host, ["python3", "-c", HEALTH]).returncode == 0


def wait_for(host: LabHost, condition: str, limit_s: float = 300) -> None:
    deadline = time.monotonic() + limit_s
    while lab.ssh(host, ["sh", "-c", condition]).returncode:
        assert time.monotonic() < deadline, condition
        time.sleep(0.5)


@contextmanager
def picky_engine(host: LabHost, script: str) -> Iterator[None]:
    """Lets a script decide whether the engine starts.

    A run would make a damaged release anew and remove a drop-in for the engine alone. What an administrator says of all services stays.
    """
    folder = "/etc/systemd/system/service.d"
    ours = "[ \\$1 = r1prov-llama-server.service ] || exit 0"
    told(
        host,
        f'mkdir -p {folder}; printf \'#!/bin/sh\\n%s\\n\' "{ours}" "{script}" > /opt/picky; chmod 755 /opt/picky;'
        f" printf '[Service]\\nExecStartPre=/opt/picky %%n\\n' > {folder}/picky.conf; systemctl daemon-reload",
    )
    try:
        yield
    finally:
        told(host, f"rm {folder}/picky.conf /opt/picky; systemctl daemon-reload; systemctl restart r1prov-llama-server")


def pretend_two_threads_are_best(host: LabHost, kept: Path) -> None:
    """The controller has lost what was measured, and the host remembers it otherwise."""
    script = (
        "import json; p = '/var/lib/r1prov/measure/settings.json'; r = json.load(open(p));"
        " r['chosen'] = {**r['measured'][0]['chosen'], 'threads': '2'}; json.dump(r, open(p, 'w'))"
    )
    told(host, f'python3 -c "{script}"')
    kept.unlink(missing_ok=True)


def test_it_says_what_it_would_do_and_asks(tuner: Operator, host: LabHost, kept: Path) -> None:
    talk = tuner.does("tune", "--check").stderr
    assert "settings to measure, within 20m" in talk
    assert "micro-batch 512 as planned, micro-batch 256" in talk
    talk = tuner.does("tune", code=Exit.USAGE).stderr
    assert "will not answer, for up to 20m" in talk
    assert "say --yes" in talk
    assert not kept.exists()
    assert answers(host)


def test_ctrl_c_ends_the_pause(tuner: Operator, host: LabHost, kept: Path) -> None:
    running = tuner.start("tune", "--yes", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for(host, "systemctl is-active r1prov-measure | grep -q activating")
    wait_for(host, "systemctl is-active r1prov-llama-server | grep -q inactive")
    assert not answers(host)
    said = r"a measurement of \S+ \(r1prov tune --yes\) has paused llama-server since \d\d:\d\d; it ends at \d\d:\d\d at the latest"
    for words in (["status"], ["ask", "1+1?"]):
        assert re.search(said, " ".join(tuner.does(*words, code=Exit.UNHEALTHY).stderr.split()))
    os.killpg(running.pid, signal.SIGINT)
    _, talk = running.communicate(timeout=300)
    assert running.returncode == Exit.INTERRUPTED, talk
    assert "the same command goes on there" in talk
    wait_for(host, "systemctl is-active --quiet r1prov-llama-server")
    assert answers(host)
    assert not kept.exists()


def test_it_measures_keeps_the_best_and_serves_with_it(tuner: Operator, host: LabHost, kept: Path) -> None:
    done = tuner.does("tune", "--yes", "--json")
    talk = done.stderr
    found = json.loads(done.stdout)["hosts"][host.name]
    assert found == json.loads(kept.read_text())
    assert "the plan's own" in talk
    assert "judged by the mean seconds of an exchange" in talk
    assert min(each["exchange_s"] for each in found["measured"] if not each["failed"]) > 0
    assert f"kept: {found['reason']}" in talk
    rates = [each["decode_tokens_per_second"] for each in found["measured"] if not each["failed"]]
    assert len(rates) > 1
    assert min(rates) > 0
    assert found["served"]
    assert answers(host)


def test_again_there_is_nothing_to_do(tuner: Operator, host: LabHost, kept: Path) -> None:
    before = kept.read_text()
    started = told(host, STARTED)
    assert "--force measures again" in tuner.does("tune").stderr
    assert kept.read_text() == before
    tuner.does("up")
    assert tuner.changes == {host.name: []}
    assert f"{host.name}: tuned: " in tuner.does("status").stderr
    assert told(host, STARTED) == started


def test_what_the_host_has_measured_is_kept_without_another_pause(tuner: Operator, host: LabHost, kept: Path) -> None:
    pretend_two_threads_are_best(host, kept)
    talk = tuner.does("tune", "--yes").stderr
    assert "threads 2 kept" in talk
    assert "--threads 2" in told(host, f"cat {UNIT}")


def test_another_plan_is_served_as_planned_until_the_old_one_is_back(
    tuner: Operator, host: LabHost, keys: dict[str, Any], kept: Path
) -> None:
    tuner.site([host], **keys | {"context_per_slot": 1024})
    assert "is tuned for another plan" in tuner.does("up").stderr
    assert "--threads 1" in told(host, f"cat {UNIT}")
    tuner.site([host], **keys)
    tuner.does("up")
    assert "--threads 2" in told(host, f"cat {UNIT}")


def test_what_does_not_serve_gives_way_to_the_plan(tuner: Operator, host: LabHost, kept: Path) -> None:
    with picky_engine(host, f"! grep -q -e '--threads 2' {UNIT} || {{ echo out of memory; exit 1; }}"):
        pretend_two_threads_are_best(host, kept)
        told(host, "systemctl stop r1prov-llama-server")  # It may run with two threads already.
        talk = tuner.does("tune", "--yes", code=Exit.RUN_FAILED).stderr
        assert f"{host.name}: back to the plan's own setting" in talk
        assert not kept.exists()
        assert "--threads 1" in told(host, f"cat {UNIT}")
        assert answers(host)


COMPARE = ("bench", "--modes", "cpu,ollama", "--limit", "80s")
MEASURES = "systemctl is-active r1prov-measure | grep -q activating && systemctl is-active r1prov-llama-server | grep -q inactive"
SERVES = f'systemctl is-active --quiet r1prov-llama-server && python3 -c "{HEALTH}"'
ALONE = (
    "! systemctl is-active r1prov-measure | grep -q activating; test $(pgrep -c -x llama-server) = 1; ! pgrep -x ollama"
)
QUESTIONS = """
import concurrent.futures as c, json, sys, urllib.request as u
key = open("/etc/r1prov/llama-server/api-key").read().strip()
body = json.dumps({"prompt": "Once", "n_predict": 480, "ignore_eos": True, "cache_prompt": False}).encode()
asked = u.Request("http://127.0.0.1:8000/completion", body, {"Authorization": "Bearer " + key})
with c.ThreadPoolExecutor(8) as pool:
    told = list(pool.map(lambda _: json.load(u.urlopen(asked))["tokens_predicted"], range(8)))
print(min(told))
"""
"""Asks for eight long answers at once, and prints how long the shortest was."""


def begin(tuner: Operator, host: LabHost) -> subprocess.Popen[str]:
    """A comparison that has stopped the service."""
    running = tuner.start(*COMPARE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for(host, MEASURES)
    assert not answers(host)
    return running


@contextmanager
def questions(host: LabHost) -> Iterator[Future[str]]:
    """Has the service answer for a while."""
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(told, host, f"python3 -c '{QUESTIONS}'")
        wait_for(host, "journalctl -u r1prov-llama-server --since=-3s | grep -q 'processing task'", 30)
        yield asked


def test_modes_are_compared_and_the_service_is_ready_when_that_ends(tuner: Operator, host: LabHost) -> None:
    done = tuner.does(*COMPARE, "--json")
    assert answers(host)
    told(host, ALONE)
    found = json.loads(done.stdout)["hosts"][host.name]["modes"]
    assert [mode["mode"] for mode in found] == ["cpu", "ollama"]
    for mode in found:
        assert mode["failed"] == "", mode
        rates = mode["measured"]["rates"]
        assert [rate["depth_tokens"] > 0 for rate in rates][:2] == [False, True]
        assert rates[-1]["users"] == 2 * rates[-2]["users"] or rates[-1]["users"] == 2
        assert min(rate["decode_tokens_per_second"] for rate in rates) > 0, mode
        assert mode["measured"]["memory"]["ram_bytes"] > 90 * 10**6, mode
    assert json.loads((tuner.folder / ".r1prov" / "reports" / f"{host.name}.modes.json").read_text())["modes"] == found


def test_a_second_comparison_is_told_of_the_first_and_how_to_end_that(tuner: Operator, host: LabHost) -> None:
    running = begin(tuner, host)
    refused = tuner.does(*COMPARE, code=Exit.LOCKED).stderr
    assert "is being changed by" in refused
    told(host, "systemctl is-active r1prov-measure | grep -q activating")
    assert f"`kill {running.pid}`" in refused
    os.kill(running.pid, signal.SIGTERM)
    _, talk = running.communicate(timeout=300)
    assert running.returncode == Exit.INTERRUPTED, talk
    assert "A service that was paused comes back by itself" in talk
    wait_for(host, SERVES, 60)
    told(host, f"{ALONE}; test ! -e /run/r1prov/lock.json; ! systemctl is-failed r1prov-measure")


def test_the_service_is_back_after_the_controller_was_killed(tuner: Operator, host: LabHost) -> None:
    running = begin(tuner, host)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate(timeout=60)
    wait_for(host, SERVES, 60)
    told(host, ALONE)


def test_the_service_is_back_though_what_is_measured_ignores_its_end(tuner: Operator, host: LabHost) -> None:
    running = begin(tuner, host)
    told(host, "systemctl kill --kill-whom=all --signal=STOP r1prov-measure.service")
    os.killpg(running.pid, signal.SIGINT)
    running.communicate(timeout=300)
    wait_for(host, SERVES, 60)
    told(host, ALONE)


def test_running_answers_are_waited_for(tuner: Operator, host: LabHost) -> None:
    with questions(host) as asked:
        talk = tuner.does("bench", "--modes", "cpu", "--limit", "20s").stderr
        assert int(asked.result()) == 480
    assert "llama-server gives" in talk


def test_now_does_not_wait(tuner: Operator, host: LabHost) -> None:
    with questions(host) as asked:
        tuner.does("bench", "--modes", "cpu", "--limit", "20s", "--now")
        assert asked.exception()
    assert answers(host)


def test_an_engine_that_somebody_has_stopped_stays_stopped(tuner: Operator, host: LabHost) -> None:
    told(host, "systemctl stop r1prov-llama-server")
    talk = tuner.does("bench", "--modes", "cpu", "--limit", "20s").stderr
    assert "r1prov-llama-server was stopped by somebody, and stays stopped" in " ".join(talk.split())
    told(host, "test $(systemctl is-active r1prov-llama-server) = inactive && systemctl start r1prov-llama-server")
    assert answers(host)


def test_an_engine_that_does_not_come_back_is_told(tuner: Operator, host: LabHost) -> None:
    with picky_engine(host, "echo out of luck; exit 1"):
        talk = tuner.does("bench", "--modes", "cpu", "--limit", "20s", code=Exit.RUN_FAILED).stderr
    assert "r1prov-llama-server does not come back after the measurement: out of luck" in " ".join(talk.split())
    assert answers(host)


def test_the_service_is_back_after_a_reboot_in_the_middle(tuner: Operator, host: LabHost) -> None:
    booted = "systemctl show --property=UserspaceTimestamp"
    before = told(host, booted)
    running = begin(tuner, host)
    lab.ssh(host, ["systemctl", "reboot"])  # the connection may end before the answer
    wait_for(host, f'test "$({booted})" != "{before}"')
    wait_for(host, SERVES)
    _, talk = running.communicate(timeout=300)
    assert running.returncode == Exit.UNREACHABLE, talk
    told(host, ALONE)


ASK_OLLAMA = """
import concurrent.futures as c, json, urllib.request as u
def told(path, body=None):
    return json.load(u.urlopen("http://127.0.0.1:11434/api/" + path, body))
name = told("tags")["models"][0]["name"]
def ask(_):
    body = {"model": name, "prompt": "Tell me a long story.", "stream": False, "options": {"num_predict": 400}}
    return told("generate", json.dumps(body).encode())["done_reason"]
with c.ThreadPoolExecutor(8) as pool:
    print(*set(pool.map(ask, range(8))))
"""
"""Asks Ollama for eight answers at once, and prints how they ended."""


def test_an_ollama_that_serves_is_waited_for_and_serves_again(tuner: Operator, host: LabHost) -> None:
    tuner.does("engine", "ollama")
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(told, host, f"python3 -c '{ASK_OLLAMA}'")
        done = tuner.does(*COMPARE, "--json")
        assert set(asked.result().split()) <= {"stop", "length"}
    assert "Ollama gives an answer" in done.stderr
    found = json.loads(done.stdout)["hosts"][host.name]["modes"]
    assert [(mode["mode"], mode["failed"], bool(mode["measured"])) for mode in found] == [
        ("cpu", "", True),
        ("ollama", "", True),
    ]
    told(host, "systemctl is-active r1prov-ollama; ! systemctl is-active r1prov-measure r1prov-llama-server")
    assert "Paris" in tuner.asks(host)


def test_the_engine_finds_the_order_of_the_plan(host: LabHost, tmp_path: Path) -> None:
    """It is one pair of settings, another one each day, of those of which `make test-order` measures all."""
    run, found = order.on(host, order.model(tmp_path)), order.described()
    known = order.measured_speeds(run, found)
    pairs = [
        (name, fast, slow)
        for name, settings in order.SETTINGS.items()
        for fast, slow in permutations(settings, 2)
        if order.planned_s(found, slow, name, known) > 1.25 * order.planned_s(found, fast, name, known)
    ]
    seed = int(os.environ.get("R1PROV_ORDER_SEED", time.time() // 86400))
    name, fast, slow = random.Random(seed).choice(pairs)
    took: dict[str, float] = {}
    for _ in range(4):  # Whatever else the machine does only adds to it.
        for tried in (fast, slow):
            now = order.measured_s(run, tried, name)
            took[tried.label] = min(now, took.get(tried.label, now))
        if (fast.label, slow.label) in order.apart(took):
            break
    assert (slow.label, fast.label) not in order.apart(took), (seed, name, took)
    told(host, f"rm {order.PLACE}")


def test_down_takes_it_away(tuner: Operator, host: LabHost) -> None:
    """All of it or nothing, whoever is logged in and whatever runs as one of its users."""
    ours = "find /etc /usr/local /var/lib -xdev -name '*r1prov*'; grep r1prov /etc/passwd /etc/group || true"
    before = told(host, f"useradd --create-home --groups r1prov-operators olga; {ours}")
    told(
        host,
        "setsid runuser -u r1prov-llama -- sleep 3001 > /dev/null 2>&1 & setsid su -l olga -c 'sleep 3002' > /dev/null 2>&1 &"
        " until pgrep -f '^sleep 3001' && pgrep -u olga sleep; do sleep 0.1; done",
    )
    talk = " ".join(tuner.does("down", "--yes", code=Exit.RUN_FAILED).stderr.split())
    assert "(sleep) runs as r1prov-llama" in talk
    assert "Nothing was removed" in talk
    assert told(host, ours) == before
    told(host, "systemctl is-active r1prov-ollama; pkill -f '^sleep 3001'")
    tuner.does("down", "--yes")
    assert told(host, ours) == ""
    told(host, "pkill -u olga sleep")
