#!/usr/bin/python
"""Ansible module r1.prov.release_proven: takes note that the current release has served well."""

from __future__ import annotations

DOCUMENTATION = r"""
module: release_proven
short_description: Takes note that the current release of a program has served well, and removes attempts that did not
description:
  - Stock Ansible cannot do it, because which releases may go depends on links that must be read and changed together.
  - A play calls it when the program has answered as it should. The link C(HOME/proven) then leads to the current release, and
    C(HOME/previous) to the one that was proven before. All others are removed, for they were attempts, or are older.
  - Nothing is done where C(HOME/current) is not there, or leads to something that M(r1.prov.release) has not made.
author: The r1prov team
options: {
  "home": {"type": "path", "required": true, "description": "Holds C(releases) and C(current)."}
  }
"""

EXAMPLES = r"""
- name: Record that this Ollama has served well
  r1.prov.release_proven:
    home: /opt/r1prov/ollama
"""

RETURN = r"""
release_id: {type: str, returned: success, description: The current release; empty where there is none.}
differences: {type: list, elements: str, returned: success, description: "What is not as it should be, in a sentence each."}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils import release
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments
from ansible_collections.r1.prov.plugins.module_utils.files import file_diff
from ansible_collections.r1.prov.plugins.module_utils.locks import LockedError, alone

_LIMIT_S = 60


def main() -> None:
    module = AnsibleModule(argument_spec=arguments(DOCUMENTATION), supports_check_mode=True)
    home = Path(module.params["home"])
    now, before = release.current(home), release.proven(home)
    try:
        changed = release.prove(home, look=True)
        if changed and not module.check_mode:
            with alone(home / ".lock", lambda _: None, _LIMIT_S):
                release.prove(home)
    except (OSError, LockedError) as error:
        module.fail_json(
            msg=f"{home}: it cannot be recorded that {now} has served well: {error}. Run again when that is mended."
        )
    differences = []
    if changed and before != now:
        differences.append(f"{home}/proven leads to {before or 'nothing'}, and {now} has served well")
    elif changed:
        differences.append(f"{home}/releases holds releases that are not needed any more")
    diff = file_diff(home / "proven", f"{before}\n" if before else "", f"{now}\n") if changed else {}
    module.exit_json(changed=changed, release_id=now, diff=diff, differences=differences, drift=[])


if __name__ == "__main__":
    main()
