"""Finds a program among the files of a role, and sends it to the host in one go."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.r1.prov.plugins.module_utils import carried
from ansible_collections.r1.prov.plugins.module_utils.look_job import zipped

OPTIONS = {
    "name": {"type": "str", "required": True},
    "executed": {"type": "list", "elements": "str", "default": []},
}


class ActionModule(ActionBase):  # type: ignore[misc] # Ansible has no types
    """See plugins/modules/program.py for the options and what is returned."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Bring the program to the state in which the role has it."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, options = self.validate_argument_spec(OPTIONS)
        texts = carried.installed(Path(self._find_needle("files", options["name"])))
        files = {place: text.encode() for place, text in texts.items()}
        asked = options | {"files": {place: hashlib.sha256(content).hexdigest() for place, content in files.items()}}
        packed = "" if self._task.check_mode else base64.b64encode(zipped(files)).decode()
        answer: dict[str, Any] = self._execute_module(
            module_name="r1.prov.program", module_args=asked | {"packed": packed}, task_vars=task_vars
        )
        # A look asks by this. What is to be sent is found anew whenever something differs.
        return result | answer | {"invocation": {"module_args": asked}}
