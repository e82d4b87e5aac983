#!/usr/bin/python
"""Ansible module r1.prov.open_webui_settings: the settings of a chat page that r1prov owns."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: open_webui_settings
short_description: Brings named settings in Open-WebUI's database to their values, and leaves the others alone
description:
  - Open-WebUI reads its environment only for settings that its database does not have yet; later it is the database that counts.
    There this module compares the named keys, and only where one differs it stops the service, writes them all in one transaction
    and starts it again. What an administrator set under other keys stays.
  - A model that nobody has decided about can only be used by administrators. Those in I(public_models) are opened to all users,
    once; what an administrator decides about them later stays.
options:
  database:
    description: The database file.
    type: path
    required: true
  user:
    description: The service's user, as whom the database is opened.
    type: str
    required: true
  unit:
    description: The service's unit, without C(.service).
    type: str
    required: true
  settings:
    description: Key -> value, as in the table C(config).
    type: dict
    default: {}
  secrets:
    description: The same for values that nobody may read.
    type: dict
    default: {}
  public_models:
    description: Names of models.
    type: list
    elements: str
    default: []
author:
  - The r1prov team
"""

EXAMPLES = r"""
- name: Close the sign-up
  r1.prov.open_webui_settings:
    database: /var/lib/r1prov/open-webui/webui.db
    user: r1prov-webui
    unit: r1prov-open-webui
    settings: {ui.enable_signup: false}
"""

RETURN = r"""
keys:
  description: The settings that differed.
  type: list
  elements: str
  returned: success
models:
  description: The models that were opened to all users.
  type: list
  elements: str
  returned: success
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils.open_webui import (
    DatabaseError,
    NoAdministratorError,
    apply,
    differing,
)
from ansible_collections.r1.prov.plugins.module_utils.units import UnitError, reset_failed, systemctl
from ansible_collections.r1.prov.plugins.module_utils.users import acting_as


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "database": {"type": "path", "required": True},
            "user": {"type": "str", "required": True},
            "unit": {"type": "str", "required": True},
            "settings": {"type": "dict", "default": {}},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "public_models": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    database, user, unit = Path(module.params["database"]), module.params["user"], f"{module.params['unit']}.service"
    settings = {**module.params["settings"], **module.params["secrets"]}
    models = module.params["public_models"]
    if module.check_mode and not database.exists():
        module.exit_json(changed=True, keys=list(settings), models=models)
    try:
        with acting_as(user):  # a database in WAL mode makes files even for a reader
            keys, new_models = differing(database, settings, models)
        changed = bool(keys or new_models)
        if changed and not module.check_mode:
            systemctl("stop", unit)
            try:
                with acting_as(user):
                    apply(database, {key: settings[key] for key in keys}, new_models)
            finally:
                reset_failed(unit)
                systemctl("start", unit)
    except NoAdministratorError:
        if not module.check_mode:
            systemctl("stop", unit)
        module.fail_json(
            msg="the page has no administrator, so whoever comes first could become one; it was stopped. "
            f"Its log says why the account could not be made: journalctl -u {unit}"
        )
    except DatabaseError as error:
        module.fail_json(
            msg=f"{database} is not as this version of r1prov knows it: {error}. "
            "Take the Open-WebUI that it pins (open_webui_version, open_webui_requirements), or a newer r1prov."
        )
    except (OSError, UnitError) as error:
        module.fail_json(msg=f"{error}. Its log says why: journalctl -u {unit}")
    names = [f"setting {key}\n" for key in keys] + [f"access to {model}\n" for model in new_models]
    diff = {"before": "", "after": "".join(names), "after_header": str(database)} if changed else {}
    module.exit_json(changed=changed, keys=keys, models=new_models, diff=diff)


if __name__ == "__main__":
    main()
