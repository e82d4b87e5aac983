"""Reads and writes settings and access to models in Open-WebUI's database. Callers act as its user, so that no file becomes root's."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import sqlite3
import time
import uuid
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from ansible_collections.r1.prov.plugins.module_utils.open_webui_account import Given, last_given, remember
from ansible_collections.r1.prov.plugins.module_utils.secret import same

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_EVERYBODY = ("user", "*")  # principal of a grant
_FIRST_ADMINISTRATOR = """
    SELECT user.id, auth.session_stamp FROM user JOIN auth ON auth.id = user.id
    WHERE user.role = 'admin' ORDER BY user.created_at
"""


class DatabaseError(Exception):
    """The database has a form that this code does not know; the message says what is missing."""


class Found(NamedTuple):
    """What a database holds that r1prov cares for.

    Attributes:
        settings: all settings, by key.
        models: the models that an administrator has decided about.
        administrated: whether there is an administrator. Without one, whoever comes first could become one.
        login: the login that r1prov has given the administrator last.
    """

    settings: dict[str, Any]
    models: set[str]
    administrated: bool
    login: Given | None

    def completed(self, parts: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """The settings that `parts` names, each with these keys as wanted and with its other keys as they are."""
        have = {key: self.settings.get(key) for key in parts}
        return {key: {**(have[key] or {}), **part} for key, part in parts.items()}

    def differing(self, settings: dict[str, Any], public_models: list[str]) -> tuple[list[str], list[str]]:
        """The keys of settings that are not as wanted, and the models that nobody has decided about yet."""
        have = self.settings
        keys = [key for key, value in settings.items() if key not in have or not same(have[key], value)]
        return keys, [model for model in public_models if model not in self.models]


def read(database: Path) -> Found:
    """Reads a database.

    Raises:
        DatabaseError: it has another form.
    """
    with _opened(database) as connection:
        return Found(
            {key: _value(stored) for key, stored in connection.execute("SELECT key, value FROM config")},
            {row[0] for row in connection.execute("SELECT id FROM model")},
            connection.execute(_FIRST_ADMINISTRATOR).fetchone() is not None,
            last_given(connection),
        )


def apply(database: Path, settings: dict[str, Any], models: list[str], login: Given | None = None) -> None:
    """Writes settings, lets all users use models, and remembers the login that the administrator was given, in one transaction.

    Raises:
        DatabaseError: the database has another form.
    """
    now = int(time.time())
    with _opened(database) as connection:
        for key, value in settings.items():
            connection.execute(
                "INSERT INTO config (key, value, updated_at) VALUES (?, ?, ?) "
                "ON CONFLICT (key) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at",
                (key, json.dumps(value), now),
            )
        for model in models:
            owner = connection.execute(_FIRST_ADMINISTRATOR).fetchone()
            connection.execute(
                "INSERT INTO model (id, user_id, name, params, meta, is_active, updated_at, created_at) "
                "VALUES (?, ?, ?, '{}', '{}', 1, ?, ?)",
                (model, owner[0], model, now, now),
            )
            # It stays where only the model's own row is gone, and the page's table takes each grant once.
            connection.execute(
                "INSERT OR IGNORE INTO access_grant (id, resource_type, resource_id, principal_type, principal_id, permission, created_at) "
                "VALUES (?, 'model', ?, ?, ?, 'read', ?)",
                (str(uuid.uuid4()), model, *_EVERYBODY, now),
            )
        if login:
            remember(connection, login)
        connection.commit()


def has_second_factors(database: Path) -> bool:
    """Whether an account has a second factor, which the page has encrypted.

    Raises:
        DatabaseError: the database has another form.
    """
    with _opened(database) as connection:
        if "mfa" not in [column[1] for column in connection.execute("PRAGMA table_info(auth)")]:
            return False  # a release before there were any
        return bool(connection.execute("SELECT 1 FROM auth WHERE json_extract(mfa, '$.secret') IS NOT NULL").fetchone())


def session(database: Path, secret_key: str, lasts_s: int) -> str:
    """A token with which the API takes its bearer for the administrator, whatever password that has by now.

    Args:
        database: the file.
        secret_key: what the page signs its sessions with.
        lasts_s: how long the token holds.

    Raises:
        DatabaseError: there is no administrator, or the database has another form.
    """
    with _opened(database) as connection:
        found = connection.execute(_FIRST_ADMINISTRATOR).fetchone()
    if not found:
        raise DatabaseError("it has no administrator")
    now = int(time.time())
    # The page asks a person for a second factor where the administrator has set that up. It does not ask a program.
    claims = {"id": found[0], "session_stamp": found[1], "typ": "automation"}
    claims |= {"iat": now, "exp": now + lasts_s, "jti": str(uuid.uuid4())}
    signed = f"{_word({'alg': 'HS256', 'typ': 'JWT'})}.{_word(claims)}"
    return f"{signed}.{_base64(hmac.digest(secret_key.encode(), signed.encode(), hashlib.sha256))}"


def _word(value: dict[str, Any]) -> str:
    return _base64(json.dumps(value).encode())


def _base64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode().rstrip("=")


def _value(stored: Any) -> Any:
    """The value of a stored text of JSON. SQLite keeps numbers in a column of the type JSON as numbers, not as text."""
    return json.loads(stored) if isinstance(stored, str) else stored


@contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection]:
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=rw", uri=True, timeout=30)) as connection:
            yield connection
    except (sqlite3.Error, ValueError) as error:
        raise DatabaseError(str(error)) from error
