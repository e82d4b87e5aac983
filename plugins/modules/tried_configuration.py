#!/usr/bin/python
"""Ansible module r1.prov.tried_configuration: the configuration of a program, written when the program itself has tried it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tried_configuration
short_description: Writes a configuration that its program has tried
description:
  - Stock Ansible cannot do it, because C(validate) of C(template) cannot show the program the secrets that the service will have.
  - The program tries it in a temporary folder, together with the secrets of the service. What it refuses is not written, and the file
    that is there stays.
author: The r1prov team
options: {
  "path": {"type": "path", "required": true, "description": "The file to write."},
  "trial": {"type": "list", "elements": "str", "required": true, "description": "Program and arguments that try a file. Its
      path comes next."},
  "content": {"type": "str", "required": true, "description": "The whole configuration."},
  "credentials": {"type": "dict", "default": {}, "description": "Secrets that the configuration names, as files of one of I(folders). File
      name -> text."},
  "folders": {"type": "list", "elements": "str", "default": [], "description": "Folders that exist only while the service runs. In the trial
      the temporary folder takes their place."}
  }
"""

EXAMPLES = r"""
- name: Write the configuration
  r1.prov.tried_configuration:
    trial: [/usr/sbin/nginx, -t, -q, -c]
    path: /etc/example/nginx.conf
    content: "{{ lookup('ansible.builtin.template', 'nginx.conf.j2') }}"
    credentials: {tls-key: "{{ example_key }}"}
    folders: [/run/credentials/example.service]
"""

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments
from ansible_collections.r1.prov.plugins.module_utils.files import file_diff, write_whole
from ansible_collections.r1.prov.plugins.module_utils.secret import is_digest, without_secrets

_FATAL = ("[emerg]", "[ALERT]")
"""The lines in which nginx and HAProxy say why."""


def complaint(trial: list[str], content: str, credentials: dict[str, Any], folders: list[str]) -> str:
    """What a program has against a configuration; empty where it takes it."""
    with tempfile.TemporaryDirectory() as folder:  # 0700, and the secrets with it
        for name, text in credentials.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        for other in folders:
            content = content.replace(other, folder)
        configuration = Path(folder) / "tried.conf"
        configuration.write_text(content, encoding="utf-8")
        done = subprocess.run([*trial, configuration], capture_output=True, text=True, check=False)
    said = done.stderr.splitlines()
    lines = [line for line in said if any(mark in line for mark in _FATAL)] or said
    return ("\n".join(lines) or f"it ends with {done.returncode}") if done.returncode else ""


def main() -> None:
    module = AnsibleModule(argument_spec=arguments(DOCUMENTATION, credentials=True), supports_check_mode=True)
    path, content = Path(module.params["path"]), module.params["content"]
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    known = not any(map(is_digest, module.params["credentials"].values()))
    program = Path(module.params["trial"][0])
    # On a fresh host in check mode the program is not installed yet.
    if known and (program.exists() or not module.check_mode):
        refused = complaint(module.params["trial"], content, module.params["credentials"], module.params["folders"])
        if refused:
            module.fail_json(msg=f"{program.name} refuses this configuration, and {path} stays as it is: {refused}")
    changed = before != content
    if changed and not module.check_mode:
        try:
            write_whole(path, content)
        except OSError as error:
            module.fail_json(msg=f"{path} cannot be written: {error}")
    has = "has other content than r1prov gives it" if path.is_file() else "is gone"
    look_arguments = without_secrets(module.params, module.argument_spec)
    module.exit_json(
        changed=changed,
        diff=file_diff(path, before, content),
        look_arguments=look_arguments,
        differences=[f"{path} {has}"] if changed else [],
        drift=[],  # It may be a new wish.
    )


if __name__ == "__main__":
    main()
