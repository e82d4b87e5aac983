"""The verbs, and where each is written.

The module of a verb is imported when the verb is called, so that `plan` need not wait for Ansible and ssh.
"""

from __future__ import annotations

import importlib
import os
from typing import Any, Final, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from r1prov import output
from r1prov.cli import empty
from r1prov.cli.command import App
from r1prov.common.errors import Exit, Problem

MARKUP: Final = "markdown"

COMPLETING = "_R1PROV_COMPLETE"
"""The variable with which Typer's scripts ask what the shell may offer."""

VERBS = {
    "up": ("up:up", "Set up servers, or repair what has drifted. Run it again at any time."),
    "plan": (
        "planning:plan",
        "Say where the model would lie on a kind of server, how long people would wait, and what the rule of thumb would do there.",
    ),
    "explain": (
        "planning:explain",
        "Say what llama-server would take with these arguments on each card and in RAM, whether that fits, and how long people would wait.",
    ),
    "render": (
        "render:render",
        "Write the inventory that `ansible-playbook -i DIR playbooks/up.yml` runs. Contacts no host.",
    ),
    "profiles": ("look:profiles", "List the kinds of servers, or print one of them."),
    "sources": (
        "look:sources",
        "List every address from which hosts may fetch something, and who says it: the site file, a preset of it, or r1prov.",
    ),
    "status": (
        "look:status",
        "Read from the hosts what is installed, running and healthy. Exit code 8 where a service does not answer, 4 where a host does not.",
    ),
    "drift": (
        "drift:drift",
        "Say what `up` would change on servers, and change nothing. Exit code 11: something differs; 12: that could not be told.",
    ),
    "history": (
        "history:history",
        "Say which runs changed hosts: who, when, from where, from what to what, what was mended, and how each ended.",
    ),
    "ask": ("ask:ask", "Ask a running server. The answer goes to stdout, what the model thinks before it to stderr."),
    "open": (
        "open_:open_",
        "Open a tunnel to the chat page and the API, and say who logs in how. Ctrl-C closes it.",
    ),
    "engine": (
        "switch:engine",
        "Let another engine hold the model, on every host of the site; the chat page follows.",
    ),
    "bench": (
        "bench:bench",
        "Measure the running servers: rates beside the published figures, and the time to the first token beside the plan's.",
    ),
    "by-hand": (
        "by_hand:by_hand",
        "Print the guide's command line for a host, in today's spelling. Contacts no host, and runs nothing. Exit code 5: it does not fit.",
    ),
    "tune": (
        "tune:tune",
        "Try threads, batches, slots, a tensor more or less and repacking around the plan, and serve with the best for the workload.",
    ),
    "upgrade": (
        "upgrade:upgrade",
        "Bring hosts to other versions, one after the other. Builds beside what runs; each host pauses only to load the model again.",
    ),
    "rollback": (
        "rollback:rollback",
        "Bring hosts back to the versions that they served well with before the last upgrade, one after the other.",
    ),
    "drain": (
        "drain:drain",
        "Let engines get no new requests, and wait until their answers in flight have ended. This holds until `r1prov undrain`.",
    ),
    "undrain": ("drain:undrain", "Let engines get requests again, as soon as they answer."),
    "down": (
        "down:down",
        "Remove units, users and files of r1prov. Asks before weights and chats go; packages of the distribution stay.",
    ),
    "weights": (
        "weights:app",
        "A model's files: look at them on the hosts, verify and prune them; by hand, bring them into MLA form and compare two of them.",
    ),
    "keys": ("keys:app", "The keys of the API by name. The gateway's balancer knows them."),
    "secrets": ("switch:secrets", "The secrets of a site."),
    "lab": ("lab:app", "Throwaway hosts on this machine: real systemd or none, real ssh. Needs root."),
}
"""For each verb the function or group in `r1prov.cli` that does it, and the first line of its help."""

PASSING_ON = {"explain"}
"""Verbs whose arguments are those of another program."""


class Verbs(TyperGroup):
    """The group of all VERBS."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, (_, what) in VERBS.items():
            self.commands[name] = _Verb(name, callback=None, help=what, rich_markup_mode=MARKUP)

    def main(self, *arguments: Any, **settings: Any) -> NoReturn:
        """Run a command line. Typer itself would show what is wrong with it in a frame, which breaks a long path.

        Raises:
            SystemExit: always.
        """
        try:
            code = super().main(*arguments, **settings | {"prog_name": "r1prov", "standalone_mode": False})
        except TyperException as error:
            if what := error.format_message().replace("Value error, ", ""):  # It is empty where the help was asked for.
                context: typer.Context | None = getattr(error, "ctx", None)
                path = context.command_path if context else "r1prov"
                output.problems([Problem(path, what, f"`{path} --help` says what it takes")])
            raise SystemExit(error.exit_code) from error
        except typer.Abort:
            output.say("Stopped.", "yellow")
            raise SystemExit(Exit.INTERRUPTED) from None
        raise SystemExit(code or Exit.OK)


class _Verb(TyperCommand):
    """A verb that is not imported yet. It has a name and the first line of its help."""

    def make_context(self, info_name: str | None, *rest: Any, **more: Any) -> Any:
        assert self.name  # noqa: S101 - for the type checker: it is made with one
        if COMPLETING in os.environ:
            empty.import_no_doing()
        return command(self.name).make_context(info_name, *rest, **more)


def command(verb: str) -> Any:
    """The command of a verb, imported now."""
    module, _, name = VERBS[verb][0].partition(":")
    found = getattr(importlib.import_module(f"r1prov.cli.{module}"), name)
    if isinstance(found, typer.Typer):
        return typer.main.get_group(found)
    alone = App(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=MARKUP)
    # Arguments for another program may look like options of the verb.
    passes_on = {"ignore_unknown_options": True} if verb in PASSING_ON else None
    alone.command(verb, context_settings=passes_on)(found)
    return typer.main.get_command(alone)
