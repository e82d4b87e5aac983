#!/usr/bin/python
"""Ansible module r1.prov.smoke_bench: one real question to the running server, and how fast it is."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: smoke_bench
short_description: Asks a running llama-server a question, judges the answer and measures the rates
description:
  - Asks one question, judges the answer, then measures prompt and decode rates with one and several users at once. The rates are the
    server's own.
  - A run that changed nothing measures nothing. What was measured before is returned when the command line, the release, the model's
    file, the question and the measurement are the same.
  - The result is C(last.json) in I(results), the one before C(previous.json).
options:
  url:
    description: Where the server answers, without a path.
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
  unit:
    description: The server's systemd unit, without C(.service). Its command line is kept in the result.
    type: str
    default: r1prov-llama-server
  release:
    description: The llama.cpp that serves, a folder or a link to one. Its name is kept in the result.
    type: path
    default: /opt/r1prov/llama.cpp/current
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
from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils.answer import fault, thinking_apart
from ansible_collections.r1.prov.plugins.module_utils.llama_api import Api, ApiError
from ansible_collections.r1.prov.plugins.module_utils.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMA = 1
_SEED = 3407
_TEMPERATURE = 0.6  # what DeepSeek recommends for R1: with 0 it tends to repeat itself
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


def describe(wanted: dict, props: dict, command: str, release: str) -> dict:
    """What is measured: everything that, when it changes, makes an old measurement a measurement of something else."""
    model = Path(props["model_path"])
    status = model.stat() if model.exists() else None
    return {
        "release": release,
        "build": props["build_info"],
        "model": str(model),
        "model_file": [status.st_size, status.st_mtime_ns] if status else None,
        "context_per_slot": props["default_generation_settings"]["n_ctx"],
        "slots": props["total_slots"],
        "command": command,
        "declared": wanted["subject"],
    }


def command_line(unit_file: str) -> str:
    """The ExecStart of a unit file, on one line."""
    match = re.search(r"^ExecStart=((?:.*\\\n)*.*)$", unit_file, re.MULTILINE)
    return " ".join(match[1].replace("\\\n", " ").split()) if match else ""


def digest(subject: dict, wanted: dict) -> str:
    """Identifies a subject and how it is measured."""
    how = {key: wanted[key] for key in ("question", "expect", "max_tokens", "concurrency", "sweep_tokens")}
    return hashlib.sha256(json.dumps([SCHEMA, subject, how], sort_keys=True).encode()).hexdigest()


def mean(values: list) -> float:
    return sum(values) / len(values)


class Bench:
    """The measurement of one server."""

    def __init__(self, api: Api, wanted: dict, context: int, progress: Progress) -> None:
        self._api = api
        self._wanted = wanted
        self._context = context
        self._progress = progress

    def ask(self) -> dict:
        """One question in a chat, as a user would.

        Raises:
            AnswerError: the answer is none.
        """
        limit = self._wanted["max_tokens"]
        self._progress.begin("answering", limit, "steps")
        body = {
            "model": self._wanted["model"],
            "messages": [{"role": "user", "content": self._wanted["question"]}],
            "max_tokens": limit,
            "temperature": _TEMPERATURE,
            "seed": _SEED,
            "cache_prompt": False,
        }
        content, reasoning, finish, timings, first = "", "", "", {}, None
        started = time.monotonic()
        tokens = 0
        for event in self._events("/v1/chat/completions", body, started):
            timings = event.get("timings") or timings
            for choice in event.get("choices", [])[:1]:
                delta = choice.get("delta", {})
                content += delta.get("content") or ""
                reasoning += delta.get("reasoning_content") or ""
                finish = choice.get("finish_reason") or finish
                if delta.get("content") or delta.get("reasoning_content"):
                    first = first or time.monotonic()
                    tokens += 1
                    self._progress.update(tokens)
        answer, thinking = thinking_apart(content, reasoning)
        if wrong := fault(answer, thinking, finish, self._wanted["expect"]):
            said = answer or thinking
            raise AnswerError(f"asked {self._wanted['question']!r}, the model said {said[:_EXCERPT]!r}: {wrong}")
        return {
            "asked": self._wanted["question"],
            "answer": answer,
            "thinking": thinking,
            "finish_reason": finish,
            "prompt_tokens": timings["prompt_n"],
            "decode_tokens": timings["predicted_n"],
            "time_to_first_token_s": round((first or time.monotonic()) - started, 3),
            "prompt_tokens_per_second": round(timings["prompt_per_second"], 2),
            "decode_tokens_per_second": round(timings["predicted_per_second"], 2),
            "wall_s": round(time.monotonic() - started, 3),
        }

    def sweep(self, users: int) -> dict:
        """So many users at once, each with a prompt of its own and the same number of tokens to decode."""
        tokens = min(self._wanted["sweep_tokens"], self._context // 2)
        label = "measuring one user" if users == 1 else f"measuring {users} users at once"
        self._progress.begin(label, users * tokens, "steps")
        counts = [0] * users
        prompts = [self._prompt(user, self._context - tokens) for user in range(users)]

        def one(user: int) -> dict:
            body = {
                "prompt": prompts[user],
                "n_predict": tokens,
                "ignore_eos": True,
                "temperature": _TEMPERATURE,
                "seed": _SEED + user,
                "cache_prompt": False,
            }
            first, timings = None, {}
            for event in self._events("/completion", body, started):
                first = first or time.monotonic()
                counts[user] += 1
                timings = event.get("timings") or timings
                if user == 0:
                    self._progress.update(sum(counts))
            return {"first": first, "last": time.monotonic(), **timings}

        started = time.monotonic()
        with ThreadPoolExecutor(users) as pool:
            runs = list(pool.map(one, range(users)))
        decoding_s = max(run["last"] for run in runs) - min(run["first"] for run in runs)
        return {
            "users": users,
            "prompt_tokens": sum(run["prompt_n"] for run in runs),
            "decode_tokens": sum(run["predicted_n"] for run in runs),
            "time_to_first_token_s": round(mean([run["first"] - started for run in runs]), 3),
            "prompt_tokens_per_second_each": round(mean([run["prompt_per_second"] for run in runs]), 2),
            "decode_tokens_per_second_each": round(mean([run["predicted_per_second"] for run in runs]), 2),
            "decode_tokens_per_second_total": round(sum(run["predicted_n"] for run in runs) / decoding_s, 2),
            "wall_s": round(time.monotonic() - started, 3),
        }

    def _prompt(self, user: int, limit: int) -> list[int]:
        """The tokens of a user's prompt, no more than fit: a tokenizer may make many of it, a context may be small."""
        body = {"content": f"{user}. {_TEXT}", "add_special": True}
        return self._api.post("/tokenize", body)["tokens"][:limit]

    def _events(self, path: str, body: dict, started: float) -> Iterator[dict]:
        limit_s = self._wanted["timeout_s"]
        for event in self._api.stream(path, body):
            if time.monotonic() - started > limit_s:
                raise ApiError(
                    f"{path} took longer than {limit_s} s. Raise smoke_bench_timeout_s if this server is that slow"
                )
            yield event


def keep(folder: Path, result: dict) -> None:
    """Writes the result; the one before stays beside it, to compare with."""
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / "last.json"
    temporary = folder / ".last.json.new"
    temporary.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if last.exists():
        last.replace(folder / "previous.json")
    temporary.replace(last)


def read_result(file: Path) -> dict:
    """An earlier result; empty where there is none that this version can read."""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return result if result.get("schema") == SCHEMA else {}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
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
            "unit": {"type": "str", "default": "r1prov-llama-server"},
            "release": {"type": "path", "default": "/opt/r1prov/llama.cpp/current"},
            "force": {"type": "bool", "default": False},
            "results": {"type": "path", "default": "/var/lib/r1prov/smoke_bench"},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    results = Path(wanted["results"])
    last = read_result(results / "last.json")
    log = f"Look at its log: journalctl -u {wanted['unit']}"
    try:
        api = Api(wanted["url"], wanted["api_key_file"], wanted["timeout_s"])
        props = api.get("/props")
    except ApiError as error:
        if module.check_mode:
            module.exit_json(changed=True, measured=False, result=last, msg=f"nothing to ask yet: {error}")
        module.fail_json(msg=f"the server cannot be asked: {error}. {log}")
    unit_file = Path(f"/etc/systemd/system/{wanted['unit']}.service")
    command = command_line(unit_file.read_text(encoding="utf-8")) if unit_file.exists() else ""
    subject = describe(wanted, props, command, os.path.basename(os.path.realpath(wanted["release"])))  # noqa: PTH119
    subject["digest"] = digest(subject, wanted)
    if not wanted["force"] and last and last["subject"]["digest"] == subject["digest"]:
        module.exit_json(changed=False, measured=False, result=last)
    if module.check_mode:
        module.exit_json(changed=True, measured=False, result=last)
    progress = Progress("smoke_bench")
    bench = Bench(api, wanted, props["default_generation_settings"]["n_ctx"], progress)
    try:
        asked = bench.ask()
        sweep = [bench.sweep(users) for users in wanted["concurrency"] if users <= props["total_slots"]]
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
        "sweep": sweep,
    }
    keep(results, result)
    progress.finish()
    module.exit_json(changed=True, measured=True, result=result)


if __name__ == "__main__":
    main()
