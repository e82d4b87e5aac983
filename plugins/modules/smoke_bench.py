#!/usr/bin/python
"""Ansible module r1.prov.smoke_bench: one real question to the running server, and how fast it is."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: smoke_bench
short_description: Asks a running model a question through each open door, judges the answers and measures the rates
description:
  - Stock Ansible cannot do it, because it cannot read an answer as it comes, judge it, and measure several users at once.
  - Asks the engine one question, judges the answer, then measures prompt and decode rates with one and several users at once. The rates are
    the engine's own. With I(page_url), asks the same question through the chat page, as its administrator. No password is needed for that,
    because the administrator may have changed it - the module signs the login itself, for as long as the question takes.
  - A run that changed nothing measures nothing. What was measured before is returned when the command line, the release, the model's
    file, the question and the measurement are the same.
  - The result is C(last.json) in I(results), the one before C(previous.json).
options:
  engine:
    description: Which engine holds the model.
    type: str
    choices: [llama-server, ollama]
    default: llama-server
  url:
    description: Where the engine answers, without a path.
    type: str
    required: true
  api_key_file:
    description: File on the host that holds the API key; empty for a server without one.
    type: path
    default: ""
  model:
    description: The model's name in the API.
    type: str
    required: true
  question:
    description: What is asked.
    type: str
    required: true
  expect:
    description: >-
      Regular expression that the answer must match, case ignored. Empty for a model that cannot know; then anything it says will do.
    type: str
    required: true
  max_tokens:
    description: Most tokens of the answer, its thinking included.
    type: int
    default: 1024
  timeout_s:
    description: Seconds until a request has failed.
    type: int
    default: 900
  concurrency:
    description: Users at once, one measurement each. Those above the server's number of slots are left out.
    type: list
    elements: int
    default: [1, 2, 4]
  sweep_tokens:
    description: Tokens that each user's request of the measurement decodes.
    type: int
    default: 64
  subject:
    description: Anything else that the result depends on. When it changes, it is measured again; it is kept in the result.
    type: dict
    default: {}
  slots:
    description: For C(ollama), which does not tell it, how many are answered at once.
    type: int
    default: 1
  temperature:
    description: Of the sampling.
    type: float
    default: 0.6
  page_url:
    description: Where the chat page answers, without a path. Empty for none.
    type: str
    default: ""
  page_secret_key:
    description: What the page signs logins with.
    type: str
    default: ""
  page_data:
    description: The folder with the page's data.
    type: path
    default: /var/lib/r1prov/open-webui
  page_user:
    description: The page's user, as whom its database is opened.
    type: str
    default: r1prov-webui
  at_least:
    description: What part of the last decode rate must be reached, where that was of the same engine, model and subject. 0 for no limit.
    type: float
    default: 0
  force:
    description: Whether to measure although nothing changed.
    type: bool
    default: false
  results:
    description: Folder for the results.
    type: path
    default: /var/lib/r1prov/smoke_bench
author:
  - The r1prov team
"""

EXAMPLES = r"""
- name: Ask the model
  r1.prov.smoke_bench:
    url: http://127.0.0.1:8000
    api_key_file: /etc/r1prov/llama-server/api-key
    model: DeepSeek-R1
    question: What is the capital of France?
    expect: Paris
"""

RETURN = r"""
result:
  description: What was measured, now or before; docs/benchmark.md describes it.
  type: dict
  returned: success
measured:
  description: Whether it was measured now.
  type: bool
  returned: success
"""

import hashlib
import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils.answer import fault, thinking_apart
from ansible_collections.r1.prov.plugins.module_utils.doors import (
    SEED,
    Limits,
    LlamaServer,
    Ollama,
    Page,
    Reply,
    model_file,
)
from ansible_collections.r1.prov.plugins.module_utils.files import write_whole
from ansible_collections.r1.prov.plugins.module_utils.http_api import Api, ApiError
from ansible_collections.r1.prov.plugins.module_utils.open_webui import DatabaseError, session
from ansible_collections.r1.prov.plugins.module_utils.open_webui_backup import DATABASE
from ansible_collections.r1.prov.plugins.module_utils.progress import Progress
from ansible_collections.r1.prov.plugins.module_utils.users import acting_as

SCHEMA = 2
_EXCERPT = 600
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


def describe(wanted: dict[str, Any], facts: dict[str, Any], command: str, release: str) -> dict[str, Any]:
    """What is measured: everything that, when it changes, makes an old measurement a measurement of something else."""
    return {
        **facts,
        "engine": wanted["engine"],
        "release": release,
        "model_file": model_file(facts["model"]),
        "command": command,
        "page": wanted["page_url"],
        "declared": wanted["subject"],
    }


def command_line(unit_file: str) -> str:
    """The ExecStart of a unit file, on one line."""
    match = re.search(r"^ExecStart=((?:.*\\\n)*.*)$", unit_file, re.MULTILINE)
    return " ".join(match[1].replace("\\\n", " ").split()) if match else ""


def digest(subject: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Identifies a subject and how it is measured."""
    how = {
        key: wanted[key] for key in ("question", "expect", "max_tokens", "temperature", "concurrency", "sweep_tokens")
    }
    return hashlib.sha256(json.dumps([SCHEMA, subject, how], sort_keys=True).encode()).hexdigest()


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


class Bench:
    """The measurement of one server."""

    def __init__(self, wanted: dict[str, Any], progress: Progress) -> None:
        self._wanted = wanted
        self._progress = progress

    def ask(self, door: LlamaServer | Ollama | Page, label: str) -> dict[str, Any]:
        """One question in a chat, as a user would.

        Raises:
            AnswerError: the answer is none.
        """
        question, limit, expect = (self._wanted[key] for key in ("question", "max_tokens", "expect"))
        self._progress.begin(label, limit, "steps")
        reply = door.ask(
            question, Limits(limit, self._wanted["timeout_s"], self._wanted["temperature"]), self._progress.update
        )
        answer, thinking = thinking_apart(reply.content, reply.reasoning)
        if wrong := fault(answer, thinking, reply.finish, expect):
            said = answer or thinking
            raise AnswerError(f"{label}: asked {question!r}, the model said {said[:_EXCERPT]!r}: {wrong}")
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

    def sweep(self, engine: LlamaServer | Ollama, users: int) -> dict[str, Any]:
        """So many users at once, each with a prompt of its own and the same number of tokens to decode."""
        tokens = self._wanted["sweep_tokens"]
        label = "measuring one user" if users == 1 else f"measuring {users} users at once"
        self._progress.begin(label, users * tokens, "steps")
        counts = [0] * users

        def one(user: int) -> Reply:
            def tell(heard: int) -> None:
                counts[user] = heard
                if user == 0:
                    self._progress.update(sum(counts))

            return engine.generate(
                f"{user}. {_TEXT}",
                SEED + user,
                Limits(tokens, self._wanted["timeout_s"], self._wanted["temperature"]),
                tell,
            )

        with ThreadPoolExecutor(users) as pool:
            replies = list(pool.map(one, range(users)))
        decoding_s = max(reply.last_s for reply in replies) - min(reply.first_s for reply in replies)
        return {
            "users": users,
            "prompt_tokens": sum(reply.prompt_tokens for reply in replies),
            "decode_tokens": sum(reply.decode_tokens for reply in replies),
            "time_to_first_token_s": round(mean([reply.first_s - reply.started_s for reply in replies]), 3),
            "prompt_tokens_per_second_each": round(mean([reply.prompt_tokens_per_second for reply in replies]), 2),
            "decode_tokens_per_second_each": round(mean([reply.decode_tokens_per_second for reply in replies]), 2),
            "decode_tokens_per_second_total": round(sum(reply.decode_tokens for reply in replies) / decoding_s, 2),
            "wall_s": round(max(r.last_s for r in replies) - min(r.started_s for r in replies), 3),
        }


def too_slow(result: dict[str, Any], last: dict[str, Any], at_least: float) -> str:
    """What to say where one user's decode rate has fallen below a part of the last one; empty where it has not."""
    alike = last and all(result["subject"][key] == last["subject"][key] for key in ("engine", "model_file", "declared"))
    if not alike:
        return ""
    now, then = (run["sweep"][0]["decode_tokens_per_second_each"] for run in (result, last))
    if now >= at_least * then:
        return ""
    return f"decodes {now:.2f} tokens/s where it decoded {then:.2f} before; at least {at_least * 100:.0f} % of that is wanted"


def keep(folder: Path, result: dict[str, Any]) -> None:
    """Writes the result; the one before stays beside it, to compare with."""
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / "last.json"
    if last.exists():
        write_whole(folder / "previous.json", last.read_bytes())
    write_whole(last, json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def read_result(file: Path) -> dict[str, Any]:
    """An earlier result; empty where there is none that this version can read."""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return result if result.get("schema") == SCHEMA else {}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "engine": {"type": "str", "choices": ["llama-server", "ollama"], "default": "llama-server"},
            "url": {"type": "str", "required": True},
            "api_key_file": {"type": "path", "default": "", "no_log": False},
            "model": {"type": "str", "required": True},
            "question": {"type": "str", "required": True},
            "expect": {"type": "str", "required": True},
            "max_tokens": {"type": "int", "default": 1024, "no_log": False},
            "timeout_s": {"type": "int", "default": 900},
            "concurrency": {"type": "list", "elements": "int", "default": [1, 2, 4]},
            "sweep_tokens": {"type": "int", "default": 64, "no_log": False},
            "subject": {"type": "dict", "default": {}},
            "slots": {"type": "int", "default": 1},
            "temperature": {"type": "float", "default": 0.6},
            "page_url": {"type": "str", "default": ""},
            "page_secret_key": {"type": "str", "default": "", "no_log": True},
            "page_data": {"type": "path", "default": "/var/lib/r1prov/open-webui"},
            "page_user": {"type": "str", "default": "r1prov-webui"},
            "at_least": {"type": "float", "default": 0.0},
            "force": {"type": "bool", "default": False},
            "results": {"type": "path", "default": "/var/lib/r1prov/smoke_bench"},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    results = Path(wanted["results"])
    last = read_result(results / "last.json")
    kind: type[LlamaServer | Ollama] = {"llama-server": LlamaServer, "ollama": Ollama}[wanted["engine"]]
    log = f"Look at its log: journalctl -u {kind.unit}"
    try:
        api = Api(wanted["url"], wanted["api_key_file"], wanted["timeout_s"])
        engine = Ollama(api, wanted["model"], wanted["slots"]) if kind is Ollama else LlamaServer(api, wanted["model"])
        facts = engine.facts()
    except ApiError as error:
        if module.check_mode:
            module.exit_json(changed=True, measured=False, result=last, msg=f"nothing to ask yet: {error}")
        module.fail_json(msg=f"the server cannot be asked: {error}. {log}")
    unit_file = Path(f"/etc/systemd/system/{kind.unit}.service")
    command = command_line(unit_file.read_text(encoding="utf-8")) if unit_file.exists() else ""
    subject = describe(wanted, facts, command, os.path.basename(os.path.realpath(kind.release)))  # noqa: PTH119
    subject["digest"] = digest(subject, wanted)
    if not wanted["force"] and last and last["subject"]["digest"] == subject["digest"]:
        module.exit_json(changed=False, measured=False, result=last)
    if module.check_mode:
        module.exit_json(changed=True, measured=False, result=last)
    progress = Progress("smoke_bench")
    bench = Bench(wanted, progress)
    try:
        asked = bench.ask(engine, f"asking {wanted['engine']}")
        page = None
        if wanted["page_url"]:
            with acting_as(wanted["page_user"]):
                token = session(Path(wanted["page_data"]) / DATABASE, wanted["page_secret_key"], wanted["timeout_s"])
            door = Page(Api(wanted["page_url"], timeout_s=wanted["timeout_s"]).with_key(token), wanted["model"])
            page = bench.ask(door, "asking through the chat page")
        sweep = [bench.sweep(engine, users) for users in wanted["concurrency"] if users <= facts["slots"]]
    except DatabaseError as error:
        progress.finish(failed=True)
        module.fail_json(msg=f"the chat page cannot be asked, because of its database: {error}")
    except (AnswerError, ApiError) as error:
        progress.finish(failed=True)
        module.fail_json(
            msg=f"{error}" if isinstance(error, AnswerError) else f"the server cannot be asked: {error}. {log}"
        )
    result = {
        "schema": SCHEMA,
        "measured_unix_s": round(time.time()),
        "subject": subject,
        "question": asked,
        "page": page,
        "sweep": sweep,
    }
    if slow := too_slow(result, last, wanted["at_least"]):
        progress.finish(failed=True)
        module.fail_json(
            msg=f"{wanted['engine']} {slow}. Remedy: see whether something else keeps the host busy", result=result
        )
    keep(results, result)
    progress.finish()
    module.exit_json(changed=True, measured=True, result=result)


if __name__ == "__main__":
    main()
