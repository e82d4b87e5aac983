"""Tests of the way to servers of llama.cpp's RPC, which are made up here: whether one is behind a socket, and what is said if not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.r1.prov.plugins.module_utils import rpc
from ansible_collections.r1.prov.plugins.modules import rpc_workers


@contextmanager
def behind(path: Path, does: str) -> Iterator[None]:
    """A tunnel, and what is behind it: a server that is free, one that has a client, or nobody."""
    kept = []
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(path))
        door.listen()

        def serve() -> None:
            try:
                while True:
                    client, _ = door.accept()
                    if does == "nobody":
                        client.close()
                        continue
                    kept.append(client)
                    if does == "free" and client.recv(64) == rpc.GREETING:
                        client.sendall(bytes(36))
            except OSError:
                pass

        threading.Thread(target=serve, daemon=True).start()
        yield
    for client in kept:
        client.close()


@pytest.mark.parametrize(("does", "is_there"), [("free", True), ("busy", True), ("nobody", False)])
def test_whether_a_server_is_there(tmp_path: Path, does: str, is_there: bool) -> None:
    with behind(tmp_path / "x.sock", does):
        assert rpc.is_there(str(tmp_path / "x.sock"), patience_s=0.5) is is_there
    assert not rpc.is_there(str(tmp_path / "none.sock"))


class Module:
    """What Ansible would give the module."""

    def __init__(self, workers: list[Path], wait_s: int = 0, *, check_mode: bool = False) -> None:
        told = [{"machine": path.stem, "socket": str(path), "address": None} for path in workers]
        self.params = {"workers": told, "wait_s": wait_s}
        self.check_mode = check_mode

    def exit_json(self, **result: Any) -> None:
        raise SystemExit(str(result))

    def fail_json(self, **result: Any) -> None:
        raise SystemExit(result["msg"])


def said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: Module) -> str:
    monkeypatch.setattr(rpc_workers, "AnsibleModule", lambda **_: module)
    monkeypatch.setattr(rpc_workers, "Progress", lambda step: rpc_progress(step, tmp_path))
    monkeypatch.setattr(rpc_workers, "ASK_EVERY_S", 0.05)
    with pytest.raises(SystemExit) as ended:
        rpc_workers.main()
    return str(ended.value)


rpc_progress = rpc_workers.Progress


def test_workers_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with behind(tmp_path / "gpu2.sock", "free"):
        paths = [tmp_path / "gpu2.sock", tmp_path / "gpu3.sock"]
        assert said(monkeypatch, tmp_path, Module(paths)).startswith("gpu3 cannot be reached, and")
        assert "waited_s" in said(monkeypatch, tmp_path, Module(paths[:1]))
    assert "skipped" in said(monkeypatch, tmp_path, Module(paths, check_mode=True))


def test_a_worker_that_comes_late_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begun = threading.Event()

    def later() -> None:
        begun.wait(0.5)
        with behind(tmp_path / "gpu2.sock", "free"):
            begun.wait(5)

    thread = threading.Thread(target=later)
    thread.start()
    try:
        assert "waited_s" in said(monkeypatch, tmp_path, Module([tmp_path / "gpu2.sock"], wait_s=30))
        assert "gpu2 to lend" in (tmp_path / "llama_server/progress.json").read_text()
    finally:
        begun.set()
        thread.join()
