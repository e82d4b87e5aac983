#!/usr/bin/python
"""Ansible module r1.prov.open_webui_data: the chat page's data, around the start of a release."""

from __future__ import annotations

DOCUMENTATION = r"""
module: open_webui_data
short_description: Backs up Open-WebUI's data around the start of a release, and brings named settings in its database to their values
description:
  - Stock Ansible cannot do it, because it has no module for a database of SQLite, nor one that brings data back.
  - With C(tried), which comes before a release starts. Where the release is not the one that has last proven itself on the data, the
    service is stopped and the data copied - the database by SQLite's own backup, the rest as it is. Where an attempt is given up, that is,
    where yet another release is about to start, the data comes back from that copy, and what the attempt made of it is set aside as a
    backup too. The service is left stopped. A backup is a folder C(DATA-backups/TIME-RELEASE) that appears whole or not at all.
    Where I(secret_key) is another one than in I(environment), the second factors of the accounts are encrypted anew. The page cannot start
    when it cannot read them.
  - With C(configured), which comes when the service runs. Open-WebUI reads its environment only for settings that its database does not
    have yet. The named settings are compared there, and only where one differs the service is stopped, all are written in one
    transaction, and the service is started again. Other settings stay. A model that nobody has decided about can only be used by
    administrators; I(public_models) are opened to all users, once.
  - It also gives the administrator a login, by the page's own code. A login is given when it is another one than the page was given last,
    or when the page has no administrator. So what the administrator changes in the page stays until I(admin_email) or I(admin_password)
    changes. The account's sessions end with the old login. I(admin_password_file) then holds the password for controllers that do not
    have it.
  - With C(proven), which comes when the release has answered as it should. From then on the data is that release's.
author: The r1prov team
options: {
  "state": {"type": "str", "required": true, "choices": ["tried", "configured", "proven"], "description": "What the data shall be."},
  "data": {"type": "path", "default": "/var/lib/r1prov/open-webui", "description": "The data's folder."},
  "release": {"type": "path", "default": "/opt/r1prov/open-webui/current", "description": "The link to the release."},
  "user": {"type": "str", "default": "r1prov-webui", "description": "The service's user, as whom the database is opened."},
  "unit": {"type": "str", "default": "r1prov-open-webui.service", "description": "The service's unit."},
  "keep": {"type": "int", "default": 2, "description": "How many backups are kept."},
  "settings": {"type": "dict", "default": {}, "description": "Key -> value, as in the table C(config)."},
  "parts": {"type": "dict", "default": {}, "description": "Key -> some keys of a setting that is a dictionary. Its other keys stay."},
  "secrets": {"type": "dict", "default": {}, "description": "The same for values that nobody may read."},
  "public_models": {"type": "list", "elements": "str", "default": [], "description": "Names of models."},
  "secret_key": {"type": "str", "default": "", "description": "What the page will sign and encrypt with."},
  "environment": {"type": "path", "default": "/etc/r1prov/open-webui/environment", "description": "The service's file of variables, with
      the key that it has signed and encrypted with so far."},
  "admin_email": {"type": "str", "default": "", "description": "What the administrator logs in as. Required with C(configured)."},
  "admin_password": {"type": "str", "default": "", "description": "The password of this login. Required with C(configured)."},
  "admin_password_file": {"type": "path", "default": "/etc/r1prov/open-webui/admin-password", "description": "A file for root alone that
      keeps the password that was given."},
  "given": {"type": "dict", "default": {}, "description": "What the page's database remembers of the login, where an earlier run has
      compared that with the login itself, which takes long. Nobody but a look gives it, from I(look_arguments)."}
  }
"""

EXAMPLES = r"""
- name: Close the sign-up
  r1.prov.open_webui_data:
    state: configured
    settings: {ui.enable_signup: false}
    admin_email: admin@example.com
    admin_password: "{{ password }}"
"""

RETURN = r"""
did:
  type: str
  returned: with tried and proven
  description: "What was done (or would be) - C(backup), C(restore), C(record) or C(nothing)."
backup:
  type: str
  returned: with tried and proven
  description: "The folder of the backup that was made, or that the data came from; empty for none."
differences: {type: list, elements: str, returned: success, description: "What is not as it should be, in a sentence each."}
keys: {type: list, elements: str, returned: with configured, description: The settings that differed.}
login: {type: bool, returned: with configured, description: Whether the administrator was given a login.}
models: {type: list, elements: str, returned: with configured, description: The models that were opened to all users.}
look_arguments: {type: dict, returned: success, description: The options, with salted digests in place of secrets.}
"""

import json
import os
import re
import shutil
import sqlite3
import stat
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments
from ansible_collections.r1.prov.plugins.module_utils.difference import owner_and_mode_of
from ansible_collections.r1.prov.plugins.module_utils.files import give, read_json, write_whole
from ansible_collections.r1.prov.plugins.module_utils.locks import alone
from ansible_collections.r1.prov.plugins.module_utils.open_webui import (
    DatabaseError,
    Found,
    apply,
    has_second_factors,
    read,
)
from ansible_collections.r1.prov.plugins.module_utils.open_webui_account import AccountError, Given, Login, Page
from ansible_collections.r1.prov.plugins.module_utils.open_webui_backup import (
    DATABASE,
    History,
    copy,
    decide,
    is_there,
    restore,
    size_bytes,
    surplus,
)
from ansible_collections.r1.prov.plugins.module_utils.progress import RUN, Progress
from ansible_collections.r1.prov.plugins.module_utils.secret import is_digest, same, without_secrets
from ansible_collections.r1.prov.plugins.module_utils.units import UnitError, in_words, reset_failed, systemctl
from ansible_collections.r1.prov.plugins.module_utils.users import acting_as


def _explained(error: DatabaseError, database: Path, user: str, unit: str, backups: str) -> str:
    """What is wrong with the database, and what to do next."""
    if "unable to open" in str(error):
        return (
            f"{user} cannot open {database}. A folder above may keep {user} out, and the database itself may well be whole: "
            f"`namei -l {database}` shows who may pass where"
        )
    return (
        f"{database} is not as this version of r1prov knows it: {error}. "
        "Take the Open-WebUI that it pins (open_webui_version, open_webui_requirements), or a newer r1prov. If it is damaged, "
        f"stop the page ({in_words('stop', unit)}) and put {DATABASE} of the newest folder in {backups} in its place, "
        "or remove it to begin with an empty one. Then run again."
    )


def configure(module: AnsibleModule, wanted: dict[str, Any]) -> None:
    database, user, unit = Path(wanted["data"]) / DATABASE, wanted["user"], wanted["unit"]
    settings, models = {**wanted["settings"], **wanted["secrets"]}, wanted["public_models"]
    parts = wanted["parts"]
    login, kept = Login(wanted["admin_email"], wanted["admin_password"]), Path(wanted["admin_password_file"])
    if module.check_mode and not is_there(database):
        said = ["the chat page's accounts have no administrator, because there is no database"]
        module.exit_json(
            changed=True,
            keys=[*settings, *parts],
            models=models,
            login=True,
            differences=said,
            drift=[],
            look_arguments=without_secrets(module.params, module.argument_spec),
        )
    serves = True
    try:
        with acting_as(user):  # a database in WAL mode makes files even for a reader
            found = read(database)
        settings |= found.completed(parts)
        keys, new_models = found.differing(settings, models)
        keeps = not _is_root_only(kept) or not same(kept.read_text(encoding="utf-8"), login.password)
        if is_digest(login.password) and not keeps:
            login = login._replace(password=kept.read_text(encoding="utf-8"))
        given = found.login
        gives = not (found.administrated and _has_been_given(login, given, wanted["given"]))
        if (keys or new_models or gives) and not module.check_mode:
            # Without an administrator, whoever comes first could become one, so the page starts only when there is one.
            serves = found.administrated
            systemctl("stop", unit)
            try:
                given = _page(wanted).give(login, given) if gives else given
                serves = True
                with acting_as(user):
                    apply(database, {key: settings[key] for key in keys}, new_models, given if gives else None)
            finally:
                if serves:
                    reset_failed(unit)
                    systemctl("start", unit)
        if keeps and not module.check_mode:
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_whole(kept, login.password, 0o600)
    except AccountError as error:
        stopped = "" if serves else "The page has no administrator, so it was stopped. "
        module.fail_json(
            msg=f"{stopped}The page's administrator cannot be given the login {login.email}, because {error}"
        )
    except DatabaseError as error:
        module.fail_json(msg=_explained(error, database, user, unit, f"{wanted['data']}-backups"))
    except (OSError, UnitError) as error:
        module.fail_json(msg=f"{error}. Its log says why: {in_words('log', unit)}")
    differences = _in_words(found, keys, new_models, login.email if gives else "", kept if keeps else None)
    names = [f"setting {key}\n" for key in keys] + [f"access to {model}\n" for model in new_models]
    names += [f"login of {login.email}\n"] * gives + [f"{kept}\n"] * keeps
    diff = {"before": "", "after": "".join(names), "after_header": str(database)} if names else {}
    look_arguments = without_secrets(module.params, module.argument_spec)
    look_arguments |= {"given": given._asdict()} if given else {}
    module.exit_json(
        changed=bool(names),
        keys=keys,
        models=new_models,
        login=gives,
        diff=diff,
        look_arguments=look_arguments,
        differences=differences,
        drift=[],  # It may be a new wish.
    )


def _has_been_given(login: Login, given: Given | None, compared: dict[str, str]) -> bool:
    """Whether the page was given this login last.

    The digest of a login is slow to compute. So a look hands in what an earlier run has compared with the login, and it is enough that the
    page still has that.
    """
    if given is None:
        return False
    return given == Given(**compared) if compared else given.is_of(login)


def _in_words(found: Found, keys: list[str], models: list[str], email: str, kept: Path | None) -> list[str]:
    """What is wrong with the page's settings, in a sentence each. `email` is of a login that has to be given."""
    said = [f"the chat page's setting {key} has another value than r1prov gives it" for key in keys]
    said += [f"the chat page lets nobody use the model {name}" for name in models]
    if email:
        wrong = (
            f"administrator was not given the login {email}"
            if found.administrated
            else "accounts have no administrator"
        )
        said.append(f"the chat page's {wrong}")
    if kept:
        said.append(f"{kept} is not as r1prov has written it")
    return said


def _page(wanted: dict[str, Any]) -> Page:
    return Page(Path(wanted["release"]) / "bin/python", wanted["user"], Path(wanted["data"]))


def encrypt_anew(module: AnsibleModule, wanted: dict[str, Any]) -> bool:
    """Encrypts the second factors of the accounts with the key that the page gets. Returns whether there were any to encrypt."""
    database, environment, key = Path(wanted["data"]) / DATABASE, Path(wanted["environment"]), wanted["secret_key"]
    if not key or not is_there(database) or not environment.exists():
        return False
    written = re.search(r'^WEBUI_SECRET_KEY="(.*)"$', environment.read_text(encoding="utf-8"), re.MULTILINE)
    before = re.sub(r"\\(.)", r"\1", written[1]) if written else key
    if same(before, key):
        return False
    try:
        with acting_as(wanted["user"]):
            if not has_second_factors(database):
                return False
        if not module.check_mode:
            systemctl("stop", wanted["unit"])
            _page(wanted).encrypt_anew(before, key)
    except (AccountError, DatabaseError, UnitError) as error:
        module.fail_json(
            msg="The page is stopped, because the second factors of its accounts cannot be encrypted with its new key. "
            f"With the old key it starts again. {error}"
        )
    return True


def _is_root_only(path: Path) -> bool:
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    return (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o600)


def follow(module: AnsibleModule, wanted: dict[str, Any]) -> None:
    """Has the data follow the releases."""
    os.umask(0o022)  # the folders above belong to others too, whatever root's habits are
    data, backups = Path(wanted["data"]), Path(f"{wanted['data']}-backups")
    encrypted = wanted["state"] == "tried" and encrypt_anew(module, wanted)
    release = Path(os.path.realpath(wanted["release"])).name
    record = backups / "history.json"
    history = History(**read_json(record))
    if wanted["state"] == "proven":
        did, then = "record" if history != History(release) else "nothing", History(release)
    else:
        did, then = decide(history, release)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    if did == "backup" and not is_there(data / DATABASE):
        did = "record"
    if did == "backup":
        then = then._replace(backup=f"{stamp}-{history.proven or 'unknown'}")
    source = {"backup": then.backup, "restore": history.backup}.get(did, "")
    wrong = _wrong(wanted, data, backups, history)
    if did != "nothing":
        proven = f"it is not recorded that the chat page's data works with {release}"
        tried = f"the chat page's data is not recorded as that of {release}"
        wrong["data"] = proven if wanted["state"] == "proven" else tried
    result = {
        "changed": bool(wrong) or encrypted,
        "differences": list(wrong.values()),
        "drift": [said for kind, said in wrong.items() if kind != "data"],  # A new release is a new wish.
        "did": did,
        "backup": str(backups / source) if source else "",
        "look_arguments": without_secrets(module.params, module.argument_spec),
    }
    if source:
        result["diff"] = {"before": "", "after": f"{did}: {result['backup']}\n"}
    if module.check_mode or not wrong:
        module.exit_json(**result)
    try:
        if "backups" in wrong:
            give(backups, "root", 0o700)
        if "database" in wrong:  # What runs still writes to the one that is gone.
            systemctl("restart", wanted["unit"])
        if did != "nothing":
            if source:
                _refuse_full(module, backups, data if did == "backup" else backups / source)
            _keep(wanted, did, backups / source, backups / f"{stamp}-{history.attempt}", then)
    except (OSError, sqlite3.Error, UnitError) as error:
        module.fail_json(
            msg=f"the page's data cannot be kept ({did}): {error}. The page is stopped, its data in {data} and {backups}. "
            "Run again when that is mended."
        )
    module.exit_json(**result)


def _refuse_full(module: AnsibleModule, backups: Path, source: Path) -> None:
    """Refuses to copy the data where there is no room for it."""
    backups.mkdir(parents=True, exist_ok=True)
    takes, free = size_bytes(source), shutil.disk_usage(backups).free
    if takes > free:
        module.fail_json(
            msg=f"{backups} has {free >> 20} MiB left, and a copy of the page's data takes {takes >> 20} MiB. "
            "Free some space, then run again. The page was left as it was."
        )


def _keep(wanted: dict[str, Any], did: str, source: Path, aside: Path, then: History) -> None:
    """Makes the copy, or brings it back, and records that. What the data was before it came back is set `aside`."""
    data, backups = Path(wanted["data"]), aside.parent
    backups.mkdir(parents=True, exist_ok=True)
    backups.chmod(0o700)
    if did == "backup":
        systemctl("stop", wanted["unit"])
        copy(data, source, wanted["user"])
    elif did == "restore":
        systemctl("stop", wanted["unit"])
        restore(source, data, aside, wanted["user"])
    write_whole(backups / "history.json", json.dumps(then._asdict()) + "\n")
    names = [path.name for path in backups.glob("[0-9]*") if path.name != then.backup]
    for old in surplus(names, wanted["keep"]):
        shutil.rmtree(backups / old)


def _wrong(wanted: dict[str, Any], data: Path, backups: Path, history: History) -> dict[str, str]:
    """What somebody has done to the data, in a sentence each, by the sort of thing."""
    wrong = {}
    if backups.is_dir():
        has = owner_and_mode_of(backups.stat())
        if has != "0:0 0700":
            wrong["backups"] = f"{backups} has owner and mode {has}, and should have 0:0 0700"
    database = data / DATABASE
    if wanted["state"] == "tried" and history.proven and not is_there(database):
        wrong["database"] = f"{database} is gone, and with it the accounts and chats. {backups} may hold a copy"
    return wrong


def main() -> None:
    module = AnsibleModule(
        argument_spec=arguments(
            DOCUMENTATION, admin_password=True, admin_password_file=False, secret_key=True, secrets=True
        ),
        required_if=[("state", "configured", ("admin_email", "admin_password"))],
        supports_check_mode=True,
    )
    act = configure if module.params["state"] == "configured" else follow
    if module.check_mode:
        act(module, module.params)
    progress, waited = Progress("open_webui"), False

    def tell(who: str) -> None:
        nonlocal waited
        waited = True
        progress.wait(who)

    # The module of a run that was stopped may be at work on the data still.
    with alone(RUN / "open_webui" / ".lock", tell):
        if waited:
            progress.finish()
        act(module, module.params)


if __name__ == "__main__":
    main()
