"""Tests of archives on the controller: whole ones, parts of one, and wrong ones."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from r1prov import site
from r1prov.common.errors import SiteError
from r1prov.site import Site, archives


def packed(path: Path, name: str) -> Path:
    content = os.urandom(100_000)
    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return path


def with_ollama(folder: Path, archive: Path) -> Site:
    (folder / "r1prov.yml").write_text(f"profile: demo\nhosts: [a]\nsources: {{ollama: {{archive: {archive.name}}}}}\n")
    return site.load(folder / "r1prov.yml")


def test_a_whole_archive_is_read_once(tmp_path: Path) -> None:
    archive = packed(tmp_path / "ollama.tgz", "./bin/ollama")
    wanted = with_ollama(tmp_path, archive)
    archives.judge(wanted, tmp_path / "pins")
    (mark,) = (tmp_path / "pins").iterdir()
    assert mark.name == f"{wanted.file.sources.ollama.sha256}.whole"
    archive.write_bytes(b"")
    archives.judge(wanted, tmp_path / "pins")  # loading the site took the digest before


@pytest.mark.parametrize(
    ("name", "keep", "says"),
    [
        ("bin/ollama", 0.5, "is no archive, or only a part of one"),
        ("bin/ollama", 0.0001, "is no archive, or only a part of one"),
        ("README", 1, "holds no bin/ollama"),
    ],
)
def test_a_wrong_archive_is_said(tmp_path: Path, name: str, keep: float, says: str) -> None:
    archive = packed(tmp_path / "ollama.tgz", name)
    archive.write_bytes(archive.read_bytes()[: max(4, int(archive.stat().st_size * keep))])
    with pytest.raises(SiteError, match=says):
        archives.judge(with_ollama(tmp_path, archive), tmp_path / "pins")
    assert not (tmp_path / "pins").exists()
