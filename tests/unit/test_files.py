import os
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.r1.prov.plugins.module_utils import files as on_hosts

from r1prov.common import files as on_the_controller
from r1prov.common.errors import SiteError
from r1prov.site.state import API_KEY, SiteState

on_both_sides = pytest.mark.parametrize("write_whole", [on_the_controller.write_whole, on_hosts.write_whole])


@on_both_sides
def test_a_file_has_its_mode_whatever_the_umask(write_whole: Callable[..., object], tmp_path: Path) -> None:
    for mask, mode in ((0, 0o600), (0o077, 0o644), (0, 0o600)):
        before = os.umask(mask)
        try:
            write_whole(tmp_path / "file", "text", mode)
        finally:
            os.umask(before)
        assert (tmp_path / "file").stat().st_mode & 0o777 == mode


@on_both_sides
def test_a_file_that_cannot_be_written_stays_as_it_was_and_leaves_nothing_beside_it(
    write_whole: Callable[..., object], tmp_path: Path
) -> None:
    write_whole(tmp_path / "file", "before")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "file", "half of it \ud800")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "before"


def test_a_folder_is_given_away_but_not_what_a_link_in_its_place_leads_to(tmp_path: Path) -> None:
    me = tmp_path.owner()
    on_hosts.give(tmp_path / "folder", me)
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o755
    (tmp_path / "roots").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "roots")
    with pytest.raises(OSError, match="link"):
        on_hosts.give(tmp_path / "link", me)
    assert (tmp_path / "roots").stat().st_mode & 0o777 == 0o700


def test_nobody_looks_into_a_folder_before_it_is_whole(tmp_path: Path) -> None:
    with on_hosts.whole_folder(tmp_path / "here") as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "here").stat().st_mode & 0o777 == 0o755


def test_a_folder_appears_filled_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "made" / "here"

    def cut_off() -> None:
        with on_hosts.whole_folder(target) as folder:
            (folder / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_off()
    assert list(target.parent.iterdir()) == []
    (target.parent / ".here.new").mkdir()
    (target.parent / ".here.new" / "of one that was killed").touch()
    with on_hosts.whole_folder(target) as folder:
        (folder / "whole").touch()
        assert not target.exists()
    assert [path.relative_to(tmp_path).as_posix() for path in target.parent.rglob("*")] == [
        "made/here",
        "made/here/whole",
    ]


def test_what_is_open_in_the_folder_of_a_site_is_put_right(tmp_path: Path) -> None:
    state = SiteState.of(tmp_path / "r1prov.yml")
    for path in (
        state.keep_secret(API_KEY),
        state.known_hosts,
        state.inventory / "hosts.yml",
        state.authority / "a.crt",
    ):
        path.parent.mkdir(exist_ok=True)
        path.touch()
        path.chmod(0o666)
    for folder in (state.root, state.secrets, state.inventory):
        folder.chmod(0o777)
    SiteState.of(tmp_path / "r1prov.yml")
    found = {path: path.stat().st_mode & 0o777 for path in (state.root, *state.root.rglob("*"))}
    assert found.pop(state.authority / "a.crt") == 0o644
    assert {mode & 0o077 for mode in found.values()} == {0}
    assert state.secret(API_KEY).stat().st_mode & 0o777 == 0o600


def test_what_a_link_in_it_leads_to_is_the_operators_and_refused(tmp_path: Path) -> None:
    state = SiteState.of(tmp_path / "r1prov.yml")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("key")
    elsewhere.chmod(0o640)
    state.secret(API_KEY).symlink_to(elsewhere)
    with pytest.raises(SiteError, match="elsewhere: other users of this machine may read this file"):
        SiteState.of(tmp_path / "r1prov.yml")
    assert elsewhere.stat().st_mode & 0o777 == 0o640
    elsewhere.chmod(0o600)
    SiteState.of(tmp_path / "r1prov.yml")


def test_what_belongs_to_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = SiteState.of(tmp_path / "r1prov.yml")
    state.root.chmod(0o777)
    monkeypatch.setattr(os, "geteuid", lambda: state.root.stat().st_uid + 12345)
    with pytest.raises(SiteError, match=f"{state.root}: belongs to "):
        SiteState.of(tmp_path / "r1prov.yml")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"word"', "{}", "\0"])
def test_a_damaged_document_is_an_empty_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    assert on_hosts.read_json(tmp_path / "state.json") == {}
    assert on_hosts.read_json(tmp_path / "none.json") == {}
    assert on_hosts.read_json(tmp_path) == {}


def test_a_file_is_told_from_another_one_of_its_name(tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    assert on_hosts.looks(path) is None
    for each in (path, other):
        each.write_bytes(b"12345678")
        os.utime(each, (1, 1))
    before = on_hosts.looks(path)
    with path.open("r+b") as stream:
        assert on_hosts.has_name(os.fstat(stream.fileno()), path)
        other.replace(path)
        assert not on_hosts.has_name(os.fstat(stream.fileno()), path)
    assert on_hosts.looks(path) != before


def test_bytes_are_written_though_the_kernel_takes_few_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, pwrite = tmp_path / "a", os.pwrite
    path.write_bytes(bytes(8))
    monkeypatch.setattr(os, "pwrite", lambda file, content, place: pwrite(file, content[:2], place))
    with path.open("r+b") as stream:
        on_hosts.write_at(stream.fileno(), b"12345", 2)
    assert path.read_bytes() == b"\0\0" + b"12345" + b"\0"
