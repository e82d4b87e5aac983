"""Tests of what is removed from a host and what stays; roles/removal/molecule removes it from a real host."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.r1.prov.plugins.modules import removal

MOUNTINFO = "23 1 0:20 / / rw - overlay overlay rw\n40 23 0:31 /x /var/cache/r1prov/ccache rw - ext4 /dev/vda rw\n"


def made(root: Path, *files: str) -> None:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text("x")


def test_mount_points_are_read() -> None:
    assert removal.mounts(MOUNTINFO) == {"/", "/var/cache/r1prov/ccache"}


def test_a_folder_goes_as_a_whole_unless_something_in_it_stays(tmp_path: Path) -> None:
    made(tmp_path, "opt/a/b", "cache/ccache/x", "cache/build/y", "lib/r1prov-one", "lib/other")
    patterns = [f"{tmp_path}/{name}" for name in ("opt", "cache", "lib/r1prov-*", "none")]
    assert removal.doomed(patterns, [], {f"{tmp_path}/cache/ccache"}) == [
        f"{tmp_path}/opt",
        f"{tmp_path}/cache/build",
        f"{tmp_path}/lib/r1prov-one",
    ]
    assert removal.doomed(patterns, [f"{tmp_path}/opt"], set()) == [f"{tmp_path}/cache", f"{tmp_path}/lib/r1prov-one"]


def test_a_link_goes_and_not_what_it_points_to(tmp_path: Path) -> None:
    made(tmp_path, "theirs/file")
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    removal.remove(str(tmp_path / "link"))
    assert (tmp_path / "theirs" / "file").exists()
