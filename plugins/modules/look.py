#!/usr/bin/python
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The documentation of the action plugin of this name, which does all."""

from __future__ import annotations

DOCUMENTATION = r"""
module: look
short_description: Say what differs on a host from what its last run has left
description:
  - Stock Ansible cannot do it, because it asks a host task by task.
  - Asks a host in one call what the tasks of the last run expect of it, by the same modules in check mode, as C(r1prov drift) does. So a
    run can leave out what is not due.
  - What a run expects is kept by C(r1prov up), in the folder of its site. It holds as long as the collection, the inventory, the files that
    the inventory names and the version of ansible-core are the same. Without it all steps are due.
  - Variables given with C(-e) make all steps due, because the last run did not have them.
attributes:
  check_mode: {support: full, description: It only reads.}
  diff_mode: {support: none, description: It tells digests of files only.}
author: The r1prov team
options: {
  "site_dir": {"type": "str", "required": true, "description": "The folder of the site. Where it is empty, nothing is known of the host."},
  "playbook": {"type": "path", "required": true, "description": "The playbook whose steps may be due. Their tags say when."}
  }
"""

EXAMPLES = r"""
- name: Look at what differs
  r1.prov.look:
    site_dir: "{{ r1prov_site_dir | default('') }}"
    playbook: "{{ playbook_dir }}/up.yml"
  register: r1prov_look
"""

RETURN = r"""
clean: {type: bool, returned: always, description: Whether everything is as the last run has left it. Then nothing is due.}
due: {type: list, elements: str, returned: always, description: The roles that a run shall take.}
differences: {type: list, elements: str, returned: always, description: "What differs, as sentences."}
unknown: {type: str, returned: always, description: "Why it could not be told what differs; empty where it could. Then all steps are due."}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments


def main() -> None:
    module = AnsibleModule(argument_spec=arguments(DOCUMENTATION), supports_check_mode=True)
    module.fail_json(msg="look works through its action plugin: call it as r1.prov.look from a playbook")


if __name__ == "__main__":
    main()
