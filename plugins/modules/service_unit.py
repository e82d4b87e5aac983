#!/usr/bin/python
"""Ansible module r1.prov.service_unit: one systemd service, from its unit file to a process that runs what the file says."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_unit
short_description: Brings one systemd service to its declared state, in one round trip
description:
  - Stock Ansible cannot do it, because it restarts a service only in the run that changed a file, and does not say why a start failed.
  - Writes the unit file and credentials, reloads systemd, enables and starts, or restarts when the unit file, a credential or the
    program is not what the running process was started with. What that was is remembered in
    C(/var/lib/r1prov/service/NAME.started), so a run that was cut off anywhere between writing and restarting is made good by the
    next one. A process of a program behind a link is also asked itself, because systemd or a person may have started it meanwhile.
  - Removes a credential that the unit file named and that is no longer given to the service.
  - Looks for what else changes the unit, such as a drop-in, a second unit file, a link of another unit, or another mode of its file, and
    whether its processes have the arguments, the environment, the user, the groups and the network that are declared. It removes what is
    not declared and restarts a process that differs, one that is stopped by a signal, and one that does not answer.
  - Waits until the start has succeeded or failed. A failure tells the last lines of the service's log and what to do next.
author: The r1prov team
options: {
  "name": {"type": "str", "required": true, "description": "The unit, without C(.service)."},
  "content": {"type": "str", "required": true, "description": "The unit file."},
  "socket": {"type": "str", "default": "", "description": "The text of the unit C(NAME.socket), which holds the service's listening
      socket, is enabled and started before the service, and stays. Empty for none."},
  "timer": {"type": "str", "default": "", "description": "The text of the unit C(NAME.timer), which starts the service now and then. It is
      enabled and started, whatever I(state) says. Empty for none."},
  "state": {"type": "str", "default": "started", "choices": ["started", "stopped", "installed"], "description": "C(started) is enabled and
      running, C(stopped) neither, C(installed) leaves alone whether it runs."},
  "credentials_dir": {"type": "path", "default": "", "description": "Folder for I(credentials)."},
  "credentials": {"type": "dict", "default": {}, "description": "Secrets that the service reads at its start, written to files that only
      root may read. File name -> text. In check mode a digest of C(look_arguments) will do."},
  "programs": {"type": "list", "elements": "path", "default": [], "description": "Files that the service runs. When one is another file
      than at the last start, links followed, the service restarts."},
  "configuration": {"type": "list", "elements": "path", "default": [], "description": "Files that the service reads again when it is told
      to reload. When one is another than before, it is told."},
  "ports": {"type": "list", "elements": "int", "default": [], "description": "TCP ports it listens on, in its network. When it does not
      start, another process that holds one is named."},
  "load_step": {"type": "str", "default": "", "description": "While it starts, what it has read is shown as the progress of this step.
      Empty for no progress."},
  "load_bytes": {"type": "int", "default": 0, "description": "How much it reads before it is ready."},
  "process": {"type": "dict", "description": "What its main process must have. Left out, no process is looked at.", "suboptions": {
    "argv": {"type": "list", "elements": "str", "required": true, "description": "Program and arguments."},
    "environment": {"type": "dict", "default": {}, "description": "Variables."},
    "sourced": {"type": "bool", "default": false, "description": "Whether a script sets more variables."},
    "own_variables": {"type": "str", "default": "", "description": "How the names of variables begin that the program gives itself."},
    "user": {"type": "str", "required": true, "description": "The user, with the group of the same name."},
    "groups": {"type": "list", "elements": "str", "default": [], "description": "Other groups."},
    "network": {"type": "path", "description": "The file of the network namespace that it is in. Left out, that is not looked at."},
    "inputs": {"type": "list", "elements": "path", "default": [], "description": "Files whose old content it must not keep in memory."}
  }},
  "ready_url": {"type": "str", "default": "", "description": "A service that runs and does not answer here is restarted. Empty for none."},
  "state_directory": {"type": "path", "description": "A folder that is its user's alone (0700), where it is there."},
  "remedies": {"type": "list", "elements": "dict", "default": [], "description": "What to say when a program fails. The first remedy whose
      pattern is found in the program's words is shown.", "suboptions": {
    "pattern": {"type": "str", "required": true, "description": "Regular expression."},
    "remedy": {"type": "str", "required": true, "description": "What to do next."}
  }}
  }
"""

EXAMPLES = r"""
- name: Run the exporter
  r1.prov.service_unit:
    name: exporter
    content: "{{ lookup('ansible.builtin.template', 'exporter.service.j2') }}"
"""

RETURN = r"""
actions:
  type: list
  elements: str
  returned: success
  description: "What was done, or would be, e.g. C(wrote the unit file), C(restarted)."
differences: {type: list, elements: str, returned: success, description: "What is not as it should be, in a sentence each."}
look_arguments: {type: dict, returned: always, description: The options, with salted digests in place of the credentials.}
drift:
  type: list
  elements: str
  returned: always
  description: What somebody else has changed since the last start of ours, in a sentence each. Nothing where a first run installs.
unit: {type: str, returned: success, description: "The unit's name."}
start_s:
  type: float
  returned: success
  description: Seconds that a start or restart took until the service was ready; 0 where there was none.
log: {type: list, elements: str, returned: failure, description: The last lines of the log of a start that failed.}
"""

import functools
import grp
import hashlib
import os
import re
import stat
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.r1.prov.plugins.module_utils import (
    account_look,
    elsewhere,
    listening,
    liveness,
    process_look,
    remedies,
    unit_look,
    units,
)
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments
from ansible_collections.r1.prov.plugins.module_utils.difference import Difference, owner_and_mode, owner_and_mode_of
from ansible_collections.r1.prov.plugins.module_utils.files import give, give_within, text_of, write_whole
from ansible_collections.r1.prov.plugins.module_utils.host_probe import as_owner_of, probe
from ansible_collections.r1.prov.plugins.module_utils.progress import Progress
from ansible_collections.r1.prov.plugins.module_utils.secret import same, without_secrets

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_READY = "/usr/local/lib/r1prov-await-ready"
_IDLE_LIMIT_S = 20
_BUSY_LIMIT_S = 120
"""How long a service may take to answer, the latter where it computes meanwhile."""
_LOG_LINES = 15
_WATCHED = ("r1prov-llama-server", "r1prov-ollama")
"""The engines. A watcher looks whether the one that holds the model lives."""
_OPENED = "opened the socket"
_RELOADED = "reloaded systemd"
_WRONG = {
    "wrote the unit file": "its unit file is not as it should be",
    "wrote the socket's unit file": "the unit file of its socket is not as it should be",
    "wrote the timer's unit file": "the unit file of its timer is not as it should be",
    "enabled": "it would not start with the host",
    "enabled the socket": "its socket would not open with the host",
    "enabled the timer": "its timer would not start with the host",
    _OPENED: "its socket is closed",
    "started the timer": "its timer does not run",
    _RELOADED: "systemd has not read its files as they are now",
    "started": "it does not run",
    "restarted": "it was started with something else than is there now",
    "reloaded": "it has not read its configuration again",
    "thawed": "it is frozen",
    "disabled": "it would start with the host, and should not",
    "stopped": "it runs, and should not",
}
"""What is wrong where something has to be done."""
_KEYS = (
    "ActiveState",
    "SubState",
    "UnitFileState",
    "NeedDaemonReload",
    "ControlGroup",
    "Result",
    "InvocationID",
    "MainPID",
    "DropInPaths",
    "FragmentPath",
    "FreezerState",
)


_BESIDE_KEYS = ("ActiveState", "UnitFileState", "NeedDaemonReload", "DropInPaths", "FragmentPath")
"""What is asked of a socket or a timer, which stand beside a service under its name."""


def look_ahead(asked: list[dict[str, Any]]) -> None:
    """Reads at once what is asked of many units next, where none of them is changed."""
    beside = [f"{each['name']}.{kind}" for each in asked for kind in ("socket", "timer") if each.get(kind)]
    units.look_ahead([*(f"{each['name']}.service" for each in asked), *beside], *_KEYS)
    unit_look.look_ahead()
    if any(each.get("socket") for each in asked):
        listening.look_ahead()


class Service:
    """One service on this host: what is wanted, what is there."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        self.wanted = parameters
        self.unit = f"{parameters['name']}.service"
        self.file = unit_look.OURS / self.unit
        self.socket = f"{parameters['name']}.socket" if parameters["socket"] else ""
        self.timer = f"{parameters['name']}.timer" if parameters["timer"] else ""
        self.remembered = units.started(self.unit)
        folder = Path(parameters["credentials_dir"])
        self.credentials = {folder / name: str(content) for name, content in parameters["credentials"].items()}
        self.before = text_of(self.file)
        self.now = self._show()
        self.start_s = 0.0
        self.found = unit_look.look(self.unit, self.now.get("DropInPaths", "").split())
        self.found += self._own_changed() + self._state_differences()
        self.found += _unread(self.unit, self.now, self.found, is_as_wanted=self.before == self.wanted["content"])
        self.inherited = units.environment_names()
        self.own = [*unit_look.administrators(self.unit), *unit_look.variables(self.inherited)]

    def _show(self) -> dict[str, Any]:
        return units.show(self.unit, *_KEYS)

    def _inputs(self) -> list[str]:
        """Identifies the files that a start reads, then those that a reload reads too, where there are any."""
        both = (self.file, *self.credentials, *self.wanted["programs"]), self.wanted["configuration"]
        return [_identity(files) for files in both if files]

    def _known(self) -> tuple[list[str], str]:
        """What `_inputs` said at the last start of ours, and which invocation of the unit that start was to end."""
        lines = [*text_of(self.remembered).splitlines(), "", ""]
        return lines[0].split(), lines[1].strip()

    def _has_other_inputs(self) -> bool:
        """Whether what a start reads is something else than at the last start of ours."""
        return self._known()[0][:1] != self._inputs()[:1]

    def _known_files(self) -> str:
        """What `_identity` said of the files that r1prov writes, when the last start of ours began."""
        return "".join(text_of(self.remembered).splitlines()[2:3])

    def _own_files(self) -> str:
        """Identifies the unit file and the secrets that it names, as they are now."""
        return _identity((self.file, *self._named(text_of(self.file))))

    def _named(self, unit_file: str) -> list[Path]:
        """The secrets in the service's folder that a unit file names."""
        named = re.findall(r"^(?:LoadCredential=[^:]+:|EnvironmentFile=)(/.+)$", unit_file, re.MULTILINE)
        return [path for path in map(Path, named) if path.parent == Path(self.wanted["credentials_dir"])]

    def _former_credentials(self) -> list[Path]:
        """The secrets that the unit file names and that are no longer given to the service, as a key where another one takes its place."""
        return [path for path in self._named(self.before) if path not in self.credentials]

    def _own_changed(self) -> list[Difference]:
        """The unit file and credentials that somebody has changed. What r1prov itself wants to have changed does not count."""
        others = self._known_files() not in ("", self._own_files())
        former = [self.file, *self._named(self.before)]
        found = []
        written: list[tuple[Path, str]] = [(self.file, self.wanted["content"]), *self.credentials.items()]
        for path, content in written:
            has = "is gone" if not path.exists() else "has other content than r1prov gave it"
            if not same(text_of(path), content):
                if others and (path in former or path.exists()):
                    found.append(Difference("file", str(path), "", has, f"{path} {has}"))
            elif path != self.file and not _is_root_only(path):
                said = f"{path} has owner and mode {_owner(path)}, and should have 0:0 0600"
                found.append(Difference("mode", str(path), "0:0 0600", _owner(path), said))
        return found

    def _state_differences(self) -> list[Difference]:
        """What somebody has done to a service that the last run left running."""
        if self.wanted["state"] != "started" or not self.remembered.exists():
            return []
        found = []
        if units.is_frozen(self.unit):
            found.append(Difference("state", self.unit, "running", "frozen", f"{self.unit} is frozen"))
        if self.now["ActiveState"] in ("inactive", "failed"):
            why = ": it stood still again and again, and r1prov-liveness has stopped it" if self._was_given_up() else ""
            said = f"{self.unit} does not run{why}"
            found.append(Difference("state", self.unit, "active", self.now["ActiveState"], said))
        if self.now["UnitFileState"] not in ("enabled", "masked", "bad", ""):
            found.append(
                Difference("state", self.unit, "enabled", "disabled", f"{self.unit} does not start when the host boots")
            )
        return found

    def _was_given_up(self) -> bool:
        """Whether this is the engine, and its watcher has stopped it for good."""
        return self.wanted["name"] in _WATCHED and liveness.has_given_up()

    def _process_differences(self) -> list[Difference]:
        """How its processes differ from what is declared."""
        wanted = self.wanted["process"]
        if (
            not wanted
            or self.wanted["state"] != "started"
            or self.now["ActiveState"] != "active"
            or self.now.get("MainPID", "0") == "0"
        ):
            return []
        secret = self.credentials and next(iter(self.credentials)).parent / "environment"
        declared = process_look.Declared(
            argv=[str(word) for word in wanted["argv"]],
            environment={name: str(value) for name, value in wanted["environment"].items()},
            secret=re.findall(r"^(\w+)=", text_of(secret), re.MULTILINE) if secret else [],
            any_environment=wanted["sourced"],
            own_variables=wanted["own_variables"],
            user=wanted["user"],
            groups=[
                grp.getgrnam(name).gr_gid
                for name in wanted["groups"]
                if name in {each.gr_name for each in grp.getgrall()}
            ],
            network=Path(wanted["network"]) if wanted["network"] else None,
            data=wanted["inputs"],
            replaced=wanted["inputs"] if self._has_other_inputs() else [],
            unit_file=self.wanted["content"],
            group=self.now["ControlGroup"],
        )
        found = process_look.look(
            self.unit, self.now["MainPID"], units.processes(self.unit), declared, inherited=self.inherited
        )
        return found if found or units.is_frozen(self.unit) else self._hung()

    def _hung(self) -> list[Difference]:
        """Whether it does not answer. One that computes gets more time, because it may be busy with the answers to many people."""
        url = self.wanted["ready_url"]
        if not url or not os.access(_READY, os.X_OK):
            return []
        began, used, limit_s = time.monotonic(), units.cpu_seconds(self.unit), _IDLE_LIMIT_S
        pid = self.now["MainPID"]
        # Without systemd all services are in the network of the host, and this process may not enter that of another one.
        network = Path("/proc") / (pid if units.by_systemd() else "self") / "ns" / "net"
        asking = elsewhere.Running(network, _READY, url, MAINPID=pid)
        while not asking.ends_within(limit_s):
            waited = time.monotonic() - began
            if waited < _BUSY_LIMIT_S - 1 and units.cpu_seconds(self.unit) - used > waited / 10:
                limit_s = _BUSY_LIMIT_S - _IDLE_LIMIT_S
                continue
            asking.kill()
            said = f"{self.unit} runs and has not answered at {url} for {waited:.0f} s"
            return [Difference("hung", self.unit, "an answer", "none", said)]
        return []

    def _is_stale(self) -> bool:
        """Whether the process, if there is one, was started with something else than what is there now."""
        if self._has_other_inputs():
            return True
        ended = self._known()[1]
        if self.now["ActiveState"] == "active" and ended and ended == self.now.get("InvocationID"):
            return True  # The restart was remembered, and a run that was cut off did not come to it.
        return self.now.get("MainPID", "0") != "0" and any(
            not _runs_from(self.now["MainPID"], Path(os.path.realpath(program)).parent)
            for program in self.wanted["programs"]
            if os.path.realpath(program) != program
        )

    def actions(self) -> dict[str, Any]:
        """What has to be done, by the name it is reported under, in order."""
        todo: dict[str, Any] = {}
        written = self.before != self.wanted["content"] or self.file.is_symlink()
        todo |= self._removals(self.found, self.file)
        removed = any(name.startswith("removed") for name in todo)
        # Only the unit file that is replaced below names these secrets, so they are removed before it.
        todo |= {f"removed {path}": functools.partial(_remove, path) for path in self._former_credentials()}
        if written:
            todo["wrote the unit file"] = lambda: _write(self.file, self.wanted["content"], 0o644)
        secrets: dict[str, Any] = {}
        for path, content in self.credentials.items():
            if not _is_root_only(path) or not same(text_of(path), content):
                secrets[f"wrote {path}"] = functools.partial(_write, path, content, 0o600)
        todo |= secrets | self._folder_actions()
        stale = written or bool(secrets) or self._is_stale() or self._read_others()
        if self.before == self.wanted["content"]:
            differs = self._process_differences()
            self.found += differs
            stale = stale or bool(differs)
        socket = self._socket_actions() if self.socket else {}
        timer = self._timer_actions() if self.timer else {}
        beside = socket | timer
        todo |= {name: act for name, act in beside.items() if name.startswith(("wrote", "removed"))}
        is_unread = self.now["NeedDaemonReload"] == "yes" or any(each.kind == "unread" for each in self.found)
        if written or removed or todo.keys() & beside.keys() or is_unread:
            todo[_RELOADED] = lambda: units.systemctl("daemon-reload")
        # The timer comes last, so that it starts nothing that this run starts itself.
        return todo | socket | self._state_actions(written=written, stale=stale, reopened=_OPENED in socket) | timer

    def differences(self, actions: Iterable[str]) -> list[str]:
        """What is wrong: what a look has found, or else what has to be done."""
        if self.found:
            return list(dict.fromkeys(map(str, self.found)))
        # Where there is something else to be done, systemd reads its files again because of that.
        wrong = [action for action in actions if action != _RELOADED] or actions
        said = [_WRONG.get(each) or _wrong(each) for each in wrong]
        return [f"{self.unit}: {each}" for each in said]

    def _read_others(self) -> bool:
        """Whether systemd may have started a process with something else under the unit's name.

        What it has not read yet goes before it can. What a unit without a process has made is looked at where it lies. To start such a
        unit again would restart all that needs it, also those services from which what changes them was not removed yet.
        """
        if self.now["SubState"] == "exited":
            return False
        read = {*self.now.get("DropInPaths", "").split(), self.now.get("FragmentPath", "")}
        return any(each.place in read for each in self.found if each.kind in ("drop-in", "unit elsewhere"))

    def _removals(self, found: list[Difference], file: Path) -> dict[str, Any]:
        """What has to be done about what a look at a unit has found."""
        todo: dict[str, Any] = {}
        for each in found:
            path = Path(each.place)
            if each.kind in ("drop-in", "unit elsewhere") or (each.kind == "link" and path != file):
                todo[f"removed {path}"] = functools.partial(_remove, path)
            elif each.kind == "wanted":
                todo[f"led {path} to the unit"] = functools.partial(_lead, path, file)
            elif each.kind == "mode" and path == file:
                todo[f"gave {path} back to root"] = functools.partial(_give_back, path)
        return todo

    def _folder_actions(self) -> dict[str, Any]:
        """What has to be done so that the service's folder is its user's alone."""
        folder, process = self.wanted["state_directory"], self.wanted["process"]
        if not folder or not process or not Path(folder).exists():
            return {}
        path, user = Path(folder), process["user"]
        try:
            uid, gid = account_look.own_uid(user), grp.getgrnam(user).gr_gid
        except KeyError:
            return {}
        wanted, has = owner_and_mode(uid, gid, 0o700), _owner(path)
        others = [] if has != wanted else list(_others(path, uid))
        if has == wanted and not others:
            return {}
        said = f"{folder} has owner and mode {has}, and should have {wanted}" if has != wanted else ""
        more = f", nor do {len(others) - 1} more" if len(others) > 1 else ""
        said = said or f"{folder}/{others[0]} does not belong to {user}{more}"
        # Another user is a new wish, as where another engine is measured next.
        if f"User={user}" in self.before.splitlines():
            self.found.append(Difference("mode", folder, wanted, has, said))
        return {f"gave {folder} back to {user}": lambda: self._give_all(path, user)}

    @staticmethod
    def _give_all(folder: Path, user: str) -> None:
        """Gives a service its folder and what lies in it."""
        give(folder, user, 0o700)
        give_within(folder, user)

    def _socket_actions(self) -> dict[str, Any]:
        """What has to be done so that systemd holds the service's socket."""
        shut = listening.closed(self.wanted["socket"])
        todo = self._beside_actions("socket", is_dead=bool(shut), dead="does not hold its port", off="does not open")
        return {_OPENED if name == "started the socket" else name: act for name, act in todo.items()}

    def _timer_actions(self) -> dict[str, Any]:
        """What has to be done so that the service's timer runs."""
        return self._beside_actions("timer", is_dead=False, dead="does not run", off="does not start")

    def _beside_actions(self, kind: str, *, is_dead: bool, dead: str, off: str) -> dict[str, Any]:
        """What has to be done so that a unit beside the service is as it is declared, enabled and active.

        Args:
            kind: `socket` or `timer`, which is also the option with its text.
            is_dead: whether it counts as inactive, whatever systemd says of it.
            dead: what to say of it where it is inactive.
            off: what to say of it where it is not enabled.
        """
        todo: dict[str, Any] = {}
        unit, content = f"{self.wanted['name']}.{kind}", self.wanted[kind]
        file = unit_look.OURS / unit
        now = units.show(unit, *_BESIDE_KEYS)
        found = unit_look.look(unit, now.get("DropInPaths", "").split())
        self.found += found
        self.own += unit_look.administrators(unit)
        read = {*now.get("DropInPaths", "").split(), now.get("FragmentPath", "")}
        todo |= self._removals(found, file)
        before = text_of(file)
        is_dead = is_dead or now["ActiveState"] != "active"
        if self.remembered.exists():
            if before != content:
                said = f"{file} is gone" if not before else f"{file} has other content than r1prov gives it"
                self.found.append(Difference("file", str(file), "", "", said))
            self.found += _unread(unit, now, found, is_as_wanted=before == content)
            if is_dead:
                self.found.append(Difference("state", unit, "active", now["ActiveState"], f"{unit} {dead}"))
            if now["UnitFileState"] != "enabled":
                said = f"{unit} {off} when the host boots"
                self.found.append(Difference("state", unit, "enabled", now["UnitFileState"], said))
        if before != content or file.is_symlink():
            todo[f"wrote the {kind}'s unit file"] = lambda: _write(file, content, 0o644)
        if now["UnitFileState"] != "enabled":
            todo[f"enabled the {kind}"] = lambda: units.systemctl("enable", "--quiet", unit)
        reread = any(each.place in read for each in found)
        if is_dead or reread or f"wrote the {kind}'s unit file" in todo:
            todo[f"started the {kind}"] = functools.partial(self._start_beside, unit)
        return todo

    def _state_actions(self, *, written: bool, stale: bool, reopened: bool) -> dict[str, Any]:
        """What has to be done so that the service is in its state."""
        todo: dict[str, Any] = {}
        if units.is_frozen(self.unit):
            todo["thawed"] = lambda: units.thaw(self.unit)
        if self.wanted["state"] == "started":
            if self.now["UnitFileState"] != "enabled":
                todo["enabled"] = lambda: units.systemctl("enable", "--quiet", self.unit)
            if self.now["ActiveState"] != "active" or reopened:
                # One that is loading already is waited for, unless it loads the wrong thing; one that failed is not left to its timer.
                again = stale or self.now["SubState"] == "auto-restart"
                todo["started"] = lambda: self._start("restart" if again else "start")
            elif stale:
                todo["restarted"] = lambda: self._start("restart")
            elif self._known()[0] != self._inputs():
                todo["reloaded"] = self._reload
        elif self.wanted["state"] == "stopped":
            if self.now["UnitFileState"] in ("enabled", "enabled-runtime"):
                todo["disabled"] = lambda: units.systemctl("disable", "--quiet", self.unit)
            if self.now["ActiveState"] not in ("inactive", "failed"):
                todo["stopped"] = lambda: units.stop(self.unit)
        return todo

    def _start_beside(self, unit: str) -> None:
        """Starts a socket or a timer anew. systemd does not start a socket whose service runs, so that service is stopped first."""
        units.systemctl("stop", *([self.unit] if unit == self.socket else []), unit)
        units.reset_failed(unit)
        try:
            units.systemctl("start", unit)
        except units.UnitError as error:
            raise ServiceError(str(error), log=units.last_lines(unit, _LOG_LINES)) from error

    def _reload(self) -> None:
        """Lets the service read its configuration again. Where it cannot, because what it has made is gone, it starts again."""
        try:
            units.systemctl("reload", self.unit)
        except units.UnitError:
            self._start("restart")
        else:
            self._remember(self._known()[1])

    def _remember(self, ended: str) -> None:
        _write(self.remembered, f"{' '.join(self._inputs())}\n{ended}\n{self._own_files()}\n", 0o644)

    def _start(self, verb: str) -> None:
        """Starts, and returns when the service is ready."""
        # Before, not after: where this start fails and systemd's next one succeeds, nothing has to be restarted.
        self._remember(self.now.get("InvocationID", ""))
        began = time.monotonic()
        units.reset_failed(self.unit)
        progress = Progress(self.wanted["load_step"]) if self.wanted["load_step"] else None
        with units.job(verb, self.unit) as job:
            if progress:
                progress.begin("loading", self.wanted["load_bytes"], "bytes")
            while True:
                try:
                    job.wait(timeout=0.5)
                    break
                except subprocess.TimeoutExpired:
                    if progress:
                        progress.update(min(self._bytes_read(), self.wanted["load_bytes"]))
            complaint = job.stderr.read().strip() if job.stderr else ""
        ended = self._show()
        # A program that dies right after it was ready makes no failed job.
        failed = job.returncode != 0 or ended["ActiveState"] == "failed" or ended["SubState"] == "auto-restart"
        if progress:
            progress.finish(failed=failed)
        if failed:
            raise ServiceError(complaint, log=units.last_lines(self.unit, _LOG_LINES), result=ended["Result"])
        self.start_s = round(time.monotonic() - began, 1)

    def _bytes_read(self) -> int:
        """How much the busiest of its processes has read, or has in memory of files it maps, whichever is more."""
        return max(map(_bytes_read, units.processes(self.unit)), default=0)

    def explain(self, error: ServiceError) -> str:
        """What went wrong and what to do next."""
        # A door is in the private network, and systemd holds its port on the host.
        network = "" if self.socket else (self.wanted["process"] or {}).get("network") or ""
        listeners = probe(ports=self.wanted["ports"], network=network)["listeners"] if self.wanted["ports"] else []
        own = (self.unit, self.socket) if self.socket else (self.unit,)  # A process may belong to no unit.
        holders = [found for found in listeners if found["unit"] not in own]
        if holders:
            port, who = holders[0]["port"], holders[0]
            by = f"{who['process'] or 'another process'} (pid {who['pid']}{', ' + who['unit'] if who['unit'] else ''})"
            return f"port {port} is taken by {by}. Stop that, or give {self.wanted['name']} another port."
        if known := remedies.first("\n".join(error.log), self.wanted["remedies"]):
            return known
        if error.result == "timeout":
            return "it was not ready within its time limit (TimeoutStartSec). Look at its log; a slow disk needs a longer limit."
        return f"its log says why: {units.in_words('log', self.unit)}"


def _unread(unit: str, now: dict[str, Any], found: list[Difference], *, is_as_wanted: bool) -> list[Difference]:
    """Whether systemd has read a unit otherwise than its files are now, although these are as they should be."""
    if now.get("NeedDaemonReload") != "yes" or not is_as_wanted or any(each.kind == "drop-in" for each in found):
        return []
    return [Difference("unread", unit, "read", "not read", f"{unit}: {_WRONG[_RELOADED]}")]


def _wrong(action: str) -> str:
    """What is wrong where a file has to be removed or written, or a folder given to somebody."""
    verb, path = action.split()[:2]
    return f"{path} is there, and it is no longer given that" if verb == "removed" else f"{path} is not as it should be"


class ServiceError(Exception):
    """The service cannot be brought to its state."""

    def __init__(self, message: str, *, log: list[str] | None = None, result: str = "") -> None:
        super().__init__(message)
        self.log = log or []
        self.result = result


def _identity(files: Iterable[str | Path]) -> str:
    """Tells these files from others. By time stamps, not contents: no digest of a secret is left on the host."""
    digest = hashlib.sha256()
    for path in map(os.path.realpath, files):
        try:
            status = Path(path).stat()
            digest.update(f"{path} {status.st_ino} {status.st_size} {status.st_mtime_ns}\n".encode())
        except FileNotFoundError:
            digest.update(f"{path} none\n".encode())
    return digest.hexdigest()


def _runs_from(pid: str, folder: Path) -> bool:
    """Whether a process runs a program of this folder. A script shows in its interpreter's arguments. A process that is gone counts."""
    process = Path("/proc") / pid
    try:
        with as_owner_of(pid):
            words = [str((process / "exe").readlink()), *(process / "cmdline").read_text(errors="replace").split("\0")]
    except OSError:
        return True
    return any(word.startswith(f"{folder}/") for word in words)


def _bytes_read(pid: str) -> int:
    mapped = re.search(r"^RssFile:\s+(\d+)", text_of(Path(f"/proc/{pid}/status")), re.MULTILINE)
    read = re.search(r"^rchar: (\d+)", text_of(Path(f"/proc/{pid}/io")), re.MULTILINE)
    return max(int(mapped[1]) * 1024 if mapped else 0, int(read[1]) if read else 0)


def _is_root_only(path: Path) -> bool:
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    return (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, 0, 0o600)


def _others(folder: Path, uid: int) -> Iterator[str]:
    """What lies in a folder and belongs to another user."""
    for place, folders, files, descriptor in os.fwalk(folder):
        for name in (*folders, *files):
            with suppress(FileNotFoundError):
                if os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_uid != uid:
                    yield str((Path(place) / name).relative_to(folder))


def _owner(path: Path) -> str:
    try:
        return owner_and_mode_of(path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return "gone"


def _remove(path: Path) -> None:
    """Removes a file or a link, and its folder where nothing else is in that. Somebody may have done so meanwhile."""
    path.unlink(missing_ok=True)
    folder = path.parent
    if folder.is_symlink():
        folder.unlink()
    elif folder.suffix in (".d", ".wants", ".requires", ".upholds") and not any(folder.iterdir()):
        folder.rmdir()


def _lead(path: Path, file: Path) -> None:
    """Lets a link by which a target starts a unit lead to its file."""
    path.unlink(missing_ok=True)
    path.symlink_to(file)


def _give_back(path: Path) -> None:
    os.chown(path, 0, 0)
    path.chmod(0o644)


def _write(path: Path, content: str, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content, mode)


def main() -> None:
    module = AnsibleModule(argument_spec=arguments(DOCUMENTATION, credentials=True), supports_check_mode=True)
    os.environ["LC_ALL"] = "C"
    service = Service(module.params)
    look_arguments = without_secrets(module.params, module.argument_spec)
    # Otherwise each unit that has a file would seem not to run.
    if module.check_mode and service.before and (said := units.untold(service.unit)):
        module.exit_json(changed=True, differences=[said], drift=[said], look_arguments=look_arguments, untold=True)
    todo = service.actions()
    for each in service.own:
        module.warn(str(each))
    result = {
        "changed": bool(todo),
        "actions": list(todo),
        "differences": service.differences(todo),
        "drift": list(dict.fromkeys(map(str, service.found))),
        "look_arguments": look_arguments,
    }
    if service.before != module.params["content"]:
        header = str(service.file)
        result["diff"] = {
            "before_header": header,
            "after_header": header,
            "before": service.before,
            "after": module.params["content"],
        }
    if not module.check_mode:
        try:
            for act in todo.values():
                act()
        except (ServiceError, units.UnitError, OSError) as error:
            log = getattr(error, "log", [])
            why = service.explain(error) if isinstance(error, ServiceError) and log else str(error)
            shown = "".join(f"\n    {line}" for line in log)
            module.fail_json(
                msg=f"{service.unit} did not start: {why}{shown and ' Its last words:' + shown}",
                **result | {"log": log},
            )
    module.exit_json(**result, unit=service.unit, start_s=service.start_s)


if __name__ == "__main__":
    main()
