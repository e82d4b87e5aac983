#!/usr/bin/python
"""Ansible module r1.prov.smoke_bench: one real question to the running server, and how fast it is."""

from __future__ import annotations

DOCUMENTATION = r"""
module: smoke_bench
short_description: Asks a running model a question through each open door, judges the answers and measures the rates
description:
  - Stock Ansible cannot do it, because it cannot read an answer as it comes, judge it, and measure several users at once.
  - Asks the engine one question, judges the answer, then measures prompt and decode rates with one and several users at once. The rates are
    the engine's own. With I(page_url) it asks the same question through the chat page, as its administrator. That takes no password,
    because the administrator may have changed it. The module signs the login itself, for as long as the question takes.
  - A run that changed nothing measures nothing. It returns what was measured before if the command line, the release, the model's file, the
    question and the measurement are the same.
  - A service that goes away in the middle of an answer has given no wrong answer. The module waits until it is back and asks once more.
  - The result is C(/var/lib/r1prov/smoke_bench/last.json). The last ten results, each with what else kept the host busy, are in
    C(history.json).
author: The r1prov team
options: {
  "engine": {"type": "str", "default": "llama-server", "choices": ["llama-server", "ollama", "balancer"], "description": "The engine, or
      the balancer, behind which there are engines of other hosts. It has results of its own, below C(door)."},
  "url": {"type": "str", "required": true, "description": "The address of the engine, without a path."},
  "api_key_file": {"type": "path", "default": "", "description": "File on the host with the API key; empty for a server without one."},
  "api_key": {"type": "str", "default": "", "description": "The API key itself, where no file on the host has it."},
  "model": {"type": "str", "required": true, "description": "The model's name in the API."},
  "question": {"type": "str", "required": true, "description": "The question."},
  "expect": {"type": "str", "required": true, "description": "Regular expression that the answer must match, case ignored. Empty for a model
      that cannot know the answer; then any answer will do."},
  "max_tokens": {"type": "int", "default": 1024, "description": "Most tokens of the answer, its thinking included."},
  "timeout_s": {"type": "int", "default": 900, "description": "Seconds until a request has failed."},
  "concurrency": {"type": "list", "elements": "int", "default": [1, 2, 4], "description": "Users at once, one measurement each. Numbers
      above the server's number of slots are left out."},
  "sweep_tokens": {"type": "int", "default": 64, "description": "Tokens that each user's request of the measurement decodes."},
  "prompts": {"type": "list", "elements": "dict", "default": [], "description": "Prompts after which the time to the first token is
      measured, after all else. A change of them is no reason to measure again.", "suboptions": {
        "length": {"type": "int", "required": true, "description": "The tokens of the prompt."},
        "users": {"type": "int", "default": 1, "description": "How many ask that at once."},
        "planned_s": {"type": "list", "elements": "float", "default": [], "description": "The least and the most seconds that the plan says.
            The result has them, too."}}},
  "prompts_limit_s": {"type": "int", "default": 120, "description": "Seconds for I(prompts), those with the fewest tokens first. What would
      take longer is left out, and the result says so."},
  "subject": {"type": "dict", "default": {}, "description": "Anything else that the result depends on. The result keeps it, and a change of
      it is a reason to measure again."},
  "slots": {"type": "int", "default": 1, "description": "For C(ollama), which does not tell it, how many are answered at once."},
  "temperature": {"type": "float", "default": 0.6, "description": "The temperature of the sampling."},
  "page_url": {"type": "str", "default": "", "description": "The address of the chat page, without a path. Empty for none."},
  "page_secret_key": {"type": "str", "default": "", "description": "The key with which the page signs logins."},
  "page_data": {"type": "path", "default": "/var/lib/r1prov/open-webui", "description": "The folder with the page's data."},
  "page_user": {"type": "str", "default": "r1prov-webui", "description": "The page's user, as whom its database is opened."},
  "at_least": {"type": "float", "default": 0.0, "description": "The part of the decode rate before that must be reached: of the median of
      the last five results of the same setting, whatever the version, that were measured without foreign load. 0 for no limit."},
  "force": {"type": "bool", "default": false, "description": "Whether to measure although nothing changed."}
  }
"""

EXAMPLES = r"""
- name: Ask the model a question and measure its speed
  r1.prov.smoke_bench:
    url: http://127.0.0.1:8000
    api_key_file: /etc/r1prov/llama-server/api-key
    model: DeepSeek-R1
    question: What is the capital of France?
    expect: Paris
"""

RETURN = r"""
result: {type: dict, returned: success, description: "What was measured, now or before; docs/benchmark.md describes it."}
measured: {type: bool, returned: success, description: Whether it was measured now.}
compared: {type: str, returned: success, description: "With I(at_least), what the rate was held against, in words."}
differences: {type: list, elements: str, returned: success, description: "What is not as it should be, in a sentence each."}
"""

import hashlib
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils import first_tokens, unit_look, units
from ansible_collections.r1.prov.plugins.module_utils.answer import fault, thinking_apart
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments
from ansible_collections.r1.prov.plugins.module_utils.doors import (
    SEED,
    Balancer,
    Limits,
    LlamaServer,
    Ollama,
    Page,
    Reply,
)
from ansible_collections.r1.prov.plugins.module_utils.host_load import watched_load
from ansible_collections.r1.prov.plugins.module_utils.http_api import Api, ApiError
from ansible_collections.r1.prov.plugins.module_utils.measurements import (
    SCHEMA,
    compare,
    history,
    keep,
    read_result,
)
from ansible_collections.r1.prov.plugins.module_utils.open_webui import DatabaseError, session
from ansible_collections.r1.prov.plugins.module_utils.open_webui_backup import DATABASE
from ansible_collections.r1.prov.plugins.module_utils.patience import GoneError, Services, patiently
from ansible_collections.r1.prov.plugins.module_utils.progress import Progress
from ansible_collections.r1.prov.plugins.module_utils.users import acting_as

if TYPE_CHECKING:
    from collections.abc import Sequence

    Engine = LlamaServer | Ollama | Balancer

DOORS: dict[str, type[Engine]] = {"llama-server": LlamaServer, "ollama": Ollama, "balancer": Balancer}
RESULTS = Path("/var/lib/r1prov/smoke_bench")
_EXCERPT = 600
_LOOK_S = 10
# About 200 tokens, so that the prompt rate is of reading, not of one small batch.
_TEXT = (
    "A server room is quieter at night. The fans slow down, the lamps on the switches blink without hurry, and somewhere a disk "
    "counts its sectors. Whoever walks in then hears the machines think: a low note when they wait, a higher one when they work. "
    "The people who built the room knew nothing of language models. They planned for ledgers, mail and backups, for power that "
    "fails twice a year and for an air conditioner that drips in August. Now the same racks hold cards that were made to draw "
    "pictures, and the cards read letters, poems and manuals and answer them. The electricity bill has grown, the door has a "
    "better lock, and next to the extinguisher hangs a sheet of paper on which somebody wrote by hand: please ask it something. "
)


class AnswerError(Exception):
    """The server answers, but not what it should."""


def describe(options: dict[str, Any], facts: dict[str, Any], command: str, release: str) -> dict[str, Any]:
    """What is measured: everything that, when it changes, makes an old measurement a measurement of something else."""
    model = Path(facts["model"])  # the name of a model in Ollama is no path
    status = model.stat() if model.is_absolute() and model.exists() else None
    return {
        **facts,
        "engine": options["engine"],
        "release": release,
        "model_file": [status.st_size, status.st_mtime_ns] if status else None,
        "command": command,
        "page": options["page_url"],
        "declared": options["subject"],
    }


def command_line(unit_file: str) -> str:
    """The ExecStart of a unit file, on one line."""
    match = re.search(r"^ExecStart=((?:.*\\\n)*.*)$", unit_file, re.MULTILINE)
    return " ".join(match[1].replace("\\\n", " ").split()) if match else ""


def digest(subject: dict[str, Any], options: dict[str, Any]) -> str:
    """Identifies a subject and how it is measured."""
    keys = ("question", "expect", "max_tokens", "temperature", "concurrency", "sweep_tokens")
    how = {key: options[key] for key in keys}
    return hashlib.sha256(json.dumps([SCHEMA, subject, how], sort_keys=True).encode()).hexdigest()


def at(name: str, api: Api, model: str, slots: int) -> Engine:
    """The door of that name."""
    if name == "ollama":
        return Ollama(api, model, slots)
    return Balancer(api, model) if name == "balancer" else LlamaServer(api, model)


class Bench:
    """The measurement of one server.

    Args:
        options: of the module.
        progress: is told what is asked.
        engine: the engine's door.
    """

    def __init__(self, options: dict[str, Any], progress: Progress, engine: Engine) -> None:
        self._options, self._progress, self._engine = options, progress, engine
        self._page_api = Api(options["page_url"], timeout_s=options["timeout_s"]) if options["page_url"] else None
        self._page = Page(self._page_api, options["model"]) if self._page_api else None

    @property
    def unit_names(self) -> list[str]:
        """The units that an answer comes from."""
        return [door.unit for door in (self._engine, self._page) if door]

    def look(self) -> None:
        """Sees whether all doors can be asked.

        Raises:
            ApiError: one cannot.
            DatabaseError: the chat page's database does not tell whom it knows.
        """
        self._engine.facts()
        if self._page:
            self._sign_in()
            self._page.facts()

    def _sign_in(self) -> None:
        """Signs a login to the page that holds for one request, as long as that may take."""
        if self._page_api:
            with acting_as(self._options["page_user"]):
                database = Path(self._options["page_data"]) / DATABASE
                key = session(database, self._options["page_secret_key"], self._options["timeout_s"])
            self._page_api.use_key(key)

    def _limits(self, tokens: int) -> Limits:
        return Limits(tokens, self._options["timeout_s"], self._options["temperature"])

    def ask(self, door: Engine | Page, label: str) -> dict[str, Any]:
        """Asks one question in a chat, as a user would.

        Raises:
            AnswerError: what came back is no right answer.
        """
        question, tokens = self._options["question"], self._options["max_tokens"]
        self._progress.begin(label, tokens, "steps")
        reply = door.ask(question, self._limits(tokens), self._progress.update)
        answer, thinking = thinking_apart(reply.content, reply.reasoning)
        if wrong := fault(answer, thinking, reply.finish, self._options["expect"]):
            excerpt = (answer or thinking)[:_EXCERPT]
            raise AnswerError(f"{label}: asked {question!r}, the model said {excerpt!r}: {wrong}")
        return {
            "asked": question,
            "answer": answer,
            "thinking": thinking,
            "finish_reason": reply.finish,
            "prompt_tokens": reply.prompt_tokens,
            "decode_tokens": reply.decode_tokens,
            "time_to_first_token_s": round(reply.first_s - reply.started_s, 3),
            "prompt_tokens_per_second": round(reply.prompt_tokens_per_second, 2),
            "decode_tokens_per_second": round(reply.decode_tokens_per_second, 2),
            "wall_s": round(reply.last_s - reply.started_s, 3),
        }

    def measure(self, levels: Sequence[int]) -> dict[str, Any]:
        """Asks through each door, then measures each number of users at once. The load is that of the first number."""
        asked, through_page = self.ask(self._engine, f"asking {self._options['engine']}"), None
        if self._page:
            self._sign_in()
            through_page = self.ask(self._page, "asking through the chat page")
        # While one user waits for the engine, all else that is busy is foreign.
        unit = self._engine.unit
        own = (int(units.show(f"{name}.service", "MainPID")["MainPID"]) for name in (unit, f"{unit}-door"))
        with watched_load(pid for pid in own if pid) as load:
            sweep = [self.sweep(self._engine, users) for users in levels[:1]]
        sweep += [self.sweep(self._engine, users) for users in levels[1:]]
        waited: list[dict[str, Any]] = []
        if not isinstance(self._engine, Balancer):  # It does not tell how fast it reads a prompt.
            waiting = first_tokens.FirstTokens(
                self._engine, _TEXT.split(), self._options["temperature"], self._progress
            )
            rate, limit_s = sweep[0]["prompt_tokens_per_second_each"], self._options["prompts_limit_s"]
            waited = waiting.measure(self._options["prompts"], rate, limit_s)
        return {"question": asked, "page": through_page, "sweep": sweep, "load": load, "first_tokens": waited}

    def sweep(self, engine: Engine, users: int) -> dict[str, Any]:
        """Measures so many users at once, each with a prompt of its own and the same number of tokens to decode."""
        tokens = self._options["sweep_tokens"]
        label = "measuring one user" if users == 1 else f"measuring {users} users at once"
        self._progress.begin(label, users * tokens, "steps")
        counts = [0] * users

        def one(user: int) -> Reply:
            def report(pieces: int) -> None:
                counts[user] = pieces
                if user == 0:
                    self._progress.update(sum(counts))

            return engine.generate(f"{user}. {_TEXT}", SEED + user, self._limits(tokens), report)

        with ThreadPoolExecutor(users) as pool:
            replies = list(pool.map(one, range(users)))
        ended_s, decoded = max(reply.last_s for reply in replies), sum(reply.decode_tokens for reply in replies)
        decoding_s = ended_s - min(reply.first_s for reply in replies)
        return {
            "users": users,
            "prompt_tokens": sum(reply.prompt_tokens for reply in replies),
            "decode_tokens": decoded,
            "time_to_first_token_s": round(fmean(reply.first_s - reply.started_s for reply in replies), 3),
            "prompt_tokens_per_second_each": round(fmean(reply.prompt_tokens_per_second for reply in replies), 2),
            "decode_tokens_per_second_each": round(fmean(reply.decode_tokens_per_second for reply in replies), 2),
            "decode_tokens_per_second_total": round(decoded / decoding_s, 2),
            "wall_s": round(ended_s - min(reply.started_s for reply in replies), 3),
        }


def complaint(error: Exception, log: str) -> str:
    """What to say where nothing could be measured. Of a wrong answer the log tells nothing."""
    if isinstance(error, DatabaseError):
        return f"the chat page cannot be asked, because of its database: {error}"
    if isinstance(error, AnswerError):
        return str(error)
    return f"{error}. {log}" if isinstance(error, GoneError) else f"the server cannot be asked: {error}. {log}"


def main() -> None:
    module = AnsibleModule(
        argument_spec=arguments(
            DOCUMENTATION, api_key_file=False, api_key=True, max_tokens=False, sweep_tokens=False, page_secret_key=True
        ),
        supports_check_mode=True,
    )
    options = module.params
    name, model, timeout_s = options["engine"], options["model"], options["timeout_s"]
    results = RESULTS / "door" if name == "balancer" else RESULTS
    last = read_result(results / "last.json")
    door = DOORS[name]
    unit_file = unit_look.OURS / f"{door.unit}.service"
    log = f"Look at its log: {units.in_words('log', door.unit)}"
    if not unit_file.exists():
        log = f"{door.unit} is not installed there. Remedy: run `r1prov up`"
        if module.check_mode:
            # Whoever writes the unit says so. What it will serve then is perhaps what was measured.
            module.exit_json(changed=not last, measured=False, result=last, msg=log, differences=[], drift=[])
    try:
        # Whoever only looks need not wait for an engine that hangs, of which its unit tells.
        api = Api(options["url"], options["api_key_file"], min(timeout_s, _LOOK_S) if module.check_mode else timeout_s)
        if options["api_key"]:
            api.use_key(options["api_key"])
        engine = at(name, api, model, options["slots"])
        facts = engine.facts()
    except ApiError as error:
        if module.check_mode:
            # Whoever starts the engine says so. What it will serve then is perhaps what was measured.
            module.exit_json(changed=not last, measured=False, result=last, msg=f"nothing to ask yet: {error}")
        module.fail_json(msg=f"the server cannot be asked: {error}. {log}")
    command = command_line(unit_file.read_text(encoding="utf-8")) if unit_file.exists() else ""
    subject = describe(options, facts, command, Path(door.release).resolve().name)
    subject["digest"] = digest(subject, options)
    same = bool(last) and last["subject"]["digest"] == subject["digest"] and not options["force"]
    if same or module.check_mode:
        differences = [] if same else [f"{results / 'last.json'} holds no measurement of what serves now"]
        module.exit_json(changed=not same, measured=False, result=last, differences=differences, drift=[])
    progress = Progress("smoke_bench")
    bench = Bench(options, progress, engine)
    levels = [users for users in options["concurrency"] if users <= facts["slots"]]
    try:
        services = Services(bench.unit_names, bench.look, limit_s=timeout_s)
        measured = patiently(lambda: bench.measure(levels), services, AnswerError, progress.wait, module.warn)
    except (AnswerError, ApiError, DatabaseError, GoneError) as error:
        progress.finish(failed=True)
        module.fail_json(msg=complaint(error, log))
    result = {"schema": SCHEMA, "measured_unix_s": round(time.time()), "subject": subject, **measured}
    wanted = options["at_least"]
    good, told = compare(result, history(results), wanted) if wanted else (True, "")
    if not good:
        progress.finish(failed=True)
        module.fail_json(msg=f"{name} {told}. Remedy: see whether something else keeps the host busy", result=result)
    keep(results, result)
    progress.finish()
    module.exit_json(changed=True, measured=True, result=result, compared=told)


if __name__ == "__main__":
    main()
