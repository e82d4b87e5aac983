#!/usr/bin/python
"""Ansible module r1.prov.open_webui_python: a Python that Open-WebUI accepts, found on the host or brought to it."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: open_webui_python
short_description: Finds or brings a Python that Open-WebUI accepts
description:
  - Takes the first of - a Python 3.12 or 3.11 that the host has, the distribution's package of one, the archive that is named,
    on Debian 13 Debian 12's python3.11. Says why none can be had.
  - The distribution's package is only named in C(package), for another task to install. What is brought becomes a folder of its
    own, whole or not at all, and nothing of the host's apt or dpkg is changed.
options:
  archive:
    description: A relocatable Python as a tar archive, e.g. of python-build-standalone. A URL or a file on the host; empty for none.
    type: str
    default: ""
  sha256:
    description: What the archive must have.
    type: str
    default: ""
  root:
    description: Holds the folders of what was brought.
    type: path
    default: /opt/r1prov/python
  cache:
    description: Holds downloads. May be deleted at any time.
    type: path
    default: /var/cache/r1prov
author:
  - The r1prov team
"""

EXAMPLES = r"""
- name: Provide a Python
  r1.prov.open_webui_python:
  register: python
"""

RETURN = r"""
python:
  description: The interpreter's path, where it is or will be.
  type: str
  returned: success
way:
  description: Where it comes from, C(host), C(package), C(archive) or C(debian-12).
  type: str
  returned: success
package:
  description: For C(package), what is to be installed; empty where nothing is.
  type: str
  returned: success
"""

import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils.download import DownloadError, download, sha256_of
from ansible_collections.r1.prov.plugins.module_utils.files import whole_folder
from ansible_collections.r1.prov.plugins.module_utils.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

_NAMES = ("python3.12", "python3.11")
# What a Debian splits off or a build can lack, and Open-WebUI needs.
_MODULES = ("bz2", "ctypes", "lzma", "sqlite3", "ssl", "uuid", "zlib")
_TRY = f"import {', '.join(_MODULES)}, sys; print(sys.version_info[:2] in ((3, 11), (3, 12)))"
# Releases that have one, by the ID and VERSION_ID of /etc/os-release; Ubuntu 22.04's is in universe.
_PACKAGES = {("debian", "12"): "python3.11", ("ubuntu", "22.04"): "python3.11", ("ubuntu", "24.04"): "python3.12"}
_DEBIAN_12 = ("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "python3.11")
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_ACCEPTED = "Open-WebUI runs on Python 3.11 and 3.12"
_REMEDY = "Install one of them, or name a relocatable build in open_webui_python_archive and open_webui_python_archive_sha256."


class PythonError(Exception):
    """No Python can be had; the message says why and what to do next."""


def fault(python: str) -> str:
    """Why an interpreter cannot be used; empty where it can."""
    done = subprocess.run([python, "-I", "-c", _TRY], capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return "" if done.stdout.strip() == "True" else f"{_ACCEPTED}, and it is another version"


def on_host() -> tuple:
    """(the first interpreter on the host that can be used or empty, what is wrong with the others)."""
    faults = []
    for name in _NAMES:
        found = shutil.which(name, path="/usr/local/bin:/usr/bin")
        if found:
            wrong = fault(found)
            if not wrong:
                return found, faults
            faults.append(f"{found}: {wrong}")
    return "", faults


def release(text: str) -> tuple:
    """(ID, VERSION_ID) of an /etc/os-release."""
    found = dict(re.findall(r"^(ID|VERSION_ID)=\"?([^\"\n]*)\"?$", text, re.MULTILINE))
    return found.get("ID", ""), found.get("VERSION_ID", "")


def bookworm_sources(uris: str) -> str:
    """A sources.list of Debian 12, at the addresses where a host finds its Debian 13.

    Args:
        uris: what `apt-get update --print-uris` says.
    """
    found = re.findall(r"'(\S+?)/dists/trixie(-updates|-security)?/InRelease'", uris)
    lines = [f"deb [signed-by={_KEYRING}] {address} bookworm{suite} main\n" for address, suite in found]
    return "".join(dict.fromkeys(lines))


def from_debian_12(folder: Path, cache: Path, progress: Progress) -> None:
    """Fills a folder with Debian 12's python3.11, fetched and checked by apt from the host's own mirror."""
    progress.begin("fetching Python", 0, "steps")
    sources = bookworm_sources(_apt(["update", "--print-uris"], cache, check=False).stdout)
    if not sources:
        raise PythonError(
            f"{_ACCEPTED}; Debian 13 has neither, and its package sources name no mirror that could have Debian 12's. {_REMEDY}"
        )
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="debian-12-") as scratch:
        place = Path(scratch)
        for name in ("lists", "cache", "debs", "parts"):
            (place / name).mkdir()
        (place / "sources.list").write_text(sources, encoding="utf-8")
        own = {
            "Dir::Etc::sourcelist": place / "sources.list",
            "Dir::Etc::sourceparts": place / "parts",
            "Dir::State::lists": place / "lists",
            "Dir::Cache": place / "cache",
            "APT::Sandbox::User": "root",  # the folder that the packages are fetched to is root's
            "Acquire::Retries": 5,
        }
        options = [word for key, value in own.items() for word in ("-o", f"{key}={value}")]
        _apt([*options, "update"], place, check=False)  # what could not be fetched is missed below
        _apt([*options, "download", *_DEBIAN_12], place / "debs")
        for deb in sorted((place / "debs").glob("*.deb")):
            subprocess.run(["dpkg-deb", "--extract", str(deb), str(folder)], check=True, capture_output=True)


def _apt(arguments: list, folder: Path, *, check: bool = True) -> subprocess.CompletedProcess:
    done = subprocess.run(
        ["apt-get", "--quiet", *arguments],
        cwd=folder if folder.is_dir() else None,
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )
    if check and done.returncode:
        said = "\n".join(line for line in done.stderr.splitlines() if line.startswith(("E:", "W:")))
        raise PythonError(f"Debian 12's python3.11 cannot be fetched from the host's Debian mirror: {said}\n{_REMEDY}")
    return done


def from_archive(archive: str, sha256: str, folder: Path, cache: Path, progress: Progress) -> None:
    """Fills a folder with what an archive holds, without the folder that it may have around it."""
    file = Path(archive)
    if "://" in archive:
        file = cache / "sources" / urlsplit(archive).path.rpartition("/")[2]
        if not (file.exists() and sha256_of(file) == sha256):
            file.parent.mkdir(parents=True, exist_ok=True)
            download(archive, file, [sha256], progress)
    elif not file.is_file():
        raise PythonError(
            f"{file} is not there, neither here nor on the controller. Correct open_webui_python_archive."
        )
    elif (found := sha256_of(file)) != sha256:
        raise PythonError(
            f"{file} has sha256 {found}, expected {sha256 or 'none'}. "
            "Fetch the archive again, or correct open_webui_python_archive_sha256."
        )
    progress.begin("unpacking Python", 0, "steps")
    try:
        with tarfile.open(file) as tar:
            if hasattr(tarfile, "data_filter"):
                tar.extraction_filter = tarfile.data_filter
            tar.extractall(folder)  # noqa: S202 - its sha256 is the operator's
    except (tarfile.TarError, EOFError) as error:
        raise PythonError(f"{file} cannot be unpacked: {error}. Fetch it again, or name another.") from error


def interpreter(folder: Path) -> str:
    """The interpreter in a folder; empty where there is none."""
    for name in _NAMES:
        for found in sorted(folder.glob(f"**/bin/{name}"), key=lambda path: len(path.parts)):
            return str(found)
    return ""


def bring(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fills a folder beside its final place, tries the interpreter, and gives the folder its name."""
    with whole_folder(folder) as place:
        fill(place)
        python = interpreter(place)
        if not python:
            raise PythonError(f"what was brought holds no {' or '.join(_NAMES)}. {_REMEDY}")
        wrong = fault(python)
        if wrong:
            raise PythonError(f"the Python that was brought does not work here: {wrong}. {_REMEDY}")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "archive": {"type": "str", "default": ""},
            "sha256": {"type": "str", "default": ""},
            "root": {"type": "path", "default": "/opt/r1prov/python"},
            "cache": {"type": "path", "default": "/var/cache/r1prov"},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)  # the service's user must be able to read what lies here, whatever root's habits are
    archive, sha256 = module.params["archive"], module.params["sha256"]
    root, cache = Path(module.params["root"]), Path(module.params["cache"])
    here = release(Path("/etc/os-release").read_text(encoding="utf-8"))
    found, faults = on_host()
    if found:
        module.exit_json(changed=False, python=found, way="host", package="")
    if here in _PACKAGES:
        module.exit_json(changed=False, python=f"/usr/bin/{_PACKAGES[here]}", way="package", package=_PACKAGES[here])
    if archive:
        way, folder = "archive", root / (sha256[:12] or "unnamed")
    elif here == ("debian", "13"):
        way, folder = "debian-12", root / "debian-12-python3.11"
    else:
        why = "; ".join(faults) or f"this host ({' '.join(here)}) and its packages have neither"
        module.fail_json(msg=f"{_ACCEPTED}: {why}. {_REMEDY}")
    changed = not interpreter(folder)
    if changed and not module.check_mode:
        progress = Progress("open_webui")

        def fill(place: Path) -> None:
            if way == "archive":
                from_archive(archive, sha256, place, cache, progress)
            else:
                from_debian_12(place, cache, progress)

        try:
            bring(folder, fill)
        except (PythonError, DownloadError, OSError, subprocess.CalledProcessError) as error:
            progress.finish(failed=True)
            module.fail_json(msg=str(error))
        progress.finish()
    module.exit_json(
        changed=changed,
        python=interpreter(folder) or str(folder / "usr/bin/python3.11"),
        way=way,
        package="",
        diff={"before": "", "after": f"{folder}\n"} if changed else {},
    )


if __name__ == "__main__":
    main()
