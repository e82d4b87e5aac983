"""Looks for files that carry r1prov's name, or lie in its folders, and that no role makes, and for what is mounted over its own.

What lies where r1prov's services would use it goes. What the host itself would use, as a job of cron, may be an administrator's own. It is
named and stays.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.r1.prov.plugins.module_utils import place_look
from ansible_collections.r1.prov.plugins.module_utils.difference import Difference
from ansible_collections.r1.prov.plugins.module_utils.files import text_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

_CONFIGURATION = Path("etc/r1prov")
_LIMITS = Path("etc/security/limits.d")
_OWN_LIMITS = "r1prov-operators.conf"
_JOBS = Path("var/spool/cron/crontabs")
_USED_BY_THE_HOST = (
    *(f"etc/cron.{name}" for name in ("d", "hourly", "daily", "weekly", "monthly")),
    *(f"etc/{name}.d" for name in ("logrotate", "modprobe", "nftables", "profile", "sudoers", "sysctl", "sysusers")),
    "etc/ld.so.conf.d",
    "etc/modules-load.d",
    "etc/polkit-1/rules.d",
    "etc/systemd/system-generators",
    "etc/systemd/system-preset",
    "etc/systemd/user",
    "etc/tmpfiles.d",
    "etc/udev/rules.d",
)
_PROGRAMS_OF_PEOPLE = ("usr/local/bin", "usr/local/sbin")
_LINGER = Path("var/lib/systemd/linger")
_NEVER_MOUNTED = (
    re.escape(place_look.PROGRAMS) + "/r1prov-.+",
    "/etc/r1prov/.+",
    "/etc/systemd/system/r1prov.+",
    "/usr/local/bin/(llama-[^/]+|ollama)",
)
"""Places that a role fills. Whole folders above them, such as /opt/r1prov, may be a disk of their own."""


def of_programs(known: Collection[str], root: Path = Path("/")) -> list[Difference]:
    """Programs that no role installs."""
    folder = root / place_look.PROGRAMS.lstrip("/")
    return [_stray(path) for path in sorted(folder.glob("r1prov-*")) if path.name not in known]


def of_configuration(known: Collection[str], units: Collection[str], root: Path = Path("/")) -> list[Difference]:
    """Files of configuration that no role writes. The kernel would be given rules among them, too.

    Args:
        known: the files that roles write, as paths in /etc/r1prov, without the rules of single services.
        units: the units that roles make. The rules of each are called as it is.
        root: where the host's files lie.
    """
    rules = {f"network/{each.rpartition('.')[0]}.nft" for each in units}
    found = []
    for path in sorted((root / _CONFIGURATION).rglob("*")):
        name = str(path.relative_to(root / _CONFIGURATION))
        # A link in the place of a folder is told of by the look at places.
        is_known = name in known or name in rules or any(each.startswith(f"{name}/") for each in known)
        if not is_known and (path.is_symlink() or not path.is_dir()):
            found.append(_stray(path))
    limits = sorted((root / _LIMITS).glob("r1prov*"))
    return [*found, *(_stray(path) for path in limits if path.name != _OWN_LIMITS)]


def mounted_over(mounts: Iterable[str], releases: str) -> list[Difference]:
    """What is mounted over files of r1prov: whoever opens these is given something else, and nobody can replace them.

    Args:
        mounts: the places where something is mounted.
        releases: the real path of /opt/r1prov.
    """
    ours = re.compile("|".join((*_NEVER_MOUNTED, rf"{re.escape(releases)}/[^/]+/(releases/.+|current)")))
    said = "{} lies under something that is mounted over it, and no part of r1prov has mounted it"
    return [Difference("mount", place, "", place, said.format(place)) for place in mounts if ours.fullmatch(place)]


def administrators(accounts: Collection[str], root: Path = Path("/")) -> list[str]:
    """Sentences about what the host itself would use, and that is none of r1prov's.

    Args:
        accounts: the system accounts that roles make.
        root: where the host's files lie.
    """
    paths = [path for name in _USED_BY_THE_HOST for path in sorted((root / name).glob("r1prov*"))]
    paths += [
        path
        for name in _PROGRAMS_OF_PEOPLE
        for path in sorted((root / name).glob("r1prov-*"))
        if not (place_look.runs_units(root) and f"/{path.relative_to(root)}" in place_look.LINKS)
        and not (path.is_symlink() and str(path.readlink()).startswith(f"{place_look.PROGRAMS}/r1prov-"))
    ]
    found = [
        f"{path} carries r1prov's name, and no part of r1prov has made it. It stays: `rm -r {path}` removes it"
        for path in paths
    ]
    found += [
        f"{path} holds jobs of the service account {path.name}. They are not r1prov's, so they stay: "
        f"`crontab -r -u {path.name}` removes them"
        for path in (root / _JOBS / name for name in sorted(accounts))
        if path.exists()
    ]
    found += [
        f"{path} lets the service account {path.name} run programs of its own from boot on. It is not r1prov's, so it stays: "
        f"`loginctl disable-linger {path.name}` removes it"
        for path in (root / _LINGER / name for name in sorted(accounts))
        if path.exists()
    ]
    sudo = root / "etc/sudoers"
    rules = [sudo, *sorted((root / "etc/sudoers.d").glob("*"))]
    names = "|".join(map(re.escape, sorted(accounts)))
    for path in rules:
        for name in dict.fromkeys(re.findall(rf"^\s*%?({names})\s", text_of(path), re.MULTILINE)):
            found.append(
                f"{path} lets the service account {name} become another user. It is not r1prov's, so it stays: "
                f"`visudo -f {path}` changes it"
            )
    return found


def _stray(path: Path) -> Difference:
    said = f"{path} carries r1prov's name, and no part of r1prov has made it"
    return Difference("stray", str(path), "", path.name, said)
