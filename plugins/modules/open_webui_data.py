#!/usr/bin/python
"""Ansible module r1.prov.open_webui_data: the chat page's data, kept while another release is tried on it, and given back if that fails."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: open_webui_data
short_description: Backs up Open-WebUI's data before another release starts on it, and brings it back where that one failed
description:
  - A release brings the database to its own form when it starts, and an older one may not be able to read that. So a release that
    is not the one that has last proven itself on the data is an attempt. Before it starts, the service is stopped and the data
    copied - the database by SQLite's own backup, the rest as it is.
  - Where the attempt is given up, that is, where yet another release is about to start, the data comes back from that copy. What the
    attempt made of it is set aside as a backup too.
  - The service is left stopped, for the task that starts it. A backup is a folder C(BACKUPS/TIME-RELEASE) that appears whole or not
    at all; the last ones are kept.
options:
  phase:
    description: C(attempt) is called before a release starts, C(proven) when it has answered as it should.
    type: str
    choices: [attempt, proven]
    required: true
  data:
    description: The data's folder.
    type: path
    required: true
  backups:
    description: Holds the backups, for root only.
    type: path
    required: true
  release:
    description: The link to the release.
    type: path
    required: true
  user:
    description: The service's user.
    type: str
    required: true
  unit:
    description: The service's unit, without C(.service).
    type: str
    required: true
  keep:
    description: How many backups are kept.
    type: int
    default: 2
author:
  - The r1prov team
"""

EXAMPLES = r"""
- name: Back up the data before another release starts on it
  r1.prov.open_webui_data:
    phase: attempt
    data: /var/lib/r1prov/open-webui
    backups: /var/lib/r1prov/open-webui-backups
    release: /opt/r1prov/open-webui/current
    user: r1prov-webui
    unit: r1prov-open-webui
"""

RETURN = r"""
did:
  description: What was done (or would be) - C(backup), C(restore), C(record) or C(nothing).
  type: str
  returned: success
backup:
  description: The folder of the backup that was made, or that the data came from; empty for none.
  type: str
  returned: success
"""

import json
import os
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils.files import whole_folder, write_whole
from ansible_collections.r1.prov.plugins.module_utils.units import UnitError, systemctl
from ansible_collections.r1.prov.plugins.module_utils.users import acting_as

_DATABASE = "webui.db"
_MADE_ANEW = ("static", "cache")


class History(NamedTuple):
    """Which releases have been at the data: the last one that has proven itself, the one tried since, and the backup between them."""

    proven: str = ""
    attempt: str = ""
    backup: str = ""


def decide(history: History, release: str) -> tuple[str, History]:
    """What is to be done before a release starts, and the history from then on (its backup to be named where one is made)."""
    if history.attempt and history.attempt != release:
        return "restore" if history.backup else "record", History(
            history.proven,
            "" if release == history.proven else release,
            "" if release == history.proven else history.backup,
        )
    if release in (history.proven, history.attempt):
        return "nothing", history
    return "backup", History(history.proven, release)


def size_bytes(folder: Path) -> int:
    """What the files of a folder take."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())


def copy(data: Path, target: Path, user: str) -> None:
    """Copies the data; the folder appears whole or not at all."""
    skipped = shutil.ignore_patterns(f"{_DATABASE}*")

    def ignore(folder: str, names: list[str]) -> set[str]:
        return skipped(folder, names) | (set(_MADE_ANEW) & set(names) if Path(folder) == data else set())

    with whole_folder(target) as folder:
        shutil.copytree(data, folder, symlinks=True, ignore=ignore, dirs_exist_ok=True)
        with acting_as(user):
            source = sqlite3.connect(f"file:{data / _DATABASE}?mode=rw", uri=True, timeout=30)
            # Makes the files that go with it, as this user.
            source.execute("SELECT count(*) FROM sqlite_master").fetchone()
        with closing(source), closing(sqlite3.connect(folder / _DATABASE)) as copied:
            source.backup(copied)


def restore(backup: Path, data: Path, aside: Path, user: str) -> None:
    """Sets the data aside and puts a backup in its place. Cut off at any point, it can be done again."""
    aside.mkdir(mode=0o700)
    for entry in data.iterdir():
        entry.rename(aside / entry.name)
    shutil.copytree(backup, data, symlinks=True, dirs_exist_ok=True)
    for path in [data, *data.rglob("*")]:
        shutil.chown(path, user, user) if not path.is_symlink() else None
    data.chmod(0o700)
    os.sync()


def surplus(names: list[str], keep: int) -> list[str]:
    """The backups that are too old to be kept; their names begin with their time."""
    return sorted(names)[:-keep]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "phase": {"type": "str", "choices": ["attempt", "proven"], "required": True},
            "data": {"type": "path", "required": True},
            "backups": {"type": "path", "required": True},
            "release": {"type": "path", "required": True},
            "user": {"type": "str", "required": True},
            "unit": {"type": "str", "required": True},
            "keep": {"type": "int", "default": 2},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)  # the folders above belong to others too, whatever root's habits are
    data, backups = Path(module.params["data"]), Path(module.params["backups"])
    release = Path(os.path.realpath(module.params["release"])).name
    record = backups / "history.json"
    history = History(**json.loads(record.read_text(encoding="utf-8"))) if record.exists() else History()
    if module.params["phase"] == "proven":
        did, then = "record" if history != History(release) else "nothing", History(release)
    else:
        did, then = decide(history, release)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    if did == "backup" and not (data / _DATABASE).exists():
        did = "record"
    if did == "backup":
        then = then._replace(backup=f"{stamp}-{history.proven or 'unknown'}")
    source = {"backup": then.backup, "restore": history.backup}.get(did, "")
    result = {"changed": did != "nothing", "did": did, "backup": str(backups / source) if source else ""}
    if source:
        result["diff"] = {"before": "", "after": f"{did}: {result['backup']}\n"}
    if module.check_mode or did == "nothing":
        module.exit_json(**result)
    try:
        backups.mkdir(parents=True, exist_ok=True)
        backups.chmod(0o700)
        if source:
            takes, free = size_bytes(data if did == "backup" else backups / source), shutil.disk_usage(backups).free
            if takes > free:
                module.fail_json(
                    msg=f"{backups} has {free >> 20} MiB left, and a copy of the page's data takes {takes >> 20} MiB. "
                    "Free some space, then run again. The page was left as it was."
                )
            systemctl("stop", f"{module.params['unit']}.service")
        if did == "backup":
            copy(data, backups / source, module.params["user"])
        elif did == "restore":
            restore(backups / source, data, backups / f"{stamp}-{history.attempt}", module.params["user"])
        write_whole(record, json.dumps(then._asdict()) + "\n")
        names = [path.name for path in backups.glob("[0-9]*") if path.name != then.backup]
        for old in surplus(names, module.params["keep"]):
            shutil.rmtree(backups / old)
    except (OSError, sqlite3.Error, UnitError) as error:
        module.fail_json(
            msg=f"the page's data cannot be kept ({did}): {error}. The page is stopped, its data in {data} and {backups}. "
            "Run again when that is mended."
        )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
