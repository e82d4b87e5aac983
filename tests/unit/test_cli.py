"""Tests of the command line, with its one error boundary."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from sshd import Sshd

from r1prov import __version__, cli
from r1prov.cli import running, up
from r1prov.cli.verbs import VERBS, command
from r1prov.common.errors import EXIT_CODES, Exit


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Hides the site file, the state and the ssh configuration of the person who runs the tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.delenv("R1PROV_SITE", raising=False)
    (tmp_path / "ssh_config").write_text("Host *\n  IdentityFile none\n  UserKnownHostsFile none\n")
    monkeypatch.setenv("R1PROV_SSH_CONFIG", str(tmp_path / "ssh_config"))


@pytest.fixture
def r1prov(capsys):
    """Runs a command line, and returns its exit code, stdout and stderr."""

    def run(*arguments):
        try:
            cli.main(arguments)
            code = 0
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return run


def test_version(r1prov):
    assert r1prov("--version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize("verb", ["up", "render", "profiles", "status", "ask", "bench", "tune"])
def test_every_verb_has_an_example(r1prov, verb):
    code, out, _ = r1prov(verb, "--help")
    assert code == 0
    assert f"Example: r1prov {verb}" in out


def test_the_exit_codes_are_told(r1prov):
    out = " ".join(r1prov("--help")[1].split())
    assert all(f"{code.value}: {meaning}".replace("`", "") in out for code, meaning in EXIT_CODES.items())


def test_wrong_usage_is_2_and_names_what_is_near(r1prov):
    code, out, err = r1prov("up", "--profil", "4x4090")
    assert (code, out) == (Exit.USAGE, "")
    assert "--profile" in err


def test_an_unknown_profile_is_told_in_plain_words(r1prov):
    code, out, err = r1prov("up", "--profile", "4x490", "gpu1")
    assert (code, out) == (Exit.SITE, "")
    assert "there is no profile `4x490`" in err
    assert "-> did you mean 4x4090" in err
    assert "Traceback" not in err


VERBS_WITH_JSON = {
    "up": (),
    "drift": (),
    "history": (),
    "status": (),
    "ask": ("Why?",),
    "open": (),
    "engine": ("ollama",),
    "bench": (),
    "tune": ("--yes",),
    "upgrade": (),
    "rollback": (),
    "drain": ("gpu1",),
    "undrain": ("gpu1",),
    "down": ("--yes",),
    "secrets": ("rotate",),
}
"""The verbs that read a site file and know --json, with what else they want."""


def test_no_verb_with_json_is_forgotten():
    """The others read no site file. What is wrong there is told in the same way."""
    known = {name for name in VERBS if any("--json" in parameter.opts for parameter in command(name).params)}
    assert known == VERBS_WITH_JSON.keys() - {"secrets"} | {"by-hand", "explain", "plan", "profiles", "sources"}


@pytest.mark.parametrize("verb", VERBS_WITH_JSON)
def test_what_is_wrong_with_the_site_is_a_document_where_one_was_asked_for(r1prov, tmp_path, verb):
    (tmp_path / "r1prov.yml").write_text("profile: demo\nhosts: [gpu1]\nqant: x\nslots: many\n")
    code, out, err = r1prov(verb, *VERBS_WITH_JSON[verb], "--json")
    told = json.loads(out)
    assert (code, told["schema"], told["exit"]) == (Exit.SITE, 1, Exit.SITE)
    assert [problem["what"].partition(":")[0] for problem in told["problems"]] == ["unknown key `qant`", "`slots`"]
    assert told["problems"][0]["remedy"].startswith("did you mean `quant`")
    assert "unknown key `qant`" in err
    assert r1prov(verb, *VERBS_WITH_JSON[verb])[:2] == (Exit.SITE, "")


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (("status", "--json"), Exit.SITE, "no site is known here"),
        (("drift", "--json"), Exit.SITE, "no site is known here"),
        (("status", "--json", "--site", "none.yml"), Exit.SITE, "this site file does not exist"),
        (
            ("up", "--json", "--profile", "demo", "no.such.invalid"),
            Exit.UNREACHABLE,
            "no.such.invalid is not known here",
        ),
        (("ask", "--json", "--no-such-option"), Exit.USAGE, "--no-such-option"),
        (("up", "--json", "--ctx-size", "many"), Exit.USAGE, "--ctx-size"),
        (("profiles", "none", "--json"), Exit.SITE, "there is no profile `none`"),
        (("explain", "--json", "--gpus", "0", "--", "-c", "512"), Exit.USAGE, "--ram"),
        (("no-such-verb", "--json"), Exit.USAGE, "no-such-verb"),
    ],
)
def test_every_failure_is_one_document(r1prov, words, code, what):
    ended, out, _ = r1prov(*words)
    assert ended == code
    told = json.loads(out)
    problems = told.get("problems", []) + [p for host in told.get("hosts", {}).values() for p in host["problems"]]
    assert (told["exit"], what in problems[0]["what"]) == (code, True), told


def test_a_defect_is_a_document_too(r1prov, monkeypatch):
    monkeypatch.setattr(up, "select", lambda *_, **__: 1 / 0)
    told = json.loads(r1prov("up", "--json", "--profile", "cpu", "gpu1")[1])
    assert (told["exit"], told["problems"][0]["what"]) == (Exit.INTERNAL, "ZeroDivisionError: division by zero")


def test_the_option_of_another_program_is_none_of_ours(r1prov):
    code, out, _ = r1prov("ask", "--no-such-option", "--", "--json")
    assert (code, out) == (Exit.USAGE, "")


def test_debug_adds_the_traceback(r1prov):
    assert "SiteError" in r1prov("--debug", "up", "--profile", "4x490", "gpu1")[2]


def test_a_defect_is_one_line(r1prov, monkeypatch):
    monkeypatch.setattr(up, "select", lambda *_, **__: 1 / 0)
    code, _, err = r1prov("up", "--profile", "cpu", "gpu1")
    assert code == Exit.INTERNAL
    assert "ZeroDivisionError: division by zero" in err
    assert "--debug" in err
    assert "Traceback" not in err


def test_ctrl_c_is_130_and_says_how_to_go_on(r1prov, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(running.runs, "run", interrupted)
    code, _, err = r1prov("up", "--profile", "cpu", "gpu1")
    assert code == Exit.INTERRUPTED
    assert "Run the same command again" in err


def test_profiles(r1prov):
    code, out, _ = r1prov("profiles")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:] if line[0] != " "] == [
        "2x4x4090",
        "4x4090",
        "4xh800",
        "cpu",
        "demo",
    ]
    machine = json.loads(r1prov("profiles", "--json")[1])["profiles"]["4x4090"]["machine"]
    assert (machine["gpus"]["count"], machine["ram"]) == (4, 480 * 10**9)
    assert r1prov("profiles", "4x4090")[1].startswith("---\n# Four RTX 4090")


def test_render_writes_the_inventory_and_names_it(r1prov, tmp_path):
    code, out, _ = r1prov("render", "--profile", "4x4090", "gpu1", "bob@gpu2:2222", "-o", str(tmp_path / "inv"))
    assert (code, out) == (0, f"{tmp_path}/inv\n")
    assert "ansible_port: 2222" in (tmp_path / "inv" / "hosts.yml").read_text()


def test_up_stops_when_any_host_cannot_be_used(r1prov, tmp_path):
    with Sshd(password="x") as server:
        code, out, err = r1prov("up", "--profile", "demo", f"bob@127.0.0.1:{server.port}", "no.such.invalid")
    assert (code, out) == (Exit.UNREACHABLE, "")
    assert f"127.0.0.1-{server.port}: login as bob: sshd takes no keys, only password" in err
    assert "no.such.invalid: the name no.such.invalid is not known here" in err
    assert not list((tmp_path / "state").rglob("hosts.yml"))


def test_verbs_without_a_profile_need_a_site(r1prov):
    code, _, err = r1prov("status")
    assert code == Exit.SITE
    assert "no site is known here" in err


def test_named_hosts_choose_among_those_of_the_site_file(r1prov, tmp_path):
    (tmp_path / "r1prov.yml").write_text("profile: demo\nhosts: [gpu1, gpu2]\n")
    code, _, err = r1prov("up", "gpu3")
    assert code == Exit.SITE
    assert "r1prov.yml has no such host" in " ".join(err.split())
    assert "did you mean gpu1 or gpu2" in err.replace("gpu2 or gpu1", "gpu1 or gpu2")


@pytest.mark.parametrize("limit", ["soon", "20", "-5m", "20min"])
def test_a_limit_that_is_no_time_is_refused(r1prov, limit):
    code, _, err = r1prov("tune", f"--limit={limit}")
    assert code == Exit.USAGE
    assert "is not a duration" in err


def test_tuning_wants_a_site_and_the_engine_that_can_be_tuned(r1prov, tmp_path):
    code, _, err = r1prov("tune")
    assert code == Exit.SITE
    assert "run `r1prov up` first" in err
    (tmp_path / "r1prov.yml").write_text("profile: demo\nhosts: [gpu1]\nengine: ollama\n")
    code, _, err = r1prov("tune")
    assert code == Exit.SITE
    assert "`r1prov engine llama-server` switches" in err
    assert r1prov("tune", "gpu9")[0] == Exit.SITE


def test_a_password_that_nobody_can_be_asked_for_is_no_defect(tmp_path):
    (tmp_path / "r1prov.yml").write_text("profile: demo\nhosts: [gpu1]\n")
    command = [sys.executable, "-m", "r1prov.cli", "status", "--ask-pass"]
    done = subprocess.run(
        command,
        check=False,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    assert done.returncode == Exit.UNREACHABLE
    assert "--ask-pass: nobody can be asked for the password here" in done.stderr
    assert "Traceback" not in done.stderr


def _site(folder, host):
    folder.mkdir()
    (folder / "r1prov.yml").write_text(f"profile: demo\nhosts: [{host}]\n")
    return folder / "r1prov.yml"


def _hosts_of(r1prov, *arguments):
    """The hosts of the site that a command line is about, as an error names them."""
    return re.search(r"it has: (.*)", r1prov("tune", *arguments, "zzz")[2])[1]


def test_the_variable_names_the_site_file_and_the_option_wins(r1prov, tmp_path, monkeypatch):
    here, other, third = (
        _site(tmp_path / name, host) for name, host in (("a", "alpha"), ("b", "beta"), ("c", "gamma"))
    )
    monkeypatch.chdir(here.parent)
    assert _hosts_of(r1prov) == "alpha"
    monkeypatch.setenv("R1PROV_SITE", str(other))
    assert _hosts_of(r1prov) == "beta"
    assert _hosts_of(r1prov, "--site", str(third)) == "gamma"
    assert _hosts_of(r1prov, "--site", "r1prov.yml") == "alpha"
    monkeypatch.setenv("R1PROV_SITE", "")
    assert _hosts_of(r1prov) == "alpha"


def test_a_site_file_that_is_not_there_is_said_and_nothing_is_made_beside_it(r1prov, tmp_path, monkeypatch):
    monkeypatch.setenv("R1PROV_SITE", str(tmp_path / "gone" / "r1prov.yml"))
    code, _, err = r1prov("status")
    assert code == Exit.SITE
    assert "this site file does not exist" in err
    assert "R1PROV_SITE names it: unset it" in err
    assert not (tmp_path / "gone").exists()
    code, _, err = r1prov("status", "--site", str(tmp_path))
    assert code == Exit.SITE
    assert "is a folder" in " ".join(err.split())
    assert "--site names it" in err


def test_the_help_names_the_variable(r1prov):
    assert "R1PROV_SITE" in r1prov("status", "--help")[1]


def test_modes_that_are_named_in_two_options_are_all_taken(r1prov):
    code, out, _ = r1prov("bench", "--check", "--profile", "4x4090", "--modes", "cpu", "--modes=gpu,rule", "--json")
    assert code == Exit.OK
    assert [mode["mode"] for mode in json.loads(out)["hosts"]["4x4090"]["modes"]] == ["cpu", "gpu", "rule"]


def test_options_that_contradict_each_other_name_the_verb_whose_help_says_more(r1prov):
    code, _, err = r1prov("bench", "--also", "gpu")
    assert code == Exit.USAGE
    assert err.startswith("r1prov bench: ")
    assert "`r1prov bench --help`" in err
