"""Asks a host whether it is still as its last run has left it, over Ansible's connection, as r1prov does over its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible import context
from ansible.plugins.action import ActionBase
from ansible.utils.vars import load_extra_vars
from ansible_collections.r1.prov.plugins.module_utils import look_job
from ansible_collections.r1.prov.plugins.module_utils.steps import steps_of

COLLECTION = Path(__file__).parents[2]
OPTIONS = {"site_dir": {"type": "str", "required": True}, "playbook": {"type": "path", "required": True}}
OF_EVERY_RUN = {"r1prov_break_lock"}
"""Variables of one run that change nothing of what it expects of a host."""


class ActionModule(ActionBase):  # type: ignore[misc] # Ansible has no types
    """See plugins/modules/look.py for the options and what is returned."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Look at one host, and say which steps are due."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, options = self.validate_argument_spec(OPTIONS)
        host = str((task_vars or {})["inventory_hostname"])
        found = self._look(Path(options["site_dir"]).resolve(), host) if options["site_dir"] else _NOTHING_KEPT
        told = [f"{each['what']} (mended by {each['step']})" for each in found["differences"]]
        if found["unknown"]:
            told.append(f"all steps run, because it could not be told what differs: {found['unknown']}")
        for text in told or [f"nothing differs ({found['asked']} questions, {found['seconds']} s)"]:
            self._display.display(f"{host}: {text}")
        differ = [] if found["unknown"] else [each["step"] for each in found["differences"]]
        steps = steps_of(self._loader.load_from_file(options["playbook"]), differ)
        clean = not told
        return result | {
            "changed": False,
            "clean": clean,
            "due": [] if clean else sorted({f"r1.prov.{step.role}" for step in steps}),
            "differences": [each["what"] for each in found["differences"]],
            "unknown": found["unknown"],
            "warnings": found["stays"],
        }

    def _look(self, site_dir: Path, host: str) -> dict[str, Any]:
        own = set(load_extra_vars(self._loader)) - OF_EVERY_RUN
        if own:
            return look_job.untold(f"this run has variables of its own ({', '.join(sorted(own))})")
        inventory = [Path(source).resolve() for source in context.CLIARGS["inventory"] or ()]
        if not all(source.exists() for source in inventory):
            return look_job.untold("its inventory is not made of files")
        made_of, expected = look_job.recall(site_dir / "looks" / f"{host}.json")
        if not expected or made_of != look_job.made_of(COLLECTION, inventory, site_dir):
            return _NOTHING_KEPT
        if not self._connection.has_pipelining:
            return look_job.untold(f"the connection `{self._connection.transport}` gives a program no input")
        try:
            return look_job.look(self._ask, COLLECTION, expected)
        except _NoAnswerError as error:
            return look_job.untold(str(error))

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        script = look_job.script(job).encode()
        said = self._low_level_execute_command(look_job.COMMAND, in_data=script)
        try:
            answer: dict[str, Any] = json.loads(said["stdout"])
        except ValueError:
            raise _NoAnswerError(said["stderr"].strip().rpartition("\n")[2] or "it gives no answer") from None
        return answer


class _NoAnswerError(Exception):
    """The host has not answered."""


_NOTHING_KEPT = look_job.untold(
    "nothing is kept of a run of `r1prov up` over it that was made of the same and went well"
)
