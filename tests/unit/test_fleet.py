"""Sites whose hosts are one service, or of several kinds: what contradicts, and what each host is to serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from r1prov import inventory, site
from r1prov.cli import main
from r1prov.common.errors import Exit, SiteError
from r1prov.decision import Decision, decide
from r1prov.runs import rollout
from r1prov.site import Site, versions
from r1prov.site.select import last_applied, refuse_parts, with_choices
from r1prov.site.state import SiteState

GATEWAY: dict[str, Any] = {"server_name": "chat.example.com", "tls": {"type": "local-authority"}}


def host(name: str, *does: str, private: str = "", group: str = "") -> dict[str, Any]:
    given = {"does": list(does), "private": private, "group": group}
    return {"name": name, **{key: value for key, value in given.items() if value}}


FLEET: dict[str, Any] = {
    "groups": {"big": {"profile": "4x4090", "slots": 2}, "small": {"profile": "cpu", "slots": 1}},
    "hosts": [
        host("gpu1", "engine", private="10.0.0.1", group="big"),
        host("gpu2", "engine", private="10.0.0.2", group="big"),
        host("slow", "engine", private="fd00::3", group="small"),
        host("front", "door", "page"),
    ],
    "gateway": GATEWAY,
}
ONE: dict[str, Any] = {"profile": "cpu", "gateway": GATEWAY}
FRONT, GPU1 = host("front", "door", "page"), host("gpu1", "engine", private="10.0.0.1")


def loaded(folder: Path, keys: dict[str, Any]) -> Site:
    path = folder / "r1prov.yml"
    path.write_text(yaml.safe_dump(keys, sort_keys=False))
    return site.load(path)


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"hosts": ["a", host("b", group="big")], "groups": {}}, "host b: the site has no group big"),
        ({"hosts": ["a"], "groups": {"big": {}}}, "group big: no host is in it"),
        (
            {"hosts": [GPU1, host("front", "door", group="big")], "groups": {"big": {}}},
            "host front: it is in the group big",
        ),
        ({"hosts": [GPU1, FRONT, host("b", "door")]}, "does: there are 2 doors: front, b"),
        ({"hosts": [GPU1, host("b", "page")]}, "does: no host is the door"),
        (
            {"hosts": [host("gpu1", "engine", "page", private="10.0.0.1"), FRONT]},
            "does: the page is on 2 hosts: gpu1, front",
        ),
        (
            {"hosts": [host("gpu1", "engine", "page", private="10.0.0.1"), host("front", "door")]},
            "does: the page is on gpu1, and the door on front",
        ),
        ({"hosts": [FRONT]}, "does: no host has an engine"),
        ({"hosts": [GPU1, FRONT], "gateway": None}, "gateway: front is the door"),
        ({"hosts": [host("gpu1", "engine"), FRONT]}, "host gpu1: the door is on another host"),
        (
            {"hosts": [GPU1, host("gpu2", "engine", private="10.0.0.1"), FRONT]},
            "private: gpu1, gpu2 have the same address 10.0.0.1",
        ),
        ({"hosts": [GPU1, FRONT, "b"]}, "host b: other hosts have duties, and it has none"),
        ({"hosts": [GPU1, FRONT], "engine": "ollama"}, "engine: the engine of gpu1 is ollama"),
        ({"hosts": [host("g" * 41, "engine", private="10.0.0.1"), FRONT]}, "its name has more than 40 characters"),
        ({"hosts": [GPU1, FRONT], "profile": ""}, "profile: `profile` is missing"),
        ({"hosts": [host("gpu1", "engin"), FRONT]}, "is none of 'engine', 'worker', 'page' or 'door'"),
        ({"hosts": [host("gpu1", "engine", private="gpu1.lan"), FRONT]}, "`gpu1.lan` is not an IP address"),
        ({"hosts": [host("gpu1", "engine", private="127.0.0.1"), FRONT]}, "other hosts cannot reach `127.0.0.1`"),
        ({"hosts": [host("gpu1", "engine", private="0.0.0.0"), FRONT]}, "other hosts cannot reach `0.0.0.0`"),
        ({"hosts": [GPU1, FRONT], "private_port": 8000}, "port 8000 is given to two services"),
        ({"hosts": [GPU1, FRONT], "open_webui": {"enabled": False}}, "does: front has the page, and"),
    ],
)
def test_what_contradicts_gets_one_message(tmp_path: Path, keys: dict[str, Any], what: str) -> None:
    given = {key: value for key, value in {**ONE, **keys}.items() if value is not None}
    with pytest.raises(SiteError) as caught:
        loaded(tmp_path, given)
    assert len(caught.value.problems) == 1
    problem = caught.value.problems[0]
    assert what in f"{problem.where}: {problem.what}"
    assert problem.remedy


def test_all_contradictions_come_at_once(tmp_path: Path) -> None:
    hosts = [host("gpu1", "engine", group="big"), host("front", "door"), host("back", "door")]
    with pytest.raises(SiteError) as caught:
        loaded(tmp_path, {"profile": "cpu", "hosts": hosts})
    assert [problem.where for problem in caught.value.problems] == ["host gpu1", "does", "gateway", "host gpu1"]
    with pytest.raises(SiteError) as caught:
        loaded(tmp_path, {"profile": "cpu", "hosts": [*hosts, "bare"]})
    wheres = [problem.where for problem in caught.value.problems]
    assert wheres == ["host gpu1", "host bare", "does", "gateway", "host gpu1"]


def test_a_door_has_no_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--site", str(loaded(tmp_path, FLEET).path), "--host", "front"])
    assert ended.value.code == Exit.SITE
    assert "it has no engine" in capsys.readouterr().err


def test_engines_behind_a_door_serve_under_one_name(tmp_path: Path) -> None:
    other = {**FLEET, "groups": {**FLEET["groups"], "small": {"profile": "cpu", "quant": "UD-IQ1_M"}}}
    with pytest.raises(SiteError, match="different names: DeepSeek-R1-UD-IQ1_M, DeepSeek-R1-UD-IQ1_S"):
        decide(loaded(tmp_path, other))
    named = decide(loaded(tmp_path, {**other, "service": {"alias": "R1"}}))
    assert {named.of(name).alias for name in ("gpu1", "slow", "front")} == {"R1"}
    apart = [{**each, "does": None} for each in FLEET["hosts"][:3]]
    hosts = [{key: value for key, value in each.items() if value} for each in apart]
    decide(loaded(tmp_path, {"groups": other["groups"], "hosts": hosts}))


def test_a_host_serves_what_its_group_says(tmp_path: Path) -> None:
    decision = decide(loaded(tmp_path, FLEET))
    assert [decision.of(name).backend for name in ("gpu1", "slow")] == ["cuda", "cpu"]
    assert [decision.slots(name) for name in ("gpu1", "gpu2", "slow")] == [2, 2, 1]
    assert "--parallel" in decision.arguments("slow")
    assert decision.arguments("slow") != decision.arguments("gpu1")
    assert decision.of("front").alias == decision.of("gpu1").alias


def test_keys_of_one_group_do_not_reach_another(tmp_path: Path) -> None:
    versions = {"open_webui": "0.12.3"}
    big = {"profile": "4x4090", "slots": 2, "versions": {"llama_cpp": "1.2.3"}}
    found = loaded(
        tmp_path, {**FLEET, "profile": "cpu", "versions": versions, "groups": {**FLEET["groups"], "big": big}}
    )
    assert found.of("slow").file.slots == 1
    path = found.path
    SiteState.of(path).remember(found)
    chosen, _ = with_choices(path, (), {"data_dir": "/data"})
    assert [chosen.of(name).file.data_dir for name in ("gpu1", "slow")] == ["/data", "/data"]
    assert [chosen.of(name).file.slots for name in ("gpu1", "slow")] == [2, 1]
    assert [chosen.of(name).file.versions.llama_cpp for name in ("gpu1", "slow")] == ["1.2.3", ""]
    assert {chosen.of(name).file.versions.open_webui for name in ("gpu1", "slow")} == {"0.12.3"}


def variables(decision: Decision, folder: Path, name: str) -> dict[str, Any]:
    """The variables of a host, as Ansible merges them."""
    inventory.render(decision, folder)
    hosts = yaml.safe_load((folder / "hosts.yml").read_text())["all"]
    usual = "ungrouped" if "children" in hosts else "all"
    group = next((group for group, each in hosts.get("children", {}).items() if name in each["hosts"]), usual)
    found = yaml.safe_load((folder / "group_vars" / f"{group}.yml").read_text().replace("!unsafe ", ""))
    return found | hosts["hosts"][name]


def test_the_door_knows_every_engine_and_an_engine_the_door(tmp_path: Path) -> None:
    decision = decide(loaded(tmp_path, FLEET))
    front, gpu1, slow = (variables(decision, tmp_path / "inventory", name) for name in ("front", "gpu1", "slow"))
    assert [(each["name"], each["slots"]) for each in front["balancer_engines"]] == [
        ("gpu1", 2),
        ("gpu2", 2),
        ("slow", 1),
    ]
    sockets = {f"unix@/run/r1prov/tunnel/{each['machine']}-engine.sock" for each in front["tunnel_reaches"]}
    assert {each["address"] for each in front["balancer_engines"]} == sockets
    assert {each["address"] for each in front["tunnel_reaches"]} == {"10.0.0.1:7443", "10.0.0.2:7443", "[fd00::3]:7443"}
    assert gpu1["tunnel_offers"] == [{"name": "engine", "port": gpu1["llama_server_port"], "to": ["front"]}]
    assert (slow["tunnel_address"], slow["balancer_state"], slow["gateway_state"]) == ("fd00::3", "absent", "absent")
    assert [each["r1prov_engine"] for each in (front, gpu1)] == [False, True]
    assert [each["r1prov_open_webui"] for each in (front, gpu1)] == [True, False]
    assert [each["r1prov_backend"] for each in (front, gpu1, slow)] == ["cpu", "cuda", "cpu"]


def test_a_door_with_an_engine_reaches_that_without_a_tunnel(tmp_path: Path) -> None:
    both = {**ONE, "hosts": [host("all", "engine", "door", "page"), GPU1]}
    found = variables(decide(loaded(tmp_path, both)), tmp_path / "inventory", "all")
    addresses = {each["name"]: each["address"] for each in found["balancer_engines"]}
    assert addresses == {"all": "127.0.0.1:8000", "gpu1": "unix@/run/r1prov/tunnel/gpu1-engine.sock"}
    assert [each["machine"] for each in found["tunnel_reaches"]] == ["gpu1"]
    alone = {**ONE, "hosts": [host("all", "engine", "door", "page")]}
    assert variables(decide(loaded(tmp_path, alone)), tmp_path / "inventory", "all")["tunnel_state"] == "absent"


POOL: dict[str, Any] = {
    "groups": {
        "big": {"profile": "4x4090", "slots": 2},
        "pair": {"profile": "2x4x4090", "coordinator": "gpu3"},
    },
    "hosts": [
        host("gpu1", "engine", private="10.0.0.1", group="big"),
        host("gpu3", "engine", private="10.0.0.3", group="pair"),
        host("gpu4", "worker", private="10.0.0.4", group="pair"),
        FRONT,
    ],
    "gateway": GATEWAY,
}


def test_a_worker_lends_its_devices_to_the_engine_of_its_group(tmp_path: Path) -> None:
    decision = decide(loaded(tmp_path, POOL))
    gpu1, gpu3, gpu4 = (variables(decision, tmp_path / "inventory", name) for name in ("gpu1", "gpu3", "gpu4"))
    assert [each["r1prov_lends_to"] for each in (gpu1, gpu3, gpu4)] == ["", "", "gpu3"]
    assert [each["r1prov_engine"] for each in (gpu1, gpu3, gpu4)] == [True, True, False]
    assert [each["llama_cpp_rpc"] for each in (gpu1, gpu3, gpu4)] == [False, True, True]
    (offer,), (reached,), (worker,) = gpu4["tunnel_offers"], gpu3["tunnel_reaches"], gpu3["llama_server_workers"]
    assert (offer["name"], offer["to"], offer["inside"]) == (reached["service"], ["gpu3"], True)
    assert (reached["machine"], reached["address"]) == ("gpu4", "10.0.0.4:7443")
    assert worker["address"] == f"{reached['inside']}:{gpu3['tunnel_inside_port']}"
    assert worker["socket"] == f"/run/r1prov/tunnel/gpu4-{reached['service']}.sock"
    assert gpu3["liveness_workers"] == [worker["address"]]
    assert gpu4["rpc_server_door"]["engine"] == gpu3["llama_server_door"]["engine"] == "gpu3"
    # Ollama cannot serve what lies on two hosts, and each host sees its own memory alone.
    assert [each["r1prov_ollama"] for each in (gpu1, gpu3, gpu4)] == [True, False, False]
    assert gpu3["preflight_expect"]["memory_floor_bytes"] == 0
    shares = gpu3["llama_server_arguments"][gpu3["llama_server_arguments"].index("--tensor-split") + 1]
    assert len(shares.split(",")) == gpu3["preflight_expect"]["gpu_count"] * 2


def changed(**hosts: dict[str, Any]) -> dict[str, Any]:
    """The pool with other hosts in the place of those of their names."""
    return {**POOL, "hosts": [hosts.get(each["name"], each) for each in POOL["hosts"]]}


def in_pair(**keys: Any) -> dict[str, Any]:
    return {**POOL, "groups": {**POOL["groups"], "pair": {**POOL["groups"]["pair"], **keys}}}


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        (in_pair(coordinator="gpu1"), "group pair: gpu1 is to be its coordinator, and is no host of it with an engine"),
        (in_pair(coordinator="gpu4"), "group pair: gpu4 is to be its coordinator, and is no host of it with an engine"),
        (in_pair(coordinator="nobody"), "group pair: nobody is to be its coordinator"),
        (in_pair(profile="4x4090"), "group pair: gpu4 would lend devices, and the profile 4x4090 is one of a single"),
        (in_pair(engine="ollama"), "engine: the engine of gpu3 is ollama"),
        (
            changed(gpu4=host("gpu4", "engine", private="10.0.0.4", group="pair")),
            "group pair: the profile 2x4x4090 is one of 2 hosts that hold one model together, and here are 2 with an engine",
        ),
        (
            changed(gpu4=host("gpu4", "worker", group="pair")),
            "host gpu4: it lends its devices, and nothing says at which",
        ),
        (
            changed(gpu4=host("gpu4", "worker", "engine", private="10.0.0.4", group="pair")),
            "host gpu4: it has an engine and is a worker",
        ),
        (
            changed(gpu3=host("gpu3", "worker", private="10.0.0.3", group="pair")),
            "group pair: gpu3, gpu4 would lend to one engine, and there is none",
        ),
        (
            changed(gpu4=host("gpu4", "worker", private="10.0.0.4")),
            "does: gpu4 would lend to one engine, and there is none",
        ),
    ],
)
def test_a_pool_that_contradicts_is_refused(tmp_path: Path, keys: dict[str, Any], what: str) -> None:
    with pytest.raises(SiteError) as error:
        loaded(tmp_path, keys)
    assert any(f"{each.where}: {each.what}".startswith(what) for each in error.value.problems), error.value.problems


def test_a_worker_has_the_versions_of_its_engine(tmp_path: Path) -> None:
    found = loaded(tmp_path, POOL).model_copy(update={"chosen": {"gpu3": {"llama_cpp": "9.9.9"}}})
    of_hosts = {name: versions.of(found, name).get("llama_cpp") for name in ("gpu1", "gpu3", "gpu4")}
    assert (of_hosts["gpu3"], of_hosts["gpu4"]) == ("9.9.9", "9.9.9")
    assert of_hosts["gpu1"] != "9.9.9"
    assert versions.of(found, "gpu3").keys() == versions.of(found, "gpu4").keys() == {"llama_cpp"}


def test_hosts_that_hold_one_model_together_are_upgraded_together(tmp_path: Path) -> None:
    found = loaded(tmp_path, POOL)

    def sizes(size: int) -> list[list[str]]:
        some = rollout.batches(found.hosts, size, lambda _: 0, lambda host: found.builds_as(host.name))
        return [[host.name for host in batch] for batch in some]

    assert sizes(1) == [["gpu1"], ["gpu3", "gpu4"], ["front"]]
    assert sizes(2) == [["gpu1"], ["gpu3", "gpu4"], ["front"]]
    assert sizes(3) == [["gpu1", "gpu3", "gpu4"], ["front"]]
    with pytest.raises(SiteError, match="gpu3: it holds one model together with gpu4"):
        refuse_parts(found, [host for host in found.hosts if host.name in {"gpu1", "gpu3"}])
    refuse_parts(found, found.hosts)


@pytest.mark.parametrize("words", [["tune", "--yes"], ["bench", "--modes", "cpu"], ["by-hand"]], ids=" ".join)
def test_what_measures_one_host_refuses_a_pool(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    found = loaded(tmp_path, POOL)
    SiteState.of(found.path).remember(found)
    with pytest.raises(SystemExit) as end:
        main([*words, "--site", str(found.path), "gpu3"])
    assert end.value.code == Exit.SITE
    assert "gpu3: it holds one model together with gpu4" in " ".join(capsys.readouterr().err.split())


def test_hosts_without_duties_are_services_of_their_own(tmp_path: Path) -> None:
    decision = decide(loaded(tmp_path, {**ONE, "hosts": ["a", "b"]}))
    assert set(inventory.rendered(decision)) == {"hosts.yml", "group_vars/all.yml"}


def test_groups_that_are_gone_leave_nothing_in_the_inventory(tmp_path: Path) -> None:
    folder, own = tmp_path / "inventory", tmp_path / "inventory" / "group_vars" / "mine.yml"
    inventory.render(decide(loaded(tmp_path, {"profile": "cpu", "hosts": ["a"]})), folder)
    own.write_text("x: 1\n")
    inventory.render(decide(loaded(tmp_path, FLEET)), folder)
    names = {"group_big.yml", "group_small.yml", "ungrouped.yml", "mine.yml"}
    assert {path.name for path in own.parent.iterdir()} == names
    inventory.render(decide(loaded(tmp_path, {"profile": "cpu", "hosts": ["a"]})), folder)
    assert {path.name for path in own.parent.iterdir()} == {"all.yml", "mine.yml"}


def test_versions_are_of_what_a_host_has(tmp_path: Path) -> None:
    found = loaded(
        tmp_path,
        {**FLEET, "groups": {**FLEET["groups"], "small": {"profile": "cpu", "versions": {"llama_cpp": "1.2.3"}}}},
    )
    assert [set(versions.of(found, name)) for name in ("gpu1", "front")] == [
        {"llama_cpp", "ollama"},
        {"llama_cpp", "open_webui"},
    ]
    assert versions.of(found, "slow")["llama_cpp"] == "1.2.3"
    assert found.written_versions("slow") == {"llama_cpp"}
    assert not found.written_versions("gpu1")


def test_a_host_is_put_back_to_what_its_group_was(tmp_path: Path) -> None:
    before = loaded(tmp_path, FLEET)
    state = SiteState.of(before.path)
    state.keep_settled("gpu1", before.of("gpu1"))
    settled = state.settled("gpu1")
    assert settled
    groups = {**FLEET["groups"], "big": {"profile": "4x4090", "slots": 4}}
    wanted = loaded(tmp_path, {**FLEET, "groups": groups})
    back = rollout.put_back_sites(wanted, {"gpu1": settled})["gpu1"]
    assert [back.of(name).file.slots for name in ("gpu1", "slow")] == [2, 1]
    assert decide(back).slots("gpu1") == 2
    assert rollout.other_keys(settled, wanted, "gpu1") == ["slots"]
    assert rollout.needs_new_load(settled, wanted, versions.of(settled, "gpu1"), "gpu1")


def test_a_verb_about_engines_means_those_that_have_one(tmp_path: Path) -> None:
    found = loaded(tmp_path, FLEET)
    SiteState.of(found.path).remember(found)
    assert [each.name for each in last_applied(found.path, (), duty="engine")[1]] == ["gpu1", "gpu2", "slow"]
    with pytest.raises(SiteError, match="it has no engine"):
        last_applied(found.path, ["front"], duty="engine")


def test_drain_is_for_engines_behind_a_door(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    apart = loaded(tmp_path, {**ONE, "hosts": ["a", "b"]})
    SiteState.of(apart.path).remember(apart)
    with pytest.raises(SystemExit) as ended:
        main(["drain", "--site", str(apart.path), "a"])
    assert ended.value.code == Exit.SITE
    assert "nobody else would answer while an engine is drained" in " ".join(capsys.readouterr().err.split())
