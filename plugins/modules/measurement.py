#!/usr/bin/python
"""Ansible module r1.prov.measurement: waits for the unit that measures, while the engine pauses."""

from __future__ import annotations

DOCUMENTATION = r"""
module: measurement
short_description: Measures in a unit of its own while the engine pauses, and returns the result
description:
  - Stock Ansible cannot do it, because its module for services does not wait for a unit to end, nor stop one for which nobody waits.
  - It starts the unit C(r1prov-measure) and waits until that has ended. The start of the unit stops the engine, and its end starts it
    again.
  - Before that it waits until the engine gives no answers. llama-server tells how many it gives, unless it is too busy even for that.
    Ollama does not tell, so it counts as busy while its processes compute.
  - If the caller goes away, the unit is stopped, and the engine starts again. The next start goes on where this one was.
author: The r1prov team
options: {
  "engine": {"type": "str", "required": true, "choices": ["r1prov-llama-server", "r1prov-ollama"], "description": "The unit of the engine
      that pauses."},
  "engine_url": {"type": "str", "default": "http://127.0.0.1:8000", "description": "The address of llama-server, without a path."},
  "api_key_file": {"type": "path", "default": "/etc/r1prov/llama-server/api-key", "description": "File on the host that holds its key."},
  "model": {"type": "path", "default": "", "description": "The file that llama-server serves. Where it is gone, llama-server could not start
      again, and nothing is stopped. Empty asks nothing."},
  "result": {"type": "path", "required": true, "description": "The file to which the unit writes its result."},
  "force": {"type": "bool", "default": false, "description": "Whether to measure again all that was measured."},
  "again": {"type": "bool", "default": false, "description": "Whether to measure a job again that was measured to its end. Otherwise the
      result of then is returned."},
  "now": {"type": "bool", "default": false, "description": "Whether to stop the engine although it gives answers."},
  "patience_s": {"type": "int", "default": 600, "description": "How many seconds to wait for running answers before giving up."},
  "await_engine": {"type": "bool", "default": false, "description": "Whether to wait afterwards until the engine is ready again."}
  }
"""

EXAMPLES = r"""
- name: Measure the settings
  r1.prov.measurement:
    engine: r1prov-llama-server
    result: /var/lib/r1prov/measure/settings.json
    force: true
"""

RETURN = r"""
result: {type: dict, returned: "success, but not in check mode", description: "What was measured; see roles/measure/files."}
"""

import re
import select
import sys
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils import units
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments
from ansible_collections.r1.prov.plugins.module_utils.files import read_json
from ansible_collections.r1.prov.plugins.module_utils.host_load import used_ticks
from ansible_collections.r1.prov.plugins.module_utils.http_api import Api, ApiError, AwayError
from ansible_collections.r1.prov.plugins.module_utils.progress import Progress

JOB = Path("/etc/r1prov/measure/job.json")
UNIT = "r1prov-measure.service"
STAYS = Path("/var/lib/r1prov/measure/engine-stays-stopped")
"""Tells the unit that somebody had stopped the engine before, so that it is not started afterwards. The engine starts at the next boot.

The unit's commands see this folder, and of /run only what the unit lists."""
POLL_S = 0.5
GONE_S = 10.0
"""An engine that is to start is stopped for a moment. After so long it is not coming back."""
BUSY_TICKS = 10
"""Who gives an answer uses more ticks of a processor than this in a second. Who only waits uses one or two."""
STDOUT = 1
_KEYS = ("ActiveState", "Job", "Result", "InvocationID")
_RUNNING = re.compile(r"^llamacpp:requests_(?:processing|deferred) (\d+)", re.MULTILINE)


def is_done(result: dict[str, Any], job: dict[str, Any]) -> bool:
    """Whether the result is of this job, and of all of it."""
    return bool(job) and result.get("job") == job and result.get("state") == "done"


def heard(descriptor: int) -> bool:
    """Whether somebody still reads what is written there."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def answers(module: AnsibleModule) -> str:
    """Which answers the engine gives now, in words; empty where it gives none, or does not run."""
    engine = module.params["engine"]
    if engine == "r1prov-ollama":
        pid = int(units.show(engine, "MainPID")["MainPID"])
        before = used_ticks([pid]) if pid else 0
        time.sleep(1)
        return "Ollama gives an answer" if pid and used_ticks([pid]) - before > BUSY_TICKS else ""
    api = Api(module.params["engine_url"], module.params["api_key_file"])
    try:
        told = api.text("/metrics")
    except AwayError:
        return ""
    except ApiError as error:
        if error.status:
            raise
        return "llama-server is too busy to say how many answers it gives"
    count = sum(int(figure) for figure in _RUNNING.findall(told))
    return f"llama-server gives {count} answer{'s' if count > 1 else ''}" if count else ""


def refuse(module: AnsibleModule) -> None:
    """Fails where the engine is not there, or could not start again afterwards."""
    engine, model = module.params["engine"], module.params["model"]
    if units.show(engine, "LoadState")["LoadState"] != "loaded":
        module.fail_json(msg=f"{engine} is not there to pause. Remedy: run `r1prov up` first")
    if model and engine == "r1prov-llama-server" and not Path(model).exists():
        gone = f"{model}, which llama-server serves, is not there any more, so a stopped llama-server could not start again"
        module.fail_json(msg=f"{gone}. Nothing was stopped or measured. Remedy: `r1prov up` brings it back")


def await_answers(module: AnsibleModule) -> None:
    """Waits until the engine gives no answers, or fails."""
    progress, began_s = Progress("measure"), time.monotonic()
    mode = "the option --now (measure_now in plain Ansible) does not wait"
    patience = f"for {module.params['patience_s']} s at most; --now does not wait"
    try:
        while said := answers(module):
            progress.wait(f"{said} ({patience})")
            if not heard(STDOUT):
                progress.finish(failed=True)
                sys.exit(1)
            if time.monotonic() - began_s > module.params["patience_s"]:
                progress.finish(failed=True)
                waited = f"{said}, and that was not over within {module.params['patience_s']} s. Nothing was stopped or measured"
                module.fail_json(msg=f"{waited}. Remedy: try again later; {mode}")
            time.sleep(POLL_S)
    except ApiError as error:
        progress.finish(failed=True)
        module.fail_json(
            msg=f"the engine does not tell whether it gives answers: {error}. Remedy: `r1prov status`; {mode}"
        )
    progress.finish()


def remember_whether_stopped(engine: str) -> bool:
    """Whether somebody had stopped the engine before it was measured. While a measurement works, it has stopped the engine itself."""
    if units.show(UNIT, "ActiveState")["ActiveState"] in ("inactive", "failed"):
        now = units.show(engine, "ActiveState", "Job")
        STAYS.unlink(missing_ok=True)
        if now["ActiveState"] == "inactive" and not now.get("Job"):
            STAYS.parent.mkdir(mode=0o700, exist_ok=True)
            STAYS.touch(mode=0o644)
    return STAYS.exists()


def await_engine(engine: str) -> str:
    """Waits until the engine is ready; why it is not, or nothing."""
    progress, gone_s = Progress("measure"), time.monotonic()
    progress.wait("the engine loads its model again")
    while (now := units.show(engine, "ActiveState", "SubState"))["ActiveState"] != "active":
        gone_s = time.monotonic() if now["ActiveState"] not in ("inactive", "failed") else gone_s
        if time.monotonic() - gone_s > GONE_S or now["SubState"] == "auto-restart" or not heard(STDOUT):
            progress.finish(failed=True)
            words = (
                units.last_words(engine, units.show(engine, "InvocationID").get("InvocationID", "")) or now["SubState"]
            )
            return f"{engine} does not come back after the measurement: {words}. Remedy: `r1prov up` says more and repairs what it can"
        time.sleep(POLL_S)
    progress.finish()
    return ""


def main() -> None:
    module = AnsibleModule(argument_spec=arguments(DOCUMENTATION, api_key_file=False), supports_check_mode=True)
    options = module.params
    job, file, force, engine = read_json(JOB), Path(options["result"]), options["force"], options["engine"]
    refuse(module)
    result = read_json(file)
    force = force or (options["again"] and result.get("state") == "done")
    done = is_done(result, job) and not force
    if module.check_mode:  # It returns no result: whoever reads one takes it for what this run has measured.
        module.exit_json(changed=not done)
    if done:
        module.exit_json(changed=False, result=result)
    if not options["now"]:
        await_answers(module)
    if force:
        file.unlink(missing_ok=True)
    stopped = remember_whether_stopped(engine)
    if stopped:
        module.warn(f"{engine} was stopped by somebody, and stays stopped. `r1prov up` starts it")
    units.reset_failed(UNIT)
    # A unit that still works for a controller that is gone is started again, and goes on where it was.
    units.systemctl("restart", "--no-block", UNIT)
    time.sleep(POLL_S)
    if options["now"] and units.show(engine, "ActiveState")["ActiveState"] == "deactivating":
        # It would end its answers first, until systemd kills it a minute later. It has nothing to save.
        units.systemctl("kill", "--signal=KILL", engine)
    # Its start waits until the engine has stopped: a job without a process.
    while (state := units.show(UNIT, *_KEYS)).get("Job") or state["ActiveState"] not in ("inactive", "failed"):
        if not heard(STDOUT):
            units.systemctl("stop", UNIT)
            sys.exit(1)
        time.sleep(POLL_S)
    result = read_json(file)
    wrong = []
    if not is_done(result, job):
        why = units.last_words(UNIT, state["InvocationID"]) or state["Result"]
        remedy = (
            f"mend that and run the same again; the whole log: {units.in_words('log', UNIT.removesuffix('.service'))}"
        )
        wrong.append(f"{why}. Remedy: {remedy}")
    if options["await_engine"] and not stopped:
        wrong += filter(None, [await_engine(engine)])
    if wrong:
        module.fail_json(msg="; ".join(wrong), result=result if result.get("job") == job else {})
    module.exit_json(changed=True, result=result)


if __name__ == "__main__":
    main()
