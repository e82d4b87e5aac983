"""Reads and writes settings and access to models in Open-WebUI's database. Callers act as its user, so that no file becomes root's."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_EVERYBODY = ("user", "*")  # principal of a grant


class DatabaseError(Exception):
    """The database has a form that this code does not know; the message says what is missing."""


class NoAdministratorError(DatabaseError):
    """The page has no administrator, so whoever comes first could become one."""


def differing(database: Path, settings: dict[str, Any], public_models: list[str]) -> tuple[list[str], list[str]]:
    """Finds settings and models that are not as wanted.

    Args:
        database: the file.
        settings: wanted values by key.
        public_models: models that all users are to see.

    Returns:
        The keys of the settings that differ, and the models that nobody has decided about yet.

    Raises:
        DatabaseError: the database has another form.
        NoAdministratorError: it is nobody's.
    """
    with _opened(database) as connection:
        have = {key: _value(stored) for key, stored in connection.execute("SELECT key, value FROM config")}
        known = {row[0] for row in connection.execute("SELECT id FROM model")}
        if not connection.execute("SELECT 1 FROM user WHERE role = 'admin'").fetchone():
            raise NoAdministratorError("it has no administrator")
    keys = [key for key, value in settings.items() if key not in have or have[key] != value]
    return keys, [model for model in public_models if model not in known]


def apply(database: Path, settings: dict[str, Any], models: list[str]) -> None:
    """Writes settings, and lets all users use models, in one transaction.

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
            owner = connection.execute("SELECT id FROM user WHERE role = 'admin' ORDER BY created_at").fetchone()
            connection.execute(
                "INSERT INTO model (id, user_id, name, params, meta, is_active, updated_at, created_at) "
                "VALUES (?, ?, ?, '{}', '{}', 1, ?, ?)",
                (model, owner[0], model, now, now),
            )
            connection.execute(
                "INSERT INTO access_grant (id, resource_type, resource_id, principal_type, principal_id, permission, created_at) "
                "VALUES (?, 'model', ?, ?, ?, 'read', ?)",
                (str(uuid.uuid4()), model, *_EVERYBODY, now),
            )
        connection.commit()


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
