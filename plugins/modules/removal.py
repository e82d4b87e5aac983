#!/usr/bin/python
"""Ansible module r1.prov.removal: takes everything of r1prov off a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: removal
short_description: Removes every unit, user, group and file of r1prov, or of one of its services
description:
  - Stock Ansible cannot do it, because its loops over files cannot leave out what is kept or mounted below a folder.
  - All that r1prov leaves on a host carries its name, so it is found without a record. Packages of the distribution stay.
  - What is kept becomes root's, because the users are removed. A later C(r1prov up) gives it back.
author: The r1prov team
options: {
  "data_dir": {"type": "path", "default": "/srv/r1prov", "description": "The folder that holds the models."},
  "service": {"type": "str", "default": "", "description": "The only service to remove, with the services whose names begin like it, without
      C(r1prov-). Empty for all of r1prov."},
  "keep": {"type": "list", "elements": "str", "default": [], "choices": ["weights", "chats"], "description": "What stays."}
  }
"""

EXAMPLES = r"""
- name: Remove r1prov, but not the weights
  r1.prov.removal:
    data_dir: /srv/r1prov
    keep: [weights]
"""

RETURN = r"""
removed: {type: list, elements: str, returned: success, description: "What was removed, or would be."}
"""

import glob
import grp
import os
import pwd
import shutil
import subprocess
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments
from ansible_collections.r1.prov.plugins.module_utils.units import reset_failed, systemctl

UNITS = "/etc/systemd/system"
FILES = (
    "/opt/r1prov",
    "/etc/r1prov",
    "/var/cache/r1prov",
    "/var/lib/r1prov",
    "/usr/local/lib/r1prov-*",
    "/usr/local/share/ca-certificates/r1prov-*",
    "/etc/apt/sources.list.d/r1prov-*",
)
FILES_OF_ONE = (
    "/etc/r1prov/{0}*",
    "/etc/r1prov/network/r1prov-{0}*",
    "/var/lib/r1prov/{0}*",
    "/var/lib/r1prov/service/r1prov-{0}*",
    "/run/r1prov/{0}*",
)
CHATS = "/var/lib/r1prov/open-webui"
"""The page's data; its backups lie beside it and begin with the same name."""


def mounts(mountinfo: str) -> set[str]:
    """Where file systems are mounted, from the text of /proc/self/mountinfo."""
    return {line.split()[4] for line in mountinfo.splitlines()}


def doomed(patterns: list[str], kept: list[str], mounted: set[str]) -> list[str]:
    """The files and folders to remove: as few paths as say it, none of which holds anything that is kept or mounted there.

    Args:
        patterns: globs of what belongs to r1prov.
        kept: paths, with all that lies below them.
        mounted: mount points. What is mounted does not belong to r1prov.
    """
    stay = [*kept, *mounted]

    def below(path: str) -> list[str]:
        if path in stay:
            return []
        if not any(other.startswith(f"{path}/") for other in stay):
            return [path]
        return [entry for name in sorted(os.listdir(path)) for entry in below(f"{path}/{name}")]  # noqa: PTH208 - names only

    return [entry for pattern in patterns for path in sorted(glob.glob(pattern)) for entry in below(path)]  # noqa: PTH207


def remove(path: str) -> None:
    """Removes a file, a link, or a folder with all that is in it."""
    if Path(path).is_dir() and not Path(path).is_symlink():
        shutil.rmtree(path)
    else:
        Path(path).unlink(missing_ok=True)  # systemd has removed its own links by then


def give_to_root(path: Path) -> None:
    """Makes a kept tree root's. The modes stay."""
    for folder, _, names in os.walk(path):
        for entry in (folder, *(f"{folder}/{name}" for name in names)):
            os.chown(entry, 0, 0, follow_symlinks=False)


def main() -> None:
    module = AnsibleModule(argument_spec=arguments(DOCUMENTATION), supports_check_mode=True)
    data_dir, keep, service = (module.params[key] for key in ("data_dir", "keep", "service"))
    data_dir, name = data_dir.rstrip("/"), f"r1prov-{service}"
    kept = [f"{data_dir}/models"] if "weights" in keep else []
    kept += sorted(glob.glob(f"{CHATS}*")) if "chats" in keep else []  # noqa: PTH207
    units = sorted(
        path.name for path in Path(UNITS).glob(f"{name}*") if path.suffix in (".service", ".socket", ".timer")
    )
    users = [entry.pw_name for entry in pwd.getpwall() if entry.pw_name.startswith(name)]
    groups = [
        entry.gr_name for entry in grp.getgrall() if entry.gr_name.startswith(name) and entry.gr_name not in users
    ]
    mounted = mounts(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
    everything = [*FILES, f"{data_dir}/models", f"{data_dir}/ollama"]
    ours = [f"{UNITS}/{name}*", f"{UNITS}/*.wants/{name}*", f"{UNITS}/*.d/{name}*"]
    ours.append(f"/var/lib/systemd/timers/stamp-{name}*")
    ours += [path.format(service) for path in FILES_OF_ONE] if service else everything
    files = doomed(ours, kept, mounted)
    settings = sorted({str(Path(path).parent) for path in files if path.startswith(f"{UNITS}/") and ".d/" in path})
    # They are looked for in the trust store itself: a run that was cut off may have removed the files, and not what was made of them.
    trusted = [] if service else sorted(glob.glob("/etc/ssl/certs/r1prov-*"))  # noqa: PTH207
    removed = [*units, *users, *groups, *files, *trusted]
    if not module.check_mode:
        if units:
            # All in one call, because systemd then stops what depends on another in the right order.
            systemctl("disable", "--now", "--quiet", *units)
        for path in files:
            remove(path)
        for path in kept:
            give_to_root(Path(path))
        for user in users:
            subprocess.run(["userdel", user], check=True)
        for group in groups:
            subprocess.run(["groupdel", group], check=True)
        if units or settings:
            systemctl("daemon-reload")
            reset_failed(f"{name}*")
        if trusted:
            subprocess.run(["update-ca-certificates", "--fresh"], check=True, capture_output=True)
        for folder in (*settings, data_dir, "/var/cache/r1prov", "/var/lib/r1prov"):
            if Path(folder).is_dir() and folder not in mounted and not os.listdir(folder):  # noqa: PTH208
                Path(folder).rmdir()
    module.exit_json(changed=bool(removed), removed=removed)


if __name__ == "__main__":
    main()
