#!/usr/bin/python
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Ansible module r1.prov.program: a program that is a folder of Python files."""

from __future__ import annotations

DOCUMENTATION = r"""
module: program
short_description: Installs a program that is a folder of Python files
description:
  - Stock Ansible cannot do it, because C(copy) asks the host for each file of a folder on its own, which takes half a second each time, and
    because the modules that a program shares with those of the collection are not listed anywhere.
  - Its action plugin finds the folder among the C(files) of the role, takes along what the program imports of the collection's
    C(module_utils), under the names that they have there, and sends all of it at once.
  - The folder belongs to root, as does all that lies in it. Other Python files in it, such as those of an earlier version, go.
attributes:
  check_mode: {support: full, description: It says what differs.}
  diff_mode: {support: none, description: It would print the whole program.}
author: The r1prov team
options: {
  "name": {"type": "str", "required": true, "description": "The folder, among the C(files) of the role and in C(/usr/local/lib)."},
  "executed": {"type": "list", "elements": "str", "default": [], "description": "The files in it that are run by themselves. Python reads
      the others."},
  "files": {"type": "dict", "default": {}, "description": "The sha256 of each file by its place in the folder. The action plugin says it."},
  "packed": {"type": "str", "default": "", "description": "The files as a zip file in base64. The action plugin says it, unless nothing is
      to be changed."}
  }
"""

EXAMPLES = r"""
- name: Install the program that measures
  r1.prov.program:
    name: r1prov-measure
"""

RETURN = r"""
differences: {type: list, elements: str, returned: always, description: "What was not as it should be, in a sentence each."}
"""

import base64
import hashlib
import io
import os
import shutil
import stat
import zipfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments
from ansible_collections.r1.prov.plugins.module_utils.difference import owner_and_mode, owner_and_mode_of
from ansible_collections.r1.prov.plugins.module_utils.files import write_whole
from ansible_collections.r1.prov.plugins.module_utils.place_look import PROGRAMS


class Program:
    """A program on this host. All of it should belong to whoever runs this, which is root.

    Args:
        folder: where it lies, or should.
        files: the sha256 of each file by its place in the folder.
        executed: those of them that are run by themselves.
    """

    def __init__(self, folder: Path, files: dict[str, str], executed: list[str]) -> None:
        self._folder = folder
        self._files = {folder / place: sha256 for place, sha256 in files.items()}
        self._executed = {folder / place for place in executed}

    def differences(self) -> list[str]:
        """What is not as it should be, in a sentence each. What lies in a folder that is missing is not named."""
        found = {**self._wrong_folders(), **self._wrong_files(), **self._strays()}
        missing = {path for path in found if not os.path.lexists(path)}
        return [said for path, said in found.items() if path.parent not in missing]

    def put_right(self, packed: bytes) -> None:
        """Makes it what it should be, out of a zip file of its files."""
        for path in self._wrong_folders():
            if os.path.lexists(path) and (path.is_symlink() or not path.is_dir()):
                path.unlink()
            path.mkdir(exist_ok=True)
            os.chown(path, os.geteuid(), os.getegid())
            path.chmod(0o755)
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            for path in self._wrong_files():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                write_whole(path, archive.read(str(path.relative_to(self._folder))), self._mode(path))
        for path in self._strays():
            path.unlink()

    def _wrong_folders(self) -> dict[Path, str]:
        """The folders that are not as they should be, the upper ones first."""
        folders = {
            self._folder,
            *(each for path in self._files for each in path.parents if self._folder in each.parents),
        }
        found = {path: _unlike(path, stat.S_IFDIR, "a folder", 0o755) for path in sorted(folders)}
        return {path: said for path, said in found.items() if said}

    def _wrong_files(self) -> dict[Path, str]:
        found = {}
        for path, sha256 in self._files.items():
            said = _unlike(path, stat.S_IFREG, "a file", self._mode(path))
            if not said and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
                said = f"{path} has another content than it should have"
            if said:
                found[path] = said
        return found

    def _strays(self) -> dict[Path, str]:
        """The Python files that are none of its own."""
        paths = sorted(set(self._folder.rglob("*.py")) - self._files.keys())
        return {path: f"{path} is there, and should not be" for path in paths}

    def _mode(self, path: Path) -> int:
        return 0o755 if path in self._executed else 0o644


def _unlike(path: Path, kind: int, called: str, mode: int) -> str:
    """How an entry differs from what it should be; empty where it does not."""
    if not os.path.lexists(path):
        return f"{path} is missing"
    status = path.lstat()
    if stat.S_IFMT(status.st_mode) != kind:
        return f"{path} is something else than {called}"
    has, wanted = owner_and_mode_of(status), owner_and_mode(os.geteuid(), os.getegid(), mode)
    return f"{path} has owner and mode {has}, and should have {wanted}" if has != wanted else ""


def main() -> None:
    module = AnsibleModule(argument_spec=arguments(DOCUMENTATION, packed=True), supports_check_mode=True)
    folder = Path(PROGRAMS, module.params["name"])
    program = Program(folder, module.params["files"], module.params["executed"])
    differences = program.differences()
    if differences and not module.check_mode:
        try:
            program.put_right(base64.b64decode(module.params["packed"]))
        except OSError as error:
            module.fail_json(msg=f"{error.filename or folder}: {error.strerror}", differences=differences)
    # It may be of another version, which is a new wish.
    module.exit_json(changed=bool(differences), differences=differences, drift=[])


if __name__ == "__main__":
    main()
