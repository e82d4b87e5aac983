#!/usr/bin/python
"""Ansible module r1.prov.platform_hook: lets the platform of a container run a command when it starts the container."""

from __future__ import annotations

DOCUMENTATION = r"""
module: platform_hook
short_description: Lets the platform of a container run a command whenever it starts the container
description:
  - Stock Ansible cannot do it, because C(blockinfile) leaves a block where it is, and behind an C(exit) nothing reaches it.
  - The command becomes the first one of the script that the platform runs. All else in there stays as it is, and so do owner and mode of
    the script.
  - Where the container is of no platform that is known, it does nothing.
author: The r1prov team
options: {
  "command": {"type": "str", "required": true, "description": "The command, in a line of the shell. The script goes on when it fails."}
  }
"""

EXAMPLES = r"""
- name: Start the services with the container
  r1.prov.platform_hook:
    command: /usr/local/bin/r1prov-units boot
"""

RETURN = r"""
differences: {type: list, elements: str, returned: always, description: "What was not as it should be, in a sentence each."}
drift: {type: list, elements: str, returned: always, description: "Nothing: a first run finds no line either."}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils import platform_hook
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments
from ansible_collections.r1.prov.plugins.module_utils.files import file_diff, text_of


def main() -> None:
    module = AnsibleModule(argument_spec=arguments(DOCUMENTATION), supports_check_mode=True)
    path, command = platform_hook.here(), module.params["command"]
    if not path:
        module.exit_json(changed=False, differences=[], drift=[])
        return
    found = platform_hook.differences(path, command)  # No drift: a first run finds no line either.
    before = text_of(path)
    if found and (fault := platform_hook.fault(path)):
        module.fail_json(msg=f"{fault['what']}. Remedy: {fault['remedy']}", differences=found, drift=[])
    if found and not module.check_mode:
        try:
            platform_hook.put_in(path, command)
        except OSError as error:
            module.fail_json(msg=f"{path} cannot be written: {error}", differences=found, drift=[])
    after = platform_hook.with_line(before, command)
    module.exit_json(changed=bool(found), differences=found, drift=[], diff=file_diff(path, before, after))


if __name__ == "__main__":
    main()
