"""Compares the needs of the roles, as playbooks/up.yml hands them to preflight, with tests/golden/needs."""

import json
from pathlib import Path

import pytest
from evaluated import up

from tests.golden import assert_golden


@pytest.mark.parametrize("profile", ["4x4090", "demo"])
def test_the_needs_of_a_reference_machine(profile: str, tmp_path: Path) -> None:
    text = json.dumps(up(tmp_path, profile=profile, hosts=["gpu1"]), indent=1) + "\n"
    assert_golden({"needs.json": text}, f"needs/{profile}")


@pytest.mark.parametrize(("kind", "script"), [("git", "/etc/network_turbo"), ("pypi", "")])
def test_the_script_of_a_rented_machine_counts_for_weights_and_git(kind: str, script: str, tmp_path: Path) -> None:
    git = {"type": "git", "git_url": "https://github.com/ggml-org/llama.cpp"} if kind == "git" else {"type": "pypi"}
    sources = {"environment_file": "/etc/network_turbo", "llama_cpp": git}
    found = up(
        tmp_path,
        profile="demo",
        hosts=["gpu1"],
        sources=sources,
        versions={"llama_cpp": "1" * 40} if kind == "git" else {},
        show={"given": "{{ llama_cpp_environment_file }}"},
    )
    scripts = {source["what"]: source.get("environment_file", "") for source in found["preflight_sources"]}
    expected = {"the weights": "/etc/network_turbo"} | ({"the source of llama.cpp": script} if script else {})
    assert {what: given for what, given in scripts.items() if given} == expected
    assert found["given"] == script


def test_what_a_site_asks_for_is_needed_and_nothing_else(tmp_path: Path) -> None:
    archive = tmp_path / "llama.tar.gz"
    archive.write_bytes(b"x")
    found = up(
        tmp_path,
        profile="4x4090",
        hosts=["gpu1"],
        attention="legacy",
        ollama={"enabled": False},
        open_webui={"enabled": False},
        gateway={"server_name": "r1.example.com", "tls": {"type": "acme", "email": "admin@example.com"}},
        versions={"llama_cpp": "mine"},
        sources={
            "apt": {"mirror": "http://mirror/debian"},
            "ca_certificates": [str(archive)],
            "cuda": {"type": "pypi"},
            "llama_cpp": {
                "type": "archive",
                "archive": str(archive),
                "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
            },
            "weights": [{"type": "folder", "path": "/mnt/usb"}],
        },
    )
    assert [(port["port"], port["unit"]) for port in found["preflight_ports"]] == [
        (8000, "r1prov-llama-server.service"),
        (8010, "r1prov-balancer.service"),
        (443, "r1prov-gateway.service"),
        (80, "r1prov-gateway.service"),
    ]
    assert [source["what"] for source in found["preflight_sources"]] == [
        "the apt mirror",
        "the weights",
        "the CUDA toolkit",
    ]
    assert found["preflight_sources"][1]["any_of"] == ["/mnt/usb/DeepSeek-R1-UD-IQ1_S", "/mnt/usb"]
    assert len(found["preflight_sources"][1]["have"]) == 3  # every shard counts, because they are served as they are
    assert [item["what"] for item in found["preflight_disk"]] == [
        "2 GiB that stay free",
        "building llama.cpp",
    ]
    assert found["preflight_driver"] == "580"
    assert found["data_disk_reach"] == ["/mnt/usb/DeepSeek-R1-UD-IQ1_S", "/mnt/usb"]  # It may lie below /root.
    authorities = dict.fromkeys(
        ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"), "/etc/ssl/certs/ca-certificates.crt"
    )
    assert found["environment_of_tasks"] == authorities | {"APT_CONFIG": "/etc/r1prov/build_deps/apt.conf"}
