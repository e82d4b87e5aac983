#!/usr/bin/python
"""Ansible module r1.prov.nginx_configuration: a configuration of nginx, written when nginx itself has tried it."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: nginx_configuration
short_description: Writes a configuration of nginx that nginx has tried
description:
  - Stock Ansible cannot do it, because C(validate) of C(template) cannot show nginx the secrets that the service will have.
  - C(nginx -t) tries it together with the secrets that it will be used with, in a temporary folder. What nginx refuses is not written, and
    the file that is there stays.
options:
  path:
    description: The file to write.
    type: path
    required: true
  content:
    description: The whole configuration.
    type: str
    required: true
  credentials:
    description: Secrets that the configuration names, as files of one of I(folders). File name -> text.
    type: dict
    default: {}
  folders:
    description: Folders that are there only while the service runs. The temporary folder takes their place in the trial.
    type: list
    elements: str
    default: []
author:
  - The r1prov team
"""

EXAMPLES = r"""
- name: Write the configuration
  r1.prov.nginx_configuration:
    path: /etc/example/nginx.conf
    content: "{{ lookup('ansible.builtin.template', 'nginx.conf.j2') }}"
    credentials: {tls-key: "{{ example_key }}"}
    folders: [/run/credentials/example.service]
"""

RETURN = r"""
"""

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils.files import write_whole

NGINX = "/usr/sbin/nginx"


def complaint(content: str, credentials: dict[str, Any], folders: list[str]) -> str:
    """What nginx has against a configuration; empty where it takes it."""
    with tempfile.TemporaryDirectory() as folder:  # 0700, and the secrets with it
        for name, text in credentials.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        for other in folders:
            content = content.replace(other, folder)
        configuration = Path(folder) / "nginx.conf"
        configuration.write_text(content, encoding="utf-8")
        done = subprocess.run([NGINX, "-t", "-q", "-c", configuration], capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if "[emerg]" in line] or done.stderr.splitlines()
    return "\n".join(lines) if done.returncode else ""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "content": {"type": "str", "required": True},
            "credentials": {"type": "dict", "default": {}, "no_log": True},
            "folders": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    path = Path(wanted["path"])
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    # On a fresh host in check mode nginx is only promised.
    if Path(NGINX).exists() or not module.check_mode:
        refused = complaint(wanted["content"], wanted["credentials"], wanted["folders"])
        if refused:
            module.fail_json(msg=f"nginx refuses this configuration, and {path} stays as it is: {refused}")
    changed = before != wanted["content"]
    if changed and not module.check_mode:
        write_whole(path, wanted["content"])
    shown = {"before_header": str(path), "after_header": str(path), "before": before, "after": wanted["content"]}
    module.exit_json(changed=changed, diff=shown if changed else {})


if __name__ == "__main__":
    main()
