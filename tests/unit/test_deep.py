"""Tests of `r1prov drift --deep`: what reading all files adds to a look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from r1prov.decision import decide
from r1prov.hosts import Login, Look
from r1prov.hosts.looking import Difference
from r1prov.runs import drift
from r1prov.runs.events import Event, Finished, HostFailed, HostUnreachable, Recap, Tally, TaskDone
from r1prov.runs.report import HostReport, Recorder, RunReport
from r1prov.runs.run import Done, Prepared, Request
from r1prov.site.select import select
from r1prov.site.state import SiteState

RELEASE = "/opt/r1prov/open-webui/releases/1 is not as it was installed: lib/a.py has other bytes"
DAMAGED = {"path": "/srv/r1prov/models/R1/R1.gguf", "why": "its sha256 is 1, not 2"}
WHOLE = {"path": "/srv/r1prov/models/R1/R1-00001.gguf", "why": ""}
SAID = "/srv/r1prov/models/R1/R1.gguf is damaged: its sha256 is 1, not 2"


class Quiet:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def note(self, host: str, text: str) -> None: ...

    def progress(self, progress: Any) -> None: ...

    def event(self, event: Event) -> None:
        self.events.append(event)


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Reads gpu1, which is settled, and gpu2, which is not, in a run in which these events happen."""
    (tmp_path / "r1prov.yml").write_text("profile: demo\nhosts: [gpu1, gpu2]\n")
    site, hosts = select(tmp_path / "r1prov.yml", ())
    SiteState.of(site.path).keep_settled("gpu1", site)
    decision = decide(site, lambda _: None)
    monkeypatch.setattr(drift, "prepare", lambda decision, hosts, *_: Prepared(decision, hosts, ()))

    def run(*events: Event) -> tuple[dict[str, Look], list[Event]]:
        def play(prepared: Prepared, _: Any, __: Any, watcher: Any) -> Done:
            assert [host.name for host in prepared.targets] == ["gpu1"]
            recorder = Recorder(RunReport("read", "s", "demo", "q", "", {"gpu1": HostReport()}))
            for event in events:
                recorder.event(event, 0.0)
                watcher.event(event)
            return Done(decision, recorder.report, recorder.error())

        monkeypatch.setattr(drift, "play", play)
        watcher = Quiet()
        found = drift.read(decision, hosts, Login(), Request("read", ""), watcher)
        return found, watcher.events

    return run


def ended(*, failed: int = 0, unreachable: int = 0) -> tuple[Event, ...]:
    return Recap({"gpu1": Tally(1, 0, failed, unreachable, 0)}), Finished(bool(failed or unreachable), Path())


def test_what_is_damaged_is_named_and_nothing_is_unknown_then(read: Any) -> None:
    released = TaskDone("gpu1", "open_webui", "Read the page", False, {"differences": [RELEASE]})
    weights = HostFailed("gpu1", "weights", "Read all files", {"msg": "x", "verified": {"files": [WHOLE, DAMAGED]}})
    found, events = read(released, weights, *ended(failed=1))
    assert found["gpu1"].differences == (
        Difference("open_webui", "Read the page", RELEASE),
        Difference("weights", "Read all files", SAID),
    )
    assert not found["gpu1"].unknown
    assert "no run of `up`" in found["gpu2"].unknown
    assert events[0] is released


def test_a_host_on_which_all_is_whole(read: Any) -> None:
    done = TaskDone("gpu1", "weights", "Read all files", False, {"verified": {"files": [WHOLE], "seconds": 1.0}})
    assert read(done, *ended())[0]["gpu1"].clean


@pytest.mark.parametrize(
    ("end", "why"),
    [
        ((HostFailed("gpu1", "weights", "Read", {"msg": "the weights are still being transferred"}),), "transferred"),
        ((HostUnreachable("gpu1", "weights", "ssh: timed out"),), "the connection is lost"),
        ((), "did not come to its end"),
    ],
)
def test_what_was_not_read_is_unknown(read: Any, end: tuple[Event, ...], why: str) -> None:
    found = read(*end, *(ended(failed=1) if end else ()))[0]["gpu1"]
    assert why in found.unknown
    assert not found.clean


def test_a_look_and_the_reading_say_each_thing_once() -> None:
    release, mode = (
        Difference("open_webui", "Install", RELEASE),
        Difference("service", "Make it", "/x has the mode 0777"),
    )
    look = Look(60, 1.5, differences=(mode, release), stays=("yours",))
    told = Look(0, 40.25, differences=(Difference("open_webui", "Read", RELEASE), Difference("weights", "Read", SAID)))
    both = drift.both(look, told)
    assert [each.what for each in both.differences] == [mode.what, RELEASE, SAID]
    assert (both.asked, both.seconds, both.stays, both.unknown) == (60, 41.8, ("yours",), "")
    assert drift.both(Look(60, 1.5), Look(0, 0.0, unknown="it is away")).unknown == "it is away"
