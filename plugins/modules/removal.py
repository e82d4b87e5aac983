#!/usr/bin/python
"""Ansible module r1.prov.removal: takes everything of r1prov off a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: removal
short_description: Removes every unit, user, group and file of r1prov, or of one of its services
description:
  - Stock Ansible cannot do it, because its loops over files cannot leave out what is kept or mounted below a folder.
  - All that r1prov leaves on a host carries its name, so it is found without a record. Packages of the distribution stay.
  - What is kept becomes root's, because the users are removed, and a folder that belonged to one of them is closed to others. A later
    C(r1prov up) gives it back.
  - Where the data disk of a container is away, all else is removed. Then it fails with a sentence, because what lies on that disk stays.
  - It refuses, before anything is changed, while a user who stays has one of the groups as their own group, or while a process that
    belongs to none of the units runs as one of the users. Nobody could remove the group or the user then. It refuses as well while the
    script with which a platform starts the services cannot be written.
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
removed:
  type: dict
  returned: where something was or would be removed
  description: What was removed, or would be.
  contains:
    units: {type: list, elements: str, description: Names of units.}
    users: {type: list, elements: str, description: Names of users.}
    groups: {type: list, elements: str, description: Names of groups that are no user's own.}
    paths: {type: list, elements: dict, description: "Files and folders, each with I(path) and the I(bytes) that its end frees."}
away:
  type: str
  returned: where something was or would be removed
  description: A sentence where the data disk is away, so that what lies on it stays; else empty.
in_use:
  type: list
  elements: str
  returned: where something was or would be removed
  description: Processes of others that use files that go, each in a sentence. The disk gets the room back when they end.
kept:
  type: list
  elements: dict
  returned: where something was or would be removed
  description: >-
    What stays where r1prov keeps its files, each with I(path), I(why) (C(weights) and C(chats) as I(keep) says, or C(mounted)), and
    I(bytes), which is null for what is mounted.
"""

import contextlib
import glob
import grp
import itertools
import operator
import os
import pwd
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils import data_disk, platform_hook
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments
from ansible_collections.r1.prov.plugins.module_utils.files import mounts, read_json
from ansible_collections.r1.prov.plugins.module_utils.host_probe import as_owner_of
from ansible_collections.r1.prov.plugins.module_utils.on_path import links_into
from ansible_collections.r1.prov.plugins.module_utils.private_network import NFT
from ansible_collections.r1.prov.plugins.module_utils.unit_look import OURS
from ansible_collections.r1.prov.plugins.module_utils.units import SYSTEMD, UnitError, end, forget, processes, systemctl

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PROC = Path("/proc")
_UIDS = re.compile(r"^Uid:(.*)$", re.MULTILINE)
FILES = (
    "/opt/r1prov",
    "/etc/r1prov",
    "/var/cache/r1prov",
    "/var/lib/r1prov",
    "/usr/local/lib/r1prov-*",
    "/usr/local/bin/r1prov-units",
    "/usr/local/share/ca-certificates/r1prov-*",
    "/etc/apt/sources.list.d/r1prov-*",
    "/etc/security/limits.d/r1prov-*",
    "/run/r1prov/*",
)
LOCK = "/run/r1prov/lock.json"
"""The lock of the run that removes all else. The run itself removes it at its end."""
FILES_OF_ONE = (
    "/etc/r1prov/{0}*",
    "/etc/r1prov/network/r1prov-{0}*",
    "/var/lib/r1prov/{0}*",
    "/var/lib/r1prov/service/r1prov-{0}*",
    "/run/r1prov/{0}*",
)
STAMPS = "/var/lib/systemd/timers/stamp-{}*"
"""Where systemd notes when the timers of units that begin so were last due."""
TRUSTED = "/etc/ssl/certs/r1prov-*"
"""The host's trust store has these links of the authorities that r1prov has made it trust."""
TABLE = ("inet", "r1prov")
"""The rules for services in the network of a container, which no unit takes away. On a server they go with their namespace."""
RELEASE_LINKS = "*/*"
"""The links to releases, such as `current`, in the folder of all programs. Each program has a folder there."""
CHATS = "/var/lib/r1prov/open-webui"
"""The page's data; its backups lie beside it and begin with the same name."""


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


def freed(paths: list[str]) -> list[dict[str, Any]]:
    """Each path with the bytes of the disk that its end frees, which are counted at the first of several links.

    A file that has another link elsewhere frees nothing. So Ollama's copy of the model, which is a link, takes nothing of its own.
    """
    links = [(path, status) for path in paths for status in _statuses(path)]
    missing = {(status.st_dev, status.st_ino): status.st_nlink for _, status in links}
    for _, status in links:
        missing[status.st_dev, status.st_ino] -= 1
    taken = dict.fromkeys(paths, 0)
    for path, status in links:
        # A folder is linked from below, too, and goes with all that is in it.
        if missing.pop((status.st_dev, status.st_ino), 1) == 0 or stat.S_ISDIR(status.st_mode):
            taken[path] += status.st_blocks * 512
    return [{"path": path, "bytes": n_bytes} for path, n_bytes in taken.items()]


def on_disk(path: str) -> int:
    """The bytes of the disk that a file or folder takes. A file with several links in it counts once."""
    statuses = {(status.st_dev, status.st_ino): status for status in _statuses(path)}
    return sum(status.st_blocks * 512 for status in statuses.values())


def _statuses(path: str) -> Iterator[os.stat_result]:
    """The status of a file or link, or of a folder and all that is in it. What vanishes meanwhile is left out."""
    walked = [] if Path(path).is_symlink() else os.walk(path)
    inside = (Path(folder) / name for folder, folders, files in walked for name in (*folders, *files))
    for entry in itertools.chain([Path(path)], inside):
        with contextlib.suppress(FileNotFoundError):
            yield entry.lstat()


def staying(patterns: list[str], kept: dict[str, str], mounted: set[str]) -> list[dict[str, Any]]:
    """What stays of that which the patterns find: each path with why it stays, and the bytes of what was to be kept."""
    found = [path for pattern in patterns for path in glob.glob(pattern)]  # noqa: PTH207
    others = {path for path in mounted if _lies_in(path, found) and not _lies_in(path, kept)}
    return sorted(
        [{"path": path, "bytes": on_disk(path), "why": why} for path, why in kept.items() if Path(path).exists()]
        + [{"path": path, "bytes": None, "why": "mounted"} for path in others],
        key=operator.itemgetter("path"),
    )


def _lies_in(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def remove(path: str) -> None:
    """Removes a file, a link, or a folder with all that is in it.

    Links to releases go first. So none leads to a release of which a part is gone, wherever the removal is cut off.
    """
    if Path(path).is_dir() and not Path(path).is_symlink():
        for link in filter(Path.is_symlink, Path(path).glob(RELEASE_LINKS)):
            link.unlink()
        shutil.rmtree(path)
    else:
        Path(path).unlink(missing_ok=True)  # systemd has removed its own links by then


def remove_empty(folders: Iterable[str], mounted: set[str]) -> None:
    """Removes those of these folders in which nothing is left."""
    for folder in map(Path, folders):
        if folder.is_dir() and not folder.is_symlink() and str(folder) not in mounted and not any(folder.iterdir()):
            folder.rmdir()


def on_host(data_dir: str, links: list[str]) -> list[str]:
    """Patterns of all that r1prov has on a host, with real paths: what lies on the data disk is behind links.

    Args:
        data_dir: the folder for data.
        links: those of r1prov's own folders that are links to the data disk.
    """
    own = [path for path in FILES if path not in links]
    disk = [data_disk.moved(path, data_dir) for path in data_disk.PLACES]
    return [*own, *disk, f"{data_dir}/models", f"{data_dir}/ollama"]


def chats_of(data_dir: str, links: list[str]) -> list[str]:
    """The folders with the page's data and their backups, with real paths."""
    places = [CHATS] if "/var/lib/r1prov" not in links else []
    return [path for place in (*places, data_disk.moved(CHATS, data_dir)) for path in glob.glob(f"{place}*")]  # noqa: PTH207


def give_to_root(path: Path) -> None:
    """Makes a kept tree root's. A folder in it that was not root's is closed to others, because the group that might enter it is gone.

    The top stays as it is. The next run makes only folders below it anew, and its users must pass through.
    """
    for name, _, files in os.walk(path):
        folder = Path(name)
        status = folder.stat()
        if status.st_uid != 0 and folder != path:
            folder.chmod(stat.S_IMODE(status.st_mode) & ~0o007)
        for entry in (folder, *(folder / file for file in files)):
            os.chown(entry, 0, 0, follow_symlinks=False)


def holders(groups: Iterable[grp.struct_group], users: Iterable[pwd.struct_passwd], leaving: list[str]) -> list[str]:
    """The users who stay and have one of these groups as their own, each with that group. Nobody could remove it then."""
    names = {group.gr_gid: group.gr_name for group in groups}
    stay = [user for user in users if user.pw_name not in leaving and user.pw_gid in names]
    return [f"{user.pw_name} has the group {names[user.pw_gid]} as their own group" for user in stay]


def strangers(users: dict[int, str], units: Iterable[str], proc: Path = PROC) -> list[str]:
    """The processes that run as one of these users and in none of these units, each with its name. userdel refuses then.

    Processes of a container are left out, as userdel does: the same number is somebody else there.

    Args:
        users: number -> name.
        units: they are stopped, and their processes end.
        proc: the proc file system.
    """
    found = []
    for folder, status in _others(units, proc):
        as_whom = set(map(int, _UIDS.findall(status)[0].split()[:3])) & set(users)
        if as_whom:
            found.append(f"{_process(folder, status)} runs as {users[min(as_whom)]}")
    return found


def users_of(paths: Iterable[str], units: Iterable[str], proc: Path = PROC) -> list[str]:
    """The processes in none of these units that run or have mapped a file that goes, each in a sentence.

    Args:
        paths: files and folders that go.
        units: they are stopped, and their processes end.
        proc: the proc file system.
    """
    found, paths = [], list(paths)
    for folder, status in _others(units, proc):
        with contextlib.suppress(OSError), as_owner_of(folder.name):  # It may end meanwhile.
            lines = (folder / "maps").read_text(errors="replace").splitlines()
            mapped = {line.split(maxsplit=5)[5] for line in lines if line.count("/")}
            used = sorted(path for path in mapped if _lies_in(path, paths))
            if used:
                found.append(f"{_process(folder, status)} still uses {used[0]}")
    return found


def _others(units: Iterable[str], proc: Path) -> Iterator[tuple[Path, str]]:
    """The processes of this host in none of these units: the folder of each in proc, and its status."""
    units = set(units)
    own = {pid for unit in units for pid in processes(unit)}
    for folder in sorted((path for path in proc.iterdir() if path.name.isdigit()), key=lambda path: int(path.name)):
        with contextlib.suppress(OSError):  # It may end meanwhile.
            status = (folder / "status").read_text(errors="replace")
            parts = (folder / "cgroup").read_text().split("/")
            with as_owner_of(folder.name):
                here = os.path.samestat((folder / "root").stat(), (proc / "self/root").stat())
                here = here and (folder / "ns/user").readlink() == (proc / "self/ns/user").readlink()
            if here and folder.name not in own and not {part.strip() for part in parts} & units:
                yield folder, status


def _process(folder: Path, status: str) -> str:
    name = status.partition("\n")[0].partition("\t")[2]
    return f"process {folder.name} ({name})"


def groups_of(name: str) -> list[grp.struct_group]:
    """The groups whose names begin like this."""
    return [group for group in grp.getgrall() if group.gr_name.startswith(name)]


def stop(module: AnsibleModule, units: list[str], *, whole: bool) -> None:
    """Stops units and, where all of r1prov goes, what runs them, or fails with what keeps them from that."""
    try:
        if units:
            # All in one call, because systemd then stops what depends on another in the right order.
            systemctl("disable", "--now", "--quiet", *units)
        if whole:
            end()
    except UnitError as error:
        module.fail_json(msg=f"the services cannot be stopped: {error}. Nothing was removed")


def delete(module: AnsibleModule, program: str, name: str) -> None:
    """Deletes a user or a group, or fails with what the program says."""
    done = subprocess.run([program, name], capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        remedy = "Mend that and run the same again, which goes on where this was"
        module.fail_json(msg=f"{name} cannot be deleted: {done.stderr.strip()}. Remedy: {remedy}")


def emptied(data_dir: str, *, whole: bool) -> list[str]:
    """Folders that go where nothing is left in them.

    Among them is where Ansible has put files on their way, in the home of root and of who logs in. It removes the files alone.

    Args:
        data_dir: the folder for data.
        whole: whether all of r1prov goes.
    """
    found = [*(data_disk.moved(path, data_dir) for path in data_disk.PLACES), str(data_disk.home(data_dir)), data_dir]
    found += ["/var/cache/r1prov", "/var/lib/r1prov"]
    names = {"root", os.environ.get("SUDO_USER", "root")} if whole else set()
    homes = sorted(entry.pw_dir for entry in pwd.getpwall() if entry.pw_name in names)
    return [*found, *(each for home in homes for each in (f"{home}/.ansible/tmp", f"{home}/.ansible"))]


def hindrance(groups: list[grp.struct_group], users: dict[int, str], units: list[str], hooks: Iterable[str]) -> str:
    """What keeps groups, users, units and the lines in scripts of platforms from being removed, with what to do; empty where all can be."""
    obstacles = holders(groups, pwd.getpwall(), list(users.values()))
    remedies = ["give each another one (usermod --gid GROUP USER)"] if obstacles else []
    if running := strangers(users, units):
        obstacles += [f"{each}, and is none of r1prov's services" for each in running]
        remedies.append("end each process (kill NUMBER)")
    for fault in filter(None, (platform_hook.fault(Path(hook)) for hook in hooks)):
        obstacles.append(fault["what"])
        remedies.append(fault["remedy"])
    if not obstacles:
        return ""
    remedy = " and ".join(remedies)
    return (
        f"{'; '.join(obstacles)}. Nothing was removed. Remedy: {remedy[0].upper()}{remedy[1:]}, and run the same again"
    )


def main() -> None:
    module = AnsibleModule(argument_spec=arguments(DOCUMENTATION), supports_check_mode=True)
    data_dir, keep, service = (module.params[key] for key in ("data_dir", "keep", "service"))
    data_dir, name = data_dir.rstrip("/"), f"r1prov-{service}"
    kept = {f"{data_dir}/models": "weights"} if "weights" in keep else {}
    # What lies on the data disk has its own name there. Links to it go last, because what is kept may lie behind them.
    links = data_disk.linked(data_dir)
    kept |= dict.fromkeys(chats_of(data_dir, links), "chats") if "chats" in keep else {}
    units = sorted(path.name for path in OURS.glob(f"{name}*") if path.suffix in (".service", ".socket", ".timer"))
    users = {entry.pw_uid: entry.pw_name for entry in pwd.getpwall() if entry.pw_name.startswith(name)}
    groups = groups_of(name)
    away = "" if service else data_disk.away(data_dir)
    hooks = [] if service else platform_hook.written()
    if obstacle := hindrance(groups, users, units, hooks):
        module.fail_json(msg=obstacle)
    mounted = set(mounts(Path("/proc/self/mountinfo").read_text(encoding="utf-8")))
    ours = [f"{OURS}/{name}*", f"{OURS}/*.wants/{name}*", f"{OURS}/*.d/{name}*"]
    ours.append(STAMPS.format(name))
    ours += [path.format(service) for path in FILES_OF_ONE] if service else on_host(data_dir, links)
    files = [path for path in doomed(ours, list(kept), mounted) if path != LOCK]
    files += [] if service else [str(link) for link in links_into(Path("/opt/r1prov"))]
    # They are looked for in the trust store itself: a run that was cut off may have removed the files, and not what was made of them.
    trusted = [] if service else sorted(glob.glob(TRUSTED))  # noqa: PTH207 - pathlib refuses a pattern from the root on
    gone = [] if service else [link for link in links if data_disk.moved(link, data_dir) in files]
    own = [group.gr_name for group in groups if group.gr_name not in users.values()]
    removed = {
        "units": units,
        "users": list(users.values()),
        "groups": own,
        "paths": freed([*files, *gone, *trusted]),
        "hooks": hooks,
    }
    stays = staying(ours, kept, mounted)
    in_use = users_of(files, units)
    settings = sorted({str(Path(path).parent) for path in files if path.startswith(f"{OURS}/") and ".d/" in path})
    if not module.check_mode:
        stop(module, units, whole=not service)
        if not service and not SYSTEMD.exists() and Path(NFT).exists():
            subprocess.run([NFT, "delete", "table", *TABLE], check=False, capture_output=True)
        for hook in hooks:
            platform_hook.take_out(Path(hook))
        opened = {} if service else read_json(Path("/var/lib/r1prov") / data_disk.OPENED)
        for path in (*files, *gone):
            remove(path)
        data_disk.shut_again(opened)
        for path in kept:
            give_to_root(Path(path))
        for user in users.values():
            delete(module, "userdel", user)
        # A user's own group goes with the user, unless it has other members.
        for group in groups_of(name):
            delete(module, "groupdel", group.gr_name)
        if units or settings:
            forget(f"{name}*")
        if trusted:
            subprocess.run(["update-ca-certificates", "--fresh"], check=True, capture_output=True)
        remove_empty([*settings, *emptied(data_dir, whole=not service)], mounted)
    result = {"changed": any(removed.values()), "removed": removed, "kept": stays, "in_use": in_use, "away": away}
    if away and not module.check_mode:
        module.fail_json(msg=f"{away}. What lies on it was not removed. Remedy: {data_disk.BRING_BACK}", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
