"""The variables of modules that fetch something: proxies, the package index.

A task's own `environment` becomes a part of the command that starts the module, which every user of both machines can see, and which sudo
logs. An option does not, so a login in the address of a proxy or an index stays secret.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

OPTION: dict[str, Any] = {"type": "dict", "default": {}}


def set_environment(module: AnsibleModule) -> None:
    """Sets the variables of the option `environment`. The module shows none of the passwords in them from now on."""
    for name, value in module.params["environment"].items():
        os.environ[name] = str(value)
        if found := re.search(r"://[^/\s:@]*:([^/\s]+)@", str(value)):
            module.no_log_values.update({found[1], urllib.parse.unquote(found[1])})
