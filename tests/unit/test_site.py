import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import pytest
from ansible_collections.r1.prov.plugins.module_utils import host_judge

from r1prov import site
from r1prov.cli import main
from r1prov.common import documents
from r1prov.common.errors import SiteError
from r1prov.decision import decide
from r1prov.machines import profile as machine
from r1prov.machines.profile import Profile, load_profile
from r1prov.models.sources import Folder
from r1prov.site import Check, Host, authority, select
from r1prov.site.sources import PRESETS, Sources
from r1prov.site.state import SiteState


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("gpu1", Host(name="gpu1", address="gpu1")),
        (
            "root@gpu1.example.com:2222",
            Host(name="gpu1.example.com-2222", address="gpu1.example.com", user="root", port=2222),
        ),
        ("[fe80::1]:22", Host(name="fe80--1-22", address="fe80::1", port=22)),
        ("admin@10.0.0.7", Host(name="10.0.0.7", address="10.0.0.7", user="admin")),
    ],
)
def test_hosts_are_read_as_ssh_users_write_them(text: str, host: Host) -> None:
    assert Host.parse(text) == host


def test_localhost_is_the_controller_unless_a_port_says_ssh() -> None:
    assert Host.parse("localhost").local
    assert not Host.parse("localhost:2222").local


def problems(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "r1prov.yml"
    path.write_text(text)
    with pytest.raises(SiteError) as caught:
        site.load(path)
    return [f"{p.where.removeprefix(str(tmp_path) + '/')}: {p.what} -- {p.remedy}" for p in caught.value.problems]


def test_every_mistake_in_a_site_file_is_named_with_its_line_at_once(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        "profile: 4x4090\nhosts: [gpu1, 'a b']\nqant: UD-IQ1_S\nslots: many\nsources:\n  weights:\n    - {type: ftp}\n  proxi: {}\n",
    )
    assert len(found) == 5, found
    assert found[0].startswith("r1prov.yml:2: `hosts.1`")
    assert any(line.startswith("r1prov.yml:3: unknown key `qant` -- did you mean `quant`") for line in found)
    assert any(line.startswith("r1prov.yml:4: `slots`") for line in found)
    assert any("r1prov.yml:7" in line and "ftp" in line for line in found)
    assert any(line.startswith("r1prov.yml:8: unknown key `sources.proxi` -- did you mean `proxy`") for line in found)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("profile: [\n", "is not YAML"),
        ("- a\n", "is not a mapping"),
        ("profile: 4x4090\nhosts: []\n", "`hosts`"),
        ("profile: 4x4090\nhosts: [a, a]\n", "named twice"),
        ("hosts: [a]\n", "`profile` is missing"),
        ("profile: 4x4090\nhosts: [a]\nsources: {llama_cpp: {type: archive}}\n", "needs `archive`"),
        (
            "profile: 4x4090\nhosts: [a]\nsources: {ollama: {archive: 'https://u:secret@x/o.tgz'}}\n",
            "https://x/o.tgz: nothing says which sha256 this archive must have",
        ),
        ("profile: 4x4090\nhosts: [a]\nsources: {python: {archive: /srv/p.tgz}}\n", "write sources.python.sha256"),
        ("profile: 4x4090\nhosts: [a]\ndata_dir: data\n", "data_dir"),
        (
            "profile: 4x4090\nhosts: [a]\nsources: {environment_file: etc/network_turbo}\n",
            "`sources.environment_file`: is not the absolute path of a file on the host",
        ),
        (
            "profile: 4x4090\nhosts: [a]\nversions: {ollama: 0.5.4}\n",
            "Ollama 0.5.4 is too old: write 0.5.5",
        ),
        ("profile: 4x4090\nhosts: [a, a]\n", "r1prov.yml: host a is named twice"),
        ("profile: 4x4090\nhosts: []\n", "`hosts`: name at least one"),
        ("profile: 4x4090\nhosts: [a]\nsources: {proxy: x}\n", "is not a mapping of keys and values"),
        ("profile: 4x4090\nhosts: [a]\nsources: {weights: [{type: hubb}]}\n", "`hubb` is none of 'hub', 'modelscope'"),
        ("profile: 4x4090\nhosts: [a]\noverride: [rum]\n", "is none of 'os', 'arch'"),
    ],
)
def test_one_mistake_gets_one_line(tmp_path: Path, text: str, what: str) -> None:
    (line,) = problems(tmp_path, text)
    assert what in line


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("port: 3\n", "`port` belongs under `hosts` or `service` or `ollama`"),
        ("service: {host: a}\n", "here there are: address, port, alias"),
        ("service: {ports: 1}\n", "did you mean `port`?"),
        ("gateway: {server_name: a, tls: {type: local-authority, chain: a}}\n", "here there are: type"),
        (
            "versions: {engine: ollama}\n",
            "`engine` belongs at the top or under `groups`; here there are: llama_cpp, ollama, open_webui",
        ),
        ("service: {prot: 1}\n", "did you mean `port`?"),
        ("sources: {weights: [{type: hub, token_fil: x}]}\n", "did you mean `token_file`?"),
        ("slotss: 1\n", "did you mean `slots`?"),
        ("zzz: 1\n", "lists the keys"),
    ],
)
def test_an_unknown_key_gets_those_that_may_have_been_meant(tmp_path: Path, text: str, remedy: str) -> None:
    (line,) = problems(tmp_path, f"profile: 4x4090\nhosts: [a]\n{text}")
    assert line.partition(" -- ")[2] == remedy or (remedy == "lists the keys" and line.endswith(remedy))


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        (
            "profile",
            (
                "`profile` belongs at the top or under `groups`; here there are: "
                "name, address, user, port, identity_file, group, does, private"
            ),
        ),
        ("adress", "did you mean `address` or `does`?"),
        ("zzz", "here there are: name, address, user, port, identity_file, group, does, private"),
        (
            "alias",
            "`alias` belongs under `service`; here there are: name, address, user, port, identity_file, group, does, private",
        ),
    ],
)
def test_a_key_of_a_host_is_not_taken_for_one_that_stands_elsewhere(tmp_path: Path, key: str, remedy: str) -> None:
    (line,) = problems(tmp_path, f"profile: demo\nhosts:\n- gpu1\n- {{name: gpu2, address: gpu2, {key}: x}}\n")
    assert line == f"r1prov.yml:4: unknown key `hosts.1.{key}` -- {remedy}"


@pytest.mark.parametrize("content", ["", "hf_one\nhf_two\n", "hf_one hf_two", "hf_\x00", "hf_ö"])
def test_a_file_that_holds_no_token_is_refused_and_not_shown(tmp_path: Path, content: str) -> None:
    (tmp_path / "token").touch(0o600)
    (tmp_path / "token").write_text(content)
    text = "profile: 4x4090\nhosts: [a]\nsources: {weights: [{type: hub, token_file: token}]}\n"
    (line,) = problems(tmp_path, text)
    assert "it holds no token" in line
    assert "hf_" not in line


def test_a_wrong_profile_is_said_beside_the_rest(tmp_path: Path) -> None:
    found = problems(tmp_path, "profile: 4x409\nhosts: [a]\nslotss: 1\n")
    assert [line.partition(" -- ")[0] for line in found] == [
        "r1prov.yml:3: unknown key `slotss`",
        "profile: there is no profile `4x409`",
    ]


def test_the_checks_are_those_of_preflight() -> None:
    assert set(get_args(Check)) == set(host_judge.CHECKS)


def test_an_unknown_profile_gets_near_names() -> None:
    with pytest.raises(SiteError) as caught:
        site.load(None, hosts=["a"], profile="4x409")
    assert "did you mean 4x4090" in caught.value.problems[0].remedy


def test_flags_win_over_the_file_and_the_file_over_the_profile(tmp_path: Path) -> None:
    path = tmp_path / "r1prov.yml"
    path.write_text("profile: 4x4090\nhosts: [gpu1]\nquant: UD-IQ1_M\nslots: 2\n")
    loaded = site.load(path, quant="UD-IQ2_XXS")
    serving = loaded.profile.serving
    assert (serving.quant, serving.slots, serving.context_per_slot) == ("UD-IQ2_XXS", 2, None)


def test_an_operators_own_profile_lies_beside_the_site_file(tmp_path: Path) -> None:
    (tmp_path / "own.yml").write_text(
        "description: mine\nmachine: {ram: 64 GB, disk: 1 TB}\nfloors: {ram: 32 GB}\n"
        "serving: {quant: UD-IQ1_S, context_per_slot: 4096, slots: 1, micro_batch: 512}\n"
    )
    (tmp_path / "r1prov.yml").write_text("profile: own.yml\nhosts: [gpu1]\n")
    assert site.load(tmp_path / "r1prov.yml").profile.description == "mine"


def test_a_size_without_its_unit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.yml"
    path.write_text(machine.source("cpu").replace("ram: 256 GB", "ram: 256"))
    with pytest.raises(SiteError) as caught:
        load_profile(str(path))
    (problem,) = caught.value.problems
    assert problem.what.startswith("`machine.ram`: `256` is not a size: write a number and one of the units")


@pytest.mark.parametrize("name", machine.names())
def test_a_profile_that_is_written_is_read_as_the_same(tmp_path: Path, name: str) -> None:
    profile = load_profile(name)
    (tmp_path / "own.yml").write_text(machine.as_yaml(profile))
    assert load_profile(str(tmp_path / "own.yml")) == profile
    assert Profile.model_validate_json(profile.model_dump_json()) == profile


def test_without_a_file_hosts_and_profile_are_asked_for_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SiteError) as caught:
        site.load(None)
    assert [p.what for p in caught.value.problems] == ["no host is named", "no profile is named"]


@pytest.mark.parametrize("slots", [0, 1000])
def test_a_wrong_flag_is_named(slots: int) -> None:
    with pytest.raises(SiteError) as caught:
        site.load(None, hosts=["a"], profile="cpu", slots=slots)
    assert caught.value.problems[0].where == "--parallel"


@pytest.mark.parametrize("name", ["4x4090", "4xh800", "cpu", "demo"])
def test_every_profile_that_comes_with_r1prov_is_valid(name: str) -> None:
    assert load_profile(name).description


def gateway(tmp_path: Path, name: str = "r1.example.com", **tls: str) -> str:
    """Writes a site file whose gateway has a certificate for r1.example.com."""
    authority.see_to(tmp_path / "tls", "r1.example.com", datetime.now(UTC))
    written = {"type": "certificate", "chain": "tls/server.crt", "key": "tls/server.key"} | tls
    return f"profile: 4x4090\nhosts: [gpu1]\ngateway: {json.dumps({'server_name': name, 'tls': written})}\n"


def test_files_of_a_certificate_are_named_relative_to_the_site_file(tmp_path: Path) -> None:
    (tmp_path / "r1prov.yml").write_text(gateway(tmp_path))
    loaded = site.load(tmp_path / "r1prov.yml").file.gateway
    assert loaded
    assert loaded.url == "https://r1.example.com"
    assert loaded.tls == site.Certificate(
        type="certificate", chain=str(tmp_path / "tls/server.crt"), key=str(tmp_path / "tls/server.key")
    )


def test_a_certificate_that_cannot_serve_is_refused_before_anyone_is_contacted(tmp_path: Path) -> None:
    for text, what in (
        (gateway(tmp_path, name="other.example.com"), "tls/server.crt: the certificate is for r1.example.com, not for"),
        (gateway(tmp_path, key="tls/authority.key"), "tls/server.crt: the key does not belong"),
        (gateway(tmp_path, key="tls/none.key"), "tls/none.key: this file does not exist"),
        (
            gateway(tmp_path, name="https://r1"),
            "r1prov.yml:3: `gateway.server_name`: is neither a DNS name nor an IP address",
        ),
        (gateway(tmp_path, type="lets"), "r1prov.yml:3: `gateway.tls`: `lets` is none of"),
        (gateway(tmp_path) + "service: {port: 443}\n", "r1prov.yml: port 443 is given to two services"),
    ):
        assert [line for line in problems(tmp_path, text) if line.startswith(what)], (what, problems(tmp_path, text))


@pytest.mark.parametrize(
    ("keys", "public", "local"),
    [
        ("port: 6006, public_port: 8443, tls: {type: external}", "https://a:8443", "http://127.0.0.1:6006"),
        ("port: 6006, public_port: 443, tls: {type: external}", "https://a", "http://127.0.0.1:6006"),
        ("port: 6006, public_port: 31234, tls: {type: local-authority}", "https://a:31234", "https://127.0.0.1:6006"),
        ("port: 6006, tls: {type: local-authority}", "https://a:6006", "https://127.0.0.1:6006"),
    ],
)
def test_a_gateway_behind_a_mapped_port(tmp_path: Path, keys: str, public: str, local: str) -> None:
    path = tmp_path / "r1prov.yml"
    path.write_text(f"profile: 4x4090\nhosts: [gpu1]\ngateway: {{server_name: a, {keys}}}\n")
    loaded = site.load(path).file.gateway
    assert loaded
    assert (loaded.url, loaded.local_url) == (public, local)


def test_where_tls_ends_elsewhere_the_port_outside_must_be_named(tmp_path: Path) -> None:
    text = "profile: 4x4090\nhosts: [gpu1]\ngateway: {server_name: a, port: 6006, tls: {type: external}}\n"
    (said,) = problems(tmp_path, text)
    assert "tls of type external needs `public_port`" in said


def test_acme_takes_port_80_too(tmp_path: Path) -> None:
    tls = "{type: acme, email: admin@example.com}"
    text = f"profile: 4x4090\nhosts: [gpu1]\ngateway: {{server_name: r1.example.com, tls: {tls}}}\n"
    assert problems(tmp_path, text + "open_webui: {port: 80}\n")[0].startswith("r1prov.yml: port 80 is given to two")


@pytest.mark.parametrize(
    ("name", "mode", "says"),
    [
        ("token", 0o666, "may change this file (its mode is 0666)"),
        ("token", 0o644, "may read this file"),
        ("token", 0o640, "may read this file"),
        ("id", 0o644, "may read this file"),
        ("tls/server.key", 0o604, "may read this file"),
        ("tls/server.crt", 0o646, "may change this file"),
        ("r1prov.yml", 0o666, "may change this file"),
        ("own.yml", 0o666, "may change this file"),
        ("ca.crt", 0o666, "may change this file"),
        ("r1prov.yml", 0o664, ""),
        ("ca.crt", 0o644, ""),
    ],
)
def test_files_of_the_operator_that_are_open_to_others_are_refused(
    tmp_path: Path, name: str, mode: int, says: str
) -> None:
    text = gateway(tmp_path).replace("hosts: [gpu1]", "hosts: [{name: gpu1, address: gpu1, identity_file: id}]")
    text = text.replace("profile: 4x4090", "profile: own.yml")
    text += "sources: {ca_certificates: [ca.crt], weights: [{type: hub, token_file: token}]}\n"
    (tmp_path / "own.yml").write_text(machine.source("4x4090"))
    for file in ("id", "token", "ca.crt"):
        (tmp_path / file).touch(0o600)
    (tmp_path / "token").write_text("hf_token")
    (tmp_path / "r1prov.yml").write_text(text)
    site.load(tmp_path / "r1prov.yml")
    (tmp_path / name).chmod(mode)
    if says:
        (found,) = problems(tmp_path, text)
        assert found.startswith(f"{name}: other users of this machine {says}")
        assert "chmod" in found
    else:
        site.load(tmp_path / "r1prov.yml")
    assert (tmp_path / name).stat().st_mode & 0o777 == mode


def test_the_workload_of_the_site_decides_where_the_model_lies(tmp_path: Path) -> None:
    file = tmp_path / "r1prov.yml"
    chosen = {}
    for written in ("", "workload: documents", "workload: {exchanges: [{prompt: 100, answer: 30000}]}"):
        file.write_text(f"profile: 4x4090\nhosts: [gpu1]\n{written}\n")
        setting = decide(site.load(file)).plan.setting
        chosen[written] = setting.micro_batch, setting.batch
    assert list(chosen.values()) == [(1024, 2048), (1600, 1600), (128, 2048)]
    file.write_text("profile: 4x4090\nhosts: [gpu1]\ncontext_per_slot: 8192\nworkload: documents\n")
    with pytest.raises(SiteError, match="does not fit in a slot of 8,192"):
        decide(site.load(file))
    file.write_text("profile: 4x4090\nhosts: [gpu1]\nworkload: office\n")
    with pytest.raises(SiteError, match="there is no workload `office`"):
        site.load(file)


def test_a_preset_stands_for_keys_that_the_file_does_not_name(tmp_path: Path) -> None:
    path = tmp_path / "r1prov.yml"
    path.write_text("profile: 4x4090\nhosts: [a]\nsources: {preset: cn}\n")
    found = site.load(path).file.sources
    assert found.pypi.index == PRESETS["cn"]["pypi"]["index"]
    assert [source.type for source in found.weights] == ["modelscope", "hub", "hub"]
    assert [found.said_by(key) for key in ("pypi", "weights", "apt")] == ["preset cn", "preset cn", "default"]
    path.write_text("profile: 4x4090\nhosts: [a]\nsources: {preset: cn, weights: [{type: folder, path: /mnt}]}\n")
    found = site.load(path).file.sources
    assert found.pypi.index == PRESETS["cn"]["pypi"]["index"]
    assert found.weights == (Folder(type="folder", path="/mnt"),)
    assert found.said_by("weights") == "site file"
    again = Sources.model_validate(found.model_dump(exclude_unset=True))  # as a site that was applied is kept
    assert again == found


def test_sources_are_listed_without_the_logins_in_their_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    listed: dict[str, list[tuple[str, str]]] = {}
    for words in (("--preset", "cn"), ()):
        with pytest.raises(SystemExit) as ended:
            main(("sources", "--json", *words))
        assert not ended.value.code
        for row in json.loads(capsys.readouterr().out)["sources"]:
            listed.setdefault(row["key"], []).append((row["value"], row["said_by"]))
        Path("r1prov.yml").write_text(
            "profile: 4x4090\nhosts: [a]\nsources: {proxy: {https: 'http://me:secret@proxy:3128'}, preset: cn}\n"
        )
    assert listed["pypi.index"] == [(PRESETS["cn"]["pypi"]["index"], "preset cn")] * 2
    assert listed["proxy"] == [("none", "default"), ("https http://proxy:3128", "site file")]
    with pytest.raises(SystemExit):
        main(("sources", "--preset", "us"))
    assert "there is no preset `us`" in capsys.readouterr().err


def test_there_are_words_for_each_pattern_that_a_value_may_miss() -> None:
    texts = (path.read_text() for path in Path(documents.__file__).parents[1].rglob("*.py"))
    patterns = {pattern for text in texts for pattern in re.findall(r'Field\([^)]*?pattern=r"(.*?)"\)', text)}
    assert len(patterns) > 10
    assert patterns == documents._FORMS.keys()


def test_what_a_site_file_says_and_no_run_has_applied_is_known_by_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "r1prov.yml"
    path.write_text("profile: demo\nhosts: [gpu1]\n")
    applied = site.load(path)
    assert select.not_applied(path) == []
    SiteState.of(path).remember(applied)
    SiteState.of(path).choose({"engine": "ollama"})
    assert select.not_applied(path) == []
    path.write_text(
        "profile: demo\nhosts: [gpu1]\ngateway: {server_name: a.example.com, tls: {type: local-authority}}\nwatch: 1h\n"
    )
    assert select.not_applied(path) == ["gateway", "watch"]
