#!/usr/bin/python
"""Ansible module r1.prov.release_read: reads every file of the current release of a program."""

from __future__ import annotations

DOCUMENTATION = r"""
module: release_read
short_description: Reads every file of the current release of a program, and says which are not as they were installed
description:
  - Stock Ansible cannot do it, because it does not know the manifest of a release.
  - A byte that changes on a failing disk moves no time stamp, so M(r1.prov.release) finds it in programs only. This module reads all.
  - It changes no file of a release. The manifest is made to forget that a damaged file was read, so that the next run of
    M(r1.prov.release) finds the damage, too, and makes the release anew.
  - Nothing is done where C(HOME/current) is not there, or leads to something that M(r1.prov.release) has not made.
author: The r1prov team
options: {
  "step": {"type": "str", "required": true, "description": "The role that asks, for its progress file."},
  "home": {"type": "path", "required": true, "description": "Holds C(releases) and C(current)."}
  }
"""

EXAMPLES = r"""
- name: Read the release of Ollama
  r1.prov.release_read:
    step: ollama
    home: /opt/r1prov/ollama
"""

RETURN = r"""
path: {type: str, returned: success, description: "The release's folder; empty where there is none."}
differences: {type: list, elements: str, returned: success, description: "What is not as it should be, in a sentence each."}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils import manifest, release
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments
from ansible_collections.r1.prov.plugins.module_utils.progress import Progress


def main() -> None:
    module = AnsibleModule(argument_spec=arguments(DOCUMENTATION), supports_check_mode=True)
    if module.check_mode:
        module.exit_json(skipped=True, msg="Reading everything takes long, so a check leaves it out")
    home = Path(module.params["home"])
    release_id = release.current(home)
    path = release.path(home, release_id)
    if not release_id or not release.is_current(home, release_id) or not (path / manifest.MANIFEST).is_file():
        module.exit_json(changed=False, path="", differences=[])
    try:
        found = manifest.read(path, Progress(module.params["step"]))
    except OSError as error:
        module.fail_json(msg=f"{error.filename or path} cannot be read: {error.strerror}")
    differences = [f"{path} is not as it was installed: {found}"] if found.wrong else []
    module.exit_json(changed=False, path=str(path), differences=differences)


if __name__ == "__main__":
    main()
