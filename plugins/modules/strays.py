#!/usr/bin/python
"""Ansible module r1.prov.strays: what carries r1prov's name and is none of its own, and who may write to its folders."""

from __future__ import annotations

DOCUMENTATION = r"""
module: strays
short_description: Removes units that carry r1prov's name and that no role makes, and gives r1prov's folders back to root
description:
  - Stock Ansible cannot do it, because it finds only what it is told the name of.
  - A unit, a drop-in folder or a link below systemd's folders whose name begins with C(r1prov) and is not in I(known) is stopped and
    removed. So are files in C(/etc/r1prov) that no role writes, such as rules that belong to no unit, and programs that no role installs.
    A system account of that kind is named and stays, because somebody may use it. So does what the host itself would use, such as a job of
    cron.
  - Folders and files of r1prov that are root's must belong to root, and nobody else may write to them. What is mounted over one of them is
    unmounted.
  - Where systemd does not run the host, the configuration of supervisord must be what r1prov has written, and its socket root's alone.
author: The r1prov team
options: {
  "known": {"type": "list", "elements": "str", "required": true, "description": "All units that roles make, with their types."},
  "programs": {"type": "list", "elements": "str", "required": true, "description": "All programs that roles install in C(/usr/local/lib)."},
  "configuration": {"type": "list", "elements": "str", "required": true, "description": "All files that roles write in C(/etc/r1prov), as
      paths there, without the rules of single units."},
  "accounts": {"type": "list", "elements": "str", "required": true, "description": "All system accounts that roles make."}
  }
"""

EXAMPLES = r"""
- name: Remove what is not ours
  r1.prov.strays:
    known: [r1prov-network.service]
    programs: [r1prov-await-ready]
    configuration: [network/network.nft]
    accounts: [r1prov-door]
"""

RETURN = r"""
differences: {type: list, elements: str, returned: always, description: "What was not as it should be, in a sentence each."}
"""

import os
import pwd
import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils import place_look, stray_look, unit_look, units
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments
from ansible_collections.r1.prov.plugins.module_utils.files import mounts as mounted
from ansible_collections.r1.prov.plugins.module_utils.files import text_of

MOUNTS = Path("/proc/self/mountinfo")


def of_accounts(known: list[str]) -> list[str]:
    """Names of system accounts that no role makes. Accounts of people may be called as they like."""
    system = [each.pw_name for each in pwd.getpwall() if each.pw_uid < 1000]
    return [name for name in system if name.startswith("r1prov-") and name not in known]


def main() -> None:
    module = AnsibleModule(argument_spec=arguments(DOCUMENTATION), supports_check_mode=True)
    known = module.params["known"]
    mounts = stray_look.mounted_over(mounted(text_of(MOUNTS)), os.path.realpath("/opt/r1prov"))
    if not module.check_mode:  # What lies below them is looked at next.
        for each in reversed(mounts):
            module.run_command(["umount", each.place], check_rc=True)
    running = units.in_memory("r1prov*")
    strays = unit_look.strays(known, running)
    files = stray_look.of_programs(module.params["programs"])
    files += stray_look.of_configuration(module.params["configuration"], known)
    gone = {each.place for each in files}
    places = [each for each in place_look.look() if each.place not in gone]
    of_supervisor = units.differences()
    differences = [*mounts, *strays, *files, *places, *of_supervisor]
    for said in stray_look.administrators(module.params["accounts"]):
        module.warn(said)
    for name in of_accounts(module.params["accounts"]):
        module.warn(
            f"the account {name} carries r1prov's name, and no part of r1prov has made it. It stays: `userdel {name}` removes it"
        )
    if differences and not module.check_mode:
        try:
            for name in running:
                if name not in known:
                    units.systemctl("stop", name)
            for each in (*strays, *files):
                _remove(Path(each.place))
            place_look.mend(places)
            if strays:
                units.forget("r1prov*")
            elif of_supervisor:
                units.systemctl("daemon-reload")
        except (OSError, units.UnitError) as error:
            module.fail_json(
                msg=f"what is not r1prov's cannot be removed: {error}", differences=list(map(str, differences))
            )
    module.exit_json(changed=bool(differences), differences=[str(each) for each in differences])


def _remove(path: Path) -> None:
    if not path.is_absolute():  # a unit that is in memory only
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
