"""Tests of the way from a site to the rendered inventory, with a real ssh server in this process."""

from __future__ import annotations

import shutil
import subprocess

import paramiko
import pytest
import yaml
from sshd import Sshd

from r1prov.cli import main
from r1prov.common.errors import Exit, Problem, RunError, SiteError, UnreachableError
from r1prov.hosts import Difference, Login, Look
from r1prov.hosts.looking import Expectation
from r1prov.runs import expectations, secrets
from r1prov.runs import run as runs
from r1prov.runs.events import Finished, HostAway, Recap, Tally, TaskDone
from r1prov.runs.report import HostReport, RunReport
from r1prov.runs.rotation import rotate
from r1prov.runs.run import Change, Done, Prepared, Request
from r1prov.site.select import last_applied, select, with_choices
from r1prov.site.state import ADMIN_PASSWORD, API_KEY, PAGE_KEY, SECRETS, SiteState

CAT = """#!/bin/sh
case "$1" in
/proc/1/comm) echo systemd;;
/etc/r1prov/llama-server/api-key) [ "$KEY" ] && echo "$KEY";;
/etc/r1prov/open-webui/admin-password) [ "$PASSWORD" ] && echo "$PASSWORD";;
/etc/r1prov/open-webui/environment) [ "$SIGNING" ] && printf 'A=1\nWEBUI_SECRET_KEY="%s"\n' "$SIGNING";;
*) exec /bin/cat "$@";;
esac
"""


class Silent:
    """A watcher that ignores everything."""

    def note(self, host, text): ...

    def event(self, event): ...

    def progress(self, progress): ...


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server on which bob is root; the test runs in the folder of a site without a file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "id"], check=True)
    (tmp_path / "bin").mkdir()
    for name, text in (("cat", CAT), ("id", "#!/bin/sh\necho 0\n")):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    with Sshd(
        users_keys=[paramiko.PKey.from_path(tmp_path / "id")], env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin"}
    ) as sshd:
        (tmp_path / "config").write_text(
            f"Host gpu1\n  HostName 127.0.0.1\n  Port {sshd.port}\n  User bob\n  IdentityFile {tmp_path}/id\n"
            "Host *\n  UserKnownHostsFile none\n"
        )
        yield sshd


def prepared(tmp_path):
    chosen, hosts = select(None, ["gpu1"], profile="demo")
    decision = runs.settle(chosen, lambda _: None)
    return runs.prepare(decision, hosts, Login(ssh_config=tmp_path / "config"), Silent())


def test_a_site_as_last_applied_is_refused_when_a_file_of_the_operator_is_open_to_others(tmp_path):
    (tmp_path / "token").touch(0o600)
    (tmp_path / "token").write_text("hf_token")
    (tmp_path / "r1prov.yml").write_text(
        "{profile: demo, hosts: [gpu1], sources: {weights: [{type: hub, token_file: token}]}}"
    )
    chosen = select(tmp_path / "r1prov.yml", ())[0]
    SiteState.of(chosen.path).remember(chosen)
    assert last_applied(chosen.path, ())[0] == chosen
    (tmp_path / "token").chmod(0o604)
    with pytest.raises(SiteError, match="token: other users of this machine may read this file"):
        last_applied(chosen.path, ())


def test_a_copied_site_does_not_act_on_the_folder_that_it_was_copied_from(tmp_path):
    first, copy = tmp_path / "first", tmp_path / "copy"
    first.mkdir()
    (first / "r1prov.yml").write_text("{profile: demo, hosts: [gpu1]}")
    chosen = select(first / "r1prov.yml", ())[0]
    SiteState.of(chosen.path).remember(chosen)
    shutil.copytree(first, copy)
    assert last_applied(first / "r1prov.yml", ())[0].path == first / "r1prov.yml"
    assert last_applied(copy / "r1prov.yml", ())[0].path == copy / "r1prov.yml"


def test_an_authority_for_another_name_is_not_replaced_and_nobody_is_met(tmp_path, monkeypatch):
    site_file = tmp_path / "r1prov.yml"
    text = "{profile: demo, hosts: [gpu1], gateway: {server_name: NAME, tls: {type: local-authority}}}"
    site_file.write_text(text.replace("NAME", "r1.example.com"))
    decision = runs.settle(select(site_file, ())[0], lambda _: None)
    made = [path.name for path in secrets.provide(decision.site)]
    assert {"authority.crt", "machines.crt", "server.crt"} <= set(made)
    assert secrets.provide(decision.site) == []
    site_file.write_text(text.replace("NAME", "other.example.com"))
    with pytest.raises(SiteError, match=r"it cannot certify other\.example\.com"):
        runs.settle(select(site_file, ())[0], lambda _: None)


def test_a_new_site_gets_a_key_and_an_inventory(server, tmp_path):
    chosen = prepared(tmp_path).decision.site
    state = SiteState.of(None)
    assert len(state.secret(API_KEY).read_text()) > 40
    assert state.secret(API_KEY).stat().st_mode & 0o777 == 0o600
    hosts = (state.inventory / "hosts.yml").read_text()
    assert '"gpu1"' in hosts
    assert 'ansible_user: "bob"' in hosts  # the user comes from the ssh configuration, and Ansible needs it
    assert state.secret(API_KEY).read_text() not in "".join(p.read_text() for p in state.inventory.rglob("*.yml"))
    with pytest.raises(SiteError, match="no site is known"):  # nothing runs on the host yet
        last_applied(None, [])
    state.remember(chosen)
    assert last_applied(None, ["gpu1"])[1] == chosen.hosts


def test_a_new_controller_takes_over_the_key_of_a_host(server, tmp_path):
    server.env["KEY"] = "made-by-another"
    prepared(tmp_path)
    assert SiteState.of(None).secret(API_KEY).read_text() == "made-by-another"
    server.env["KEY"] = "changed-there"
    prepared(tmp_path)
    assert SiteState.of(None).secret(API_KEY).read_text() == "made-by-another"  # the controller's own key counts


def test_the_page_keeps_its_secrets(server, tmp_path):
    server.env |= {"PASSWORD": "of-another-controller", "SIGNING": "signs-there"}
    prepared(tmp_path)
    state = SiteState.of(None)
    assert state.secret(ADMIN_PASSWORD).read_text() == "of-another-controller"
    assert state.secret(PAGE_KEY).read_text() == "signs-there"


def test_a_new_site_gets_secrets_that_differ(server, tmp_path):
    prepared(tmp_path)
    assert len({SiteState.of(None).secret(each).read_text() for each in SECRETS}) == 3


ENDS = {
    "no host is met": (UnreachableError(Problem("gpu1", "is off", "turn it on")), [], False),
    "no host is changed": (RunError(Problem("gpu1", "is full", "make room")), [], False),
    "a host is changed before it fails": (RunError(Problem("gpu1", "is full", "make room")), ["a: b"], True),
    "all is well": (None, ["a: b"], True),
}


@pytest.mark.parametrize(("error", "changes", "changed"), ENDS.values(), ids=ENDS)
def test_secrets_that_no_host_has_taken_are_put_back(tmp_path, monkeypatch, error, changes, changed):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    state = SiteState.of(None)
    for secret in (API_KEY, ADMIN_PASSWORD):
        state.keep_secret(secret, f"old {secret.name}")
    chosen, hosts = select(None, ["gpu1"], profile="demo")
    decision = runs.settle(chosen, lambda _: None)
    seen = []

    def converge():
        seen.extend(state.secret(secret).read_text() for secret in SECRETS)
        if isinstance(error, UnreachableError):
            raise error
        report = RunReport("", "", "", "", "", {host.name: HostReport(changes=changes) for host in hosts})
        return Done(decision, report, error)

    def rotated():
        return rotate(chosen, SECRETS, converge)[1]

    if isinstance(error, UnreachableError):
        with pytest.raises(UnreachableError):
            rotated()
    else:
        assert rotated() == changed
    assert not [text for text in seen if text.startswith("old")]
    assert len(set(seen)) == 3
    now = [state.secret(secret).read_text() for secret in SECRETS if state.secret(secret).is_file()]
    assert now == (seen if changed else ["old api-key", "old webui-admin-password"])


def test_one_secret_is_rotated_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    state = SiteState.of(None)
    for secret in SECRETS:
        state.keep_secret(secret, f"old {secret.name}")
    chosen, _ = select(None, ["gpu1"], profile="demo")
    rotate(chosen, [PAGE_KEY], lambda: Done(None, RunReport("", "", "", "", "", {}), None))
    assert [state.secret(s).read_text().startswith("old") for s in SECRETS] == [s != PAGE_KEY for s in SECRETS]


def test_a_secret_that_the_site_does_not_have_is_not_rotated(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r1prov.yml").write_text("profile: demo\nhosts: [gpu1.invalid]\nopen_webui: {enabled: false}\n")
    with pytest.raises(SystemExit) as end:
        main(["secrets", "rotate", "--only", "webui-secret-key"])
    assert end.value.code == Exit.SITE
    assert "the site has no chat page, so it has no webui-secret-key" in " ".join(capsys.readouterr().err.split())


def test_a_choice_holds_until_the_file_says_otherwise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "r1prov.yml"
    file.write_text("profile: demo\nhosts: [gpu1]\n")
    chosen, _ = with_choices(None, (), {"engine": "ollama"})
    assert (chosen.file.engine, select(None, [])[0].file.engine) == ("ollama", "llama-server")
    SiteState.of(file).choose({"engine": "ollama", "versions": {"ollama": "0.13.5"}})
    file.write_text("profile: demo\nhosts: [gpu1]\nversions: {llama_cpp: 0.3.36}\n")
    chosen, _ = select(None, [])
    assert (chosen.file.engine, chosen.file.versions.ollama, chosen.file.versions.llama_cpp) == (
        "ollama",
        "0.13.5",
        "0.3.36",
    )
    with pytest.raises(SiteError, match=r"it says `versions.llama_cpp: 0.3.36`"):
        with_choices(None, (), {"versions": {"llama_cpp": "0.3.37"}})


def test_what_another_version_remembered_is_read_from_the_file_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "r1prov.yml"
    file.write_text("profile: demo\nhosts: [gpu1]\n")
    SiteState.of(file).last_site.write_text('{"of": "another version"}')
    assert last_applied(None, ())[0].file.profile == "demo"


def test_hosts_are_called_by_name_or_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r1prov.yml").write_text("profile: demo\nhosts: [gpu1, 'bob@gpu2:2222']\n")
    chosen, hosts = select(None, ["bob@gpu2:2222"])
    assert (len(chosen.hosts), [host.address for host in hosts]) == (2, ["gpu2"])
    with pytest.raises(SiteError, match="no such host"):
        select(None, ["a b"])


def test_the_command_is_limited_to_the_hosts_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r1prov.yml").write_text("profile: demo\nhosts: [gpu1, gpu2]\n")
    chosen, hosts = select(None, ["gpu2"])
    prepared = Prepared(runs.settle(chosen, lambda _: None), hosts, ())
    command = runs.command(prepared, Login(), Request("up", "r1prov up gpu2", verbosity=1))
    # The first -v is for r1prov itself, which has looked already, or was told not to.
    assert command.argv[-4:] == ("--limit", "gpu2", "--skip-tags", "look")
    assert command.env["R1PROV_COMMAND"] == "r1prov up gpu2"


def found_by_look(*steps, unknown=""):
    return Look(9, 0.1, tuple(Difference(step, "a task", f"{step} differs") for step in steps), unknown)


@pytest.mark.parametrize(
    ("looks", "due"),
    [
        ({"gpu1": found_by_look("gateway", "operators", "gateway"), "gpu2": found_by_look()}, ("gateway", "operators")),
        ({"gpu1": found_by_look("gateway"), "gpu2": found_by_look("lock")}, ("gateway", "lock")),
        ({"gpu1": found_by_look("gateway"), "gpu2": found_by_look(unknown="it is silent")}, ()),
        ({"gpu1": found_by_look("gateway")}, ()),
        ({}, ()),
    ],
)
def test_only_the_steps_that_differ_are_due_and_all_where_that_is_not_known_of_a_host(
    tmp_path, monkeypatch, looks, due
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r1prov.yml").write_text("profile: demo\nhosts: [gpu1, gpu2]\n")
    chosen, hosts = select(None, [])
    prepared = Prepared(runs.settle(chosen, lambda _: None), hosts, (), looks)
    assert prepared.due == due
    argv = runs.command(prepared, Login(), Request("up", "r1prov up")).argv
    assert (f"--tags {','.join(due)}" in " ".join(argv)) == bool(due)


def test_a_weak_password_of_the_operators_is_refused_before_anyone_is_contacted(server, tmp_path):
    state = SiteState.of(None)
    state.keep_secret(ADMIN_PASSWORD, "Password-1234")
    with pytest.raises(SiteError, match="is too easy to guess"):
        prepared(tmp_path)


def test_tuning_is_refused_while_ollama_holds_the_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r1prov.yml").write_text("profile: cpu\nhosts: [gpu1.invalid]\nengine: ollama\n")
    with pytest.raises(SystemExit) as end:
        main(["tune", "--yes"])
    assert end.value.code == Exit.SITE
    assert "the engine is ollama, which sets itself" in capsys.readouterr().err


def test_render_refuses_what_up_would_refuse(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    SiteState.of(None).keep_secret(ADMIN_PASSWORD, "password")
    with pytest.raises(SystemExit) as end:
        main(["render", "--profile", "cpu", "gpu1", "-o", str(tmp_path / "inventory")])
    assert end.value.code == Exit.SITE
    assert "the administrator's password" in capsys.readouterr().err
    assert not (tmp_path / "inventory").exists()


class Remarks(Silent):
    """A watcher that remembers remarks about hosts."""

    def __init__(self):
        self.said = []

    def note(self, host, text):
        if "card" in text:
            self.said.append(f"{host} {text}")


def attached(tmp_path, link, n_cards=4):
    """Prepares a run over a host whose nvidia-smi shows cards, of which the first has this link. Returns remarks and hosts.yml."""
    smi = tmp_path / "bin" / "nvidia-smi"
    card = "echo {0}, GPU-{0}, NVIDIA GeForce RTX 4090, 24564, 1, 550.54.15, 8.9\n"
    cards = "".join(card.format(index) for index in range(n_cards)) or "exit 9"
    smi.write_text(f'#!/bin/sh\ncase "$*" in *compute-apps*);; *pcie.link*) echo {link};;\n*) {cards};; esac\n')
    smi.chmod(0o755)
    chosen, hosts = select(None, ["gpu1"], profile="4x4090")
    watcher = Remarks()
    decision = runs.settle(chosen, lambda _: None)
    runs.prepare(decision, hosts, Login(ssh_config=tmp_path / "config"), watcher)
    text = (SiteState.of(None).inventory / "hosts.yml").read_text()
    return watcher.said, yaml.safe_load(text)["all"]["hosts"]["gpu1"]


FAST, SLOW, SENSELESS = "4, 1, 16, 16, 4, 4", "3, 1, 16, 4, 4, 3", "1, 1, 16, 16, 4, 1"
"""What nvidia-smi says of gen.max, gen.current, width.max, width.current, gen.gpumax and gen.hostmax of an idle card."""


def test_a_host_without_its_cards_today_remains_what_it_was(server, tmp_path):
    _, known = attached(tmp_path, SLOW)
    before = SiteState.of(None).known("gpu1")
    assert len(before.hardware.cards) == 4
    assert attached(tmp_path, SLOW, n_cards=0) == ([], known)
    assert SiteState.of(None).known("gpu1") == before


def micro_batch(arguments):
    return int(arguments[arguments.index("--ubatch-size") + 1])


def test_a_host_with_a_slow_link_gets_a_plan_of_its_own_and_that_is_said_once(server, tmp_path):
    said, host = attached(tmp_path, FAST)
    assert said == []
    assert "llama_server_arguments" not in host  # the plan of all hosts
    everybodys = runs.settle(select(None, ["gpu1"], profile="4x4090")[0], lambda _: None).plan.arguments
    [told], host = attached(tmp_path, SLOW)
    assert told.startswith("gpu1 has its first card at PCIe 3.0 x4: copies for prompts take 8.0 times as long")
    assert micro_batch(host["llama_server_arguments"]) > micro_batch(everybodys)
    assert micro_batch(host["measure_arguments"]) == micro_batch(host["llama_server_arguments"])
    assert [device["name"] for device in host["llama_server_plan"]] == ["CUDA0", "CUDA1", "CUDA2", "CUDA3", "host"]
    for link in (SLOW, SENSELESS):  # what a host has told once holds as long as it tells nothing else
        assert attached(tmp_path, link) == ([], host)
    kept = runs.settle(select(None, ["gpu1"], profile="4x4090")[0], lambda _: None)  # without a look at the host
    assert kept.arguments("gpu1") == tuple(host["llama_server_arguments"])


def test_a_host_that_does_not_tell_its_link_gets_the_plan_of_all(server, tmp_path):
    [told], host = attached(tmp_path, SENSELESS)
    assert told.startswith("gpu1 does not tell how its first card is attached, so the plan counts with PCIe 4.0 x16;")
    assert "llama_server_arguments" not in host
    assert attached(tmp_path, SENSELESS) == ([], host)


@pytest.fixture
def site_of_one(tmp_path, monkeypatch):
    """A site whose runs are made of what task.yml says."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r1prov.yml").write_text("profile: demo\nhosts: [gpu1]\n")
    (tmp_path / "task.yml").write_text("before")
    monkeypatch.setattr(expectations, "made_of", lambda _: (tmp_path / "task.yml").read_text())
    monkeypatch.setattr(runs.history, "end", lambda *_: None)
    return select(None, [])


def expecting(step):
    return Expectation(step, "Make it", "ansible.modules.file", {"path": f"/{step}"})


def kept_after_a_run_of_the_gateway(site_of_one, monkeypatch, looks, only="", since="", meanwhile=lambda: None):
    """The steps that are expected after it, and what was told."""
    chosen, hosts = site_of_one
    told, watcher = [], Silent()
    monkeypatch.setattr(watcher, "note", lambda _, text: told.append(text), raising=False)

    def work(prepared, login, request, watcher, recorder):
        assert prepared.due == ("gateway",)
        arguments = {"path": "/etc/gateway", "state": "directory"}
        result = {"invocation": {"module_args": arguments}}
        recorder.event(TaskDone("gpu1", "gateway", "Make it", False, result, "ansible.builtin.file"), 0)
        recorder.event(Recap({"gpu1": Tally(1, 0, 0, 0, 0)}), 0)
        recorder.event(Finished(0, chosen.path.parent), 0)
        meanwhile()

    monkeypatch.setattr(runs, "_execute", work)
    prepared = Prepared(runs.settle(chosen, lambda _: None), hosts, (), looks, "before", only, since)
    runs.play(prepared, Login(), Request("up", "r1prov up"), watcher)
    state = SiteState.of(chosen.path)
    assert expectations.recall(state, "gpu1").where("after") == []
    return [each.step for each in expectations.recall(state, "gpu1").where("before")], "".join(told)


@pytest.mark.parametrize("changes", [False, True])
def test_of_a_run_whose_code_was_changed_meanwhile_nothing_is_expected(tmp_path, monkeypatch, site_of_one, changes):
    """A run of one step kept its questions alone then, and later looks asked nothing about all other steps."""
    state = SiteState.of(site_of_one[0].path)
    expectations.keep(state, "gpu1", "before", [expecting("gateway"), expecting("weights")])
    kept, told = kept_after_a_run_of_the_gateway(
        site_of_one,
        monkeypatch,
        {"gpu1": found_by_look("gateway")},
        meanwhile=lambda: (tmp_path / "task.yml").write_text("after" if changes else "before"),
    )
    assert kept == (["gateway", "weights"] if changes else ["weights", "gateway"])
    assert ("runs all steps" in told) == changes


@pytest.mark.parametrize("known", [False, True])
def test_a_run_of_one_role_says_nothing_about_the_other_steps(monkeypatch, site_of_one, known):
    if known:
        expectations.keep(SiteState.of(site_of_one[0].path), "gpu1", "before", [expecting("weights")])
    kept, _ = kept_after_a_run_of_the_gateway(site_of_one, monkeypatch, {}, only="gateway")
    assert kept == (["weights", "gateway"] if known else [])


def test_what_other_steps_expect_outlives_a_change_that_is_not_theirs(monkeypatch, site_of_one):
    expectations.keep(SiteState.of(site_of_one[0].path), "gpu1", "earlier", [expecting("weights")])
    kept, _ = kept_after_a_run_of_the_gateway(site_of_one, monkeypatch, {}, only="gateway", since="earlier")
    assert kept == ["weights", "gateway"]


@pytest.mark.parametrize("is_met", [False, True])
def test_a_change_is_made_when_hosts_were_met_and_the_next_run_knows_of_it(tmp_path, monkeypatch, is_met):
    """A revoked key stayed right on a host whose run was cut off, because a look found nothing to do there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r1prov.yml").write_text("profile: demo\nhosts: [gpu1]\n")
    chosen, hosts = select(None, [])
    keys, played = SiteState.of(chosen.path).keys, []

    def prepared(decision, hosts, *_, **__):
        made_of = expectations.made_of(SiteState.of(chosen.path))
        return Prepared(decision, hosts, () if is_met else [HostAway("gpu1", ())], {}, made_of)

    monkeypatch.setattr(runs, "prepare", prepared)
    monkeypatch.setattr(runs, "play", lambda prepared, *_: played.append(prepared))
    change = Change("balancer", lambda: print("[]", file=keys.open("w")))
    runs.run(runs.settle(chosen, lambda _: None), hosts, Login(), Request("up", "r1prov keys", change=change), Silent())
    [run] = played
    assert keys.exists() == is_met
    assert (run.due, run.made_of != run.since) == ((("balancer",), True) if is_met else ((), True))
    assert run.made_of == expectations.made_of(SiteState.of(chosen.path))
