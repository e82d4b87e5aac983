#!/usr/bin/env python3
"""Changes the accounts of the chat page by its own code. The page's own Python runs this program, with the rights of the page's user.

It reads one JSON object. With `login`, an object of `email`, `password`, and `account`, it gives this login to the administrator.
`account` is the id of the account that had the login before, or empty. The id of the account that has it now is printed. With
`secret_keys`, an old and a new one, it encrypts anew what the page has encrypted with the old one.

Exit code 3 means that the login cannot be given; stderr says why.
"""

from __future__ import annotations

import asyncio
import json
import sys

from cryptography.fernet import MultiFernet
from open_webui.internal.db import get_async_db
from open_webui.models.auths import Auth, Auths
from open_webui.models.users import Users
from open_webui.utils import mfa
from open_webui.utils.auth import get_password_hash
from sqlalchemy import select


class RefusedError(Exception):
    """The login cannot be given; the message says why."""


async def give(email: str, password: str, account: str) -> str:
    """Give the login to the account with this address, to the account that had it before, or to a new account.

    Raises:
        RefusedError: the account belongs to an ordinary user.
    """
    secret = await get_password_hash(password)
    user = await Users.get_user_by_email(email) or (await Users.get_user_by_id(account) if account else None)
    if not user:
        made = await Auths.insert_new_auth(email=email, password=secret, name="Admin", role="admin")
        return str(made.id)
    # An administrator may give that role up to another one. Where nobody has it, nobody could give it back.
    if user.role != "admin" and user.id == account and not await Users.get_super_admin_user():
        user = await Users.update_user_role_by_id(user.id, "admin")
    if user.role != "admin":
        raise RefusedError(f"{user.email} is the login of an ordinary user of the page")
    if user.email != email:
        await Auths.update_email_by_id(user.id, email)
    await Auths.update_user_password_by_id(user.id, secret)  # This also ends the sessions of the account.
    return str(user.id)


async def encrypt_anew(before: str, after: str) -> None:
    """Encrypt the second factors of all accounts with another key. What has that key already keeps it."""
    ciphers = []
    for mfa.WEBUI_SECRET_KEY in (after, before):
        ciphers.append(mfa.cipher())
    async with get_async_db() as database:
        for account in (await database.execute(select(Auth.id))).scalars().all():
            auth = await Auths.get_auth_by_id(account, db=database)
            if auth.mfa and auth.mfa.secret:
                auth.mfa.secret = MultiFernet(ciphers).rotate(auth.mfa.secret.encode()).decode()
                await Auths.update_mfa_by_id(auth, auth.mfa, db=database)
        await database.commit()


def main() -> None:
    """Read what is wanted and do it."""
    wanted = json.load(sys.stdin)
    if "secret_keys" in wanted:
        asyncio.run(encrypt_anew(*wanted["secret_keys"]))
        return
    login = wanted["login"]
    try:
        sys.stdout.write(f"{asyncio.run(give(login['email'].lower(), login['password'], login['account']))}\n")
    except RefusedError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(3)


if __name__ == "__main__":
    main()
