"""Tests of the module service_unit about a timer and a stranger on the port, and of the module unit_run, on a host that only remembers."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.r1.prov.plugins.modules import service_unit, unit_run

OPTIONS: dict[str, Any] = {
    "name": "r1prov-x",
    "content": "[Service]\n",
    "socket": "",
    "timer": "[Timer]\n",
    "state": "installed",
    "credentials_dir": "",
    "credentials": {},
    "programs": [],
    "configuration": [],
    "ports": [],
    "load_step": "",
    "load_bytes": 0,
    "process": None,
    "ready_url": "",
    "state_directory": None,
    "remedies": [],
}


class Host:
    """What systemd knows of units, and what it was told to do."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.active: set[str] = set()
        self.enabled: set[str] = set()
        self.told: list[str] = []
        self.refuses = ""
        self.sub_state, self.drop_ins, self.main_pid = "running", "", "0"
        for module in (service_unit, unit_run):
            monkeypatch.setattr(module.units, "show", self._show)
            monkeypatch.setattr(module.units, "systemctl", self._systemctl)
            monkeypatch.setattr(module.units, "reset_failed", lambda unit: self.told.append(f"reset-failed {unit}"))
            monkeypatch.setattr(module.units, "last_lines", lambda unit, _: [f"{unit} said why"])
        monkeypatch.setattr(service_unit.unit_look, "OURS", tmp_path)
        monkeypatch.setattr(service_unit.units, "REMEMBERED", tmp_path)

    def _show(self, unit: str, *keys: str) -> dict[str, str]:
        known = {
            **service_unit.units.UNKNOWN,
            "ActiveState": "active" if unit in self.active else "inactive",
            "UnitFileState": "enabled" if unit in self.enabled else "disabled",
            "SubState": self.sub_state if unit in self.active else "dead",
            "DropInPaths": self.drop_ins,
            "MainPID": self.main_pid,
        }
        return {key: known[key] for key in keys}

    def _systemctl(self, verb: str, *words: str) -> None:
        self.told.append(" ".join([verb, *words]))
        if verb == self.refuses:
            raise service_unit.units.UnitError("refused")
        names = {word for word in words if not word.startswith("-")}
        if verb == "enable":
            self.enabled |= names
        elif verb in ("start", "stop"):
            self.active = self.active | names if verb == "start" else self.active - names

    def start(self, service: service_unit.Service) -> None:
        """Starts a service, as far as the module remembers it."""
        service._remember("")
        self._systemctl("start", service.unit)

    def converge(self, **options: Any) -> list[str]:
        """Brings the unit to its state, and returns what was done."""
        self.told.clear()
        service = service_unit.Service(OPTIONS | options)
        todo = service.actions()
        for act in todo.values():
            act()
        self.differences = service.differences(todo)
        return list(todo)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_a_timer_is_written_enabled_and_started_and_its_service_is_not(host: Host, tmp_path: Path) -> None:
    assert host.converge() == [
        "wrote the unit file",
        "wrote the timer's unit file",
        "reloaded systemd",
        "enabled the timer",
        "started the timer",
    ]
    assert (tmp_path / "r1prov-x.timer").read_text() == "[Timer]\n"
    assert host.active == host.enabled == {"r1prov-x.timer"}
    assert host.converge() == []


def test_where_nobody_can_tell_how_units_are_a_look_says_why_and_nothing_else(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = OPTIONS | {"state": "started", "timer": ""}
    file = service_unit.unit_look.OURS / "r1prov-x.service"
    file.write_text(options["content"])
    host.enabled.add("r1prov-x.service")
    service_unit.Service(options)._remember("")
    answer: dict[str, Any] = {}

    class Module:
        params, argument_spec, check_mode = options, {"credentials": {}}, True

        def __init__(self, **_: Any) -> None:
            pass

        def exit_json(self, **result: Any) -> None:
            answer.update(result)
            raise SystemExit

    monkeypatch.setattr(service_unit, "AnsibleModule", Module)
    for said, told in (("it cannot be asked", ["it cannot be asked"]), ("", ["r1prov-x.service does not run"])):
        monkeypatch.setattr(service_unit.units, "untold", lambda _, said=said: said)
        answer.clear()
        with pytest.raises(SystemExit):
            service_unit.main()
        assert answer["differences"] == answer["drift"] == told
        assert answer.get("untold", False) == bool(said)
    monkeypatch.setattr(service_unit.units, "untold", lambda _: "it cannot be asked")
    file.unlink()  # There is nothing yet of which something could be told.
    with pytest.raises(SystemExit):
        service_unit.main()
    assert "wrote the unit file" in answer["actions"]


def test_a_timer_that_differs_is_started_anew(host: Host) -> None:
    host.converge()
    assert host.converge(timer="[Timer]\nOnActiveSec=1\n") == [
        "wrote the timer's unit file",
        "reloaded systemd",
        "started the timer",
    ]
    assert host.told[-1] == "start r1prov-x.timer"
    assert not any("r1prov-x.service" in each for each in host.told)


def test_a_timer_that_somebody_has_stopped_and_disabled_is_put_right(host: Host, tmp_path: Path) -> None:
    host.converge()
    host.active.clear()
    host.enabled.clear()
    assert host.converge() == ["enabled the timer", "started the timer"]
    assert host.differences == [
        "r1prov-x.service: its timer would not start with the host",
        "r1prov-x.service: its timer does not run",
    ]
    (tmp_path / "r1prov-x.started").touch()  # From the second start on r1prov knows that somebody else has done it.
    host.active.clear()
    (tmp_path / "r1prov-x.timer").unlink()
    host.converge()
    assert f"{tmp_path}/r1prov-x.timer is gone" in host.differences
    assert "r1prov-x.timer does not run" in host.differences


class _Ended(Exception):  # noqa: N818 - no error
    pass


def run(monkeypatch: pytest.MonkeyPatch, *, check: bool = False) -> dict[str, Any]:
    """What the module unit_run answers."""
    answer: dict[str, Any] = {}

    class Module:
        def __init__(self, **_: Any) -> None:
            self.params = {"name": "r1prov-x.service"}
            self.check_mode = check

        def exit_json(self, **result: Any) -> None:
            answer.update(result)

        def fail_json(self, **result: Any) -> None:
            answer.update(result, failed=True)
            raise _Ended

    monkeypatch.setattr(unit_run, "AnsibleModule", Module)
    with suppress(_Ended):
        unit_run.main()
    return answer


def test_a_unit_is_started_where_it_does_not_run(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, check=True) == {"changed": True}
    assert host.told == []
    assert run(monkeypatch) == {"changed": True}
    assert host.told == ["reset-failed r1prov-x.service", "start r1prov-x.service"]
    assert run(monkeypatch) == {"changed": False}


def test_a_unit_that_does_not_start_says_its_last_words(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.refuses = "start"
    answer = run(monkeypatch)
    assert answer["failed"]
    assert answer["msg"] == "refused. Its last words:\n    r1prov-x.service said why"
    assert answer["log"] == ["r1prov-x.service said why"]


@pytest.mark.parametrize(
    ("sub_state", "done"),
    [("exited", []), ("running", ["restarted"])],
)
def test_a_drop_in_that_systemd_has_read_goes_and_only_a_process_starts_again(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sub_state: str, done: list[str]
) -> None:
    monkeypatch.setattr(service_unit.unit_look, "FOLDERS", (tmp_path,))
    monkeypatch.setattr(service_unit.unit_look.look, "__defaults__", ((), (tmp_path,), tmp_path))
    monkeypatch.setattr(service_unit.units, "is_frozen", lambda _: False)
    monkeypatch.setattr(service_unit.Service, "_start", lambda service, verb: host.start(service))
    options = {"timer": "", "state": "started"}
    host.converge(**options)
    host.sub_state = sub_state
    drop_in = tmp_path / "r1prov-.service.d" / "x.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nUser=root\n")
    host.drop_ins = str(drop_in)
    assert host.converge(**options) == [f"removed {drop_in}", "reloaded systemd", *done]


def test_a_secret_that_a_service_is_no_longer_given_goes(host: Host, tmp_path: Path) -> None:
    folder = tmp_path / "x"
    others = tmp_path / "elsewhere"
    others.write_text("of somebody else")
    options = {"timer": "", "credentials_dir": str(folder)}
    unit = f"[Service]\nLoadCredential=api-key:{folder}/api-key\nLoadCredential=tls-key:{folder}/tls-key\nLoadCredential=own:{others}\n"
    host.converge(**options, content=unit, credentials={"api-key": "secret", "tls-key": "secret"})
    assert (folder / "tls-key").exists()
    unit = f"[Service]\nLoadCredential=api-key:{folder}/api-key\n"
    done = host.converge(**options, content=unit, credentials={"api-key": "secret"})
    assert done[:2] == [f"removed {folder}/tls-key", "wrote the unit file"]
    assert host.differences[0] == f"r1prov-x.service: {folder}/tls-key is there, and it is no longer given that"
    assert [path.name for path in folder.iterdir()] == ["api-key"]
    assert others.exists()
    assert not host.converge(**options, content=unit, credentials={"api-key": "secret"})


def test_a_service_that_a_run_has_stopped_itself_is_no_difference_when_it_is_started_again(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_unit.units, "is_frozen", lambda _: False)
    monkeypatch.setattr(service_unit.Service, "_start", lambda service, verb: host.start(service))
    options = {"timer": "", "state": "started"}
    host.converge(**options)
    service_unit.units.stop("r1prov-x.service")
    assert not service_unit.Service(OPTIONS | options).found
    assert host.converge(**options) == ["started"]
    host.active.clear()
    assert [str(each) for each in service_unit.Service(OPTIONS | options).found] == ["r1prov-x.service does not run"]


def test_a_file_that_a_run_has_just_mended_is_no_difference_of_the_process_that_reads_it(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_for: list[list[str]] = []
    monkeypatch.setattr(service_unit.units, "is_frozen", lambda _: False)
    monkeypatch.setattr(service_unit.units, "processes", lambda _: [])
    monkeypatch.setattr(service_unit.Service, "_start", lambda service, verb: host.start(service))
    monkeypatch.setattr(
        service_unit.process_look, "look", lambda *asked, **_: looked_for.append(list(asked[3].replaced)) or []
    )
    model = tmp_path / "model.gguf"
    model.write_text("damaged")
    process = {
        "argv": ["x"], "environment": {}, "sourced": False, "own_variables": "", "user": "r1prov-x", "groups": [], "network": None,
        "inputs": [str(model)],
    }  # fmt: skip
    options = {"timer": "", "state": "started", "programs": [str(model)], "process": process}
    host.converge(**options)
    host.main_pid = "7"
    assert host.converge(**options) == []
    model.unlink()
    model.write_text("mended")
    assert host.converge(**options) == ["restarted"]
    assert looked_for == [[], [str(model)]]


def test_a_process_of_no_unit_that_has_the_port_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Host(tmp_path, monkeypatch)
    stranger = {"port": 8000, "pid": 7, "process": "python3", "unit": ""}
    monkeypatch.setattr(service_unit, "probe", lambda **_: {"listeners": [stranger]})
    service = service_unit.Service(OPTIONS | {"ports": [8000], "timer": ""})
    said = service.explain(service_unit.ServiceError("it did not start"))
    assert said == "port 8000 is taken by python3 (pid 7). Stop that, or give r1prov-x another port."


def test_other_secrets_that_a_site_asks_for_are_no_drift_and_a_changed_one_is(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_unit.units, "is_frozen", lambda _: False)
    monkeypatch.setattr(service_unit.Service, "_start", lambda service, verb: host.start(service))
    folder = tmp_path / "x"

    def asking(*names: str) -> dict[str, Any]:
        unit = "[Service]\n" + "".join(f"LoadCredential={name}:{folder}/{name}\n" for name in names)
        given = dict.fromkeys(names, "secret")
        return {"timer": "", "state": "started", "credentials_dir": str(folder), "content": unit, "credentials": given}

    host.converge(**asking("api-key"))
    more = asking("tls-chain", "tls-key", "api-key")
    assert service_unit.Service(OPTIONS | more).found == []
    host.converge(**more)
    assert service_unit.Service(OPTIONS | asking("api-key")).found == []
    (folder / "tls-key").write_text("another")
    (folder / "tls-chain").unlink()
    assert [str(each) for each in service_unit.Service(OPTIONS | more).found] == [
        f"{folder}/tls-chain is gone",
        f"{folder}/tls-key has other content than r1prov gave it",
    ]


@pytest.mark.parametrize(
    ("name", "is_watched"), [("r1prov-llama-server", True), ("r1prov-ollama", True), ("r1prov-x", False)]
)
def test_a_look_says_of_an_engine_why_its_watcher_has_stopped_it(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, *, is_watched: bool
) -> None:
    monkeypatch.setattr(service_unit.liveness, "KEPT", tmp_path / "kept.json")
    (tmp_path / "kept.json").write_text('{"restarts": [], "stays_down_since": 1e9, "prompt_s": null}')
    service = service_unit.Service(OPTIONS | {"name": name, "state": "started"})
    host.start(service)
    host._systemctl("stop", service.unit)
    said = str(service_unit.Service(OPTIONS | {"name": name, "state": "started"}).found[0])
    assert said.startswith(f"{name}.service does not run")
    assert ("r1prov-liveness has stopped it" in said) == is_watched
