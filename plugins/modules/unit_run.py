#!/usr/bin/python
"""Ansible module r1.prov.unit_run: starts a unit that somebody waits for, and says what it said where that fails."""

from __future__ import annotations

DOCUMENTATION = r"""
module: unit_run
short_description: Starts a unit, and returns when it is started, or has done its work
description:
  - Stock Ansible cannot do it, because it knows services of systemd alone, and does not say why a start failed.
  - A unit that runs already is left alone. Starts that failed earlier do not count against the limit of starts.
author: The r1prov team
options: {
  "name": {"type": "str", "required": true, "description": "The unit, with its type."}
  }
"""

EXAMPLES = r"""
- name: Renew the certificate
  r1.prov.unit_run:
    name: r1prov-gateway-renew.service
"""

RETURN = r"""
log: {type: list, elements: str, returned: failure, description: The last lines of the log of the start that failed.}
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils import units
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments

_LOG_LINES = 15


def main() -> None:
    module = AnsibleModule(argument_spec=arguments(DOCUMENTATION), supports_check_mode=True)
    os.environ["LC_ALL"] = "C"
    unit = module.params["name"]
    changed = units.show(unit, "ActiveState")["ActiveState"] != "active"
    if changed and not module.check_mode:
        units.reset_failed(unit)
        try:
            units.systemctl("start", unit)
        except units.UnitError as error:
            log = units.last_lines(unit, _LOG_LINES)
            shown = "".join(f"\n    {line}" for line in log)
            module.fail_json(msg=f"{error}{shown and '. Its last words:' + shown}", log=log)
    module.exit_json(changed=changed)


if __name__ == "__main__":
    main()
