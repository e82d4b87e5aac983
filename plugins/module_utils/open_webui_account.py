"""The login of the chat page's administrator: whether the page was given it already, and the page's own code that gives it.

The page's database remembers which login it was given last, in a table of r1prov's own. So a login is given once, and what the
administrator changes in the page afterwards stays. A backup of the data carries this memory along: data that comes back with an old
password is given the new one again.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import subprocess
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

PROGRAM = "/usr/local/lib/r1prov-open-webui-account"
_REFUSED = 3
_LIMIT_S = 300
_TABLE = "CREATE TABLE IF NOT EXISTS r1prov_login (account TEXT NOT NULL, salt TEXT NOT NULL, digest TEXT NOT NULL)"


class AccountError(Exception):
    """The page's code cannot do what is asked; the message says why."""


class Login(NamedTuple):
    """What the administrator logs in with."""

    email: str
    password: str


class Given(NamedTuple):
    """The login that the page was given last.

    Attributes:
        account: the id of the account that has it.
        salt: random, in hexadecimal.
        digest: of the login, in hexadecimal. It is as slow to guess as the page's own.
    """

    account: str
    salt: str
    digest: str

    @classmethod
    def of(cls, account: str, login: Login) -> Given:
        """What is remembered of a login."""
        salt = secrets.token_hex(16)
        return cls(account, salt, _digest(login, salt))

    def is_of(self, login: Login) -> bool:
        """Whether it is this login."""
        return hmac.compare_digest(self.digest, _digest(login, self.salt))


def last_given(connection: sqlite3.Connection) -> Given | None:
    """The login that the page was given last; None where r1prov has never given one."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'r1prov_login'").fetchone():
        return None
    row = connection.execute("SELECT account, salt, digest FROM r1prov_login").fetchone()
    return Given(*row) if row else None


def remember(connection: sqlite3.Connection, given: Given) -> None:
    """Remember which login the page was given. The caller commits."""
    connection.execute(_TABLE)
    connection.execute("DELETE FROM r1prov_login")
    connection.execute("INSERT INTO r1prov_login (account, salt, digest) VALUES (?, ?, ?)", given)


class Page(NamedTuple):
    """What runs the page's own code: the interpreter of its release, its user, and the folder with its data."""

    python: Path
    user: str
    data: Path

    def give(self, login: Login, before: Given | None) -> Given:
        """Gives the administrator a login.

        Args:
            login: what the administrator is to log in with.
            before: the login that the page was given last.

        Raises:
            AccountError: the page's code refuses or fails.
        """
        asked = {**login._asdict(), "account": before.account if before else ""}
        return Given.of(self._run({"login": asked}).split()[-1], login)

    def encrypt_anew(self, before: str, after: str) -> None:
        """Encrypts what the page has encrypted with one key with another one.

        Raises:
            AccountError: the page's code fails.
        """
        self._run({"secret_keys": [before, after]})

    def _run(self, asked: dict[str, Any]) -> str:
        """Runs our program with the page's code. What is asked goes through a pipe, so no other process sees it."""
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.data),
            "DATA_DIR": str(self.data),
            "STATIC_DIR": str(self.data / "static"),
            "FROM_INIT_PY": "True",  # as where `open-webui serve` has started it
            "OFFLINE_MODE": "True",
            "GLOBAL_LOG_LEVEL": "ERROR",
            "ENABLE_DB_MIGRATIONS": "False",  # The service has made them.
            "WEBUI_SECRET_KEY": secrets.token_hex(32),  # The page's code wants one. Nothing is signed here.
        }
        try:
            done = subprocess.run(
                [self.python, PROGRAM],
                input=json.dumps(asked),
                capture_output=True,
                text=True,
                timeout=_LIMIT_S,
                check=False,
                env=environment,
                cwd="/",
                umask=0o077,
                user=self.user,
                group=self.user,
                extra_groups=[],
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise AccountError(f"{PROGRAM} does not run: {error}") from None
        if done.returncode == _REFUSED:
            raise AccountError(
                f"{done.stderr.strip()}. Remedy: name another open_webui_admin_email, or make that account an administrator in the page"
            )
        if done.returncode:
            raise AccountError(
                f"the page's code failed: {_complaint(done.stderr)}. Remedy: take the Open-WebUI that this version of r1prov pins"
            )
        return done.stdout


def _digest(login: Login, salt: str) -> str:
    return hashlib.scrypt(json.dumps(login).encode(), salt=bytes.fromhex(salt), n=1 << 14, r=8, p=1).hex()


def _complaint(said: str) -> str:
    """The name and message of the exception that ended a program. What else it said may hold the values of a statement of SQL."""
    found = re.findall(r"^[A-Za-z_][\w.]*(?:: .*)?$", said, re.MULTILINE)
    return str(found[-1])[:300] if found else "it did not say why"
