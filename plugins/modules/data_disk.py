#!/usr/bin/python
"""Ansible module r1.prov.data_disk: lets r1prov's own folders lie on the data disk."""

from __future__ import annotations

DOCUMENTATION = r"""
module: data_disk
short_description: Lets r1prov's own folders lie on the data disk, and lets services reach it
description:
  - Stock Ansible cannot do it, because C(file) makes no link where a folder with content lies, and knows nothing of the services that
    use it.
  - C(/opt/r1prov), C(/var/lib/r1prov) and C(/var/cache/r1prov) become links to C(host/opt), C(host/lib) and C(host/cache) in the folder for
    data, unless something is mounted in one of them. What lay there goes along, for which r1prov's services are stopped. What the data
    disk has already stays as it is.
  - Where root's folders above the data disk keep services out, as C(/root) does, everybody may pass through them. Nobody can list them for
    that. M(r1.prov.removal) puts the mode back.
author: The r1prov team
options: {
  "path": {"type": "path", "required": true, "description": "The folder for data, on the data disk."},
  "use": {"type": "str", "default": "auto", "choices": ["auto", "always", "never"], "description": "With C(auto), the folders lie
      there where no systemd runs the host, as in a rented container, and the disk is another one than that of the system."},
  "reach": {"type": "list", "elements": "path", "default": [], "description": "More folders that services must reach."}
  }
"""

EXAMPLES = r"""
- name: Keep everything on the data disk
  r1.prov.data_disk:
    path: /root/autodl-tmp/r1prov
"""

RETURN = r"""
used: {type: bool, returned: always, description: Whether the folders lie on the data disk.}
differences: {type: list, elements: str, returned: always, description: "What was not as it should be, in a sentence each."}
away: {type: bool, returned: where they lie there and the disk is away, description: "True. The difference says where it should be."}
built_anew: {type: bool, returned: where they lie there, description: "Whether a platform has built the host anew, so that links and
  configuration are gone, and the data disk has the rest."}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils import data_disk
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments
from ansible_collections.r1.prov.plugins.module_utils.unit_look import OURS
from ansible_collections.r1.prov.plugins.module_utils.units import UnitError, end, systemctl


def main() -> None:
    module = AnsibleModule(argument_spec=arguments(DOCUMENTATION), supports_check_mode=True)
    path, use, reach = (module.params[name] for name in ("path", "use", "reach"))
    # This comes first: where the disk is away, the folder for data seems to be on the system disk.
    if away := data_disk.away(path):
        if module.check_mode:
            module.exit_json(changed=True, used=True, differences=[away], away=True)
        module.fail_json(msg=f"{away}. Remedy: {data_disk.BRING_BACK}", used=True, differences=[away], away=True)
    if not data_disk.is_used(use, path):
        module.exit_json(changed=False, used=False, differences=[])
    places, built_anew = data_disk.wrong_places(path), data_disk.is_built_anew(path)
    shut = data_disk.shut([str(data_disk.home(path)), *reach])
    differences = [f"{place} is not on the data disk" for place in places]
    differences += [
        f"services cannot pass through {folder}, which has mode {mode:04o}" for folder, mode in shut.items()
    ]
    units = sorted(each.name for each in OURS.glob("r1prov-*") if each.suffix in (".service", ".socket", ".timer"))
    if not module.check_mode:
        try:
            # A service must not write to what is on its way elsewhere. Its role starts it again.
            if units and any(place.is_dir() for place in places):
                systemctl("stop", *units)
                end()
            for place, target in places.items():
                data_disk.settle(place, target)
            if shut:
                data_disk.let_through(shut, Path("/var/lib/r1prov") / data_disk.OPENED)
        except (OSError, UnitError) as error:
            module.fail_json(
                msg=f"r1prov's folders cannot be brought to {path}: {error}", used=True, differences=differences
            )
        for folder, mode in shut.items():
            module.warn(
                f"{folder} had mode {mode:04o}, and has {mode | 1:04o} now: every account of this host can pass through it, because the "
                "data disk lies below it, and can list nothing of it. `r1prov down` puts it back"
            )
    drift = differences if units or built_anew else []  # Nobody has changed a host on which r1prov never was.
    module.exit_json(changed=bool(differences), used=True, differences=differences, drift=drift, built_anew=built_anew)


if __name__ == "__main__":
    main()
