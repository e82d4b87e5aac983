"""Compares the inventory of the reference machines with tests/golden/inventory. `make golden` writes these files again."""

from pathlib import Path

import jinja2
import pytest
import yaml
from loader import Loader

from r1prov import inventory, site
from r1prov.common.errors import SiteError
from r1prov.decision import decide
from tests.golden import assert_golden, kept

ROLES = Path(__file__).resolve().parents[2] / "roles"


@pytest.fixture(autouse=True)
def no_headers(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No header of a model has been read before, whatever is kept on this machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def of_profile(profile: str) -> dict[str, str]:
    """The contents of the inventory of two hosts, by file name."""
    hosts = ["gpu1.example.com", "admin@gpu2.example.com:2222"]
    return inventory.rendered(decide(site.load(None, profile=profile, hosts=hosts)))


def test_the_inventory_of_a_reference_machine() -> None:
    assert_golden(of_profile("4x4090"), "inventory/4x4090")


@pytest.mark.parametrize("profile", ["4xh800", "cpu", "demo"])
def test_what_is_other_in_the_inventory_of_other_machines(profile: str) -> None:
    assert_golden(kept(of_profile(profile), of_profile("4x4090")), f"inventory/{profile}")


def test_the_inventory_of_hosts_that_are_one_service() -> None:
    hosts = (
        {"name": "gpu1", "address": "gpu1.example.com", "private": "10.0.0.1", "does": ["engine"], "group": "big"},
        {"name": "front", "address": "front.example.com", "does": ["door", "page"]},
    )
    gateway = {"server_name": "chat.example.com", "tls": {"type": "local-authority"}}
    groups = {"big": {"profile": "4x4090", "slots": 2}}
    texts = inventory.rendered(decide(site.load(None, profile="cpu", hosts=hosts, groups=groups, gateway=gateway)))
    assert set(texts) == {"hosts.yml", "group_vars/group_big.yml", "group_vars/ungrouped.yml"}
    assert_golden({"hosts.yml": texts["hosts.yml"]}, "inventory/fleet")


def values(**flags: object) -> dict:
    loaded = site.load(None, **({"profile": "4x4090", "hosts": ["gpu1"]} | flags))
    return yaml.load(inventory.rendered(decide(loaded))["group_vars/all.yml"], Loader=Loader)


def test_render_writes_whole_files(tmp_path: Path) -> None:
    loaded = site.load(None, profile="cpu", hosts=["gpu1"])
    inventory.render(decide(loaded), tmp_path)
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()} == {
        "hosts.yml",
        "group_vars/all.yml",
    }
    assert (tmp_path / "hosts.yml").read_text() == inventory.rendered(decide(loaded))["hosts.yml"]


def test_a_value_cannot_break_out_of_the_yaml(tmp_path: Path) -> None:
    nasty = '/data/"quoted": {a} # \n- x'
    assert values(data_dir=nasty)["weights_dir"] == f"{nasty}/models/DeepSeek-R1-UD-IQ1_S"


def test_sources_reach_the_roles(tmp_path: Path) -> None:
    certificate = tmp_path / "ca.crt"
    certificate.write_text("x")
    found = values(
        sources={
            "proxy": {"https": "http://proxy:3128"},
            "apt": {"mirror": "http://mirror/debian"},
            "pypi": {"index": "https://mirror/simple"},
            "ca_certificates": [str(certificate)],
            "weights": [{"type": "folder", "path": "/mnt/usb"}, {"type": "modelscope"}],
        }
    )
    assert found["r1prov_environment"] == {
        "https_proxy": "http://proxy:3128",
        "PIP_INDEX_URL": "https://mirror/simple",
    }
    assert [source["type"] for source in found["weights_sources"]] == ["folder", "folder", "modelscope"]
    assert found["weights_sources"][0]["path"] == "/mnt/usb/DeepSeek-R1-UD-IQ1_S"
    assert "huggingface" not in yaml.safe_dump(found)


def test_a_gateway_has_what_it_takes_and_the_page_knows_its_address() -> None:
    found = values(gateway={"server_name": "r1.example.com", "port": 8443, "tls": {"type": "local-authority"}})
    assert found["open_webui_public_url"] == "https://r1.example.com:8443"
    assert found["gateway_page_url"] == "http://127.0.0.1:8080"
    assert found["gateway_api_url"] == "http://127.0.0.1:8010"
    assert found["balancer_port"] == 8010
    assert [(each["address"], each["slots"]) for each in found["balancer_engines"]] == [("127.0.0.1:8000", 1)]
    assert found["balancer_engine_key"] == found["llama_server_api_key"]
    assert found["open_webui_openai_url"] == "http://127.0.0.1:8010/v1"
    assert found["gateway_key"] == "{{ lookup('ansible.builtin.file', r1prov_site_dir ~ '/authority/server.key') }}"
    assert "gateway_state" not in found


def test_the_page_asks_ollama_itself_without_a_balancer_and_with_a_key_through_one() -> None:
    gateway = {"server_name": "r1.example.com", "tls": {"type": "local-authority"}}
    alone, behind = values(engine="ollama"), values(engine="ollama", gateway=gateway)
    assert alone["open_webui_ollama_url"] == "http://127.0.0.1:11434"
    assert "open_webui_ollama_key" not in alone
    assert behind["open_webui_ollama_url"] == "http://127.0.0.1:8010"
    assert behind["open_webui_ollama_key"] == behind["llama_server_api_key"]
    assert alone["open_webui_default_model"] == behind["open_webui_default_model"] == "DeepSeek-R1-UD-IQ1_S:latest"


def test_acme_reaches_the_role() -> None:
    tls = {"type": "acme", "email": "admin@example.com"}
    found = values(gateway={"server_name": "r1.example.com", "tls": tls})
    assert found["gateway_acme_directory"] == "https://acme-v02.api.letsencrypt.org/directory"
    assert "gateway_certificate" not in found


def test_a_port_that_is_mapped_is_in_what_people_open_and_not_in_what_the_host_sees() -> None:
    keys = {"server_name": "u1.region.example.com", "port": 6006, "public_port": 8443}
    mapped = values(gateway={**keys, "tls": {"type": "local-authority"}})
    outside = ("open_webui_public_url", "gateway_port", "gateway_public_port")
    assert [mapped[key] for key in outside] == ["https://u1.region.example.com:8443", 6006, 8443]
    external = values(gateway={**keys, "tls": {"type": "external"}})
    assert external["gateway_external_tls"] is True
    assert not {"gateway_certificate", "gateway_key", "gateway_acme_directory"} & set(external)


def test_without_a_gateway_one_that_was_there_is_taken_away() -> None:
    found = values()
    assert {key: value for key, value in found.items() if key.startswith(("gateway_", "balancer_"))} == {
        "gateway_state": "absent",
        "balancer_state": "absent",
    }
    assert "open_webui_public_url" not in found


def test_no_secret_is_in_the_inventory(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("hf_secret")
    token.chmod(0o600)
    loaded = site.load(
        None,
        profile="4x4090",
        hosts=["gpu1"],
        sources={"weights": [{"type": "hub", "token_file": str(token)}]},
    )
    text = inventory.rendered(decide(loaded))["group_vars/all.yml"]
    assert "hf_secret" not in text
    assert str(token) in text


def test_an_unknown_quant_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="no quant is called"):
        inventory.render(decide(site.load(None, profile="4x4090", hosts=["gpu1"], quant="UD-IQ9")), tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_rendered_is_what_the_roles_take() -> None:
    known = set()
    for specs in ROLES.glob("*/meta/argument_specs.yml"):
        for spec in yaml.safe_load(specs.read_text())["argument_specs"].values():
            known |= set(spec.get("options", {}))
    rendered = {
        key for profile in ("4x4090", "demo") for key in values(profile=profile) if not key.startswith("r1prov_")
    }
    assert rendered <= known


@pytest.mark.parametrize(("address", "reached"), [("::1", "[::1]"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]")])
def test_everybody_is_told_where_the_engine_is_reached(address: str, reached: str) -> None:
    gateway = {"server_name": "r1.example.com", "tls": {"type": "local-authority"}}
    found = values(service={"address": address, "port": 8123}, gateway=gateway)
    assert found["llama_server_address"] == address
    assert found["smoke_bench_url"] == f"http://{reached}:8123"
    # In the private network.
    assert values(service={"address": address, "port": 8123})["open_webui_openai_url"] == "http://127.0.0.1:8123/v1"
    assert found["balancer_engines"][0]["address"] == "127.0.0.1:8123"


def test_systemd_must_be_able_to_listen_on_the_engines_address() -> None:
    assert values(service={"address": "10.0.0.7"})["smoke_bench_url"] == "http://10.0.0.7:8000"
    assert values(service={"address": "localhost"})["smoke_bench_url"] == "http://localhost:8000"
    with pytest.raises(SiteError, match="`gpu1` is not an IP address: write"):
        values(service={"address": "gpu1"})


def test_templates_are_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    compile_ = jinja2.Environment.compile

    def told(self: jinja2.Environment, source: str, name: str, filename: str) -> object:
        compiled.append(name)
        return compile_(self, source, name, filename)

    monkeypatch.setattr(jinja2.Environment, "compile", told)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    wanted = of_profile("cpu")
    templates = sorted(compiled)
    assert "all.yml.j2" in templates
    assert of_profile("cpu") == wanted
    assert sorted(compiled) == templates
    # What was compiled with other settings would make another text.
    monkeypatch.setitem(inventory._SETTINGS, "trim_blocks", False)
    assert of_profile("cpu") != wanted
    # Damage, and a cache that cannot be used, cost time and nothing else.
    monkeypatch.setitem(inventory._SETTINGS, "trim_blocks", True)
    for file in (tmp_path / "r1prov" / "templates").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert of_profile("cpu") == wanted
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert of_profile("cpu") == wanted
