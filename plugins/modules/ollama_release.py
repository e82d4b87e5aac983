#!/usr/bin/python
"""Ansible module r1.prov.ollama_release: one unpacked Ollama, and the link that says which one serves."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ollama_release
short_description: Unpacks an Ollama archive into a release folder and makes it the current one
description:
  - Unpacks into C(HOME/releases/VERSION-DIGEST), where DIGEST begins the archive's sha256, which is checked first. Libraries of two
    versions are thus never mixed.
  - C(HOME/current) is switched, atomically, only when the new program has answered with the wanted version. A failure leaves it alone.
  - The current and the previous release are kept. The network is used only where the wanted release is not there.
options:
  version:
    description: The version, without C(v).
    type: str
    required: true
  archive:
    description: A URL, or a file on the host; C(.tgz) or C(.tar.zst) as releases have them.
    type: str
    required: true
  sha256:
    description: What the archive must have. Empty for a URL with C(sha256sum.txt) beside it, as releases have.
    type: str
    default: ""
  home:
    description: Holds C(releases) and C(current).
    type: path
    default: /opt/r1prov/ollama
  cache:
    description: Where the archive lies until it is unpacked. May be deleted at any time.
    type: path
    default: /var/cache/r1prov/ollama
author:
  - The r1prov team
"""

EXAMPLES = r"""
- name: Install Ollama
  r1.prov.ollama_release:
    version: 0.12.11
    archive: https://mirror.example.com/ollama-linux-amd64.tgz
    sha256: 832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
"""

RETURN = r"""
release_id:
  description: The release that is current now, or would be; empty in check mode where only sha256sum.txt would tell.
  type: str
  returned: success
previous:
  description: The release that was current before; empty where there was none.
  type: str
  returned: success
"""

import errno
import json
import os
import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url
from ansible_collections.r1.prov.plugins.module_utils import releases
from ansible_collections.r1.prov.plugins.module_utils.download import (
    DownloadError,
    download,
    sha256_of,
    without_credentials,
)
from ansible_collections.r1.prov.plugins.module_utils.files import whole_folder
from ansible_collections.r1.prov.plugins.module_utils.progress import Progress

_SUMS = "sha256sum.txt"
_TIMEOUT_S = 60


class ReleaseError(Exception):
    """The release cannot be installed; the message says why and what to do next."""


class Release:
    """One wanted release on this host."""

    def __init__(self, wanted: dict) -> None:
        self.version = wanted["version"]
        self.archive = wanted["archive"]
        self.sha256 = wanted["sha256"]
        self.home = Path(wanted["home"])
        self.cache = Path(wanted["cache"])

    @property
    def is_url(self) -> bool:
        return "://" in self.archive

    @property
    def id(self) -> str:
        """Its name; empty where the sha256 is not known yet."""
        if self.sha256:
            return f"{self.version}-{self.sha256[:12]}"
        # What came from that address before is not asked for again.
        for record in (self.home / "releases").glob("*/release.json"):
            known = json.loads(record.read_text("utf-8"))
            if (known["version"], known["archive"]) == (self.version, without_credentials(self.archive)):
                return known["id"]
        return ""

    @property
    def path(self) -> Path:
        return self.home / "releases" / self.id

    @property
    def exists(self) -> bool:
        """Whether it is there: its record is written before the folder gets its name, so this is a whole release."""
        return bool(self.id) and (self.path / "release.json").exists()

    def install(self, progress: Progress) -> None:
        """Fetches, checks, unpacks, tries. The current release is not touched."""
        if not self.sha256:
            self.sha256 = self._published_sha256()
        if self.exists:
            return
        archive = self._fetch(progress)
        progress.begin("unpacking", 0, "steps")
        with whole_folder(self.path) as folder:
            self._unpack(archive, folder)
            self._try(folder)
            record = {"id": self.id, "version": self.version, "archive": without_credentials(self.archive)}
            record["sha256"] = self.sha256
            (folder / "release.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if archive.parent == self.cache:
            archive.unlink()  # gigabytes that nobody reads again

    def _published_sha256(self) -> str:
        """What the list beside the archive says."""
        if not self.is_url:
            raise ReleaseError(f"{self.archive} is a file, and its sha256 is not known. Set ollama_archive_sha256")
        address, _, name = self.archive.rpartition("/")
        sums = f"{address}/{_SUMS}"
        try:
            text = open_url(sums, timeout=_TIMEOUT_S, http_agent="r1prov").read().decode("utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise ReleaseError(
                f"{without_credentials(sums)} cannot be read: {reason}. Set ollama_archive_sha256, or correct ollama_archive"
            ) from error
        match = re.search(rf"^([0-9a-f]{{64}}) [ *](?:\./)?{re.escape(name)}$", text, re.MULTILINE)
        if not match:
            raise ReleaseError(f"{without_credentials(sums)} does not name {name}. Set ollama_archive_sha256")
        return match[1]

    def _fetch(self, progress: Progress) -> Path:
        """The archive, verified."""
        if self.is_url:
            kept = self.cache / f"{self.sha256[:12]}-{urlsplit(self.archive).path.rpartition('/')[2]}"
            if not kept.exists() or sha256_of(kept) != self.sha256:
                kept.parent.mkdir(parents=True, exist_ok=True)
                download(self.archive, kept, [self.sha256], progress)
            return kept
        file = Path(self.archive)
        if not file.is_file():
            raise ReleaseError(f"{file} is not there, neither here nor on the controller. Correct ollama_archive")
        found = sha256_of(file)
        if found != self.sha256:
            raise ReleaseError(
                f"{file} has sha256 {found}, expected {self.sha256}: it is not whole, or another archive. "
                "Fetch it again, or correct ollama_archive_sha256"
            )
        return file

    def _unpack(self, archive: Path, target: Path) -> None:
        """GNU tar knows both forms by itself; all files become root's."""
        command = ["tar", "--extract", f"--file={archive}", f"--directory={target}", "--no-same-owner"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip().splitlines()[0]
            if "No space left" in done.stderr:
                raise OSError(errno.ENOSPC, "no space left", str(target))
            raise ReleaseError(f"{self.archive} is not a whole tar archive: {said}. Fetch it again")
        if not (target / "bin" / "ollama").is_file():
            raise ReleaseError(
                f"{self.archive} holds no bin/ollama. Correct ollama_archive: a release for linux-amd64 is wanted"
            )

    def _try(self, target: Path) -> None:
        """Asks the program what it is."""
        environment = {
            **os.environ,
            "HOME": "/nonexistent",
            "OLLAMA_HOST": "127.0.0.1:1",
        }  # no running server answers in its place
        try:
            done = subprocess.run(
                [target / "bin" / "ollama", "--version"],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=_TIMEOUT_S,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = getattr(error, "strerror", "") or "no answer"
            raise ReleaseError(
                f"the program in {self.archive} does not run here: {reason}. A release for linux-amd64 is wanted"
            ) from error
        match = re.search(r"version is (\S+)", done.stdout + done.stderr)
        if done.returncode or not match:
            said = (done.stderr or done.stdout).strip()
            raise ReleaseError(f"the program in {self.archive} does not run (status {done.returncode}): {said}")
        if match[1] != self.version:
            raise ReleaseError(f"{self.archive} holds Ollama {match[1]}, not {self.version}. Correct ollama_version")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "required": True},
            "archive": {"type": "str", "required": True},
            "sha256": {"type": "str", "default": ""},
            "home": {"type": "path", "default": "/opt/r1prov/ollama"},
            "cache": {"type": "path", "default": "/var/cache/r1prov/ollama"},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)  # the service's user must be able to read what lies here, whatever root's habits are
    release = Release(module.params)
    previous = releases.current(release.home)
    result = {"changed": not release.exists or previous != release.id, "release_id": release.id, "previous": previous}
    if result["changed"] and not module.check_mode:
        progress = Progress("ollama")
        try:
            release.install(progress)
            releases.make_current(release.home, release.id)
        except (ReleaseError, DownloadError, OSError) as error:
            progress.finish(failed=True)
            advice = ": make room" if isinstance(error, OSError) and error.errno == errno.ENOSPC else ""
            serving = f"{previous} stays current." if previous else "Nothing was installed."
            module.fail_json(
                msg=f"Ollama {release.version}: {without_credentials(str(error)).rstrip('.')}{advice}. {serving}"
            )
        progress.finish()
        result["release_id"] = release.id
    result["diff"] = releases.switch_diff(release.home, previous, result["release_id"])
    module.exit_json(**result)


if __name__ == "__main__":
    main()
