"""The chat page: its Python, its release, its settings, its backups. Nothing is fetched and nothing runs."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import re
import sqlite3
import sys
import tarfile
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.r1.prov.plugins.filter import password as password_filter
from ansible_collections.r1.prov.plugins.module_utils import password as judge
from ansible_collections.r1.prov.plugins.module_utils import releases
from ansible_collections.r1.prov.plugins.module_utils.open_webui import (
    DatabaseError,
    NoAdministratorError,
    apply,
    differing,
)
from ansible_collections.r1.prov.plugins.module_utils.password import password_weakness
from ansible_collections.r1.prov.plugins.module_utils.progress import Progress
from ansible_collections.r1.prov.plugins.module_utils.users import acting_as
from ansible_collections.r1.prov.plugins.modules import open_webui_python as python
from ansible_collections.r1.prov.plugins.modules.open_webui_data import (
    History,
    copy,
    decide,
    restore,
    size_bytes,
    surplus,
)
from ansible_collections.r1.prov.plugins.modules.open_webui_release import (
    Release,
    advice,
    fetched_bytes,
    pinned,
    release_id,
)

ROOT = Path(__file__).parents[2]
ROLE = ROOT / "roles/open_webui"
ME = pwd.getpwuid(os.geteuid()).pw_name


# --- Python


def test_debian_12_is_looked_for_where_the_host_finds_debian_13() -> None:
    uris = """
'http://deb.example.com/debian/dists/trixie/InRelease' deb.example.com_debian_dists_trixie_InRelease 0
'http://deb.example.com/debian/dists/trixie-updates/InRelease' x 0
'http://security.example.com/debian-security/dists/trixie-security/InRelease' x 0
'https://packages.example.com/repos/code/dists/stable/InRelease' x 0
'file:/srv/flat/./InRelease' x 0
"""
    key = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
    assert python.bookworm_sources(uris).splitlines() == [
        f"deb {key} http://deb.example.com/debian bookworm main",
        f"deb {key} http://deb.example.com/debian bookworm-updates main",
        f"deb {key} http://security.example.com/debian-security bookworm-security main",
    ]


def test_a_release_is_read_with_and_without_quotes() -> None:
    assert python.release('NAME="Ubuntu"\nVERSION_ID="22.04"\nID=ubuntu\nID_LIKE=debian\n') == ("ubuntu", "22.04")


def test_an_interpreter_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    fake = tmp_path / "python3.11"
    fake.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named '_sqlite3'\" >&2\nexit 1\n")
    fake.chmod(0o755)
    assert "No module named '_sqlite3'" in python.fault(str(fake))
    fake.write_text("#!/bin/sh\necho False\n")  # what another version says
    assert python.fault(str(fake)) == "Open-WebUI runs on Python 3.11 and 3.12, and it is another version"
    if sys.version_info[:2] in ((3, 11), (3, 12)):
        assert python.fault(sys.executable) == ""


def test_what_was_brought_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    good = tmp_path / "python.tar"
    with tarfile.open(good, "w") as tar:
        for name, text in (("python/bin/python3.11", "#!/bin/sh\necho True\n"), ("python/lib/x", "")):
            (tmp_path / "file").write_text(text)
            (tmp_path / "file").chmod(0o755)
            tar.add(tmp_path / "file", name)
    digest = hashlib.sha256(good.read_bytes()).hexdigest()
    folder, progress = tmp_path / "root" / "p", Progress("t", tmp_path)

    def fill(place: Path) -> None:
        python.from_archive(str(good), digest, place, tmp_path, progress)

    python.bring(folder, fill)
    assert python.interpreter(folder) == str(folder / "python/bin/python3.11")
    with pytest.raises(python.PythonError, match=r"holds no python3\.12 or python3\.11"):
        python.bring(tmp_path / "root" / "q", lambda place: (place / "x").write_text(""))
    assert not (tmp_path / "root" / "q").exists()
    with pytest.raises(python.PythonError, match="expected 00"):
        python.from_archive(str(good), "00", folder, tmp_path, progress)


# --- Release


def test_the_requirements_are_pinned_with_hashes_and_without_torch() -> None:
    text = (ROLE / "files/requirements.txt").read_text()
    pins = pinned(text)
    version = yaml.safe_load((ROLE / "defaults/main.yml").read_text())["open_webui_version"]
    assert pins["open_webui"] == version
    assert (ROLE / "files/requirements.in").read_text() == f"open-webui=={version}\n"
    assert not {"torch", "triton"} & pins.keys()
    assert not [name for name in pins if name.startswith("nvidia")]
    assert "http" not in text.replace("httpx", "").replace("httpcore", "").replace("httptools", "").replace(
        "aiohttp", ""
    )
    assert all("--hash=sha256:" in part for part in re.split(r"^(?=\S+==)", text, flags=re.MULTILINE)[1:])


def test_uv_is_the_one_of_the_controller() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    uv = yaml.safe_load((ROLE / "vars/main.yml").read_text())["__open_webui_uv"]
    assert re.search(
        rf"^uv=={re.escape(uv['version'])} \\\n(?:    .*\n)*?    --hash=sha256:{uv['sha256']}", lock, re.MULTILINE
    )


def test_a_release_is_named_after_all_that_decides_it() -> None:
    name = release_id("0.12.4", "a", "/usr/bin/python3.11")
    assert re.fullmatch(r"0\.12\.4-[0-9a-f]{12}", name)
    assert name != release_id("0.12.4", "b", "/usr/bin/python3.11")
    assert name != release_id("0.12.4", "a", "/usr/bin/python3.12")


def test_pins_are_found_by_the_names_of_wheels() -> None:
    text = "# x\nPy_Thing.two==1.0 \\\n    --hash=sha256:00\nuvicorn[standard]==0.3 ; python_version < '4' \\\n"
    assert pinned(text) == {"py_thing_two": "1.0", "uvicorn": "0.3"}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("Downloading scipy (33.5MiB)\n", ("scipy", 35127296)),
        (" Downloaded scipy\n", ("scipy", 0)),
        ("Prepared 2 packages in 837ms\n", None),
    ],
)
def test_what_uv_says_of_downloads(line: str, found: tuple | None) -> None:
    assert fetched_bytes(line) == found


@pytest.mark.parametrize(
    ("said", "advised"),
    [
        ("Hash mismatch for `six==1.17.0`", "other files than the pinned ones"),
        ("Because there is no version of six==999.1", "The package index lacks it"),
        ("error sending request for url", "Check PIP_INDEX_URL"),
        ("No space left on device (os error 28)", "The disk is full"),
    ],
)
def test_advice(said: str, advised: str) -> None:
    assert advised in advice(said)


def test_only_the_current_and_the_previous_release_are_kept(tmp_path: Path) -> None:
    base = {
        "version": "1",
        "python": "p",
        "uv_version": "",
        "uv_sha256": "",
        "requirements": "",
        "cache": str(tmp_path),
    }
    seen = []
    for digest in "abc":
        release = Release(base | {"home": str(tmp_path), "requirements_sha256": digest})
        release.path.mkdir(parents=True)
        releases.make_current(release.home, release.id)
        seen.append(release.id)
        assert releases.current(release.home) == release.id
    assert {path.name for path in (tmp_path / "releases").iterdir()} == set(seen[1:])


def test_where_all_wheels_lie_on_the_host_the_network_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("Some-Thing==1.0 --hash=sha256:00\nother==2 --hash=sha256:00\n")
    base = {
        "version": "1",
        "python": "p",
        "uv_version": "",
        "uv_sha256": "",
        "requirements_sha256": "",
        "home": str(tmp_path),
    }
    release = Release(base | {"requirements": str(requirements), "cache": str(tmp_path)})
    commands: list[list[str]] = []
    monkeypatch.setattr(release, "_run", lambda command, progress: commands.append(command))
    release.wheels.mkdir(parents=True)
    for wheel in ("some_thing-1.0-py3-none-any.whl", "Other-2-cp311-cp311-linux_x86_64.whl"):
        release._fill("uv", tmp_path / "e", Progress("t", tmp_path))
        assert "--offline" not in commands[-1]
        (release.wheels / wheel).write_text("")
    release._fill("uv", tmp_path / "e", Progress("t", tmp_path))
    assert {"--offline", "--no-index", str(release.wheels)} <= set(commands[-1])


# --- Settings


@pytest.fixture
def database(tmp_path: Path) -> Path:
    file = tmp_path / "webui.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(
            """
            PRAGMA journal_mode = WAL;
            CREATE TABLE config (key TEXT PRIMARY KEY, value JSON NOT NULL, updated_at BIGINT);
            CREATE TABLE user (id TEXT, role TEXT, created_at BIGINT);
            CREATE TABLE model (id TEXT PRIMARY KEY, user_id TEXT, base_model_id TEXT, name TEXT, params TEXT, meta TEXT,
                is_active BOOLEAN, updated_at BIGINT, created_at BIGINT);
            CREATE TABLE access_grant (id TEXT, resource_type TEXT, resource_id TEXT, principal_type TEXT, principal_id TEXT,
                permission TEXT, created_at BIGINT);
            INSERT INTO config VALUES ('ui.enable_signup', 'true', 1), ('ui.banners', '["mine"]', 1), ('rag.chunk_size', '1000', 1);
            INSERT INTO user VALUES ('u2', 'admin', 2), ('u1', 'admin', 1), ('u0', 'user', 0);
            """
        )
    return file


WANTED = {"ui.enable_signup": False, "rag.chunk_size": 1000, "openai.api_keys": ["secret"]}


def test_only_what_differs_is_written_and_nothing_else_touched(database: Path) -> None:
    assert differing(database, WANTED, ["demo"]) == (["ui.enable_signup", "openai.api_keys"], ["demo"])
    apply(database, WANTED, ["demo"])
    assert differing(database, WANTED, ["demo"]) == ([], [])
    with closing(sqlite3.connect(database)) as connection:
        rows = dict(connection.execute("SELECT key, value FROM config"))
        grants = connection.execute(
            "SELECT resource_id, principal_type, principal_id, permission FROM access_grant"
        ).fetchall()
        owner = connection.execute("SELECT user_id FROM model").fetchone()
    assert json.loads(rows["ui.banners"]) == ["mine"]
    assert grants == [("demo", "user", "*", "read")]
    assert owner == ("u1",)


def test_a_model_that_an_administrator_has_decided_about_is_left_alone(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("INSERT INTO model (id, user_id, is_active) VALUES ('demo', 'u2', 0)")
        connection.commit()
    assert differing(database, {}, ["demo"]) == ([], [])


def test_a_database_of_another_form_is_refused_and_a_missing_one_not_made(database: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("DROP TABLE config")
    with pytest.raises(DatabaseError, match="no such table: config"):
        differing(database, {}, [])
    with pytest.raises(DatabaseError):
        differing(tmp_path / "none.db", {}, [])
    assert not (tmp_path / "none.db").exists()


def test_a_page_without_an_administrator_is_told_apart(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE user SET role = 'user'")
        connection.commit()
    with pytest.raises(NoAdministratorError):
        differing(database, WANTED, ["demo"])


def test_a_failed_write_leaves_all_as_it_was(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("DROP TABLE access_grant")
        connection.commit()
    with pytest.raises(DatabaseError, match="access_grant"):
        apply(database, WANTED, ["demo"])
    assert differing(database, WANTED, ["demo"]) == (["ui.enable_signup", "openai.api_keys"], ["demo"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_root_acts_as_the_other_user_and_is_root_again() -> None:
    with acting_as("nobody"):
        assert os.geteuid() == pwd.getpwnam("nobody").pw_uid
    assert os.geteuid() == 0


# --- Backup


def test_a_backup_holds_the_data_and_not_what_is_made_anew(database: Path, tmp_path: Path) -> None:
    data, target = tmp_path / "data", tmp_path / "backups" / "20260101T000000Z-1"
    for name in ("uploads/a.txt", "static/x", "cache/y", "vector_db/static/z"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text("12345")
    database.rename(data / "webui.db")
    target.parent.mkdir()
    assert size_bytes(data) > 20
    copy(data, target, ME)
    assert sorted(str(f.relative_to(target)) for f in target.rglob("*") if f.is_file()) == [
        "uploads/a.txt",
        "vector_db/static/z",
        "webui.db",
    ]
    with closing(sqlite3.connect(target / "webui.db")) as connection:
        assert connection.execute("SELECT count(*) FROM user").fetchone() == (3,)


def test_what_a_failed_release_made_of_the_data_is_set_aside(tmp_path: Path) -> None:
    data, backup, aside = (tmp_path / name for name in ("data", "backup", "aside"))
    for file in (data / "webui.db", data / "cache" / "x", backup / "webui.db", backup / "uploads" / "a"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(file.parent.name)
    restore(backup, data, aside, ME)
    assert {f.name for f in data.iterdir()} == {"webui.db", "uploads"}
    assert (data / "webui.db").read_text() == "backup"
    assert {f.name for f in aside.iterdir()} == {"webui.db", "cache"}


@pytest.mark.parametrize(
    ("history", "release", "did", "then"),
    [
        (History(), "1", "backup", History("", "1")),  # where there is no database yet, nothing is copied
        (History("1"), "1", "nothing", History("1")),
        (History("1"), "2", "backup", History("1", "2")),
        (History("1", "2", "b"), "2", "nothing", History("1", "2", "b")),  # the run was cut off, and goes on
        (History("1", "2", "b"), "1", "restore", History("1")),
        (History("1", "2", "b"), "3", "restore", History("1", "3", "b")),
        (History("", "1"), "2", "record", History("", "2")),
    ],
)
def test_the_data_follows_the_releases(history: History, release: str, did: str, then: History) -> None:
    assert decide(history, release) == (did, then)


def test_the_oldest_backups_go() -> None:
    assert surplus(["20260103T000000Z-a", "20260101T000000Z-c", "20260102T000000Z-b"], 2) == ["20260101T000000Z-c"]
    assert surplus(["20260103T000000Z-a"], 2) == []


@pytest.mark.parametrize(
    ("password", "why"),
    [
        ("short-one", "has fewer than 12 characters"),
        ("long-and-unguessable-" * 4, "has more than 72 bytes"),
        ("Password-1234", "is too easy to guess: "),
        ("openwebuiadmin", "is too easy to guess: "),
        ("qwertyuiopasdf", "is too easy to guess: "),
        ("correcthorsebatterystaple", "is too easy to guess: "),
        ("aaaaaaaaaaaaaaaa", "is too easy to guess: "),
        ("Admin@Example.com", "is too easy to guess: "),
        ("administrator1", "is too easy to guess: "),
    ],
)
def test_a_weak_password_is_refused(password: str, why: str) -> None:
    assert password_weakness(password, "admin@example.com").startswith(why)


@pytest.mark.parametrize(
    "password", ["an-administrators-long-secret", "8kWQ2mZr+v0pTjJd5xLs", "grün und blau war der Himmel"]
)
def test_a_strong_password_is_taken(password: str) -> None:
    assert password_weakness(password, "admin@example.com") == ""


def test_ansible_users_are_told_what_measures_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, judge.__name__)
    monkeypatch.delattr(sys.modules[judge.__package__], "password")
    monkeypatch.setitem(sys.modules, "zxcvbn", None)
    with pytest.raises(
        AnsibleFilterError, match=r"Remedy: `pip install zxcvbn` into the environment of ansible-playbook"
    ):
        password_filter.password_weakness("an-administrators-long-secret", "admin@example.com")
