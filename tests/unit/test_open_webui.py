"""Tests of the chat page's requirements, settings and backups. They fetch nothing and start nothing."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import pwd
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.r1.prov.plugins.filter import password as password_filter
from ansible_collections.r1.prov.plugins.module_utils import password as judge
from ansible_collections.r1.prov.plugins.module_utils.open_webui import DatabaseError, apply, read, session
from ansible_collections.r1.prov.plugins.module_utils.open_webui_account import Given, Login
from ansible_collections.r1.prov.plugins.module_utils.open_webui_backup import (
    History,
    copy,
    decide,
    restore,
    size_bytes,
    surplus,
)
from ansible_collections.r1.prov.plugins.module_utils.password import password_weakness
from ansible_collections.r1.prov.plugins.module_utils.users import acting_as
from ansible_collections.r1.prov.plugins.module_utils.uv import pinned
from ansible_collections.r1.prov.plugins.modules import open_webui_data

ROOT = Path(__file__).parents[2]
ROLE = ROOT / "roles/open_webui"
ME = pwd.getpwuid(os.geteuid()).pw_name


# --- Python

APT = """#!/bin/sh
case "$*" in
*--print-uris*) cat "$URIS" ;;
*" update"*) cp "${3#Dir::Etc::sourcelist=}" "$SOURCES" ;;
*" download "*) touch python3.11.deb ;;
esac
"""
DPKG = """#!/bin/sh
mkdir -p "$3/usr/bin"
printf '#!/bin/sh\\nexit %s\\n' "$STATUS" > "$3/usr/bin/python3.11"
chmod +x "$3/usr/bin/python3.11"
"""
URIS = """
'http://deb.example.com/debian/dists/trixie/InRelease' deb.example.com_debian_dists_trixie_InRelease 0
'http://deb.example.com/debian/dists/trixie-updates/InRelease' x 0
'http://security.example.com/debian-security/dists/trixie-security/InRelease' x 0
'https://packages.example.com/repos/code/dists/stable/InRelease' x 0
'file:/srv/flat/./InRelease' x 0
"""


@pytest.mark.parametrize(
    ("uris", "status", "says"),
    [
        (URIS, 0, ""),
        (URIS.replace("trixie", "forky"), 0, ""),
        (URIS.replace("trixie", "testing"), 0, ""),
        (URIS, 1, ""),
        ("", 0, "no mirror of Debian"),
    ],
)
def test_debian_12_is_looked_for_where_the_host_finds_a_newer_debian(
    tmp_path: Path, uris: str, status: int, says: str
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in (("apt-get", APT), ("dpkg-deb", DPKG)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (tmp_path / "uris").write_text(uris)
    folder, sources = tmp_path / "python" / "here", tmp_path / "sources"
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "URIS": str(tmp_path / "uris"),
        "SOURCES": str(sources),
        "STATUS": str(status),
    }
    script = (ROLE / "files/debian-12-python.sh").read_text()
    command = ["sh", "-s", str(folder)]
    done = subprocess.run(command, input=script, env=environment, capture_output=True, text=True, check=False)
    assert says in done.stderr
    if says or status:
        assert done.returncode
        assert list(folder.parent.iterdir()) == []
        return
    assert list(folder.parent.iterdir()) == [folder]
    key = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
    assert sources.read_text().splitlines() == [
        f"deb {key} http://deb.example.com/debian bookworm main",
        f"deb {key} http://deb.example.com/debian bookworm-updates main",
        f"deb {key} http://security.example.com/debian-security bookworm-security main",
    ]


# --- Requirements


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
                permission TEXT, created_at BIGINT,
                UNIQUE (resource_type, resource_id, principal_type, principal_id, permission));
            INSERT INTO config VALUES ('ui.enable_signup', 'true', 1), ('ui.banners', '["mine"]', 1), ('rag.chunk_size', '1000', 1);
            CREATE TABLE auth (id TEXT, session_stamp TEXT);
            INSERT INTO user VALUES ('u2', 'admin', 2), ('u1', 'admin', 1), ('u0', 'user', 0);
            INSERT INTO auth VALUES ('u2', 's2'), ('u1', 's1'), ('u0', 's0');
            """
        )
    return file


WANTED = {"ui.enable_signup": False, "rag.chunk_size": 1000, "openai.api_keys": ["secret"]}


def test_a_part_of_a_setting_is_written_and_the_rest_stays_the_administrators(database: Path) -> None:
    key = "ui.default_interface_settings"
    assert read(database).completed({key: {"showChangelog": False}}) == {key: {"showChangelog": False}}
    apply(database, {key: {"chatBubble": False, "showChangelog": True}}, [])
    completed = read(database).completed({key: {"showChangelog": False}})
    assert completed == {key: {"chatBubble": False, "showChangelog": False}}
    apply(database, completed, [])
    assert read(database).differing(completed, []) == ([], [])


def test_only_what_differs_is_written_and_nothing_else_touched(database: Path) -> None:
    assert read(database).differing(WANTED, ["demo"]) == (["ui.enable_signup", "openai.api_keys"], ["demo"])
    apply(database, WANTED, ["demo"])
    assert read(database).differing(WANTED, ["demo"]) == ([], [])
    with closing(sqlite3.connect(database)) as connection:
        rows = dict(connection.execute("SELECT key, value FROM config"))
        grants = connection.execute(
            "SELECT resource_id, principal_type, principal_id, permission FROM access_grant"
        ).fetchall()
        owner = connection.execute("SELECT user_id FROM model").fetchone()
    assert json.loads(rows["ui.banners"]) == ["mine"]
    assert grants == [("demo", "user", "*", "read")]
    assert owner == ("u1",)


def test_a_model_whose_row_alone_is_gone_is_known_again(database: Path) -> None:
    """Its grant is still there, and the page's own table takes no second one."""
    apply(database, {}, ["demo"])
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("DELETE FROM model")
        connection.commit()
    apply(database, {}, ["demo"])
    assert read(database).differing({}, ["demo"]) == ([], [])


def test_a_model_that_an_administrator_has_decided_about_is_left_alone(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("INSERT INTO model (id, user_id, is_active) VALUES ('demo', 'u2', 0)")
        connection.commit()
    assert read(database).differing({}, ["demo"]) == ([], [])


def test_a_database_of_another_form_is_refused_and_a_missing_one_not_made(database: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("DROP TABLE config")
    with pytest.raises(DatabaseError, match="no such table: config"):
        read(database)
    with pytest.raises(DatabaseError):
        read(tmp_path / "none.db")
    assert not (tmp_path / "none.db").exists()


def test_a_page_without_an_administrator_is_told_apart(database: Path) -> None:
    assert read(database).administrated
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE user SET role = 'user'")
        connection.commit()
    assert not read(database).administrated
    with pytest.raises(DatabaseError, match="no administrator"):
        session(database, "key", 60)


LOGIN = Login("admin@example.com", "an-administrators-long-secret")


def test_a_login_is_remembered_with_the_data_and_cannot_be_read_there(database: Path, tmp_path: Path) -> None:
    assert read(database).login is None
    apply(database, {}, [], Given.of("u1", LOGIN))
    given = read(database).login
    assert given
    assert given.account == "u1"
    assert given.is_of(LOGIN)
    assert not given.is_of(LOGIN._replace(password="another-long-secret"))
    assert not given.is_of(LOGIN._replace(email="other@example.com"))
    with closing(sqlite3.connect(database)) as connection:
        assert LOGIN.password not in "\n".join(connection.iterdump())
    apply(database, {}, [], Given.of("u1", LOGIN._replace(password="another-long-secret")))
    later = read(database).login
    assert later
    assert not later.is_of(LOGIN)
    assert later.salt != given.salt


def test_a_look_need_not_compare_the_login_again(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Given.of("an-id", LOGIN)
    compared = given._asdict()
    assert open_webui_data._has_been_given(LOGIN, given, {})
    assert not open_webui_data._has_been_given(LOGIN._replace(password="another-long-secret"), given, {})
    monkeypatch.setattr(hashlib, "scrypt", None)
    assert open_webui_data._has_been_given(LOGIN, given, compared)
    for other in (None, given._replace(account="another"), given._replace(digest="00"), given._replace(salt="00")):
        assert not open_webui_data._has_been_given(LOGIN, other, compared)


def test_a_session_is_that_of_the_first_administrator_and_ends(database: Path) -> None:
    head, claims, signature = session(database, "a-signing-key", 60).split(".")
    digest = hmac.digest(b"a-signing-key", f"{head}.{claims}".encode(), "sha256")
    assert signature == base64.urlsafe_b64encode(digest).decode().rstrip("=")
    said = json.loads(base64.urlsafe_b64decode(claims + "=="))
    assert (said["id"], said["session_stamp"]) == ("u1", "s1")
    assert said["exp"] == said["iat"] + 60


def test_a_failed_write_leaves_all_as_it_was(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("DROP TABLE access_grant")
        connection.commit()
    with pytest.raises(DatabaseError, match="access_grant"):
        apply(database, WANTED, ["demo"])
    assert read(database).differing(WANTED, ["demo"]) == (["ui.enable_signup", "openai.api_keys"], ["demo"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_root_acts_as_the_other_user_and_is_root_again() -> None:
    groups, nobody = os.getgroups(), pwd.getpwnam("nobody")
    with acting_as("nobody"):
        assert os.geteuid() == nobody.pw_uid
        assert os.getgroups() == os.getgrouplist("nobody", nobody.pw_gid)
    assert os.geteuid() == 0
    assert os.getgroups() == groups


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
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


def test_an_empty_file_in_the_place_of_a_database_is_none(database: Path, tmp_path: Path) -> None:
    asked = {"state": "tried"}, tmp_path, tmp_path / "backups", History("1")
    assert open_webui_data._wrong(*asked) == {}
    database.write_bytes(b"")
    (said,) = open_webui_data._wrong(*asked).values()
    assert "webui.db is gone, and with it the accounts and chats" in said


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
        (History(), "1", "backup", History("", "1")),  # there is no database yet, so nothing is copied
        (History("1"), "1", "nothing", History("1")),
        (History("1"), "2", "backup", History("1", "2")),
        (History("1", "2", "b"), "2", "nothing", History("1", "2", "b")),  # the run was cut off and continues
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


def test_a_database_that_cannot_be_opened_is_not_called_damaged() -> None:
    asked = (Path("/d/webui.db"), "r1prov-webui", "r1prov-open-webui.service", "/d-backups")
    said = open_webui_data._explained(DatabaseError("unable to open database file"), *asked)
    assert "may well be whole" in said
    assert "remove it" not in said
    assert "/d-backups" in open_webui_data._explained(DatabaseError("no such table: config"), *asked)
