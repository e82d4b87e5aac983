#!/usr/bin/python
"""Ansible module r1.prov.shared_group: a system group, which people join."""

from __future__ import annotations

DOCUMENTATION = r"""
module: shared_group
short_description: Sees to a system group that people join, and to one member of it
description:
  - Stock Ansible cannot do it, because C(user) changes no account of a directory service, and C(group) takes neither root's number nor a
    password away from a group.
  - The group is created where it is missing. Otherwise it is given a number of its own, and loses a password, with which everybody who
    knows it could join. Its members stay, for an administrator has chosen them.
  - Its number is remembered in C(/var/lib/r1prov/service), and a group that is created again gets it back where no other group has it now.
author: The r1prov team
options: {
  "name": {"type": "str", "required": true, "description": "The group."},
  "member": {"type": "str", "default": "", "description": "A user who must be a member, besides root, who needs no group. Empty for none."}
  }
"""

EXAMPLES = r"""
- name: Create the group
  r1.prov.shared_group:
    name: operators
    member: anna
"""

RETURN = r"""
differences: {type: list, elements: str, returned: always, description: "What was wrong with the group, in a sentence each."}
drift: {type: list, elements: str, returned: always, description: "The same where the group was there before."}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils import account_look
from ansible_collections.r1.prov.plugins.module_utils.account_edit import EditError, edit, free, run
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments
from ansible_collections.r1.prov.plugins.module_utils.difference import Difference


def look(name: str, member: str, has: account_look.Group) -> list[Difference]:
    """In what a group differs."""
    if has.gid is None:
        return [Difference("group", name, "a group", "none", f"there is no group {name}")]
    twins = ", ".join(has.twins)
    number = "which is root's" if has.gid == 0 else f"which is that of {twins}, too"
    joins = member in ("", "root") or member in has.members
    checks = [
        ("number", has.gid != 0 and not twins, f"the group {name} has the number {has.gid}, {number}"),
        ("password", has.is_locked, f"the group {name} has a password, with which others can join it"),
        ("member", joins, f"{member} is no member of the group {name}"),
    ]
    return [Difference(f"group {kind}", name, "", "", said) for kind, well, said in checks if not well]


def mend(name: str, member: str, differences: list[Difference]) -> None:
    """Puts right what differs.

    Raises:
        EditError: a program for accounts refuses.
    """
    kinds = {each.kind for each in differences}
    if "group" in kinds:
        known = account_look.remembered(name, account_look.GROUP_NUMBERS)
        is_free = known and not account_look.others_have_gid(name, known)
        number = known if is_free else free(account_look.reserved())
        run("groupadd", "--system", "--gid", str(number), name)
        if member not in ("", "root"):
            run("gpasswd", "--add", member, name)
    if "group number" in kinds:
        edit(f"^{name}:\\([^:]*\\):[0-9]*:", f"{name}:\\1:{free(account_look.reserved())}:", "--group")
    if "group password" in kinds:
        edit(f"^{name}:[^:]*:", f"{name}:x:", "--group")
        edit(f"^{name}:[^:]*:", f"{name}:!:", "--gshadow")
    if "group member" in kinds:
        run("gpasswd", "--add", member, name)


def main() -> None:
    module = AnsibleModule(argument_spec=arguments(DOCUMENTATION), supports_check_mode=True)
    name, member = module.params["name"], module.params["member"]
    found = look(name, member, account_look.group(name))
    differences = list(map(str, found))
    is_new = any(each.kind == "group" for each in found)
    if not module.check_mode:
        try:
            mend(name, member, found)
            account_look.remember(name, account_look.group(name).gid, account_look.GROUP_NUMBERS)
        except (EditError, OSError) as error:
            module.fail_json(msg=f"the group {name} cannot be put right: {error}", differences=differences)
    module.exit_json(changed=bool(found), differences=differences, drift=[] if is_new else differences)


if __name__ == "__main__":
    main()
