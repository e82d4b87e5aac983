"""Tests of the look at the addresses on which systemd listens, with files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.r1.prov.plugins.module_utils import listening

UNIT = "[Socket]\nListenStream=127.0.0.1:8000\nListenStream=[::1]:8000\nFreeBind=yes\n"
HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
ROW = "   0: {} 00000000:0000 {} 00000000:00000000 00:00000000 00000000     0        0 {} 1 0 100 0 0 10 0\n"
SIX = "00000000000000000000000001000000:1F40"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc in which systemd has the sockets 11 and 12 open and listens on both addresses."""
    (tmp_path / "1/fd").mkdir(parents=True)
    (tmp_path / "net").mkdir()
    (tmp_path / "1/fd/3").symlink_to("socket:[11]")
    (tmp_path / "1/fd/4").symlink_to("socket:[12]")
    (tmp_path / "1/fd/5").symlink_to("/dev/null")
    (tmp_path / "net/tcp").write_text(HEAD + ROW.format("0100007F:1F40", "0A", 11))
    (tmp_path / "net/tcp6").write_text(HEAD + ROW.format(SIX, "0A", 12))
    return tmp_path


def test_systemd_listens(proc: Path) -> None:
    assert listening.closed(UNIT, proc) == []


@pytest.mark.parametrize(
    "row",
    [
        ("0100007F:1F41", "0A", 11),  # another port
        ("0200007F:1F40", "0A", 11),  # another address
        ("0100007F:1F40", "01", 11),  # a connection
        ("0100007F:1F40", "0A", 99),  # somebody else
    ],
)
def test_systemd_does_not_listen_where_the_unit_says(proc: Path, row: tuple[str, str, int]) -> None:
    (proc / "net/tcp").write_text(HEAD + ROW.format(*row))
    assert listening.closed(UNIT, proc) == ["127.0.0.1:8000"]


def test_a_host_without_ipv6(proc: Path) -> None:
    (proc / "net/tcp6").unlink()
    assert listening.closed(UNIT, proc) == ["[::1]:8000"]
    assert listening.closed("ListenStream=127.0.0.1:8000\n", proc) == []


def test_the_kernel_is_asked_once_for_many_sockets(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "_ahead", {})
    listening.look_ahead(proc)
    monkeypatch.setattr(Path, "read_text", None)
    monkeypatch.setattr(Path, "iterdir", None)
    assert listening.closed(UNIT, proc) == []
    assert listening.closed(UNIT.replace("8000", "8001"), proc) == ["127.0.0.1:8001", "[::1]:8001"]
