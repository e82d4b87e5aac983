from __future__ import annotations

import re

from r1prov import site
from r1prov.cli import show
from r1prov.report import HostReport, RunReport


def lines(text):
    return [re.sub(r" {2,}", "  ", line.rstrip()) for line in text.splitlines() if line.strip()]


def report():
    gpu1 = HostReport(
        "ok", 60, 3, ["weights: a", "llama_cpp: b", "llama_cpp: c"], [("weights", 61.0), ("llama_cpp", 62.5)]
    )
    gpu1.benchmark = {
        "sweep": [{"users": 1, "prompt_tokens_per_second_each": 61.25, "decode_tokens_per_second_each": 5.9}],
    }
    return RunReport("r1prov up", "default", "4x4090", "UD-IQ1_S", "", {"gpu1": gpu1, "gpu2": HostReport("failed")})


def test_summary(capsys):
    show.summary(report())
    out, err = capsys.readouterr()
    assert out == ""
    assert lines(err) == [
        "host  result  changed  what changed  took",
        "gpu1  ok  3  weights 1, llama_cpp 2  2:03",
        "gpu2  failed  0  nothing  0:00",
    ]


def test_summary_of_a_check(capsys):
    show.summary(report(), check=True)
    err = lines(capsys.readouterr().err)
    assert err[0] == "host  result  would change  what would change  took"
    assert err[-1] == "Nothing was changed: this was a check."


def test_addresses_tell_how_to_reach_a_service_on_loopback(capsys):
    chosen = site.load(hosts=("gpu1", "gpu2"), profile="4x4090")
    show.addresses(chosen, chosen.hosts)
    assert lines(capsys.readouterr().err) == [
        "gpu1: http://127.0.0.1:8000/v1",
        "gpu2: http://127.0.0.1:8000/v1",
        "The API listens on the server itself only; a tunnel to it: ssh -N -L 8000:127.0.0.1:8000 gpu1",
        'Ask: r1prov ask --host gpu1 "How many r are in strawberry?"',
    ]


def test_the_benchmark_stands_beside_the_published_figures(capsys):
    show.benchmark(report(), site.load(hosts=("gpu1",), profile="4x4090"), talk=False)
    out = lines(capsys.readouterr().out)
    assert out[:2] == ["tokens per second  prompt  decode", "gpu1  61.2  5.90"]
    assert "published: 35 layers on four cards, llama.cpp of early 2025  5.78" in out


def test_status_rows():
    status = {
        "release": "0.3.36-cuda-abc",
        "units": {"r1prov-llama-server.service": {"ActiveState": "active"}},
        "health": "ok",
        "props": {"total_slots": 4, "default_generation_settings": {"n_ctx": 8192}},
        "weights": {"state": "done"},
        "benchmark": {"sweep": [{"decode_tokens_per_second_each": 19.5}]},
    }
    assert show.status_row("gpu1", status) == ("gpu1", "0.3.36-cuda-abc", "active", "ok", "4 x 8,192", "done", "19.50")
    bare = {"release": None, "units": {}, "health": "down", "props": None, "weights": None, "benchmark": None}
    assert show.status_row("gpu2", bare) == ("gpu2", "not installed", "not installed", "down", "", "not installed", "")
