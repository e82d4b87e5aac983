#!/usr/bin/python
"""Ansible module r1.prov.apt_present: Debian packages that must be there."""

from __future__ import annotations

DOCUMENTATION = r"""
module: apt_present
short_description: Installs the Debian packages that are missing, and installs again what has lost files
description:
  - Stock Ansible cannot do it, because C(apt) needs python3-apt in check mode, and refreshes the package lists though nothing is missing.
  - It asks dpkg once. Only where a package is missing does it refresh the package lists and install, without recommended packages.
  - The files of these packages, and of what they depend on, are held against dpkg's list. A package of which one is gone or has other
    bytes is installed again. Configuration and documentation do not count, nor what this host tells dpkg to leave out.
  - It waits for another package manager (a first boot, unattended upgrades), and it finishes an interrupted dpkg. Packages that others
    need, and that somebody has removed by force, are installed, because apt does nothing else before. Nothing is removed for that.
author: The r1prov team
extends_documentation_fragment: r1.prov.fetching
options: {
  "name": {"type": "list", "elements": "str", "required": true, "description": "Packages."},
  "step": {"type": "str", "required": true, "description": "The role that asks, for its progress file."}
  }
"""

EXAMPLES = r"""
- name: Install packages
  r1.prov.apt_present:
    name: [build-essential, cmake]
    step: build_deps
"""

RETURN = r"""
installed: {type: list, elements: str, returned: success, description: "What was missing and is installed now, or would be."}
differences: {type: list, elements: str, returned: success, description: "Which files were not as packaged, in a sentence each."}
"""

import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils import fetching, package_look
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments
from ansible_collections.r1.prov.plugins.module_utils.files import read_json, write_whole
from ansible_collections.r1.prov.plugins.module_utils.locks import holder
from ansible_collections.r1.prov.plugins.module_utils.progress import Progress

_LOCKED = re.compile(
    r"Could not get lock|Unable to lock|is held by process|Unable to acquire the dpkg frontend lock|is locked by another process"
)
_LOCK = re.compile(r"/var/(?:lib|cache)/[\w./-]*\w")  # debconf's too, which every user of the host may lock
_LOCK_LIMIT_S = 600
_WAIT_S = 5
_RECORDS = Path("/var/lib/r1prov/packages")
_TOLD = 5
_ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
_SETTINGS = (
    "APT::Get::Assume-Yes=true",
    "APT::Install-Recommends=false",
    "Acquire::Retries=5",
    "Acquire::http::Timeout=60",
    "Acquire::https::Timeout=60",
    "Dpkg::Options::=--force-confold",
    "Dpkg::Use-Pty=false",
)
_LABELS = {"dlstatus": "downloading packages", "pmstatus": "installing packages"}
# What to do about what apt says.
_ADVICE = {
    "is not signed|NO_PUBKEY": (
        "Nobody whose key this host trusts has signed that repository. Ask whoever runs the mirror, or name another one."
    ),
    "Unable to locate package|has no installation candidate": (
        "The host's package sources do not have it: correct them, or set build_deps_apt_mirror to one that does."
    ),
    "No space left|enough free space": "The system disk is full: free some space and run again.",
    "Failed to fetch|Could not resolve": (
        "The package mirror does not answer: check the host's network, or set build_deps_apt_mirror or a proxy."
    ),
    "": "Make `apt-get install` work by hand on the host, then run again.",
}


class AptError(Exception):
    """apt failed. The message says why, and what to do next."""


def look_ahead(_asked: list[dict[str, Any]]) -> None:
    """Reads once what dpkg knows, where no package is installed meanwhile."""
    package_look.look_ahead()


def look(names: list[str], record: Path) -> package_look.Look:
    """Whether the files of packages, and of what they depend on, are as packaged."""
    packages = package_look.needed(names, package_look.installed())
    return package_look.look([each.name for each in packages], read_json(record))


def keep(found: package_look.Look, record: Path) -> None:
    """Keeps what a look has found for the next one."""
    if read_json(record) != found.record:
        record.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_whole(record, json.dumps(found.record))


def sentences(found: package_look.Look) -> list[str]:
    """What a look has found, a few sentences for each package."""
    told = []
    for differences in found.differences.values():
        told += [str(each) for each in differences[:_TOLD]]
        if len(differences) > _TOLD:
            told[-1] += f", and so are {len(differences) - _TOLD:,} more of its files not as packaged"
    return told


def _configure(_progress: Progress) -> None:
    command = ["dpkg", "--configure", "-a"]
    subprocess.run(command, env={**os.environ, **_ENVIRONMENT}, capture_output=True, check=False)


def _complete(progress: Progress) -> None:
    _run(["--fix-broken", "--no-remove", "install"], progress)


# What apt says of a state in which it does nothing else, and what ends that state.
_REPAIRS = {"dpkg was interrupted": _configure, "--fix-broken install": _complete}


def missing(names: list[str], status: str) -> list[str]:
    """Those packages that are not installed, by dpkg's lines `name status`. A package that was removed still has a line."""
    installed = {line.split()[0] for line in status.splitlines() if line.endswith(" installed")}
    return [name for name in names if name not in installed]


def explain(output: str) -> str:
    """What apt said is wrong, and what to do about it."""
    lines = output.splitlines()
    errors = [line for line in lines if line.startswith(("E:", "W: Failed", "dpkg: error"))] or lines[-5:]
    text = "\n".join(errors[:8])
    return f"{text}\n{next(advice for pattern, advice in _ADVICE.items() if re.search(pattern, text))}"


def apt(command: list[str], deadline: float, progress: Progress) -> None:
    """Runs apt-get, waits while another package manager holds the lock, and finishes what was interrupted.

    A list that cannot be fetched is only a warning to `update`. The install that follows says what it misses.
    """
    repaired = set[str]()
    while True:
        failed, output = _run(command, progress)
        if not failed:
            return
        if _LOCKED.search(output) and time.monotonic() < deadline:
            progress.begin(f"waiting for another package manager{_held(output)}", 0, "steps")
            time.sleep(_WAIT_S)
        elif repair := next((words for words in _REPAIRS if words in output and words not in repaired), ""):
            repaired.add(repair)
            _REPAIRS[repair](progress)
        else:
            raise AptError(f"{explain(output)}{_held(output)}")


def _held(output: str) -> str:
    """Who holds the lock that apt or a package complains of; empty where it does not complain of one."""
    for line in filter(_LOCKED.search, output.splitlines()):
        if lock := _LOCK.search(line):
            return f": {holder(Path(lock[0]))} holds {lock[0]}"
    return ""


def _run(command: list[str], progress: Progress) -> tuple[int, str]:
    """The exit status and the output of apt-get."""
    read, write = os.pipe()
    options = [word for setting in (*_SETTINGS, f"APT::Status-Fd={write}") for word in ("-o", setting)]
    with tempfile.TemporaryFile("w+", errors="replace") as output, os.fdopen(read, errors="replace") as status:
        process = subprocess.Popen(
            ["apt-get", *options, *command],
            env={**os.environ, **_ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(write,),
        )
        os.close(write)
        label = ""
        for step in filter(None, map(status_step, status)):
            if step[0] != label:
                label = step[0]
                progress.begin(label, 100, "steps")
            progress.update(step[1])
        failed = process.wait()
        output.seek(0)
        return failed, output.read()


def status_step(line: str) -> tuple[str, int] | None:
    """What apt does, and percent, from a line of its status, e.g. `dlstatus:3:12.5:Retrieving file 3 of 40`."""
    kind, _, rest = line.partition(":")
    percent = re.search(r":(\d+)(?:\.\d+)?:", rest)
    return (_LABELS[kind], int(percent[1])) if kind in _LABELS and percent else None


def main() -> None:
    module = AnsibleModule(
        argument_spec=arguments(DOCUMENTATION) | {"environment": fetching.OPTION}, supports_check_mode=True
    )
    fetching.set_environment(module)
    names = module.params["name"]
    # dpkg-query exits with 1 for names that it does not know, and prints the others.
    query = ["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\\n", *names]
    absent = missing(names, subprocess.run(query, capture_output=True, text=True, check=False).stdout)
    record = _RECORDS / f"{'+'.join(sorted(names))[:100]}.json"
    was_there, found = record.exists(), look(names, record)
    broken = list(found.differences)
    if (absent or broken) and not module.check_mode:
        deadline, progress = time.monotonic() + _LOCK_LIMIT_S, Progress(module.params["step"])
        try:
            apt(["update"], deadline, progress)
            if absent:
                apt(["install", *absent], deadline, progress)
            if broken:
                apt(["install", "--reinstall", *broken], deadline, progress)
        except AptError as error:
            progress.finish(failed=True)
            what = "; ".join([*([f"{', '.join(absent)} cannot be installed"] if absent else []), *sentences(found)])
            module.fail_json(msg=f"{what}: {error}", differences=sentences(found))
        progress.finish()
    if not module.check_mode:
        now = look(names, record) if absent or broken else found
        keep(now, record)
        if now.differences:
            # apt ends well where it cannot install a package again.
            module.fail_json(
                msg=f"{sentences(now)[0]}, and apt has not installed it again, because the package sources no longer have this version. "
                f"Install the version that they have by `apt-get install --only-upgrade {' '.join(now.differences)}`, then run again",
                differences=sentences(found),
            )
    shown = [*absent, *broken]
    diff = {"before": "", "after": "".join(f"{name}\n" for name in shown)} if shown else {}
    gone = [f"the package {name} is not installed" for name in absent]
    told = sentences(found)
    # What was never looked at is a new wish.
    drift = [*(gone if was_there else []), *told]
    module.exit_json(changed=bool(shown), installed=absent, differences=[*gone, *told], drift=drift, diff=diff)


if __name__ == "__main__":
    main()
