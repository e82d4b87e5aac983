from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from r1prov import site
from r1prov.cli import options, show
from r1prov.runs.report import HostReport, RunReport
from r1prov.site import authority


def lines(text):
    return [re.sub(r" {2,}", "  ", line.rstrip()) for line in text.splitlines() if line.strip()]


def report():
    gpu1 = HostReport(
        "ok",
        60,
        3,
        ["weights: a", "llama_cpp: b", "llama_cpp: c"],
        {"r1prov-llama-server": 41.5},
        [("weights", 61.0), ("llama_cpp", 62.5)],
    )
    gpu1.benchmark = {
        "subject": {"engine": "llama-server"},
        "sweep": [{"users": 1, "prompt_tokens_per_second_each": 61.25, "decode_tokens_per_second_each": 5.9}],
        "load": {"cores": 8, "others_cores": 3.2, "others_gpu_percent": None, "foreign": True},
    }
    gpu1.compared = "decodes 5.90 tokens/s where the median of 3 measurements (of 2026-11-20 to 2026-11-27) is 5.80"
    return RunReport("r1prov up", "default", "4x4090", "UD-IQ1_S", "", {"gpu1": gpu1, "gpu2": HostReport("failed")})


def test_summary(capsys):
    show.summary(report())
    out, err = capsys.readouterr()
    assert out == ""
    assert lines(err) == [
        "host  result  changed  what changed  took",
        "gpu1  ok  3  weights 1, llama_cpp 2  2:03",
        "gpu2  failed  0  nothing  0:00",
        "gpu1: started, and ready: llama-server after 41.5 s",
        "gpu1: decodes 5.90 tokens/s where the median of 3 measurements (of 2026-11-20 to 2026-11-27) is 5.80",
    ]


def test_one_sentence_stands_for_all_that_was_lost_with_a_container(capsys):
    lost = HostReport("ok", differences=["/etc/r1prov is missing", "/x is missing"], built_anew=True)
    show.summary(RunReport("r1prov up", "default", "4x4090", "UD-IQ1_S", "", {"gpu1": lost}))
    said = lines(capsys.readouterr().err)
    assert said[2:] == ["gpu1: put right: what was lost when it was built anew, 2 differences (--json names them)"]


def test_summary_of_a_check(capsys):
    show.summary(report(), check=True)
    err = lines(capsys.readouterr().err)
    assert err[0] == "host  result  would change  what would change  took"
    assert err[-1] == "Nothing was changed: this was a check."


def test_addresses_tell_how_to_reach_a_service_on_loopback(capsys):
    chosen = site.load(hosts=("gpu1", "gpu2"), profile="4x4090")
    show.addresses(chosen, chosen.hosts)
    said = lines(capsys.readouterr().err)
    assert said[0] == "gpu1: http://127.0.0.1:8080 (chat page), http://127.0.0.1:8000/v1 (llama-server)"
    assert said[2].startswith("Log in to the page as admin@example.com with the password in /")
    assert said[3:] == [
        "All of it listens on the server itself only; from here: `r1prov open --host gpu1`",
        'Ask: `r1prov ask --host gpu1 "How many r are in strawberry?"`',
    ]


def test_addresses_tell_what_others_open_and_must_trust(capsys):
    gateway = {"server_name": "r1.example.com", "port": 8443, "tls": {"type": "local-authority"}}
    chosen = site.load(hosts=("gpu1",), profile="4x4090", gateway=gateway)
    show.addresses(chosen, chosen.hosts)
    said = lines(capsys.readouterr().err)
    assert said[1] == (
        "For others, over TLS: https://r1.example.com:8443 (chat page), https://r1.example.com:8443/v1 (with the key)"
    )
    assert said[2].startswith("Machines that shall trust it are given /")
    assert said[4].startswith("All else listens on the server itself only")


def test_the_end_of_the_authority_is_announced(capsys, tmp_path):
    (tmp_path / "r1prov.yml").write_text(
        "{profile: 4x4090, hosts: [gpu1], gateway: {server_name: r1.example.com, tls: {type: local-authority}}}"
    )
    chosen = site.load(tmp_path / "r1prov.yml")
    folder, now = tmp_path / ".r1prov" / "authority", datetime.now(UTC)
    authority.see_to(folder, "r1.example.com", now - timedelta(days=1400))
    show.addresses(chosen, chosen.hosts)
    assert "ends on" not in capsys.readouterr().err
    for file in folder.glob("authority.*"):
        file.unlink()
    authority.see_to(folder, "r1.example.com", now - timedelta(days=1600))
    show.addresses(chosen, chosen.hosts)
    assert f"authority.crt ends on {now + timedelta(days=226):%Y-%m}" in capsys.readouterr().err


def test_the_benchmark_stands_beside_the_published_figures(capsys):
    show.benchmark(report(), site.load(hosts=("gpu1",), profile="4x4090"), talk=False)
    out, err = map(lines, capsys.readouterr())
    assert err == ["gpu1: measured while other processes kept 3.2 of 8 cores busy; alone it may be faster"]
    assert out[:2] == ["tokens per second  prompt  decode", "gpu1, llama-server  61.2  5.90"]
    assert "published: 35 layers on four cards, UD-IQ1_S, llama.cpp of early 2025  5.78" in out


def test_status_rows():
    status = {
        "engine": "llama-server",
        "releases": {"llama.cpp": "0.3.36-cuda-abc", "ollama": None},
        "running": {"llama.cpp": ["0.3.36-cuda-abc"], "ollama": []},
        "health": "ok",
        "page": "ok",
        "document_search": "ok",
        "gateway": "down",
        "data_disk": "",
        "props": {"total_slots": 4, "default_generation_settings": {"n_ctx": 8192}},
        "weights": {"state": "done"},
        "benchmark": {"sweep": [{"decode_tokens_per_second_each": 19.5}]},
    }
    row = ("gpu1", "llama-server", "0.3.36-cuda-abc", "ok", "ok", "down", "4 x 8,192", "done", "19.50")
    assert show.status_row("gpu1", status) == row
    assert show.restarts_wanted("gpu1", status) == []
    status["running"]["llama.cpp"] = ["0.3.35-cuda-def"]
    assert show.status_row("gpu1", status)[2] == "0.3.35-cuda-def"
    (told,) = show.restarts_wanted("gpu1", status)
    assert "llama.cpp 0.3.35-cuda-def runs, and 0.3.36-cuda-abc is installed" in told
    assert "`r1prov up` finishes it" in told
    # An upgrade that was cut off is undone by `up`, which would bring what was there before.
    status["differs"] = {"llama_cpp": {"installed": "0.3.36", "wanted": "0.3.35", "site": "0.3.35"}}
    assert "the same `r1prov upgrade` goes on" in show.restarts_wanted("gpu1", status)[0]
    del status["differs"]
    assert show.who_works("gpu1", status) == []
    status["lock"] = {
        "user": "ann",
        "controller": "laptop",
        "command": "r1prov up",
        "since": "2026-11-28T09:05:00+00:00",
    }
    (told,) = show.who_works("gpu1", status)
    assert re.fullmatch(r"gpu1: ann@laptop has been at work on it since \d\d:\d\d \(r1prov up\)", told)
    damaged = {"user": "somebody", "controller": "", "since": "", "command": "/run/r1prov/lock.json there is damaged"}
    (told,) = show.who_works("gpu1", {"lock": damaged})
    assert told == "gpu1: somebody has been at work on it (/run/r1prov/lock.json there is damaged)"
    status["lock"]["dead"] = True
    (told,) = show.who_works("gpu1", status)
    assert re.match(
        r"gpu1 is still locked: the run of ann@laptop of \d\d:\d\d \(r1prov up\) was cut off\. `r1prov up`", told
    )
    bare = {"props": None, "weights": None, "benchmark": None, "data_disk": ""}
    bare |= {
        "engine": "ollama",
        "health": "down",
        "page": None,
        "document_search": None,
        "gateway": None,
        "releases": {"ollama": None},
        "running": {"ollama": []},
    }
    row = ("gpu2", "ollama", "not installed", "down", "", "", "", "not installed", "")
    assert show.status_row("gpu2", bare) == row
    assert show.lost_disk("gpu2", bare) == []
    bare["data_disk"] = "the data disk is away: /var/lib/r1prov leads to /data, which is not there"
    assert "not installed" not in show.status_row("gpu2", bare)
    assert show.lost_disk("gpu2", bare)[0].startswith(f"gpu2: {bare['data_disk']}. Bring it back")


def test_what_would_go_is_listed_with_what_stays(capsys):
    removed = {
        "units": ["r1prov-weights.service"],  # Its files are not named once more.
        "users": ["r1prov-llama"],
        "groups": ["r1prov-operators"],
        "paths": [
            {"path": "/etc/systemd/system/r1prov-weights.service", "bytes": 4096},
            {"path": "/etc/systemd/system/multi-user.target.wants/r1prov-weights.service", "bytes": 0},
            {"path": "/srv/r1prov/ollama", "bytes": 4096},
            {"path": "/opt/r1prov", "bytes": 3 << 30},
        ],
        "hooks": ["/etc/autodl.sh"],
    }
    kept = [
        {"path": "/srv/r1prov/models", "bytes": 131 << 30, "why": "weights"},
        {"path": "/var/cache/r1prov/ccache", "bytes": None, "why": "mounted"},
    ]
    show.removal("gpu1", {"removed": removed, "kept": kept, "in_use": [], "away": ""}, check=True, talk=False)
    out, err = capsys.readouterr()
    assert lines(out) == [
        "gpu1:",
        "  what would go  GiB",
        "unit  r1prov-weights.service",
        "user  r1prov-llama",
        "group  r1prov-operators",
        "path  /srv/r1prov/ollama",
        "path  /opt/r1prov  3.0",
        "line in  /etc/autodl.sh",
        "  all of it  3.0",
    ]
    assert lines(err) == [
        "gpu1: /srv/r1prov/models stays (--keep-weights, 131.0 GiB)",
        "gpu1: /var/cache/r1prov/ccache stays (mounted)",
    ]
    in_use = ["process 7 (llama-server) still uses /opt/r1prov/x"]
    show.removal("gpu1", {"removed": removed, "kept": [], "in_use": in_use, "away": ""}, check=False, talk=True)
    used = "gpu1: process 7 (llama-server) still uses /opt/r1prov/x, so the disk gets that room back when it ends\n"
    assert capsys.readouterr() == ("", f"gpu1: 3.0 GiB freed\n{used}")
    found = {"removed": removed, "kept": [], "in_use": [], "away": "the data disk is away"}
    show.removal("gpu1", found, check=False, talk=True)
    assert capsys.readouterr().err == "gpu1: 3.0 GiB freed\n"  # The run fails with that sentence.
    show.removal("gpu1", found, check=True, talk=True)
    assert capsys.readouterr().err.endswith("gpu1: the data disk is away, so what lies on it would stay\n")


def test_a_hint_names_the_site_file_only_where_it_must(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("R1PROV_SITE", raising=False)
    here, other, strange = tmp_path / "r1prov.yml", tmp_path / "b" / "r1prov.yml", tmp_path / "my site.yml"
    assert options.site_words(None) == options.site_words(here) == ""
    assert options.site_words(other) == f" --site {other}"
    assert options.site_words(strange) == f" --site '{strange}'"
    monkeypatch.setenv("R1PROV_SITE", "b/r1prov.yml")
    assert options.site_words(other) == ""
    assert options.site_words(here) == f" --site {here}"
