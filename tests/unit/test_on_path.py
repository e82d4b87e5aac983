"""The programs of a release on the path: links that follow it, and nobody else's file is touched."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ansible_collections.r1.prov.plugins.module_utils.on_path import OnPath, links_into

if TYPE_CHECKING:
    from pathlib import Path


def test_links_follow_the_current_release(tmp_path: Path) -> None:
    home, folder = _release(tmp_path, "a", "llama-cli", "llama-bench"), tmp_path / "bin"
    first = _on_path(home, folder)
    assert first.differs
    first.put_right()
    assert (folder / "llama-cli").read_text() == "a"

    _release(tmp_path, "b", "llama-cli")
    second = _on_path(home, folder)
    assert (second.missing, second.left_over) == ({}, [folder / "llama-bench"])
    second.put_right()
    assert (folder / "llama-cli").read_text() == "b"
    assert not (folder / "llama-bench").is_symlink()
    assert not _on_path(home, folder).differs


def test_what_others_have_put_there_stays(tmp_path: Path) -> None:
    home, folder = _release(tmp_path, "a", "llama-cli", "llama-bench", "llama-server"), tmp_path / "bin"
    folder.mkdir()
    (folder / "llama-cli").write_text("own")
    (folder / "llama-bench").symlink_to("/nowhere/llama-bench")
    links = _on_path(home, folder)
    assert links.taken == [folder / "llama-bench", folder / "llama-cli"]
    links.put_right()
    assert (folder / "llama-cli").read_text() == "own"
    assert links_into(home, folder) == {folder / "llama-server": home / "current/bin/llama-server"}


def test_a_link_that_leads_elsewhere_below_the_home_is_put_right(tmp_path: Path) -> None:
    home, folder = _release(tmp_path, "a", "llama-cli"), tmp_path / "bin"
    folder.mkdir()
    (folder / "llama-cli").symlink_to(home / "releases/old/bin/llama-cli")
    _on_path(home, folder).put_right()
    assert (folder / "llama-cli").read_text() == "a"


def _release(tmp_path: Path, name: str, *programs: str) -> Path:
    home = tmp_path / "opt"
    binaries = home / "releases" / name / "bin"
    binaries.mkdir(parents=True)
    for program in programs:
        (binaries / program).write_text(name)
    (home / "current").unlink(missing_ok=True)
    (home / "current").symlink_to(f"releases/{name}")
    return home


def _on_path(home: Path, folder: Path) -> OnPath:
    release = (home / "current").resolve()
    return OnPath(home, [path.relative_to(release) for path in sorted(release.glob("bin/llama-*"))], folder)
