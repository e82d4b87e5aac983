#!/usr/bin/python
"""Ansible module r1.prov.service_account: the system account that a service runs as."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_account
short_description: Sees to the account of a service, which nobody can log in to and which has no rights but its own
description:
  - Stock Ansible cannot do it, because C(user) takes neither root's number nor a password away from an account, and fails when an
    account that is in use has to get another home.
  - The account is created where it is missing. Otherwise it is given a number and a group of its own, the home C(/nonexistent), no shell,
    no other group, no password, and no other member or administrator of its group. Its processes need not end for that.
  - Its number and that of its group are remembered in C(/var/lib/r1prov/service). An account that is created again, because the accounts of
    a container are gone, gets them back where nobody else has them now.
author: The r1prov team
options: {
  "name": {"type": "str", "required": true, "description": "The account, and its group."},
  "named_in": {"type": "path", "description": "A folder with rules of nftables. Accounts that they name are seen to as well where r1prov has
      made them before, because without them the rules cannot be loaded."},
  "owns": {"type": "list", "elements": "path", "default": [], "description": "Folders with files of the account. Where somebody else has
      its number now, it gets another one, and in these folders it gets what belonged to it."}
  }
"""

EXAMPLES = r"""
- name: Create the user that the exporter runs as
  r1.prov.service_account:
    name: exporter
"""

RETURN = r"""
differences: {type: list, elements: str, returned: always, description: "What was wrong with the account, in a sentence each."}
created: {type: bool, returned: always, description: Whether the account was missing.}
"""

import os
import re
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils import account_look
from ansible_collections.r1.prov.plugins.module_utils.account_edit import EditError, edit, free, run
from ansible_collections.r1.prov.plugins.module_utils.account_look import GROUP_NUMBERS, HOME, NUMBERS, SHELL, Account
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments
from ansible_collections.r1.prov.plugins.module_utils.difference import Difference
from ansible_collections.r1.prov.plugins.module_utils.files import read_json

_SKUID = re.compile(r'meta skuid (?:!= )?"([^"]+)"')


def create(name: str, has: Account, known_uid: int | None, known_gid: int | None) -> None:
    """Creates the account and, where that is missing, its group, with the numbers that they had before where these are free."""
    if has.own_gid is None and known_gid:
        run("groupadd", "--system", "--gid", str(known_gid), name)
    group = ["--gid", name] if has.own_gid is not None or known_gid else ["--user-group"]
    # Whoever is created first does not take the number with which another one is created next.
    number = str(known_uid or free(account_look.reserved()))
    run("useradd", "--system", "--uid", number, *group, "--no-create-home", "--home-dir", HOME, "--shell", SHELL, name)


def mend(name: str, has: Account, known_uid: int | None, known_gid: int | None) -> None:
    """Puts right what differs, one thing after the other."""
    if has.own_gid is None:
        run("groupadd", "--system", "--gid", str(known_gid or free(account_look.reserved())), name)
    elif has.own_gid == 0:
        edit(f"^{name}:\\([^:]*\\):0:", f"{name}:\\1:{free(account_look.reserved())}:", "--group")
    own_gid = account_look.read(name).own_gid
    uid = known_uid or has.uid or free(account_look.reserved())
    # usermod refuses all of these for an account that has processes.
    wanted = f"{name}:x:{uid}:{own_gid}:\\1:{HOME}:{SHELL}"
    if (has.uid, has.gid, has.home, has.shell) != (uid, own_gid, HOME, SHELL):
        edit(f"^{name}:[^:]*:[^:]*:[^:]*:\\([^:]*\\):.*$", wanted, "--passwd")
    if has.groups:
        run("usermod", "--groups", "", name)
    if has.members:
        run("gpasswd", "--members", "", name)
    if not has.is_group_locked:
        edit(f"^{name}:[^:]*:", f"{name}:x:", "--group")
        edit(f"^{name}:[^:]*:.*$", f"{name}:!::", "--gshadow")
    if has.password not in account_look.LOCKED:
        edit(f"^{name}:[^:]*:", f"{name}:x:", "--passwd")
        run("pwconv")  # It adds a line to the file of passwords where there is none.
        edit(f"^{name}:[^:]*:", f"{name}:!:", "--shadow")


def give_over(folder: Path, former: int, uid: int) -> None:
    """Gives an account what lies in a folder, the folder itself included, and belongs to the number that it had."""
    if not folder.is_dir() or folder.is_symlink():
        return
    for _, folders, files, descriptor in os.fwalk(folder):
        for name in (".", *folders, *files):
            if os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_uid == former:
                os.chown(name, uid, -1, dir_fd=descriptor, follow_symlinks=False)


def named_in(folder: Path) -> list[str]:
    """The accounts that rules in a folder name and that r1prov has made before."""
    names = {name for path in sorted(folder.glob("*.nft")) for name in _SKUID.findall(path.read_text(errors="replace"))}
    return sorted(names & read_json(NUMBERS).keys())


class Seen:
    """An account on this host, and in what it differs.

    Attributes:
        former_uid: the number that it had and that somebody else has now.
    """

    def __init__(self, name: str) -> None:
        self.name, self.has = name, account_look.read(name)
        known_uid, known_gid = (account_look.remembered(name, numbers) for numbers in (NUMBERS, GROUP_NUMBERS))
        is_taken = bool(known_uid and self.has.uid != known_uid and account_look.others_have_uid(name, known_uid))
        self.known_uid, self.former_uid = (None if is_taken else known_uid), (known_uid if is_taken else None)
        self.known_gid = None if known_gid and account_look.others_have_gid(name, known_gid) else known_gid
        self.found = account_look.look(name, self.has, self.known_uid)
        if self.is_missing and known_uid:
            said = f"the service account {name} is gone"
            self.found.append(Difference("account", name, str(known_uid), "", said))

    @property
    def is_missing(self) -> bool:
        """Whether there is no such account."""
        return self.has.uid is None

    @property
    def twins(self) -> tuple[str, ...]:
        """Other accounts with its number, where that is its own."""
        is_its_own = self.has.uid and not any(each.kind == "account uid" for each in self.found)
        return self.has.twins if is_its_own else ()

    def put_right(self, owns: list[Path]) -> None:
        """Creates or mends it.

        Args:
            owns: folders with files of the account.

        Raises:
            EditError: something is left that differs.
        """
        if self.is_missing:
            create(self.name, self.has, self.known_uid, self.known_gid)
        elif self.found:
            mend(self.name, self.has, self.known_uid, self.known_gid)
        now = account_look.read(self.name)
        if left := account_look.look(self.name, now):
            raise EditError(
                f"{left[0]} after everything was tried. Correct {self.name} in /etc/passwd, /etc/group and /etc/shadow by `vipw`, "
                "`vigr` and `vipw -s`, then run again"
            )
        if self.former_uid and now.uid:
            for folder in owns:
                give_over(folder, self.former_uid, now.uid)
        account_look.remember(self.name, now.uid, NUMBERS)
        account_look.remember(self.name, now.own_gid, GROUP_NUMBERS)


def main() -> None:
    module = AnsibleModule(argument_spec=arguments(DOCUMENTATION), supports_check_mode=True)
    name, folder = module.params["name"], module.params["named_in"]
    seen = [Seen(each) for each in dict.fromkeys([name, *(named_in(Path(folder)) if folder else ())])]
    for each in seen:
        for twin in each.twins:
            module.warn(
                f"the account {twin} has the same number as {each.name}, so it may read and change all that {each.name} has. It is not "
                f"r1prov's and stays: `userdel --force {twin}` removes it"
            )
    result = {
        "changed": any(each.is_missing or each.found or each.former_uid for each in seen),
        "created": seen[0].is_missing,
        "differences": [str(found) for each in seen for found in each.found],
    }
    if not module.check_mode:
        for each in seen:
            try:
                each.put_right(list(map(Path, module.params["owns"])) if each is seen[0] else [])
            except (EditError, OSError) as error:
                module.fail_json(msg=f"the service account {each.name} cannot be put right: {error}", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
