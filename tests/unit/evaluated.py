"""What Ansible itself makes of the variables that playbooks/up.yml gives to its roles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from r1prov import inventory, site
from r1prov.decision import decide
from tests.fixtures.evaluated import evaluated

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[2]


def up(
    folder: Path,
    site_file: Path | None = None,
    *,
    show: Mapping[str, str] | None = None,
    variables: Mapping[str, Any] | None = None,
    **flags: Any,
) -> dict[str, Any]:
    """The variables that preflight and the role data_disk get for a site, and `environment_of_tasks`.

    Args:
        folder: for the inventory.
        site_file: a site file beside the flags.
        show: more names, with the expressions that Ansible evaluates for them.
        variables: for this run only. They outrank the inventory.
        flags: keys of the site file.
    """
    inventory.render(decide(site.load(site_file, **flags)), folder / "inventory")
    [play, _] = yaml.safe_load((ROOT / "playbooks" / "up.yml").read_text())
    steps = [step for task in play["tasks"] for step in task.get("block", []) if "ansible.builtin.import_role" in step]
    first = (".preflight", ".data_disk")
    given = [step["vars"] for step in steps if step["ansible.builtin.import_role"]["name"].endswith(first)]
    told = {name: value for each in given for name, value in each.items()}
    roles = {step["ansible.builtin.import_role"]["name"] for step in steps}
    # The roles are imported as in up.yml, because the import makes their variables known. None of their tasks runs.
    imports = [{"ansible.builtin.import_role": {"name": name}, "when": False} for name in sorted(roles)]
    asked = {**told, "environment_of_tasks": play["environment"], **(show or {})}
    content = "{{ {" + ", ".join(f"'{name}': {name}" for name in asked) + "} | to_json }}"
    return evaluated(
        folder, folder / "inventory", content, tasks=imports, known={**play["vars"], **asked}, variables=variables or {}
    )
