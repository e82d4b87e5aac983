"""Tests of the look for files that no role makes, on a root of files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from ansible_collections.r1.prov.plugins.module_utils import place_look, stray_look
from ansible_collections.r1.prov.plugins.module_utils.files import mounts

ROOT = Path(__file__).parents[2]
KNOWN = yaml.safe_load((ROOT / "roles/service/vars/main.yml").read_text())


def put(root: Path, *names: str, text: str = "") -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def strays(root: Path) -> list[str]:
    found = stray_look.of_configuration(KNOWN["__service_configuration"], KNOWN["__service_units"], root)
    found += stray_look.of_programs(KNOWN["__service_programs"], root)
    return [str(Path(each.place).relative_to(root)) for each in found]


def test_what_roles_write_is_no_stray(tmp_path: Path) -> None:
    put(tmp_path, "etc/r1prov/gateway/nginx.conf", "etc/r1prov/network/r1prov-embeddings.nft")
    put(tmp_path, "etc/security/limits.d/r1prov-operators.conf", "usr/local/lib/r1prov-await-ready")
    put(tmp_path, "etc/cron.d/backup", "etc/sudoers.d/deploy", text="deploy ALL=(ALL) NOPASSWD: ALL\n")
    assert strays(tmp_path) == []
    assert stray_look.administrators(KNOWN["__service_accounts"], tmp_path) == []


@pytest.mark.parametrize(
    "name",
    [
        "etc/r1prov/evil",
        "etc/r1prov/gateway/api-key.old",
        "etc/r1prov/gateway/.nginx.conf.x81",
        "etc/r1prov/network/r1prov-evil.nft",
        "etc/r1prov/network/evil.nft",
        "etc/security/limits.d/r1prov-evil.conf",
        "usr/local/lib/r1prov-evil",
    ],
)
def test_a_file_that_no_role_writes_is_a_stray(tmp_path: Path, name: str) -> None:
    put(tmp_path, name)
    assert strays(tmp_path) == [name]


def test_a_link_is_a_stray(tmp_path: Path) -> None:
    (tmp_path / "etc/r1prov").mkdir(parents=True)
    (tmp_path / "etc/r1prov/evil").symlink_to("/")
    assert strays(tmp_path) == ["etc/r1prov/evil"]


def test_a_link_in_the_place_of_a_folder_is_for_the_look_at_places(tmp_path: Path) -> None:
    (tmp_path / "etc/r1prov").mkdir(parents=True)
    (tmp_path / "etc/r1prov/embeddings").symlink_to("/")
    assert strays(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["etc/cron.d/r1prov", "etc/sudoers.d/r1prov", "etc/systemd/user/r1prov-x.service", "usr/local/bin/r1prov-x"]
)
def test_what_the_host_itself_would_use_is_named_and_stays(tmp_path: Path, name: str) -> None:
    put(tmp_path, name, "usr/local/bin/r1prov")
    (said,) = stray_look.administrators(KNOWN["__service_accounts"], tmp_path)
    assert said.startswith(f"{tmp_path / name} carries r1prov's name")
    assert strays(tmp_path) == []


def test_the_name_of_the_program_that_runs_units_is_r1provs_own_where_that_is_there(tmp_path: Path) -> None:
    put(tmp_path, "usr/local/bin/r1prov-units")
    assert len(stray_look.administrators([], tmp_path)) == 1
    put(tmp_path, "usr/local/lib/r1prov-units/command.py")
    assert stray_look.administrators([], tmp_path) == []


def test_rights_and_jobs_of_a_services_account_are_named(tmp_path: Path) -> None:
    put(tmp_path, "etc/sudoers.d/x", text="root ALL=(ALL) ALL\nr1prov-llama ALL=(ALL) NOPASSWD: ALL\n")
    put(tmp_path, "var/spool/cron/crontabs/r1prov-webui")
    jobs, rights = stray_look.administrators(KNOWN["__service_accounts"], tmp_path)
    assert "holds jobs of the service account r1prov-webui" in jobs
    assert "lets the service account r1prov-llama become another user" in rights


def test_the_programs_that_are_folders_are_those_of_the_roles() -> None:
    """A look took another one for something that stands in the place of a file, and removed it at each run."""
    folders = {path.name for path in ROOT.glob("roles/*/files/r1prov-*") if path.is_dir()}
    assert set(place_look._FOLDERS) == folders


OF_ROLES = {"gateway": ["tls-chain", "tls-key"], "tunnel": ["authority", "machine"]}
"""The secrets of services that a role names in its vars."""


def test_the_list_of_configuration_is_what_the_roles_write() -> None:
    made = {"open-webui/admin-password"}  # by the module open_webui_data
    made |= {"build_deps/sources.list"}  # by a loop
    for path in ROOT.glob("roles/*/tasks/*.yml"):
        text = re.sub(r"{{ __(balancer|gateway|tunnel)_etc }}", r"/etc/r1prov/\1", path.read_text())
        made |= set(re.findall(r"/etc/r1prov/([\w-]+/[\w-]+\.?\w*)", text)) - {"network/r1prov-network"}
        for task in yaml.safe_load(text) or []:
            given = task.get("vars", {})
            secrets = given.get("service_credentials", {})
            role = path.parts[-3]
            names = list(secrets) if isinstance(secrets, dict) else OF_ROLES[role]
            names += ["environment"] if given.get("service_secret_environment") else []
            service = given.get("service_name", "").removeprefix("r1prov-")
            made |= {f"{service}/{name}" for name in names}
    assert made == set(KNOWN["__service_configuration"])


def mountinfo(*places: str) -> str:
    return "".join(f"22 1 0:21 / {place} rw,relatime shared:7 - tmpfs tmpfs rw\n" for place in places)


def test_what_is_mounted_over_files_of_r1prov_is_found() -> None:
    disks = (
        "/",
        "/opt/r1prov",
        "/var/lib/r1prov/open-webui",
        "/run/netns/r1prov",
        "/run/credentials/r1prov-gateway.service",
    )
    over = [
        "/etc/r1prov/gateway",
        "/etc/r1prov/gateway",
        "/opt/r1prov/llama.cpp/releases/1-cpu/bin/llama-cli",
        "/etc/systemd/system/r1prov-embeddings.service",
        "/usr/local/lib/r1prov-await-ready",
    ]
    places = mounts(mountinfo(*disks, *over, "/etc/r1prov/open-webui/a\\040b"))
    assert [each.place for each in stray_look.mounted_over(places, "/opt/r1prov")] == [
        *over,
        "/etc/r1prov/open-webui/a b",
    ]


def test_releases_on_the_data_disk_are_not_mounted_over_either() -> None:
    place = "/data/host/opt/llama.cpp/releases/1-cpu/bin/llama-cli"
    assert [each.place for each in stray_look.mounted_over([place], "/data/host/opt")] == [place]


def test_a_services_account_that_runs_programs_from_boot_on_is_named(tmp_path: Path) -> None:
    put(tmp_path, "var/lib/systemd/linger/r1prov-llama", "var/lib/systemd/linger/eve")
    (said,) = stray_look.administrators(KNOWN["__service_accounts"], tmp_path)
    assert "lets the service account r1prov-llama run programs" in said
