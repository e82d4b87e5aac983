#!/usr/bin/python
"""Ansible module r1.prov.open_webui_backup: a copy of the chat page's data, before another release touches it."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: open_webui_backup
short_description: Backs up Open-WebUI's data when another release is about to start on it
description:
  - A release brings the database to its own form when it starts, and an older one cannot read that. So where I(release) is not
    the one that the data was last started with, the service is stopped and its data copied - the database by SQLite's own backup,
    the rest as it is. The service is left stopped, for the task that starts the new release.
  - A backup is a folder C(BACKUPS/TIME-RELEASE) that appears whole or not at all. The last ones are kept. To go back to one, stop
    the service, put its files in the place of the data, give them to the service's user, and start the release it is named after.
options:
  data:
    description: The data's folder.
    type: path
    required: true
  backups:
    description: Holds the backups, for root only.
    type: path
    required: true
  release:
    description: The link to the release that is about to start.
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
  r1.prov.open_webui_backup:
    data: /var/lib/r1prov/open-webui
    backups: /var/lib/r1prov/open-webui-backups
    release: /opt/r1prov/open-webui/current
    user: r1prov-webui
    unit: r1prov-open-webui
"""

RETURN = r"""
backup:
  description: The folder of the backup that was made; empty where none was.
  type: str
  returned: success
"""

import os
import shutil
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils.open_webui import acting_as

_DATABASE = "webui.db"
_STARTED = "started-with"  # file that names the release which the data was last started with
_MADE_ANEW = ("static", "cache")


def size_bytes(folder: Path) -> int:
    """What the files of a folder take."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())


def copy(data: Path, target: Path, user: str) -> None:
    """Copies the data; the folder appears whole or not at all."""
    temporary = target.with_name(f".{target.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    skipped = shutil.ignore_patterns(f"{_DATABASE}*")

    def ignore(folder: str, names: list) -> set:
        return skipped(folder, names) | (set(_MADE_ANEW) & set(names) if Path(folder) == data else set())

    shutil.copytree(data, temporary, symlinks=True, ignore=ignore)
    with acting_as(user):
        source = sqlite3.connect(f"file:{data / _DATABASE}?mode=rw", uri=True, timeout=30)
        source.execute("SELECT count(*) FROM sqlite_master").fetchone()  # makes the files that go with it, as this user
    with closing(source), closing(sqlite3.connect(temporary / _DATABASE)) as copied:
        source.backup(copied)
    os.sync()  # or a power cut may leave a whole-looking backup with empty files
    temporary.rename(target)


def surplus(names: list, keep: int) -> list:
    """The backups that are too old to be kept; their names begin with their time."""
    return sorted(names)[:-keep]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
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
    record = backups / _STARTED
    before = record.read_text(encoding="utf-8").strip() if record.exists() else ""
    needed = (data / _DATABASE).exists() and before != release
    target = backups / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{before or 'unknown'}"
    result = {"changed": before != release, "backup": str(target) if needed else ""}
    if needed:
        result["diff"] = {"before": "", "after": f"{target}\n"}
    if module.check_mode or before == release:
        module.exit_json(**result)
    try:
        backups.mkdir(parents=True, exist_ok=True)
        backups.chmod(0o700)
        if needed:
            takes, free = size_bytes(data), shutil.disk_usage(backups).free
            if takes > free:
                module.fail_json(
                    msg=f"{backups} has {free >> 20} MiB left, and a backup of {data} takes {takes >> 20} MiB. "
                    "Free some space, then run again. The page still runs as it was."
                )
            subprocess.run(["systemctl", "stop", f"{module.params['unit']}.service"], check=True, capture_output=True)
            copy(data, target, module.params["user"])
            for old in surplus([path.name for path in backups.glob("[0-9]*")], module.params["keep"]):
                shutil.rmtree(backups / old)
        record.write_text(f"{release}\n", encoding="utf-8")
    except (OSError, sqlite3.Error, subprocess.CalledProcessError) as error:
        module.fail_json(
            msg=f"{data} cannot be backed up: {error}. The page is stopped, and its data as it was. Run again when that is mended."
        )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
